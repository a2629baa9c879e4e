//! Random augmentation of training images, beyond the paper's random square crop.
//!
//! It keeps a model from memorising small data, where each image is seen a hundred times. Strengths
//! are those of torchvision's `ColorJitter`, `RandomResizedCrop` and `RandomRotation`, as used by
//! open_clip's `aug_cfg`. One resampling and one colour matrix do all of it, at about the cost of
//! the crop alone.
//!
//! Random numbers come from the caller's stream, always [`Augment::DRAWS`] of them, so that the
//! stream's position does not depend on the options.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::ImageError;
use crate::rgb::Rgb;

/// Strengths of the random changes; the default of each is 0 (off).
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Augment {
    /// Crops are stretched by up to this factor in either direction (torchvision's `ratio = [1 / r,
    /// r]`); at least 1 if given.
    pub stretch: f64,
    /// The image is shrunk by up to this fraction of its side, on a white background.
    pub shrink: f64,
    /// Maximum rotation in either direction, in degrees.
    pub rotate: f64,
    /// Brightness is multiplied by a number in `1 - b ..= 1 + b`.
    pub brightness: f64,
    /// Like brightness, around the image's mean grey.
    pub contrast: f64,
    /// Like brightness, around each pixel's grey.
    pub saturation: f64,
    /// Maximum rotation of the hue in either direction, as a fraction of the circle (at most 0.5).
    pub hue: f64,
    /// Probability that an image becomes grey.
    pub grey: f64,
    /// Probability that colours are inverted (a dark object on white becomes bright on black).
    pub invert: f64,
}

/// Weights of the channels in a pixel's grey (ITU-R BT.601).
const LUMA: [f64; 3] = [0.299, 0.587, 0.114];

/// A rotated rectangle of an image: its centre and half its sides in pixels, its angle in radians.
struct Cut {
    centre: [f64; 2],
    half: [f64; 2],
    angle: f64,
}

/// An affine map of colours in 0..255: a 3 x 3 matrix and an offset.
struct ColourMap {
    matrix: [[f64; 3]; 3],
    offset: f64,
}

impl ColourMap {
    fn invert(&mut self) {
        self.matrix.iter_mut().flatten().for_each(|value| *value = -*value);
        self.offset = 255.0 - self.offset;
    }
}

impl Augment {
    /// Random numbers that [`apply`](Self::apply) takes.
    pub const DRAWS: usize = 12;

    /// Rejects strengths out of range.
    ///
    /// # Errors
    /// [`ImageError::BadOptions`], naming the field.
    pub fn check(&self) -> Result<(), ImageError> {
        let ranges = [
            ("shrink", self.shrink, 0.9),
            ("rotate", self.rotate, 180.0),
            ("brightness", self.brightness, 1.0),
            ("contrast", self.contrast, 1.0),
            ("saturation", self.saturation, 1.0),
            ("hue", self.hue, 0.5),
            ("grey", self.grey, 1.0),
            ("invert", self.invert, 1.0),
        ];
        for (name, value, max) in ranges {
            if !(0.0..=max).contains(&value) {
                return Err(ImageError::BadOptions(format!("`{name}` must be from 0 to {max}, not {value}")));
            }
        }
        if self.stretch != 0.0 && !(1.0..=4.0).contains(&self.stretch) {
            let problem = format!("`stretch` must be from 1 to 4 (or 0 for none), not {}", self.stretch);
            return Err(ImageError::BadOptions(problem));
        }
        Ok(())
    }

    /// A random crop of at least `min_area` of the image's area, augmented: values `[size, size,
    /// 3]`. `draws` are numbers in `0.0..1.0`.
    ///
    /// # Errors
    /// `resize_failed` if `size` is zero.
    pub fn apply(
        &self,
        image: &Rgb,
        size: u32,
        min_area: f64,
        draws: &[f64; Self::DRAWS],
    ) -> Result<Vec<u8>, ImageError> {
        if size == 0 {
            return Err(ImageError::ResizeFailed("`size` is 0".into()));
        }
        let [area, ratio, shrink, column, row, angle, grey, invert, colours @ ..] = draws;
        let cut = self.cut(image, min_area, [*area, *ratio, *shrink, *column, *row, *angle]);
        let mut pixels = sample(image, &cut, size as usize);
        let mut map = self.colour_map(mean_luma(&pixels), *grey < self.grey, colours);
        if *invert < self.invert {
            map.invert();
        }
        for pixel in pixels.chunks_exact_mut(3) {
            let old = [f64::from(pixel[0]), f64::from(pixel[1]), f64::from(pixel[2])];
            for (value, weights) in pixel.iter_mut().zip(&map.matrix) {
                let new = weights[0] * old[0] + weights[1] * old[1] + weights[2] * old[2] + map.offset;
                *value = new.round().clamp(0.0, 255.0) as u8;
            }
        }
        Ok(pixels)
    }

