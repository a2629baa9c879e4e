//! Turns images into the input of a CLIP image tower: a square crop, normalised per channel.

use crate::bicubic::resize_bicubic;
use crate::decode::decode;
use crate::error::ImageError;
use crate::limits::Limits;
use crate::rgb::Rgb;

/// Mean of each channel, in 0..1, over CLIP's training images (published with its weights).
pub const CLIP_MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
/// Standard deviation of each channel, in 0..1, published with CLIP's weights.
pub const CLIP_STD: [f32; 3] = [0.268_629_54, 0.261_302_6, 0.275_777_1];

/// Preprocessing for an image tower, in two steps: [`pixels`](Self::pixels) or
/// [`crop_pixels`](Self::crop_pixels), then [`normalize`](Self::normalize). A trainer can keep the
/// bytes between them, which take a quarter of the memory.
#[derive(Debug, Clone, PartialEq)]
pub struct Preprocess {
    /// Side of the square input, in pixels.
    pub size: u32,
    /// Subtracted from each channel, in 0..1.
    pub mean: [f32; 3],
    /// Divides each channel, in 0..1.
    pub std: [f32; 3],
}

/// A square part of an image, in its pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SquareCrop {
    /// First column.
    pub left: u32,
    /// First row.
    pub top: u32,
    /// Side, in pixels.
    pub side: u32,
}

impl SquareCrop {
    /// A random square: the largest square's area times a factor in `min_area..=1`, anywhere in the
    /// image.
    ///
    /// `draws` are three numbers in 0..1 (for area, column, row) from the caller's random stream.
    /// open_clip uses a `min_area` of 0.9.
    pub fn random(width: u32, height: u32, min_area: f64, draws: [f64; 3]) -> Self {
        let [area, column, row] = draws.map(|draw| draw.clamp(0.0, 1.0));
        let min_area = min_area.clamp(0.0, 1.0);
        let short = width.min(height);
        let side = (f64::from(short) * (min_area + (1.0 - min_area) * area).sqrt()).round() as u32;
        let side = side.clamp(short.min(1), short);
        let place = |length: u32, draw: f64| {
            let room = length - side;
            ((f64::from(room) + 1.0) * draw).floor().min(f64::from(room)) as u32
        };
        Self { left: place(width, column), top: place(height, row), side }
    }
}

impl Preprocess {
    /// CLIP's mean and standard deviation for images of `size` pixels.
    pub fn clip(size: u32) -> Self {
        Self { size, mean: CLIP_MEAN, std: CLIP_STD }
    }

    /// Resizes the shorter side to `size` and crops the central square: values `[size, size, 3]`.
    ///
    /// Rounds like torchvision's `Resize` and `CenterCrop`: the longer side down, the crop's origin
    /// to nearest, ties to even.
    ///
    /// # Errors
    /// `resize_failed` if `size` is zero.
    pub fn pixels(&self, rgb: &Rgb) -> Result<Vec<u8>, ImageError> {
        let (width, height) = (rgb.width(), rgb.height());
        let short = u64::from(width.min(height));
        let long = |length: u32| {
            let scaled = u64::from(length) * u64::from(self.size) / short;
            u32::try_from(scaled)
                .map_err(|_| ImageError::ResizeFailed(format!("{width} x {height} is too long")))
        };
        let (to_width, to_height) = (long(width)?, long(height)?);
        let scaled = resize_bicubic(rgb, to_width, to_height)?;
        let origin = |length: u32| (f64::from(length - self.size) / 2.0).round_ties_even() as u32;
        Ok(scaled.crop(origin(to_width), origin(to_height), self.size, self.size)?.into_pixels())
    }

    /// Resizes the given square to `size`: values `[size, size, 3]`.
    ///
    /// # Errors
    /// `resize_failed` if the crop exceeds the image or `size` is zero.
    pub fn crop_pixels(&self, rgb: &Rgb, crop: SquareCrop) -> Result<Vec<u8>, ImageError> {
        let part = rgb.crop(crop.left, crop.top, crop.side, crop.side)?;
        Ok(resize_bicubic(&part, self.size, self.size)?.into_pixels())
    }

