//! The SHA-256 of a file and the perceptual hash of an image.

use std::f64::consts::PI;

use sha2::{Digest, Sha256};

use crate::error::ImageError;
use crate::resample::{Filter, resize};
use crate::rgb::Rgb;

/// SHA-256 as 64 lower-case hex digits.
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// Side of the resized image.
const SIDE: usize = 32;
/// Side of the block of low frequencies.
const LOW: usize = 8;

/// The perceptual hash of an image: resized to 32 x 32 (bicubic, aspect ignored), luma by Rec. 601,
/// DCT-II in both directions, the 8 x 8 lowest frequencies (including the constant term). A bit is
/// set if its coefficient is above the median of the 64. Bit 63 is the constant term, then row by
/// row. Similar images differ in few bits. The algorithm is that of the Python package ImageHash,
/// except for its Lanczos filter.
///
/// # Errors
/// `resize_failed`, which does not occur for an [`Rgb`].
pub fn phash(rgb: &Rgb) -> Result<i64, ImageError> {
    let small = resize(rgb, SIDE as u32, SIDE as u32, Filter::Bicubic)?;
    let luma: Vec<f64> = small
        .pixels()
        .chunks_exact(3)
        // 16-bit fixed point, as in Pillow's conversion to "L".
        .map(|p| {
            f64::from(
                (19595 * u32::from(p[0]) + 38470 * u32::from(p[1]) + 7471 * u32::from(p[2]) + 0x8000) >> 16,
            )
        })
        .collect();
    let low = low_frequencies(&luma);
    let mut sorted = low;
    sorted.sort_unstable_by(f64::total_cmp);
    let median = (sorted[31] + sorted[32]) / 2.0;
    let bits = low.iter().fold(0_u64, |bits, value| bits << 1 | u64::from(*value > median));
    Ok(bits.cast_signed())
}

/// The `[8, 8]` lowest coefficients of the unnormalised DCT-II of a `[32, 32]` image:
/// `X[u, v] = sum over y, x of f[y, x] cos(pi (2y + 1) u / 64) cos(pi (2x + 1) v / 64)`.
fn low_frequencies(luma: &[f64]) -> [f64; LOW * LOW] {
    let cosines: [[f64; SIDE]; LOW] = std::array::from_fn(|frequency| {
        std::array::from_fn(|at| (PI * (2 * at + 1) as f64 * frequency as f64 / (2 * SIDE) as f64).cos())
    });
    let mut rows = [0.0; SIDE * LOW];
    for (y, row) in luma.chunks_exact(SIDE).enumerate() {
        for v in 0..LOW {
            rows[y * LOW + v] = row.iter().zip(&cosines[v]).map(|(value, cosine)| value * cosine).sum();
        }
    }
    let mut low = [0.0; LOW * LOW];
    for u in 0..LOW {
        for v in 0..LOW {
            let sum: f64 = (0..SIDE).map(|y| rows[y * LOW + v] * cosines[u][y]).sum();
            // Rounding noise is set to 0, or the bits of flat images would be random.
            low[u * LOW + v] = if sum.abs() < 1e-6 { 0.0 } else { sum };
        }
    }
    low
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sha256_of_the_standard_example() {
        // FIPS 180-2, appendix B.1.
        assert_eq!(sha256_hex(b"abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }

    fn painted(width: u32, height: u32, paint: impl Fn(f64, f64) -> f64) -> Rgb {
        let at = |i: u32, n: u32| (f64::from(i) + 0.5) / f64::from(n);
        let pixels = (0..height)
            .flat_map(|y| (0..width).map(move |x| (x, y)))
            .flat_map(|(x, y)| [(paint(at(x, width), at(y, height)) * 255.0) as u8; 3])
            .collect();
        Rgb::new(width, height, pixels).unwrap()
    }

    #[test]
    fn phash_survives_rescaling_and_distinguishes_images() {
        let disc = |x: f64, y: f64| f64::from(u8::from((x - 0.4).powi(2) + (y - 0.6).powi(2) < 0.07));
        let stripes = |x: f64, y: f64| (x * 20.0 + y * 7.0).sin() * 0.5 + 0.5;
        let distance = |a: &Rgb, b: &Rgb| (phash(a).unwrap() ^ phash(b).unwrap()).count_ones();
        let large = painted(200, 160, disc);
        assert!(distance(&large, &painted(90, 110, disc)) <= 6);
        assert!(distance(&large, &painted(200, 160, stripes)) >= 16);
    }

    #[test]
    fn phash_of_a_flat_image_is_its_constant_term() {
        assert_eq!(phash(&painted(50, 40, |_, _| 0.5)).unwrap(), i64::MIN);
        assert_eq!(phash(&painted(50, 40, |_, _| 0.0)).unwrap(), 0);
    }
}