    fn cut(&self, image: &Rgb, min_area: f64, draws: [f64; 6]) -> Cut {
        let [area, ratio, shrink, column, row, angle] = draws;
        let sides = [f64::from(image.width()), f64::from(image.height())];
        let side = sides[0].min(sides[1]) * (min_area + (1.0 - min_area) * area).sqrt();
        let stretch = self.stretch.max(1.0).powf(ratio - 0.5);
        let grow = 1.0 / (1.0 - self.shrink * shrink);
        let half = [0.5 * side * stretch * grow, 0.5 * side / stretch * grow];
        // Anywhere inside. A cut larger than the image may be off centre by as much as it is
        // larger.
        let place = |length: f64, half: f64, draw: f64| {
            let room = 0.5 * length - half;
            0.5 * length + room.abs() * (2.0 * draw - 1.0)
        };
        let centre = [place(sides[0], half[0], column), place(sides[1], half[1], row)];
        Cut { centre, half, angle: self.rotate.to_radians() * (2.0 * angle - 1.0) }
    }

    fn colour_map(&self, mean: f64, grey: bool, draws: &[f64]) -> ColourMap {
        let about = |strength: f64, draw: f64| 1.0 + strength * (2.0 * draw - 1.0);
        let [brightness, contrast] = [about(self.brightness, draws[0]), about(self.contrast, draws[1])];
        let saturation = if grey { 0.0 } else { about(self.saturation, draws[2]) };
        let hue = hue_rotation(std::f64::consts::TAU * self.hue * (2.0 * draws[3] - 1.0));
        let mut matrix = [[0.0; 3]; 3];
        for (i, row) in matrix.iter_mut().enumerate() {
            for (j, value) in row.iter_mut().enumerate() {
                // Rotates the hue, moves towards the grey (which the rotation keeps), then scales
                // by brightness and contrast.
                let saturated = saturation * hue[i][j] + (1.0 - saturation) * LUMA[j];
                *value = brightness * contrast * saturated;
            }
        }
        ColourMap { matrix, offset: brightness * (1.0 - contrast) * mean }
    }
}

/// Rotates the hue by an angle and keeps the grey: a rotation of the I-Q plane (NTSC 1953).
fn hue_rotation(angle: f64) -> [[f64; 3]; 3] {
    const TO_YIQ: [[f64; 3]; 3] =
        [LUMA, [0.595_716, -0.274_453, -0.321_263], [0.211_456, -0.522_591, 0.311_135]];
    const TO_RGB: [[f64; 3]; 3] =
        [[1.0, 0.956_296, 0.621_024], [1.0, -0.272_122, -0.647_381], [1.0, -1.106_989, 1.704_615]];
    let (sin, cos) = angle.sin_cos();
    let rotation = [[1.0, 0.0, 0.0], [0.0, cos, sin], [0.0, -sin, cos]];
    product(&product(&TO_RGB, &rotation), &TO_YIQ)
}

fn product(a: &[[f64; 3]; 3], b: &[[f64; 3]; 3]) -> [[f64; 3]; 3] {
    std::array::from_fn(|i| std::array::from_fn(|j| (0..3).map(|k| a[i][k] * b[k][j]).sum()))
}

fn mean_luma(pixels: &[u8]) -> f64 {
    let mut sums = [0_u64; 3];
    for pixel in pixels.chunks_exact(3) {
        for (sum, value) in sums.iter_mut().zip(pixel) {
            *sum += u64::from(*value);
        }
    }
    let count = (pixels.len() / 3).max(1) as f64;
    sums.iter().zip(LUMA).map(|(sum, weight)| *sum as f64 * weight).sum::<f64>() / count
}

/// Resamples the cut to `[size, size, 3]`: bilinear, with several samples per pixel when
/// downscaling; white outside the image.
fn sample(image: &Rgb, cut: &Cut, size: usize) -> Vec<u8> {
    let (sin, cos) = cut.angle.sin_cos();
    let steps = cut.half.map(|half| 2.0 * half / size as f64);
    let fine = steps.map(|step| (step - 0.01).ceil().clamp(1.0, 8.0) as usize);
    let weight = 1.0 / (fine[0] * fine[1]) as f64;
    let mut pixels = Vec::with_capacity(size * size * 3);
    for row in 0..size {
        for column in 0..size {
            let mut sums = [0.0; 3];
            for sub_row in 0..fine[1] {
                let v = (row as f64 + (sub_row as f64 + 0.5) / fine[1] as f64) * steps[1] - cut.half[1];
                for sub_column in 0..fine[0] {
                    let u =
                        (column as f64 + (sub_column as f64 + 0.5) / fine[0] as f64) * steps[0] - cut.half[0];
                    let x = cut.centre[0] + u * cos - v * sin;
                    let y = cut.centre[1] + u * sin + v * cos;
                    bilinear(image, x - 0.5, y - 0.5, &mut sums);
                }
            }
            pixels.extend(sums.map(|sum| (sum * weight).round().clamp(0.0, 255.0) as u8));
        }
    }
    pixels
}

