//! YUV to RGB by the arithmetic of libyuv, whose fractions have six bits.

use super::planes::Planes;
use crate::header::avif::Layout;

/// The coefficients of a matrix and a range, times 64 (`YuvConstants` of libyuv).
#[derive(Debug, PartialEq)]
pub(super) struct Coefficients {
    /// Of brightness, times 64 * 65536 / 257 in all.
    luma: u32,
    /// What black is, and a half to round.
    bias: i32,
    blue: i32,
    green: [i32; 2],
    red: i32,
}

const fn coefficients_of(luma: u32, bias: i32, blue: i32, green: [i32; 2], red: i32) -> Coefficients {
    Coefficients { luma, bias, blue, green, red }
}

const LIMITED_601: Coefficients = coefficients_of(18997, -1160, 128, [25, 52], 102);
const FULL_601: Coefficients = coefficients_of(16320, 32, 113, [22, 46], 90);
const LIMITED_709: Coefficients = coefficients_of(18997, -1160, 128, [14, 34], 115);
const FULL_709: Coefficients = coefficients_of(16320, 32, 119, [12, 30], 101);
const LIMITED_2020: Coefficients = coefficients_of(19003, -1160, 128, [12, 42], 107);
const FULL_2020: Coefficients = coefficients_of(16320, 32, 120, [11, 37], 94);

/// The coefficients that libyuv has for a matrix (ITU-T H.273). One that is not specified is
/// BT.601's.
pub(super) fn coefficients(matrix: u32, full_range: bool) -> Option<&'static Coefficients> {
    Some(match (matrix, full_range) {
        (1, false) => &LIMITED_709,
        (1, true) => &FULL_709,
        (2 | 5 | 6, false) => &LIMITED_601,
        (2 | 5 | 6, true) => &FULL_601,
        (9, false) => &LIMITED_2020,
        (9, true) => &FULL_2020,
        _ => return None,
    })
}

/// How libavif brings the values of some planes to eight bits.
struct Depth {
    /// By how much colour is shifted before its planes are enlarged, and the values of alpha.
    before: u32,
    /// By how much the values that are enlarged are shifted then.
    after: u32,
    /// Whether colour is not interpolated but repeated.
    repeats: bool,
    /// Whether alpha is rounded and not cut.
    rounds_alpha: bool,
}

impl Depth {
    fn new(planes: &Planes, has_alpha: bool) -> Self {
        let extra = planes.depth - 8;
        let cut = Self { before: extra, after: 0, repeats: false, rounds_alpha: false };
        match (planes.depth, planes.layout) {
            _ if !has_alpha => cut,
            (_, Layout::Grey) => Self { rounds_alpha: true, ..cut },
            (10, _) => Self { before: 0, after: extra, ..cut },
            (12, Layout::Yuv420) => Self { before: 0, after: extra, repeats: true, rounds_alpha: true },
            _ => cut,
        }
    }
}

/// Converts planes to RGB, or to RGBA with the values of `alpha`.
pub(super) fn to_rgb<const CHANNELS: usize>(planes: &Planes, alpha: &[u16], by: &Coefficients) -> Vec<u8> {
    let depth = Depth::new(planes, CHANNELS == 4);
    let width = planes.width as usize;
    let mut pixels = vec![0; width * planes.height as usize * CHANNELS];
    // Grey has the colour in the middle.
    let mut blue = vec![128_u16 << depth.after; width];
    let mut red = blue.clone();
    for (y, row) in pixels.chunks_exact_mut((width * CHANNELS).max(1)).enumerate() {
        if planes.layout != Layout::Grey {
            enlarge(planes, &planes.u, y, &depth, &mut blue);
            enlarge(planes, &planes.v, y, &depth, &mut red);
        }
        let luma = &planes.y[y * width..][..width];
        let bits = 8 + depth.after;
        for (((pixel, y), u), v) in row.chunks_exact_mut(CHANNELS).zip(luma).zip(&blue).zip(&red) {
            let y = u32::from(y >> depth.before);
            // Repeats the leading bits up to sixteen.
            let y = if bits == 8 { y * 257 } else { y << (16 - bits) | y >> (2 * bits - 16) };
            let y = ((y * by.luma) >> 16) as i32 + by.bias;
            let (u, v) = (i32::from(u >> depth.after) - 128, i32::from(v >> depth.after) - 128);
            let rgb = [y + v * by.red, y - u * by.green[0] - v * by.green[1], y + u * by.blue];
            for (channel, value) in pixel.iter_mut().zip(rgb) {
                *channel = (value >> 6).clamp(0, 255) as u8;
            }
        }
        if CHANNELS == 4 {
            let alpha = &alpha[y * width..][..width];
            for (pixel, alpha) in row.chunks_exact_mut(4).zip(alpha) {
                pixel[3] = if depth.rounds_alpha {
                    super::float::rounded(*alpha, planes.depth)
                } else {
                    (alpha >> (planes.depth - 8)) as u8
                };
            }
        }
    }
    pixels
}

