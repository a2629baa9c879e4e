//! Pillow's resizing, equal in every value.
//!
//! A filter is stretched by the scale when shrinking (antialiasing) and applied first along rows,
//! then along columns, or the other way round where Pillow does, with rounding to 8 bits between.
//! Weights are fixed-point numbers. CLIP's published weights were trained and are evaluated with
//! exactly this resizing; others cost accuracy.

#[cfg(target_arch = "x86_64")]
mod x86;

use crate::error::ImageError;
use crate::rgb::Rgb;

/// Pillow's filters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Filter {
    /// The mean of the pixels that are covered.
    Box,
    /// Linear interpolation.
    Bilinear,
    /// Keys' cubic convolution with a = -0.5 (R. Keys, 1981, equation 15).
    Bicubic,
    /// A windowed sinc of three lobes.
    Lanczos,
}

impl Filter {
    /// The name in words.
    pub fn name(self) -> &'static str {
        match self {
            Self::Box => "box",
            Self::Bilinear => "bilinear",
            Self::Bicubic => "bicubic",
            Self::Lanczos => "lanczos",
        }
    }

    /// Half the width, in pixels of the target.
    fn support(self) -> f64 {
        match self {
            Self::Box => 0.5,
            Self::Bilinear => 1.0,
            Self::Bicubic => 2.0,
            Self::Lanczos => 3.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        const A: f64 = -0.5;
        let distance = x.abs();
        match self {
            Self::Box => f64::from(u8::from(x > -0.5 && x <= 0.5)),
            Self::Bilinear => (1.0 - distance).max(0.0),
            Self::Bicubic if distance < 1.0 => ((A + 2.0) * distance - (A + 3.0)) * distance * distance + 1.0,
            Self::Bicubic if distance < 2.0 => (((distance - 5.0) * distance + 8.0) * distance - 4.0) * A,
            Self::Lanczos if (-3.0..3.0).contains(&x) => sinc(x) * sinc(x / 3.0),
            Self::Bicubic | Self::Lanczos => 0.0,
        }
    }
}

fn sinc(x: f64) -> f64 {
    let angle = x * std::f64::consts::PI;
    if x == 0.0 { 1.0 } else { angle.sin() / angle }
}

/// Resizes to exactly `width` x `height`: equal to Pillow's `Image.resize` in every value.
///
/// # Errors
/// `resize_failed` if a side is zero.
pub fn resize(rgb: &Rgb, width: u32, height: u32, filter: Filter) -> Result<Rgb, ImageError> {
    resize_by(rgb, (width, height), filter, [along_rows, along_columns])
}

/// The reference implementation of [`resize`]: the same values without vector instructions.
///
/// # Errors
/// `resize_failed` if a side is zero.
pub fn resize_reference(rgb: &Rgb, width: u32, height: u32, filter: Filter) -> Result<Rgb, ImageError> {
    resize_by(rgb, (width, height), filter, [along_rows_reference, along_columns_reference])
}

/// Resizes along one axis: the rows, their length in bytes, the taps.
type Along = fn(&[u8], usize, &Taps) -> Vec<u8>;

fn resize_by(
    rgb: &Rgb,
    (width, height): (u32, u32),
    filter: Filter,
    [along_rows, along_columns]: [Along; 2],
) -> Result<Rgb, ImageError> {
    if width == 0 || height == 0 {
        return Err(ImageError::ResizeFailed(format!("{width} x {height} is empty")));
    }
    let taps = |from: u32, to: u32| Taps::new(from as usize, to as usize, filter);
    let along_rows = |pixels: &[u8]| {
        (width != rgb.width())
            .then(|| along_rows(pixels, rgb.width() as usize * 3, &taps(rgb.width(), width)))
    };
    let along_columns = |pixels: &[u8], width: u32| {
        (height != rgb.height())
            .then(|| along_columns(pixels, width as usize * 3, &taps(rgb.height(), height)))
    };
    let (first, second) = if columns_come_first(rgb, width, height) {
        let columns = along_columns(rgb.pixels(), rgb.width());
        let rows = along_rows(columns.as_deref().unwrap_or(rgb.pixels()));
        (columns, rows)
    } else {
        let rows = along_rows(rgb.pixels());
        let columns = along_columns(rows.as_deref().unwrap_or(rgb.pixels()), width);
        (rows, columns)
    };
    match second.or(first) {
        Some(pixels) => Rgb::new(width, height, pixels),
        None => Ok(rgb.clone()),
    }
}

