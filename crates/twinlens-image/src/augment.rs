//! Random changes to an image each time training sees it, beyond the paper's random square crop.
//!
//! For small data: a model that sees each drawing a hundred times learns the drawing, unless no two
//! looks at it are alike. Strengths are those of torchvision's `ColorJitter`, `RandomResizedCrop`
//! and `RandomRotation`, as open_clip's `aug_cfg` uses them; the arithmetic is one resampling and
//! one colour matrix, so that it costs about as much as the crop alone.
//!
//! This crate holds no randomness: numbers come from the caller's stream, always [`Augment::DRAWS`]
//! of them, so that the stream's position does not depend on what was drawn.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{ImageError, Rgb};

/// How much images are changed; each strength is 0 (off) unless given.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Augment {
    /// Crops are stretched by up to this factor in either direction (torchvision's `ratio = [1 / r,
    /// r]`); at least 1 where given.
    pub stretch: f64,
    /// The image is made smaller by up to this part, on a white ground: 0.3 leaves at least 0.7 of
    /// its side.
    pub shrink: f64,
    /// Turned by up to this many degrees to either side.
    pub rotate: f64,
    /// Brightness is multiplied by a number from `1 - b ..= 1 + b`.
    pub brightness: f64,
    /// As brightness, about the image's mean grey.
    pub contrast: f64,
    /// As brightness, about each pixel's grey.
    pub saturation: f64,
    /// Hue is turned by up to this part of the circle to either side (at most 0.5).
    pub hue: f64,
    /// Part of the looks that are made grey.
    pub grey: f64,
    /// Part of the looks that are made negative: what is dark on a white ground is then bright on a
    /// black one.
    pub invert: f64,
}

/// Grey of a pixel, as ITU-R BT.601 weighs the channels.
const LUMA: [f64; 3] = [0.299, 0.587, 0.114];

/// A cut out of an image: where its middle is, half its sides (pixels of the image), and its turn.
struct Cut {
    middle: [f64; 2],
    half: [f64; 2],
    turn: f64,
}

/// A 3 x 3 matrix and what is added, on values in 0..255.
struct Colour {
    matrix: [[f64; 3]; 3],
    add: f64,
}

impl Colour {
    fn negate(&mut self) {
        self.matrix.iter_mut().flatten().for_each(|value| *value = -*value);
        self.add = 255.0 - self.add;
    }
}

impl Augment {
    /// How many random numbers a look takes.
    pub const DRAWS: usize = 12;

    /// Refuses strengths that make no sense.
    ///
    /// # Errors
    /// [`ImageError::BadOptions`], naming the field.
    pub fn check(&self) -> Result<(), ImageError> {
        let within = [
            ("shrink", self.shrink, 0.9),
            ("rotate", self.rotate, 180.0),
            ("brightness", self.brightness, 1.0),
            ("contrast", self.contrast, 1.0),
            ("saturation", self.saturation, 1.0),
            ("hue", self.hue, 0.5),
            ("grey", self.grey, 1.0),
            ("invert", self.invert, 1.0),
        ];
        for (name, value, most) in within {
            if !(0.0..=most).contains(&value) {
                return Err(ImageError::BadOptions(format!(
                    "`{name}` must be from 0 to {most}, not {value}"
                )));
            }
        }
        if self.stretch != 0.0 && !(1.0..=4.0).contains(&self.stretch) {
            let problem = format!("`stretch` must be from 1 to 4 (or 0 for none), not {}", self.stretch);
            return Err(ImageError::BadOptions(problem));
        }
        Ok(())
    }