/// Fills a row of colour of the width of the image: between the values of the plane, of which each
/// lies in the middle of its two or four pixels, it is interpolated.
fn enlarge(planes: &Planes, plane: &[u16], y: usize, depth: &Depth, row: &mut [u16]) {
    let (across, down) = planes.layout.shifts();
    let stride = planes.colour_width();
    let line = |y: usize| &plane[y * stride..][..stride];
    let near = line(y >> down);
    let cut = |value: u16| u32::from(value >> depth.before);
    if across == 0 || depth.repeats {
        for (x, value) in row.iter_mut().enumerate() {
            *value = near[x >> across] >> depth.before;
        }
        return;
    }
    let last = planes.height as usize - 1;
    let is_edge = down == 0 || y == 0 || (y == last && y % 2 == 1);
    let width = row.len();
    if is_edge {
        let at = |x: usize, other: usize| (3 * cut(near[x]) + cut(near[other]) + 2) >> 2;
        for (x, value) in row.iter_mut().enumerate() {
            *value = at(x / 2, neighbour(x, width)) as u16;
        }
        return;
    }
    let far = line(if y % 2 == 1 { y / 2 + 1 } else { y / 2 - 1 });
    let sum = |x: usize| 3 * cut(near[x]) + cut(far[x]);
    for (x, value) in row.iter_mut().enumerate() {
        *value = ((3 * sum(x / 2) + sum(neighbour(x, width)) + 8) >> 4) as u16;
    }
}

/// The second nearest value of a row of colour; for the first and the last pixel the nearest.
fn neighbour(x: usize, width: usize) -> usize {
    if x == 0 || x == width - 1 {
        x / 2
    } else if x % 2 == 1 {
        x / 2 + 1
    } else {
        x / 2 - 1
    }
}

/// Divides colours by alpha as libyuv's vectors do (`ARGBUnattenuateRow_AVX2`).
pub(super) fn divide_alpha(pixels: &mut [u8]) {
    for pixel in pixels.chunks_exact_mut(4) {
        let factor = match pixel[3] {
            0 => 0,
            1 => 0xffff,
            255 => 0x100,
            alpha => 0x1_0000 / u32::from(alpha),
        };
        for channel in &mut pixel[..3] {
            let value = (u32::from(*channel) * 257 * factor) >> 16;
            // Values of sixteen bits that are taken for negative ones.
            *channel = if value > 0x7fff { 0 } else { value.min(255) as u8 };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pixels_at_the_edges_have_the_nearest_colour() {
        let of = |width| (0..width).map(|x| neighbour(x, width)).collect::<Vec<_>>();
        assert_eq!(of(1), [0]);
        assert_eq!(of(2), [0, 0]);
        assert_eq!(of(5), [0, 1, 0, 2, 2]);
        assert_eq!(of(6), [0, 1, 0, 2, 1, 2]);
    }

    #[test]
    fn colours_are_divided_by_alpha_and_opaque_ones_are_unchanged() {
        let mut pixels = [[10, 20, 30, 255], [10, 20, 30, 0], [10, 20, 60, 128], [100, 10, 1, 50]].concat();
        divide_alpha(&mut pixels);
        assert_eq!(pixels, [[10, 20, 30, 255], [0, 0, 0, 0], [20, 40, 120, 128], [255, 51, 5, 50]].concat());
    }
}
