//! Pillow's filters and their weights.

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

/// Fraction bits of a weight: an `i32` less 8 bits for the value and 2 for overshoot.
pub(super) const FRACTION_BITS: u32 = 22;
pub(super) const HALF: i32 = 1 << (FRACTION_BITS - 1);

/// The fixed-point weights of all output values.
pub(super) struct Taps {
    /// The first input value of each.
    pub(super) starts: Vec<usize>,
    /// Weights per output value; those beyond its last are zero.
    pub(super) count: usize,
    /// The first so many pairs of weights of any output value hold all that are not zero.
    pub(super) pairs: usize,
    /// `count` weights for each output value.
    pub(super) weights: Vec<i32>,
}

impl Taps {
    /// The taps of `to` output values over `from` input values.
    pub(super) fn new(from: usize, to: usize, filter: Filter) -> Self {
        let scale = from as f64 / to as f64;
        let stretch = scale.max(1.0);
        let support = filter.support() * stretch;
        let centre = |i: usize| (i as f64 + 0.5) * scale;
        // Truncates toward zero like a C cast; negative values were clamped.
        let start = |i| (centre(i) - support + 0.5).max(0.0) as usize;
        let end = |i| ((centre(i) + support + 0.5) as usize).min(from);
        let most = (0..to).map(|i| end(i) - start(i)).max().unwrap_or(1);
        let (count, pairs) = (most.next_multiple_of(4), most.div_ceil(2));
        let (mut starts, mut weights) = (Vec::with_capacity(to), vec![0; to * count]);
        let mut exact = Vec::with_capacity(count);
        for (i, place) in weights.chunks_exact_mut(count).enumerate() {
            let (centre, start, end) = (centre(i), start(i), end(i));
            exact.clear();
            exact.extend((start..end).map(|x| filter.weight((x as f64 - centre + 0.5) * (1.0 / stretch))));
            let total: f64 = exact.iter().sum();
            let total = if total == 0.0 { 1.0 } else { total };
            for (weight, exact) in place.iter_mut().zip(&exact) {
                let scaled = exact / total * f64::from(1 << FRACTION_BITS);
                // Pillow's rounding, for which `round` would call a function.
                *weight = (scaled + 0.5_f64.copysign(scaled)) as i32;
            }
            starts.push(start);
        }
        Self { starts, count, pairs, weights }
    }

    /// The first input value and the weights of each output value.
    pub(super) fn iter(&self) -> impl Iterator<Item = (usize, &[i32])> {
        self.starts.iter().copied().zip(self.weights.chunks_exact(self.count))
    }
}
