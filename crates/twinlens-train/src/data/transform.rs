//! Turns encoded images into the input of the image tower, in two steps as in the paper: the image
//! is resized so that its shorter side is a little larger than the model's, then a random square is
//! cropped each time it is used. The cache holds the result of the first step, so training from the
//! cache gives the same bits.

use twinlens_image::{
    Augment, ImageError, ImageModes, Limits, Preprocess, ResizeRule, Rgb, SquareCrop, decode_as,
    decode_reduced, probe, resize,
};
use twinlens_pipeline::ByteBudget;

/// Random numbers in 0..1 for one use of an image. Their count does not depend on the options.
pub(crate) type Draws = [f64; Augment::DRAWS];

#[derive(Clone, Debug)]
pub(crate) struct ImageTransform {
    preprocess: Preprocess,
    /// Shorter side after the first step, in pixels.
    side: u32,
    /// Minimum fraction of the largest square's area in a crop; `None` for the central square.
    crop: Option<f64>,
    augment: Option<Augment>,
    limits: Limits,
}

impl ImageTransform {
    /// The transform for a model that prepares images so.
    pub(crate) fn new(preprocess: Preprocess, crop: Option<f64>, augment: Option<Augment>) -> Self {
        let (ResizeRule::Shortest(side) | ResizeRule::Squash(side)) = preprocess.resize;
        // A larger image keeps crops sharp.
        let side = if crop.is_some() || augment.is_some() { side.max(preprocess.size * 8 / 7) } else { side };
        Self { preprocess, side, crop, augment, limits: Limits::default() }
    }

    /// Values per image: `3 * size * size`.
    pub(crate) fn values(&self) -> usize {
        3 * (self.preprocess.size as usize).pow(2)
    }

    /// Decodes the image and resizes its shorter side. Reserves the memory for decoding first.
    ///
    /// # Errors
    /// Those of decoding.
    pub(crate) fn decode(&self, bytes: &[u8], budget: &ByteBudget) -> Result<Rgb, ImageError> {
        let header = probe(bytes, &self.limits)?;
        let _reserved = budget.reserve_blocking(header.decode_bytes);
        let short = header.width.min(header.height);
        let by = [8, 4, 2].into_iter().find(|by| short / by >= self.side).unwrap_or(1);
        let image = match self.preprocess.modes {
            ImageModes::White => decode_reduced(bytes, &self.limits, by)?,
            modes => decode_as(bytes, &self.limits, modes)?,
        };
        let squashes = matches!(self.preprocess.resize, ResizeRule::Squash(_));
        let scaled = |length: u32| {
            if squashes {
                return Ok(self.side);
            }
            let scaled = u64::from(length) * u64::from(self.side) / u64::from(short.max(1));
            u32::try_from(scaled).map_err(|_| ImageError::ResizeFailed("the image is too long".into()))
        };
        // From the original size: rounding twice would make some images a pixel longer.
        let (width, height) = (scaled(image.original_width)?, scaled(image.original_height)?);
        resize(&image.rgb, width, height, self.preprocess.filter)
    }

    /// Crops a square, augments it, and writes it normalised to `out`, `[3, size, size]`.
    ///
    /// # Errors
    /// None for images from [`decode`](Self::decode).
    pub(crate) fn crop_into(&self, image: &Rgb, draws: Draws, out: &mut [f32]) -> Result<(), ImageError> {
        let pixels = match (self.crop, &self.augment) {
            // As in evaluation.
            (None, None) => self.preprocess.pixels(image)?,
            (area, Some(augment)) => {
                augment.apply(image, self.preprocess.size, area.unwrap_or(1.0), &draws)?
            }
            (Some(area), None) => {
                let [area_draw, column, row, ..] = draws;
                let draws = [area_draw, column, row];
                let crop = SquareCrop::random(image.width(), image.height(), area, draws);
                self.preprocess.crop_pixels(image, crop)?
            }
        };
        self.preprocess.normalize_into(&pixels, out)
    }
}
