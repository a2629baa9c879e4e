//! Pillow's resizing, equal in every value.
//!
//! A filter is stretched by the scale when shrinking (antialiasing) and applied first along rows,
//! then along columns, or the other way round where Pillow does, with rounding to 8 bits between.
//! Weights are fixed-point numbers. CLIP's published weights were trained and are evaluated with
//! exactly this resizing; others cost accuracy.

mod taps;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use taps::Filter;

use crate::error::ImageError;
use crate::rgb::Rgb;
use taps::{FRACTION_BITS, HALF, Taps};

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
    let of_rows = (width != rgb.width()).then(|| taps(rgb.width(), width));
    let alike = rgb.width() == rgb.height() && width == height;
    let of_columns = (height != rgb.height() && !alike).then(|| taps(rgb.height(), height));
    let of_columns = if alike { &of_rows } else { &of_columns };
    let along_rows =
        |pixels: &[u8]| of_rows.as_ref().map(|taps| along_rows(pixels, rgb.width() as usize * 3, taps));
    let along_columns = |pixels: &[u8], width: u32| {
        of_columns.as_ref().map(|taps| along_columns(pixels, width as usize * 3, taps))
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
