//! Pillow's bicubic resizing: a fast and a reference implementation.
//!
//! The filter is Keys' cubic kernel with a = -0.5, stretched by the scale when shrinking
//! (antialiasing), first along rows, then along columns, with rounding to 8 bits between. CLIP's
//! published weights were trained and are evaluated with exactly this filter; others cost accuracy.

use fast_image_resize::images::{TypedImage, TypedImageRef};
use fast_image_resize::pixels::U8x3;
use fast_image_resize::{FilterType, ResizeAlg, ResizeOptions, Resizer};

use crate::error::ImageError;
use crate::rgb::Rgb;

/// Resizes to exactly `width` x `height` (SIMD). Its weights are coarser than those of
/// [`resize_bicubic_reference`]: most values are equal, none differs by more than 2.
///
/// # Errors
/// `resize_failed` if a side is zero.
pub fn resize_bicubic(rgb: &Rgb, width: u32, height: u32) -> Result<Rgb, ImageError> {
    check_target(width, height)?;
    if (width, height) == (rgb.width(), rgb.height()) {
        return Ok(rgb.clone());
    }
    // One call for both axes would resize vertically first, with differences of up to 6.
    let rows = one_axis(rgb.pixels(), (rgb.width(), rgb.height()), (width, rgb.height()))?;
    let pixels = match rows {
        Some(rows) => one_axis(&rows, (width, rgb.height()), (width, height))?.unwrap_or(rows),
        None => one_axis(rgb.pixels(), (width, rgb.height()), (width, height))?.unwrap_or_default(),
    };
    Rgb::new(width, height, pixels)
}

/// Resizes along the axis in which the sizes differ; `None` if they are equal.
fn one_axis(pixels: &[u8], from: (u32, u32), to: (u32, u32)) -> Result<Option<Vec<u8>>, ImageError> {
    if from == to {
        return Ok(None);
    }
    let failed = |error: &dyn std::fmt::Display| ImageError::ResizeFailed(error.to_string());
    let source =
        TypedImageRef::<U8x3>::from_buffer(from.0, from.1, pixels).map_err(|error| failed(&error))?;
    let mut bytes = vec![0; to.0 as usize * to.1 as usize * 3];
    let mut target =
        TypedImage::<U8x3>::from_buffer(to.0, to.1, &mut bytes).map_err(|error| failed(&error))?;
    let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::CatmullRom));
    // The untyped call would compile all pixel types, which takes longer than the rest of this
    // crate.
    Resizer::new().resize_typed(&source, &mut target, &options).map_err(|error| failed(&error))?;
    Ok(Some(bytes))
}

fn check_target(width: u32, height: u32) -> Result<(), ImageError> {
    if width == 0 || height == 0 {
        return Err(ImageError::ResizeFailed(format!("{width} x {height} is empty")));
    }
    Ok(())
}

/// The reference implementation of [`resize_bicubic`]: equal to Pillow's `Image.resize(size,
/// BICUBIC)` in every value.
///
/// # Errors
/// `resize_failed` if a side is zero.
pub fn resize_bicubic_reference(rgb: &Rgb, width: u32, height: u32) -> Result<Rgb, ImageError> {
    check_target(width, height)?;
    let (from_width, from_height) = (rgb.width() as usize, rgb.height() as usize);
    let (to_width, to_height) = (width as usize, height as usize);
    let source = rgb.pixels();
    let rows = if to_width == from_width {
        source.to_vec()
    } else {
        let taps = taps(from_width, to_width);
        let mut rows = Vec::with_capacity(to_width * from_height * 3);
        for row in source.chunks_exact(from_width * 3) {
            for tap in &taps {
                rows.extend((0..3).map(|channel| tap.apply(|x| row[x * 3 + channel])));
            }
        }
        rows
    };
    let pixels = if to_height == from_height {
        rows
    } else {
        let stride = to_width * 3;
        taps(from_height, to_height)
            .iter()
            .flat_map(|tap| (0..stride).map(|column| tap.apply(|y| rows[y * stride + column])))
            .collect()
    };
    Rgb::new(width, height, pixels)
}

/// Fraction bits of a weight: an `i32` less 8 bits for the value and 2 for overshoot.
const FRACTION_BITS: u32 = 22;

/// The fixed-point weights of one output value, for consecutive input values from `start`.
struct Tap {
    start: usize,
    weights: Vec<i32>,
}

impl Tap {
    /// The weighted sum, rounded and clamped to 0..=255.
    fn apply(&self, value: impl Fn(usize) -> u8) -> u8 {
        let half = 1_i32 << (FRACTION_BITS - 1);
        let terms = self.weights.iter().enumerate();
        let sum = terms.fold(half, |sum, (i, weight)| sum + weight * i32::from(value(self.start + i)));
        (sum >> FRACTION_BITS).clamp(0, 255) as u8
    }
}

/// The taps of each of `to` output values over `from` input values.
fn taps(from: usize, to: usize) -> Vec<Tap> {
    let scale = from as f64 / to as f64;
    let stretch = scale.max(1.0);
    let support = 2.0 * stretch;
    (0..to)
        .map(|i| {
            let centre = (i as f64 + 0.5) * scale;
            // Truncates toward zero like a C cast; negative values were clamped.
            let start = (centre - support + 0.5).max(0.0) as usize;
            let end = ((centre + support + 0.5) as usize).min(from);
            let weights: Vec<f64> =
                (start..end).map(|x| cubic((x as f64 - centre + 0.5) * (1.0 / stretch))).collect();
            let total: f64 = weights.iter().sum();
            let fixed = |weight: f64| (weight / total * f64::from(1 << FRACTION_BITS)).round() as i32;
            Tap { start, weights: weights.into_iter().map(fixed).collect() }
        })
        .collect()
}

/// Keys' cubic convolution kernel with a = -0.5 (R. Keys, 1981, equation 15).
fn cubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}