/// Whether columns are resized before rows: from version 13 on, Pillow does this where the height
/// shrinks by more than twice as many pixels as the width. Rounding between makes a difference.
fn columns_come_first(rgb: &Rgb, width: u32, height: u32) -> bool {
    let narrower = i64::from(rgb.width()) - i64::from(width);
    let lower = i64::from(rgb.height()) - i64::from(height);
    lower > 0 && lower > 2 * narrower
}

/// Fraction bits of a weight: an `i32` less 8 bits for the value and 2 for overshoot.
const FRACTION_BITS: u32 = 22;
const HALF: i32 = 1 << (FRACTION_BITS - 1);

/// The fixed-point weights of all output values.
struct Taps {
    /// The first input value of each.
    starts: Vec<usize>,
    /// Weights per output value; those beyond its last are zero.
    count: usize,
    /// `count` weights for each output value.
    weights: Vec<i32>,
}

impl Taps {
    /// The taps of `to` output values over `from` input values.
    fn new(from: usize, to: usize, filter: Filter) -> Self {
        let scale = from as f64 / to as f64;
        let stretch = scale.max(1.0);
        let support = filter.support() * stretch;
        let centre = |i: usize| (i as f64 + 0.5) * scale;
        // Truncates toward zero like a C cast; negative values were clamped.
        let start = |i| (centre(i) - support + 0.5).max(0.0) as usize;
        let end = |i| ((centre(i) + support + 0.5) as usize).min(from);
        let count = (0..to).map(|i| end(i) - start(i)).max().unwrap_or(1).next_multiple_of(4);
        let (mut starts, mut weights) = (Vec::with_capacity(to), vec![0; to * count]);
        for (i, place) in weights.chunks_exact_mut(count).enumerate() {
            let (centre, start, end) = (centre(i), start(i), end(i));
            let weigh = |x: usize| filter.weight((x as f64 - centre + 0.5) * (1.0 / stretch));
            let total: f64 = (start..end).map(weigh).sum();
            let total = if total == 0.0 { 1.0 } else { total };
            for (weight, x) in place.iter_mut().zip(start..end) {
                *weight = (weigh(x) / total * f64::from(1 << FRACTION_BITS)).round() as i32;
            }
            starts.push(start);
        }
        Self { starts, count, weights }
    }

    /// The first input value and the weights of each output value.
    fn iter(&self) -> impl Iterator<Item = (usize, &[i32])> {
        self.starts.iter().copied().zip(self.weights.chunks_exact(self.count))
    }
}

/// Rounds a weighted sum to 0..=255.
fn round(sum: i32) -> u8 {
    (sum >> FRACTION_BITS).clamp(0, 255) as u8
}

/// Resizes rows of `stride` bytes.
fn along_rows(source: &[u8], stride: usize, taps: &Taps) -> Vec<u8> {
    #[cfg(target_arch = "x86_64")]
    if let Some(simd) = pulp::x86::V3::try_new() {
        return x86::along_rows(simd, source, stride, taps);
    }
    along_rows_reference(source, stride, taps)
}

fn along_rows_reference(source: &[u8], stride: usize, taps: &Taps) -> Vec<u8> {
    let mut pixels = Vec::with_capacity(source.len() / stride * taps.starts.len() * 3);
    for row in source.chunks_exact(stride) {
        for (start, weights) in taps.iter() {
            let mut sums = [HALF; 3];
            for (pixel, weight) in row[start * 3..].chunks_exact(3).zip(weights) {
                for (sum, value) in sums.iter_mut().zip(pixel) {
                    *sum = sum.wrapping_add(weight * i32::from(*value));
                }
            }
            pixels.extend(sums.map(round));
        }
    }
    pixels
}

/// Resizes columns of rows of `stride` bytes.
fn along_columns(source: &[u8], stride: usize, taps: &Taps) -> Vec<u8> {
    #[cfg(target_arch = "x86_64")]
    if let Some(simd) = pulp::x86::V3::try_new().filter(|_| stride >= x86::COLUMNS) {
        return x86::along_columns(simd, source, stride, taps);
    }
    along_columns_reference(source, stride, taps)
}

fn along_columns_reference(source: &[u8], stride: usize, taps: &Taps) -> Vec<u8> {
    let mut pixels = Vec::with_capacity(taps.starts.len() * stride);
    let mut sums = vec![HALF; stride];
    for (start, weights) in taps.iter() {
        sums.fill(HALF);
        for (row, weight) in source[start * stride..].chunks_exact(stride).zip(weights) {
            for (sum, value) in sums.iter_mut().zip(row) {
                *sum = sum.wrapping_add(weight * i32::from(*value));
            }
        }
        pixels.extend(sums.iter().map(|sum| round(*sum)));
    }
    pixels
}