    /// One look at `image`: `[size, size, 3]` values. A part of at least `min_area` of the area is
    /// seen. `draws` are numbers from `0.0 .. 1.0`.
    ///
    /// # Errors
    /// `resize_failed` when `size` is zero.
    pub fn look(
        &self,
        image: &Rgb,
        size: u32,
        min_area: f64,
        draws: &[f64; Self::DRAWS],
    ) -> Result<Vec<u8>, ImageError> {
        if size == 0 {
            return Err(ImageError::ResizeFailed("an image of no pixels".into()));
        }
        let [area, ratio, shrink, column, row, turn, grey, invert, colours @ ..] = draws;
        let cut = self.cut(image, min_area, [*area, *ratio, *shrink, *column, *row, *turn]);
        let mut pixels = sample(image, &cut, size as usize);
        let mut colour = self.colour(mean_luma(&pixels), *grey < self.grey, colours);
        if *invert < self.invert {
            colour.negate();
        }
        for pixel in pixels.chunks_exact_mut(3) {
            let old = [f64::from(pixel[0]), f64::from(pixel[1]), f64::from(pixel[2])];
            for (value, weights) in pixel.iter_mut().zip(&colour.matrix) {
                let new = weights[0] * old[0] + weights[1] * old[1] + weights[2] * old[2] + colour.add;
                *value = new.round().clamp(0.0, 255.0) as u8;
            }
        }
        Ok(pixels)
    }

    fn cut(&self, image: &Rgb, min_area: f64, draws: [f64; 6]) -> Cut {
        let [area, ratio, shrink, column, row, turn] = draws;
        let sides = [f64::from(image.width()), f64::from(image.height())];
        let side = sides[0].min(sides[1]) * (min_area + (1.0 - min_area) * area).sqrt();
        let stretch = self.stretch.max(1.0).powf(ratio - 0.5);
        let grow = 1.0 / (1.0 - self.shrink * shrink);
        let half = [0.5 * side * stretch * grow, 0.5 * side / stretch * grow];
        // Anywhere inside; a cut larger than the image may lie off its middle by as much as it is
        // larger.
        let place = |length: f64, half: f64, draw: f64| {
            let room = 0.5 * length - half;
            0.5 * length + room.abs() * (2.0 * draw - 1.0)
        };
        let middle = [place(sides[0], half[0], column), place(sides[1], half[1], row)];
        Cut { middle, half, turn: self.rotate.to_radians() * (2.0 * turn - 1.0) }
    }

    fn colour(&self, mean: f64, grey: bool, draws: &[f64]) -> Colour {
        let about = |strength: f64, draw: f64| 1.0 + strength * (2.0 * draw - 1.0);
        let [brightness, contrast] = [about(self.brightness, draws[0]), about(self.contrast, draws[1])];
        let saturation = if grey { 0.0 } else { about(self.saturation, draws[2]) };
        let hue = hue_turn(std::f64::consts::TAU * self.hue * (2.0 * draws[3] - 1.0));
        let mut matrix = [[0.0; 3]; 3];
        for (i, row) in matrix.iter_mut().enumerate() {
            for (j, value) in row.iter_mut().enumerate() {
                // A turned hue, towards its grey (which no turn changes), by brightness and
                // contrast.
                let saturated = saturation * hue[i][j] + (1.0 - saturation) * LUMA[j];
                *value = brightness * contrast * saturated;
            }
        }
        Colour { matrix, add: brightness * (1.0 - contrast) * mean }
    }
}

/// Hue turned by an angle, grey kept: a rotation of the plane of I and Q (NTSC 1953).
fn hue_turn(angle: f64) -> [[f64; 3]; 3] {
    const TO_YIQ: [[f64; 3]; 3] =
        [LUMA, [0.595_716, -0.274_453, -0.321_263], [0.211_456, -0.522_591, 0.311_135]];
    const TO_RGB: [[f64; 3]; 3] =
        [[1.0, 0.956_296, 0.621_024], [1.0, -0.272_122, -0.647_381], [1.0, -1.106_989, 1.704_615]];
    let (sin, cos) = angle.sin_cos();
    let turn = [[1.0, 0.0, 0.0], [0.0, cos, sin], [0.0, -sin, cos]];
    product(&product(&TO_RGB, &turn), &TO_YIQ)
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

/// The cut, `[size, size, 3]`: bilinear, with as many samples a pixel as the cut is finer than the
/// result; white outside.
fn sample(image: &Rgb, cut: &Cut, size: usize) -> Vec<u8> {
    let (sin, cos) = cut.turn.sin_cos();
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
                    let x = cut.middle[0] + u * cos - v * sin;
                    let y = cut.middle[1] + u * sin + v * cos;
                    bilinear(image, x - 0.5, y - 0.5, &mut sums);
                }
            }
            pixels.extend(sums.map(|sum| (sum * weight).round().clamp(0.0, 255.0) as u8));
        }
    }
    pixels
}

