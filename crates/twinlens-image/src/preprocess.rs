//! Turns images into the input of a CLIP image tower: a square crop, normalised per channel.

use std::fmt;

use crate::decode::decode_as;
use crate::error::ImageError;
use crate::limits::Limits;
use crate::modes::ImageModes;
use crate::resample::{Filter, resize};
use crate::rgb::Rgb;

/// Mean of each channel, in 0..1, over CLIP's training images (published with its weights).
pub const CLIP_MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
/// Standard deviation of each channel, in 0..1, published with CLIP's weights.
pub const CLIP_STD: [f32; 3] = [0.268_629_54, 0.261_302_6, 0.275_777_1];

/// Preprocessing for an image tower, in two steps: [`pixels`](Self::pixels) or
/// [`crop_pixels`](Self::crop_pixels), then [`normalize`](Self::normalize). A trainer can keep the
/// bytes between them, which take a quarter of the memory.
///
/// Its text (`Display`) names everything that its result depends on, for hashes.
#[derive(Debug, Clone, PartialEq)]
pub struct Preprocess {
    /// Side of the square input, in pixels.
    pub size: u32,
    /// How the image is resized before the central square is cut out.
    pub resize: ResizeRule,
    /// The filter.
    pub filter: Filter,
    /// Where the central square begins.
    pub crop_origin: CropOrigin,
    /// How pixels become RGB.
    pub modes: ImageModes,
    /// Subtracted from each channel, in 0..1.
    pub mean: [f32; 3],
    /// Divides each channel, in 0..1.
    pub std: [f32; 3],
}

/// How an image is resized before the central square is cut out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResizeRule {
    /// The shorter side becomes so many pixels.
    Shortest(u32),
    /// Both sides become so many pixels.
    Squash(u32),
}

/// How half a pixel is rounded where the central square begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CropOrigin {
    /// To the nearest pixel, ties to even, as torchvision and open_clip do.
    Round,
    /// Down, as transformers does.
    Floor,
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
    /// CLIP's preprocessing for images of `size` pixels, of images as they are stored here.
    pub fn clip(size: u32) -> Self {
        Self {
            size,
            resize: ResizeRule::Shortest(size),
            filter: Filter::Bicubic,
            crop_origin: CropOrigin::Round,
            modes: ImageModes::White,
            mean: CLIP_MEAN,
            std: CLIP_STD,
        }
    }

    /// Resizes and crops the central square: values `[size, size, 3]`.
    ///
    /// The longer side is rounded down, as in torchvision and transformers.
    ///
    /// # Errors
    /// `resize_failed` if `size` is zero or larger than the resized image.
    pub fn pixels(&self, rgb: &Rgb) -> Result<Vec<u8>, ImageError> {
        let (width, height) = (rgb.width(), rgb.height());
        let short = u64::from(width.min(height));
        let side = |length: u32| match self.resize {
            ResizeRule::Squash(side) => Ok(side),
            ResizeRule::Shortest(side) => u32::try_from(u64::from(length) * u64::from(side) / short)
                .map_err(|_| ImageError::ResizeFailed(format!("{width} x {height} is too long"))),
        };
        let (to_width, to_height) = (side(width)?, side(height)?);
        let scaled = resize(rgb, to_width, to_height, self.filter)?;
        let origin = |length: u32| {
            let room = length.saturating_sub(self.size);
            match self.crop_origin {
                CropOrigin::Round => (f64::from(room) / 2.0).round_ties_even() as u32,
                CropOrigin::Floor => room / 2,
            }
        };
        Ok(scaled.crop(origin(to_width), origin(to_height), self.size, self.size)?.into_pixels())
    }

    /// Resizes the given square to `size`: values `[size, size, 3]`.
    ///
    /// # Errors
    /// `resize_failed` if the crop exceeds the image or `size` is zero.
    pub fn crop_pixels(&self, rgb: &Rgb, crop: SquareCrop) -> Result<Vec<u8>, ImageError> {
        let part = rgb.crop(crop.left, crop.top, crop.side, crop.side)?;
        Ok(resize(&part, self.size, self.size, self.filter)?.into_pixels())
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
        // Looking up one of 256 results is faster than two divisions per value.
        let tables: [[f32; 256]; 3] = std::array::from_fn(|channel| {
            std::array::from_fn(|value| (value as f32 / 255.0 - self.mean[channel]) / self.std[channel])
        });
        let (red, others) = out.split_at_mut(plane);
        let (green, blue) = others.split_at_mut(plane);
        let planes = red.iter_mut().zip(green).zip(blue);
        for ([r, g, b], ((red, green), blue)) in pixels.as_chunks::<3>().0.iter().zip(planes) {
            *red = tables[0][usize::from(*r)];
            *green = tables[1][usize::from(*g)];
            *blue = tables[2][usize::from(*b)];
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
    /// Those of [`decode_as`] and [`pixels`](Self::pixels).
    pub fn tensor(&self, bytes: &[u8], limits: &Limits) -> Result<Vec<f32>, ImageError> {
        self.normalize(&self.pixels(&decode_as(bytes, limits, self.modes)?.rgb)?)
    }
}

impl fmt::Display for Preprocess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { size, resize, filter, crop_origin, modes, mean, std } = self;
        match resize {
            ResizeRule::Shortest(side) => write!(f, "short side to {side}")?,
            ResizeRule::Squash(side) => write!(f, "both sides to {side}")?,
        }
        let origin = match crop_origin {
            CropOrigin::Round => "rounded",
            CropOrigin::Floor => "rounded down",
        };
        let list = |values: &[f32; 3]| values.map(|value| value.to_string()).join(" ");
        write!(f, " ({}), centre crop of {size} ({origin}), ", filter.name())?;
        write!(f, "modes {}, mean {}, std {}", modes.name(), list(mean), list(std))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn normalises_each_channel_into_a_plane() {
        let preprocess = Preprocess { mean: [0.0, 0.5, 1.0], std: [1.0, 0.5, 0.25], ..Preprocess::clip(1) };
        assert_eq!(preprocess.normalize(&[255, 255, 0]).unwrap(), [1.0, 1.0, -4.0]);
        let two = Preprocess { mean: [0.0; 3], std: [1.0 / 255.0; 3], ..Preprocess::clip(2) };
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

    #[test]
    fn rules_of_resizing_and_cropping() {
        // Columns 0 to 10 of 4 rows; of 7 columns too many, half is 3.5.
        let image = Rgb::new(11, 4, (0..44).flat_map(|at| [(at % 11) as u8; 3]).collect()).unwrap();
        let first = |preprocess: Preprocess| preprocess.pixels(&image).unwrap()[0];
        let clip = Preprocess::clip(4);
        assert_eq!(first(clip.clone()), 4);
        assert_eq!(first(Preprocess { crop_origin: CropOrigin::Floor, ..clip.clone() }), 3);
        let squashed = Preprocess { resize: ResizeRule::Squash(4), filter: Filter::Box, ..clip.clone() };
        assert_eq!(squashed.pixels(&image).unwrap()[..3], [1; 3]);
        assert!(Preprocess { resize: ResizeRule::Shortest(3), ..clip.clone() }.pixels(&image).is_err());
        // Each part of the rule is in the text.
        let open_clip = Preprocess { modes: ImageModes::OpenClip, ..clip.clone() };
        let texts = [clip, squashed, open_clip].map(|preprocess| preprocess.to_string());
        assert!(texts[0] != texts[1] && texts[0] != texts[2], "{texts:?}");
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
