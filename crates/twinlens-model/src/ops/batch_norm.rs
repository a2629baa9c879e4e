//! Batch norm over rows of channels, with the relu that follows it in a residual network, on
//! slices.
//!
//! y = gain (x - mean) / sqrt(var + eps) + bias, with mean and variance over all rows of the batch
//! (Ioffe and Szegedy 2015, algorithm 1), or the running ones in evaluation. relu's derivative at 0
//! is 0, as in PyTorch (candle's is 1, which matters where a block's last gain starts at 0). Sums
//! over rows are computed in parts, while the rows of a part are in the cache, and parts are added
//! in order, in f64.

use super::simd::{add_rows, vectorised};

/// Added to the variance, as in PyTorch.
pub(crate) const EPS: f32 = 1e-5;

/// Mean and variance of each channel.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Statistics {
    /// Mean of each channel.
    pub mean: Vec<f32>,
    /// Variance of each channel: biased for a batch, unbiased for running statistics.
    pub variance: Vec<f32>,
}

/// Channel vectors are repeated up to about this length, so that the loops of a small model with
/// few channels are long enough to vectorise.
const WIDE: usize = 64;

fn wide(channels: &[f32]) -> Vec<f32> {
    channels.repeat(WIDE.div_ceil(channels.len().max(1)).max(1))
}

/// Sums the repetitions of each channel.
fn narrow(wide: &[f32], channels: usize) -> Vec<f32> {
    let mut sums = vec![0.0; channels];
    add_rows(&mut sums, wide);
    sums
}

vectorised! {
    /// Accumulates `x - shift` and its square.
    fn add_moments<'a>(x: &'a [f32], shift: &'a [f32], sums: &'a mut [f32], squares: &'a mut [f32]) {
        for x in x.chunks(shift.len()) {
            for (((x, c), s), q) in x.iter().zip(shift).zip(sums.iter_mut()).zip(squares.iter_mut()) {
                let x = x - c;
                *s += x;
                *q = x.mul_add(x, *q);
            }
        }
    }
}

/// The contribution of some rows to the statistics of a batch.
pub(crate) struct Moments {
    rows: usize,
    shift: Vec<f32>,
    sums: Vec<f32>,
    squares: Vec<f32>,
}

impl Moments {
    /// Moments of `x` (`[rows, channels]`) about its approximate mean, which avoids cancellation
    /// far from 0.
    pub(crate) fn new(x: &[f32], channels: usize) -> Self {
        let rows = x.len() / channels;
        let mut shift = vec![0.0; channels];
        add_rows(&mut shift, x);
        shift.iter_mut().for_each(|s| *s /= rows as f32);
        let spread = wide(&shift);
        let (mut sums, mut squares) = (vec![0.0; spread.len()], vec![0.0; spread.len()]);
        add_moments(x, &spread, &mut sums, &mut squares);
        Self { rows, shift, sums: narrow(&sums, channels), squares: narrow(&squares, channels) }
    }
}

impl Statistics {
    /// Merges the moments of parts of the rows (Chan, Golub and LeVeque 1979).
    pub(crate) fn merge(parts: &[Moments]) -> Self {
        let channels = parts.first().map_or(0, |part| part.shift.len());
        let merge = |channel: usize| {
            let (mut rows, mut mean, mut squares) = (0.0, 0.0, 0.0);
            for part in parts {
                let n = part.rows as f64;
                let [shift, sum, square] =
                    [&part.shift, &part.sums, &part.squares].map(|v| f64::from(v[channel]));
                let delta = shift + sum / n - mean;
                squares += square - sum * sum / n + delta * delta * rows * n / (rows + n);
                rows += n;
                mean += delta * n / rows;
            }
            (mean as f32, (squares / rows).max(0.0) as f32)
        };
        let (mean, variance) = (0..channels).map(merge).unzip();
        Self { mean, variance }
    }
}

/// A batch norm with known statistics. Its vectors are repeated, see [`WIDE`].
#[derive(Clone, Debug, Default)]
pub(crate) struct Norm {
    channels: usize,
    mean: Vec<f32>,
    scale: Vec<f32>,
    bias: Vec<f32>,
}