    /// Converts values `[size, size, 3]` to `(value / 255 - mean) / std` as `[3, size, size]`.
    ///
    /// # Errors
    /// `resize_failed` if the lengths do not match.
    pub fn normalize_into(&self, pixels: &[u8], out: &mut [f32]) -> Result<(), ImageError> {
        let plane = self.size as usize * self.size as usize;
        if pixels.len() != plane * 3 || out.len() != plane * 3 || plane == 0 {
            let (size, from, to) = (self.size, pixels.len(), out.len());
            return Err(ImageError::ResizeFailed(format!(
                "{from} values to {to} are not 3 x {size} x {size}"
            )));
        }
        for (channel, plane) in out.chunks_exact_mut(plane).enumerate() {
            let (mean, std) = (self.mean[channel], self.std[channel]);
            // Looking up one of 256 results is faster than two divisions per value.
            let table: [f32; 256] = std::array::from_fn(|value| (value as f32 / 255.0 - mean) / std);
            for (value, pixel) in plane.iter_mut().zip(pixels.chunks_exact(3)) {
                *value = table[usize::from(pixel[channel])];
            }
        }
        Ok(())
    }

    /// Like [`normalize_into`](Self::normalize_into), but returns a new `[3, size, size]` buffer.
    ///
    /// # Errors
    /// `resize_failed` if the length does not match.
    pub fn normalize(&self, pixels: &[u8]) -> Result<Vec<f32>, ImageError> {
        let mut out = vec![0.0; pixels.len()];
        self.normalize_into(pixels, &mut out)?;
        Ok(out)
    }

    /// Encoded bytes to the tower's input `[3, size, size]`, as in evaluation.
    ///
    /// # Errors
    /// Those of [`decode`] and [`pixels`](Self::pixels).
    pub fn tensor(&self, bytes: &[u8], limits: &Limits) -> Result<Vec<f32>, ImageError> {
        self.normalize(&self.pixels(&decode(bytes, limits)?.rgb)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn normalises_each_channel_into_a_plane() {
        let preprocess = Preprocess { size: 1, mean: [0.0, 0.5, 1.0], std: [1.0, 0.5, 0.25] };
        assert_eq!(preprocess.normalize(&[255, 255, 0]).unwrap(), [1.0, 1.0, -4.0]);
        let two = Preprocess { size: 2, mean: [0.0; 3], std: [1.0 / 255.0; 3] };
        let planes = two.normalize(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]).unwrap();
        let rounded: Vec<u8> = planes.iter().map(|v| v.round() as u8).collect();
        assert_eq!(rounded, [1, 4, 7, 10, 2, 5, 8, 11, 3, 6, 9, 12]);
        assert!(two.normalize(&[0; 11]).is_err());
    }

    #[test]
    fn center_crop_of_a_wide_image_is_its_middle() {
        // Three flat squares side by side.
        let pixels = (0..8).flat_map(|_| [10_u8, 100, 200].into_iter().flat_map(|v| [v; 24])).collect();
        let image = Rgb::new(24, 8, pixels).unwrap();
        let seen = Preprocess::clip(8).pixels(&image).unwrap();
        assert_eq!(seen, vec![100; 8 * 8 * 3]);
        assert_eq!(
            Preprocess::clip(8).crop_pixels(&image, SquareCrop { left: 8, top: 0, side: 8 }).unwrap(),
            seen
        );
    }

    proptest! {
        #[test]
        fn a_random_crop_lies_inside(
            width in 1_u32..5000, height in 1_u32..5000, min_area in 0.0..1.0_f64,
            draws in prop::array::uniform3(0.0..=1.0_f64),
        ) {
            let crop = SquareCrop::random(width, height, min_area, draws);
            prop_assert!(crop.side >= 1 && crop.left + crop.side <= width && crop.top + crop.side <= height);
        }
    }
}
