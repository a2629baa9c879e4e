//! The resize option of a pipeline, with img2dataset's modes.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::ImageError;
use crate::resample::{Filter, resize};
use crate::rgb::Rgb;

/// Which side becomes `size`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ResizeMode {
    /// No resizing (img2dataset: `no`).
    None,
    /// The shorter side becomes `size`, keeping the aspect ratio (img2dataset: `keep_ratio`).
    #[default]
    Shortest,
    /// The longer side becomes `size`, keeping the aspect ratio (img2dataset:
    /// `keep_ratio_largest`).
    Longest,
    /// Like `longest`, then centred on a white square of `size` (img2dataset: `border`).
    Border,
    /// Like `shortest`, then the central square of `size` (img2dataset: `center_crop`).
    CenterCrop,
}

/// How images are resized. The filter is always Pillow's antialiased bicubic filter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Resize {
    /// Target length, in pixels, of the side that `mode` selects.
    pub size: u32,
    /// Which side becomes `size`.
    pub mode: ResizeMode,
    /// Only downscale: keep images whose side (as `mode` selects) is at most `size`.
    pub only_if_bigger: bool,
}

impl Default for Resize {
    fn default() -> Self {
        Self { size: 256, mode: ResizeMode::Shortest, only_if_bigger: false }
    }
}

impl Resize {
    /// No resizing.
    pub const NONE: Self = Self { size: 256, mode: ResizeMode::None, only_if_bigger: false };

    /// Rejects sizes out of range.
    ///
    /// # Errors
    /// [`ImageError::BadOptions`], naming the field.
    pub fn check(&self) -> Result<(), ImageError> {
        if (1..=16_384).contains(&self.size) {
            return Ok(());
        }
        Err(ImageError::BadOptions(format!("`size` must be from 1 to 16384 pixels, not {}", self.size)))
    }

    /// The length of the side that becomes `size`; `None` if an image of `width` x `height` pixels
    /// is not resized.
    fn side(&self, width: u32, height: u32) -> Option<u32> {
        let side = match self.mode {
            ResizeMode::None => return None,
            ResizeMode::Shortest | ResizeMode::CenterCrop => width.min(height),
            ResizeMode::Longest | ResizeMode::Border => width.max(height),
        };
        (!self.only_if_bigger || side > self.size).then_some(side)
    }

    /// The factor (1, 2, 4 or 8) by which an image of `width` x `height` pixels may be reduced
    /// while it is decoded: it stays at least as large as its target and large enough for its
    /// perceptual hash.
    pub fn reduction(&self, width: u32, height: u32) -> u32 {
        let Some(side) = self.side(width, height) else { return 1 };
        let enough = |by: &u32| side / by >= self.size && width.min(height) / by >= MIN_REDUCED_SIDE;
        [8, 4, 2].into_iter().find(enough).unwrap_or(1)
    }

    /// The resized image; `None` if the image does not change. `original` is its width and height
    /// in pixels before it was [reduced](Self::reduction). It decides the target size, because
    /// rounding twice could make an image a pixel longer.
    ///
    /// # Errors
    /// `resize_failed` if the result would have more than `max_pixels`.
    pub fn apply(&self, rgb: &Rgb, original: (u32, u32), max_pixels: u64) -> Result<Option<Rgb>, ImageError> {
        let Some(side) = self.side(original.0, original.1) else { return Ok(None) };
        let (width, height) = (scaled(original.0, self.size, side), scaled(original.1, self.size, side));
        if u64::from(width) * u64::from(height) > max_pixels {
            return Err(ImageError::ResizeFailed(format!(
                "{width} x {height} is more than {max_pixels} pixels"
            )));
        }
        let scaled = resize(rgb, width, height, Filter::Bicubic)?;
        let result = match self.mode {
            ResizeMode::Border => scaled.pad_white(self.size)?,
            ResizeMode::CenterCrop => {
                scaled.crop((width - self.size) / 2, (height - self.size) / 2, self.size, self.size)?
            }
            _ => scaled,
        };
        // Unchanged pixels need not be encoded again.
        Ok(if result == *rgb { None } else { Some(result) })
    }
}

/// Minimum side after a reduced decoding, in pixels. The perceptual hash resizes to 32 pixels;
/// smaller images would change it.
const MIN_REDUCED_SIDE: u32 = 128;

/// `length * size / side`, rounded to nearest, at least 1; in 64 bits, saturating.
fn scaled(length: u32, size: u32, side: u32) -> u32 {
    let rounded = (u64::from(length) * u64::from(size) + u64::from(side) / 2) / u64::from(side.max(1));
    u32::try_from(rounded.max(1)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_give_the_documented_sizes() {
        use ResizeMode::{Border, CenterCrop, Longest, None, Shortest};
        let cases = [
            ((200, 100), 50, None, false, Option::None),
            ((200, 100), 50, Shortest, false, Some((100, 50))),
            ((201, 100), 50, Shortest, false, Some((101, 50))),
            ((200, 100), 50, Longest, false, Some((50, 25))),
            ((200, 100), 50, Border, false, Some((50, 50))),
            ((200, 100), 50, CenterCrop, false, Some((50, 50))),
            ((20, 10), 50, Shortest, false, Some((100, 50))),
            ((20, 10), 50, Shortest, true, Option::None),
            ((20, 10), 50, CenterCrop, true, Option::None),
            ((20, 10), 50, Border, true, Option::None),
            ((1000, 3), 50, Longest, false, Some((50, 1))),
            ((50, 50), 50, Border, false, Option::None),
        ];
        for ((width, height), size, mode, only_if_bigger, expected) in cases {
            let pixels = (0..width * height * 3).map(|v| (v * 7) as u8).collect();
            let image = Rgb::new(width, height, pixels).unwrap();
            let resized =
                Resize { size, mode, only_if_bigger }.apply(&image, (width, height), 1 << 20).unwrap();
            assert_eq!(resized.map(|r| (r.width(), r.height())), expected, "{width}x{height} {mode:?}");
        }
    }

    #[test]
    fn decoding_is_reduced_no_further_than_the_target() {
        use ResizeMode::{Border, Longest, None, Shortest};
        let cases = [
            ((1000, 800), 256, Shortest, 2),
            ((1000, 800), 224, Shortest, 2),
            ((800, 1000), 64, Shortest, 4),
            ((1024, 1024), 128, Shortest, 8),
            ((1023, 1023), 128, Shortest, 4),
            ((4000, 3000), 256, Longest, 8),
            ((4000, 500), 256, Border, 2),
            ((500, 400), 256, Shortest, 1),
            ((200, 200), 256, Shortest, 1),
            ((4000, 3000), 256, None, 1),
        ];
        for ((width, height), size, mode, expected) in cases {
            let resize = Resize { size, mode, only_if_bigger: false };
            assert_eq!(resize.reduction(width, height), expected, "{width}x{height} {mode:?} {size}");
        }
        // 1001 x 800 to 256: 320, whether or not the half, 501 x 400, would round to 321.
        let half = Rgb::new(501, 400, vec![7; 501 * 400 * 3]).unwrap();
        let resized = Resize::default().apply(&half, (1001, 800), 1 << 20).unwrap().unwrap();
        assert_eq!((resized.width(), resized.height()), (320, 256));
    }

    #[test]
    fn a_strip_cannot_grow_beyond_the_limit() {
        let strip = Rgb::new(3000, 1, vec![9; 9000]).unwrap();
        let error =
            Resize { size: 256, ..Resize::default() }.apply(&strip, (3000, 1), 1_000_000).unwrap_err();
        assert_eq!(error.code(), "resize_failed");
    }
}
