//! Batch norm over rows of channels, with what follows it in a residual network: y = relu(bn(x) + residual), on slices.
//!
//! y = gain (x - mean) / sqrt(var + eps) + bias, mean and variance over all rows of the batch (Ioffe and Szegedy 2015).
//! In evaluation they are the running ones. relu's slope at 0 is 0, as in PyTorch (candle's is 1, which differs where a
//! block's last gain starts at 0).

use super::simd::{add, add_rows, vectorised};
use rayon::prelude::*;

/// Added to the variance, as in PyTorch.
pub const EPS: f32 = 1e-5;
/// Rows that one thread works on at a time, and whose sums are one part.
const ROWS: usize = 512;

/// Mean and variance of each channel.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Statistics {
    /// Means.
    pub mean: Vec<f32>,
    /// Variances: biased of a batch, unbiased where they run.
    pub variance: Vec<f32>,
}

vectorised! {
    /// Adds to `sums` each row's squared distance from `mean`.
    fn add_squares<'a>(sums: &'a mut [f32], rows: &'a [f32], mean: &'a [f32]) {
        for row in rows.chunks_exact(mean.len()) {
            for ((s, x), m) in sums.iter_mut().zip(row).zip(mean) {
                *s += (x - m) * (x - m);
            }
        }
    }
}

vectorised! {
    /// `y = (x - mean) scale + bias`.
    fn normalise<'a>(x: &'a [f32], mean: &'a [f32], scale: &'a [f32], bias: &'a [f32], y: &'a mut [f32]) {
        for (row, out) in x.chunks_exact(mean.len()).zip(y.chunks_exact_mut(mean.len())) {
            for ((((o, x), m), s), b) in out.iter_mut().zip(row).zip(mean).zip(scale).zip(bias) {
                *o = (x - m).mul_add(*s, *b);
            }
        }
    }
}

vectorised! {
    fn rectify<'a>(y: &'a mut [f32]) {
        for y in y.iter_mut() {
            *y = if *y > 0.0 { *y } else { 0.0 };
        }
    }
}

vectorised! {
    /// `d` becomes 0 where `y` is.
    fn rectify_backward<'a>(y: &'a [f32], d: &'a mut [f32]) {
        for (d, y) in d.iter_mut().zip(y) {
            *d = if *y > 0.0 { *d } else { 0.0 };
        }
    }
}

vectorised! {
    /// Adds up `d`, and `d (x - mean)`.
    fn add_products<'a>(d: &'a [f32], x: &'a [f32], mean: &'a [f32], sums: &'a mut [f32], products: &'a mut [f32]) {
        let n = mean.len();
        for (d, x) in d.chunks_exact(n).zip(x.chunks_exact(n)) {
            for i in 0..n {
                sums[i] += d[i];
                products[i] += d[i] * (x[i] - mean[i]);
            }
        }
    }
}

vectorised! {
    /// `dx = scale (d - mean_d - (x - mean) slope)`.
    fn input_gradient<'a>(
        d: &'a [f32], x: &'a [f32], mean: &'a [f32], scale: &'a [f32], mean_d: &'a [f32], slope: &'a [f32],
        dx: &'a mut [f32],
    ) {
        let n = mean.len();
        for ((d, x), dx) in d.chunks_exact(n).zip(x.chunks_exact(n)).zip(dx.chunks_exact_mut(n)) {
            for i in 0..n {
                dx[i] = scale[i] * (d[i] - mean_d[i] - (x[i] - mean[i]) * slope[i]);
            }
        }
    }
}

/// The mean over all rows of what `part` adds up over some: parts of fixed size, added in order in f64.
fn mean_of(x: &[f32], channels: usize, part: impl for<'a> Fn(&'a mut [f32], &'a [f32]) + Sync) -> Vec<f32> {
    let parts: Vec<Vec<f32>> = x
        .par_chunks(ROWS * channels)
        .map(|rows| {
            let mut sums = vec![0.0; channels];
            part(&mut sums, rows);
            sums
        })
        .collect();
    let mut total = vec![0.0_f64; channels];
    for part in &parts {
        total.iter_mut().zip(part).for_each(|(t, p)| *t += f64::from(*p));
    }
    let rows = (x.len() / channels) as f64;
    total.into_iter().map(|t| (t / rows) as f32).collect()
}

