//! From the bytes of an image to what the image tower takes.
//!
//! Two steps, as in the paper: the image is resized until its shorter side is a little larger than
//! the model's, and each time it is seen a random square is cut out of it. What the first step
//! gives is what the cache holds, so that training from the cache gives the same bits.

use crate::data::budget::Budget;
use twinlens_image::{
    Augment, ImageError, Limits, Preprocess, Rgb, SquareCrop, decode_reduced, probe, resize_bicubic,
};

/// Numbers from 0..1 of one look at an image: as many whatever is done with them.
pub(crate) type Draws = [f64; Augment::DRAWS];

/// Makes pixels.
#[derive(Clone, Debug)]
pub(crate) struct Maker {
    preprocess: Preprocess,
    /// Shorter side after the first step, in pixels.
    side: u32,
    /// The least part of the largest square's area that a crop has; `None`: the central square.
    crop: Option<f64>,
    /// Further changes to each look.
    augment: Option<Augment>,
    limits: Limits,
}

impl Maker {
    /// For a tower of `size` pixels.
    pub(crate) fn new(size: usize, crop: Option<f64>, augment: Option<Augment>) -> Self {
        let size = size as u32;
        // Crops are cut out of larger images, so that cutting does not blur.
        let side = if crop.is_some() || augment.is_some() { size * 8 / 7 } else { size };
        Self { preprocess: Preprocess::clip(size), side, crop, augment, limits: Limits::default() }
    }

    /// Values of one image, `3 * size * size`.
    pub(crate) fn values(&self) -> usize {
        3 * (self.preprocess.size as usize).pow(2)
    }

    /// Decodes, turns upright, resizes to the shorter side. The memory that decoding takes is
    /// reserved first.
    ///
    /// # Errors
    /// Whatever is wrong with the image.
    pub(crate) fn shrink(&self, bytes: &[u8], budget: &Budget) -> Result<Rgb, ImageError> {
        let header = probe(bytes, &self.limits)?;
        let _reserved = budget.reserve(header.decode_bytes as usize);
        let short = header.width.min(header.height);
        let by = [8, 4, 2].into_iter().find(|by| short / by >= self.side).unwrap_or(1);
        let image = decode_reduced(bytes, &self.limits, by)?;
        let scaled = |length: u32| {
            let scaled = u64::from(length) * u64::from(self.side) / u64::from(short.max(1));
            u32::try_from(scaled).map_err(|_| ImageError::ResizeFailed("the image is too long".into()))
        };
        // By the size before any reduction: rounding twice would make some images a pixel longer.
        resize_bicubic(&image.rgb, scaled(image.original_width)?, scaled(image.original_height)?)
    }

    /// Cuts out a square by draws from 0..1, changes it as asked, and normalises it into `out`,
    /// `[3, size, size]`.
    ///
    /// # Errors
    /// None for images of [`shrink`](Self::shrink).
    pub(crate) fn fill(&self, image: &Rgb, draws: Draws, out: &mut [f32]) -> Result<(), ImageError> {
        let pixels = match (self.crop, &self.augment) {
            // As in evaluation.
            (None, None) => self.preprocess.pixels(image)?,
            (area, Some(augment)) => {
                augment.apply(image, self.preprocess.size, area.unwrap_or(1.0), &draws)?
            }
            (Some(area), None) => {
                let [area_drawn, column, row, ..] = draws;
                let place = [area_drawn, column, row];
                let crop = SquareCrop::random(image.width(), image.height(), area, place);
                self.preprocess.crop_pixels(image, crop)?
            }
        };
        self.preprocess.normalize_into(&pixels, out)
    }
}