vectorised! {
    fn normalised<'a>(x: &'a [f32], norm: &'a Norm, y: &'a mut [f32], relu: bool) {
        let least = if relu { 0.0 } else { f32::NEG_INFINITY };
        let n = norm.mean.len();
        for (x, y) in x.chunks(n).zip(y.chunks_mut(n)) {
            for ((((y, x), m), s), b) in y.iter_mut().zip(x).zip(&norm.mean).zip(&norm.scale).zip(&norm.bias) {
                let z = (x - m).mul_add(*s, *b);
                *y = if z > least { z } else { least };
            }
        }
    }
}

vectorised! {
    /// `y = max(y + x, 0)`.
    fn add_rectified<'a>(x: &'a [f32], y: &'a mut [f32]) {
        for (y, x) in y.iter_mut().zip(x) {
            let z = *y + x;
            *y = if z > 0.0 { z } else { 0.0 };
        }
    }
}

vectorised! {
    /// Zeroes `d` where the norm of `x` is not positive; accumulates the remaining `d`, and `d (x -
    /// mean)`.
    fn rectify_backward<'a>(x: &'a [f32], norm: &'a Norm, d: &'a mut [f32], sums: &'a mut [f32], products: &'a mut [f32]) {
        let n = norm.mean.len();
        for (x, d) in x.chunks(n).zip(d.chunks_mut(n)) {
            let vectors = norm.mean.iter().zip(&norm.scale).zip(&norm.bias);
            for ((((d, x), ((m, s), b)), sum), product) in
                d.iter_mut().zip(x).zip(vectors).zip(sums.iter_mut()).zip(products.iter_mut())
            {
                let x = x - m;
                *d = if x.mul_add(*s, *b) > 0.0 { *d } else { 0.0 };
                *sum += *d;
                *product = d.mul_add(x, *product);
            }
        }
    }
}

vectorised! {
    /// Zeroes `d` where `y` is 0.
    fn mask<'a>(y: &'a [f32], d: &'a mut [f32]) {
        for (d, y) in d.iter_mut().zip(y) {
            *d = if *y > 0.0 { *d } else { 0.0 };
        }
    }
}

vectorised! {
    /// Accumulates `d` and `d (x - mean)`.
    fn add_products<'a>(d: &'a [f32], x: &'a [f32], mean: &'a [f32], sums: &'a mut [f32], products: &'a mut [f32]) {
        let n = mean.len();
        for (d, x) in d.chunks(n).zip(x.chunks(n)) {
            for ((((d, x), m), sum), product) in
                d.iter().zip(x).zip(mean).zip(sums.iter_mut()).zip(products.iter_mut())
            {
                *sum += d;
                *product = d.mul_add(x - m, *product);
            }
        }
    }
}

impl Norm {
    /// Normalises by `statistics`.
    pub(crate) fn new(statistics: &Statistics, gain: &[f32], bias: &[f32]) -> Self {
        let scale = gain.iter().zip(&statistics.variance).map(|(g, v)| g / (v + EPS).sqrt());
        Self {
            channels: gain.len(),
            mean: wide(&statistics.mean),
            scale: wide(&scale.collect::<Vec<_>>()),
            bias: wide(bias),
        }
    }

    /// `y = max(norm(x), 0)`.
    pub(crate) fn rectified(&self, x: &[f32], y: &mut [f32]) {
        normalised(x, self, y, true);
    }

    /// `y = max(norm(x) + other, 0)`, where `other` is normalised by `norm` if given. `scratch` is
    /// overwritten.
    pub(crate) fn rectified_sum(
        &self,
        x: &[f32],
        other: &[f32],
        norm: Option<&Self>,
        scratch: &mut Vec<f32>,
        y: &mut [f32],
    ) {
        normalised(x, self, y, false);
        let Some(norm) = norm else { return add_rectified(other, y) };
        scratch.resize(other.len(), 0.0);
        normalised(other, norm, scratch, false);
        add_rectified(scratch, y);
    }

    /// Turns the gradient of [`rectified`](Self::rectified) into that of the norm, in place;
    /// returns its sums.
    pub(crate) fn rectified_backward(&self, x: &[f32], d: &mut [f32]) -> Sums {
        let mut sums = Partial::new(self);
        for (x, d) in x.chunks(sums.numbers()).zip(d.chunks_mut(sums.numbers())) {
            sums.add(|sums, products| rectify_backward(x, self, d, sums, products));
        }
        sums.total
    }