/// Adds the value at (x, y), in pixels from the middle of the first; white outside.
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
    fn no_strength_changes_nothing() {
        let draws = [0.9; Augment::DRAWS];
        assert_eq!(Augment::default().look(&picture(), 16, 1.0, &draws).unwrap(), picture().pixels());
    }

    #[test]
    fn each_strength_does_what_it_says() {
        let flat = Rgb::new(8, 8, [200, 100, 50].repeat(64)).unwrap();
        let look = |augment: Augment, draw: f64| {
            let pixels = augment.look(&flat, 8, 1.0, &[draw; Augment::DRAWS]).unwrap();
            [pixels[3 * 36], pixels[3 * 36 + 1], pixels[3 * 36 + 2]]
        };
        let off = Augment::default;
        assert_eq!(look(Augment { brightness: 0.5, ..off() }, 0.0), [100, 50, 25]);
        assert_eq!(look(Augment { grey: 1.0, ..off() }, 0.0), [124, 124, 124]);
        assert_eq!(look(Augment { saturation: 1.0, ..off() }, 0.0), [124, 124, 124]);
        assert_eq!(look(Augment { contrast: 1.0, ..off() }, 0.0), [124, 124, 124]);
        assert_eq!(look(Augment { invert: 1.0, ..off() }, 0.5), [55, 155, 205]);
        // A third of the circle takes red to green, at about the same grey.
        let turned = look(Augment { hue: 1.0 / 3.0, ..off() }, 1.0);
        assert!(turned[1] > turned[0] && turned[1] > turned[2], "{turned:?}");
        let shrunk = Augment { shrink: 0.5, ..off() }.look(&flat, 8, 1.0, &{
            let mut draws = MIDDLE;
            draws[2] = 1.0;
            draws
        });
        let shrunk = shrunk.unwrap();
        assert_eq!((&shrunk[..3], &shrunk[3 * 36..3 * 36 + 3]), (&[255; 3][..], &[200, 100, 50][..]));
    }

    #[test]
    fn a_quarter_turn_turns() {
        let augment = Augment { rotate: 90.0, ..Augment::default() };
        let mut draws = MIDDLE;
        draws[5] = 1.0;
        let turned = augment.look(&picture(), 16, 1.0, &draws).unwrap();
        let at = |pixels: &[u8], row: usize, column: usize| pixels[(row * 16 + column) * 3..][..3].to_vec();
        for (row, column) in [(0, 0), (3, 11), (15, 2)] {
            assert_eq!(at(&turned, row, column), at(picture().pixels(), column, 15 - row));
        }
    }

    #[test]
    fn strengths_out_of_range_are_refused_by_name() {
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
        fn any_draws_give_a_whole_image(
            draws in prop::array::uniform12(0.0..1.0_f64), width in 1_u32..40, height in 1_u32..40, size in 1_u32..20,
        ) {
            let image = Rgb::new(width, height, vec![7; (width * height * 3) as usize]).unwrap();
            let all = Augment {
                stretch: 1.5, shrink: 0.5, rotate: 180.0, brightness: 1.0, contrast: 1.0, saturation: 1.0, hue: 0.5,
                grey: 0.5, invert: 0.5,
            };
            let looked = all.look(&image, size, 0.2, &draws).unwrap();
            prop_assert_eq!(looked.len(), (size * size * 3) as usize);
        }
    }
}