/// Adds the value at (x, y), in pixels from the centre of the first pixel; white outside the image.
fn bilinear(image: &Rgb, x: f64, y: f64, sums: &mut [f64; 3]) {
    let (left, top) = (x.floor(), y.floor());
    let (right, below) = (x - left, y - top);
    for (row, down) in [(top, 1.0 - below), (top + 1.0, below)] {
        for (column, along) in [(left, 1.0 - right), (left + 1.0, right)] {
            let weight = down * along;
            let inside = row >= 0.0
                && column >= 0.0
                && row < f64::from(image.height())
                && column < f64::from(image.width());
            if inside {
                let at = (row as usize * image.width() as usize + column as usize) * 3;
                for (sum, value) in sums.iter_mut().zip(&image.pixels()[at..at + 3]) {
                    *sum += weight * f64::from(*value);
                }
            } else {
                sums.iter_mut().for_each(|sum| *sum += weight * 255.0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn picture() -> Rgb {
        let pixels = (0..16 * 16).flat_map(|i| [(i % 16 * 16) as u8, (i / 16 * 16) as u8, 40]).collect();
        Rgb::new(16, 16, pixels).unwrap()
    }

    const MIDDLE: [f64; Augment::DRAWS] = [0.5; Augment::DRAWS];

    #[test]
    fn zero_strengths_change_nothing() {
        let draws = [0.9; Augment::DRAWS];
        assert_eq!(Augment::default().apply(&picture(), 16, 1.0, &draws).unwrap(), picture().pixels());
    }

    #[test]
    fn each_strength_has_its_effect() {
        let flat = Rgb::new(8, 8, [200, 100, 50].repeat(64)).unwrap();
        let apply = |augment: Augment, draw: f64| {
            let pixels = augment.apply(&flat, 8, 1.0, &[draw; Augment::DRAWS]).unwrap();
            [pixels[3 * 36], pixels[3 * 36 + 1], pixels[3 * 36 + 2]]
        };
        let off = Augment::default;
        assert_eq!(apply(Augment { brightness: 0.5, ..off() }, 0.0), [100, 50, 25]);
        assert_eq!(apply(Augment { grey: 1.0, ..off() }, 0.0), [124, 124, 124]);
        assert_eq!(apply(Augment { saturation: 1.0, ..off() }, 0.0), [124, 124, 124]);
        assert_eq!(apply(Augment { contrast: 1.0, ..off() }, 0.0), [124, 124, 124]);
        assert_eq!(apply(Augment { invert: 1.0, ..off() }, 0.5), [55, 155, 205]);
        // A third of the circle takes red to green, at about the same grey.
        let rotated = apply(Augment { hue: 1.0 / 3.0, ..off() }, 1.0);
        assert!(rotated[1] > rotated[0] && rotated[1] > rotated[2], "{rotated:?}");
        let shrunk = Augment { shrink: 0.5, ..off() }.apply(&flat, 8, 1.0, &{
            let mut draws = MIDDLE;
            draws[2] = 1.0;
            draws
        });
        let shrunk = shrunk.unwrap();
        assert_eq!((&shrunk[..3], &shrunk[3 * 36..3 * 36 + 3]), (&[255; 3][..], &[200, 100, 50][..]));
    }

    #[test]
    fn rotate_by_90_degrees_moves_every_pixel() {
        let augment = Augment { rotate: 90.0, ..Augment::default() };
        let mut draws = MIDDLE;
        draws[5] = 1.0;
        let rotated = augment.apply(&picture(), 16, 1.0, &draws).unwrap();
        let at = |pixels: &[u8], row: usize, column: usize| pixels[(row * 16 + column) * 3..][..3].to_vec();
        for (row, column) in [(0, 0), (3, 11), (15, 2)] {
            assert_eq!(at(&rotated, row, column), at(picture().pixels(), column, 15 - row));
        }
    }

    #[test]
    fn strengths_out_of_range_are_rejected_by_name() {
        let off = Augment::default;
        for (augment, name) in [
            (Augment { hue: 0.6, ..off() }, "hue"),
            (Augment { stretch: 0.5, ..off() }, "stretch"),
            (Augment { shrink: f64::NAN, ..off() }, "shrink"),
        ] {
            assert!(augment.check().unwrap_err().to_string().contains(name));
        }
        assert!(Augment { stretch: 1.3, shrink: 0.3, rotate: 10.0, ..off() }.check().is_ok());
    }

    proptest! {
        #[test]
        fn any_draws_give_a_full_image(
            draws in prop::array::uniform12(0.0..1.0_f64), width in 1_u32..40, height in 1_u32..40, size in 1_u32..20,
        ) {
            let image = Rgb::new(width, height, vec![7; (width * height * 3) as usize]).unwrap();
            let all = Augment {
                stretch: 1.5, shrink: 0.5, rotate: 180.0, brightness: 1.0, contrast: 1.0, saturation: 1.0, hue: 0.5,
                grey: 0.5, invert: 0.5,
            };
            let pixels = all.apply(&image, size, 0.2, &draws).unwrap();
            prop_assert_eq!(pixels.len(), (size * size * 3) as usize);
        }
    }
}