    /// The sums of a gradient `d` of the norm of `x`.
    pub(crate) fn sums(&self, x: &[f32], d: &[f32]) -> Sums {
        let mut sums = Partial::new(self);
        for (x, d) in x.chunks(sums.numbers()).zip(d.chunks(sums.numbers())) {
            sums.add(|sums, products| add_products(d, x, &self.mean, sums, products));
        }
        sums.total
    }
}

/// Sums over few rows in f32, and sums of those in f64: the terms are large compared with their
/// sum.
struct Partial {
    d: Vec<f32>,
    products: Vec<f32>,
    total: Sums,
}

impl Partial {
    fn new(norm: &Norm) -> Self {
        let wide = || vec![0.0; norm.mean.len()];
        let total = Sums { d: vec![0.0; norm.channels], products: vec![0.0; norm.channels] };
        Self { d: wide(), products: wide(), total }
    }

    /// How many numbers are summed in f32.
    fn numbers(&self) -> usize {
        32 * self.d.len()
    }

    fn add(&mut self, rows: impl FnOnce(&mut [f32], &mut [f32])) {
        self.d.fill(0.0);
        self.products.fill(0.0);
        rows(&mut self.d, &mut self.products);
        let channels = self.total.d.len();
        for (total, sums) in [(&mut self.total.d, &self.d), (&mut self.total.products, &self.products)] {
            for sums in sums.chunks_exact(channels) {
                total.iter_mut().zip(sums).for_each(|(t, s)| *t += f64::from(*s));
            }
        }
    }
}

/// Zeroes `d` where `y`, the output of a relu, is 0.
pub(crate) fn relu_backward(y: &[f32], d: &mut [f32]) {
    mask(y, d);
}

/// The contribution of some rows to the gradient of a norm: the sums of `d` and of `d (x - mean)`.
pub(crate) struct Sums {
    d: Vec<f64>,
    products: Vec<f64>,
}

/// The gradient of a norm with batch statistics, given its sums: dx = scale (d - mean(d) - (x -
/// mean) slope).
pub(crate) struct NormGradient {
    mean: Vec<f32>,
    scale: Vec<f32>,
    mean_d: Vec<f32>,
    slope: Vec<f32>,
}

vectorised! {
    fn input_gradient<'a>(d: &'a [f32], x: &'a [f32], norm: &'a NormGradient, dx: &'a mut [f32]) {
        let n = norm.mean.len();
        for ((d, x), dx) in d.chunks(n).zip(x.chunks(n)).zip(dx.chunks_mut(n)) {
            let vectors = norm.mean.iter().zip(&norm.scale).zip(&norm.mean_d).zip(&norm.slope);
            for (((dx, d), x), (((m, s), e), t)) in dx.iter_mut().zip(d).zip(x).zip(vectors) {
                *dx = s * (d - e - (x - m) * t);
            }
        }
    }
}

impl NormGradient {
    /// From the sums over `rows` rows of a norm. Writes the gradients of its gains and biases.
    pub(crate) fn new(
        norm: &Norm,
        statistics: &Statistics,
        rows: usize,
        parts: &[Sums],
        d_gain: &mut [f32],
        d_bias: &mut [f32],
    ) -> Self {
        let (mut mean_d, mut slope) = (Vec::new(), Vec::new());
        for (channel, variance) in statistics.variance.iter().enumerate() {
            let total = |of: fn(&Sums) -> &Vec<f64>| parts.iter().map(|part| of(part)[channel]).sum::<f64>();
            let (d, product) = (total(|s| &s.d), total(|s| &s.products));
            let inverse = 1.0 / (f64::from(*variance) + f64::from(EPS));
            d_gain[channel] = (product * inverse.sqrt()) as f32;
            d_bias[channel] = d as f32;
            mean_d.push((d / rows as f64) as f32);
            slope.push((product / rows as f64 * inverse) as f32);
        }
        Self {
            mean: norm.mean.clone(),
            scale: norm.scale.clone(),
            mean_d: wide(&mean_d),
            slope: wide(&slope),
        }
    }

    /// Turns the gradient of the norm of the rows `x` into theirs.
    pub(crate) fn input_rows(&self, d: &[f32], x: &[f32], dx: &mut [f32]) {
        input_gradient(d, x, self, dx);
    }
}