fn scales(gain: &[f32], variance: &[f32]) -> Vec<f32> {
    gain.iter().zip(variance).map(|(g, v)| g / (v + EPS).sqrt()).collect()
}

/// Batch norm of `x` (`[rows, channels]`); then `residual` added, and what is below 0 made 0, where asked for. By the
/// statistics of the batch, or by `fixed` ones. Returns the rows, and the statistics that were used.
pub fn forward(
    x: &[f32],
    gain: &[f32],
    bias: &[f32],
    residual: Option<&[f32]>,
    relu: bool,
    fixed: Option<&Statistics>,
) -> (Vec<f32>, Statistics) {
    let channels = gain.len();
    let statistics = fixed.cloned().unwrap_or_else(|| {
        let mean = mean_of(x, channels, add_rows);
        let variance = mean_of(x, channels, |sums, rows| add_squares(sums, rows, &mean));
        Statistics { mean, variance }
    });
    let scale = scales(gain, &statistics.variance);
    let mut y = vec![0.0; x.len()];
    let pieces = y.par_chunks_mut(ROWS * channels).zip(x.par_chunks(ROWS * channels)).enumerate();
    pieces.for_each(|(i, (y, x))| {
        normalise(x, &statistics.mean, &scale, bias, y);
        if let Some(residual) = residual {
            add(y, &residual[i * ROWS * channels..][..x.len()]);
        }
        if relu {
            rectify(y);
        }
    });
    (y, statistics)
}

/// What [`backward`] gives.
pub struct Gradients {
    /// Of the rows.
    pub x: Vec<f32>,
    /// Of the gains, then of the biases.
    pub params: Vec<f32>,
    /// Of what was added.
    pub residual: Vec<f32>,
}

/// The gradients of [`forward`] by the batch's `statistics`; `y` is what it gave, where it ended in a relu.
pub fn backward(
    x: &[f32],
    gain: &[f32],
    statistics: &Statistics,
    y: Option<&[f32]>,
    d_out: &[f32],
) -> Gradients {
    let (channels, rows) = (gain.len(), x.len() / gain.len());
    let mean = &statistics.mean;
    let mut d = d_out.to_vec();
    if let Some(y) = y {
        let pieces = d.par_chunks_mut(ROWS * channels).zip(y.par_chunks(ROWS * channels));
        pieces.for_each(|(d, y)| rectify_backward(y, d));
    }
    let parts: Vec<_> = d
        .par_chunks(ROWS * channels)
        .zip(x.par_chunks(ROWS * channels))
        .map(|(d, x)| {
            let (mut sums, mut products) = (vec![0.0; channels], vec![0.0; channels]);
            add_products(d, x, mean, &mut sums, &mut products);
            (sums, products)
        })
        .collect();
    let mut totals = vec![0.0_f64; 2 * channels];
    for (sums, products) in &parts {
        let part = sums.iter().chain(products);
        totals.iter_mut().zip(part).for_each(|(t, p)| *t += f64::from(*p));
    }
    let (sums, products) = totals.split_at(channels);
    let inverse = |v: f32| 1.0 / (f64::from(v) + f64::from(EPS));
    let both = || products.iter().zip(&statistics.variance);
    let d_gain = both().map(|(p, v)| (p * inverse(*v).sqrt()) as f32);
    let params = d_gain.chain(sums.iter().map(|s| *s as f32)).collect();
    let mean_d: Vec<f32> = sums.iter().map(|s| (s / rows as f64) as f32).collect();
    let slope: Vec<f32> = both().map(|(p, v)| (p / rows as f64 * inverse(*v)) as f32).collect();
    let scale = scales(gain, &statistics.variance);
    let mut dx = vec![0.0; x.len()];
    let pieces = dx.par_chunks_mut(ROWS * channels).zip(d.par_chunks(ROWS * channels));
    pieces.zip(x.par_chunks(ROWS * channels)).for_each(|((dx, d), x)| {
        input_gradient(d, x, mean, &scale, &mean_d, &slope, dx);
    });
    Gradients { x: dx, params, residual: d }
}
