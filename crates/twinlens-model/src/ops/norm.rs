//! Layer norm over rows, y = gain (x - mean) / sqrt(var + eps) + bias (Ba et al. 2016, section 3),
//! and its gradient.

use super::simd::{sum, vectorised};

/// Added to the variance, as in PyTorch.
pub(crate) const EPS: f32 = 1e-5;

vectorised! {
    /// Mean and 1 / sqrt(var + eps) of each row of `x` (`[rows, width]`), written as pairs to
    /// `stats` (`[rows, 2]`).
    pub(crate) fn layer_norm_stats<'a>(x: &'a [f32], width: usize, stats: &'a mut [f32]) {
        for (row, stat) in x.chunks_exact(width).zip(stats.chunks_exact_mut(2)) {
            let mean = sum(width, |i| row[i]) / width as f32;
            let variance = sum(width, |i| (row[i] - mean) * (row[i] - mean)) / width as f32;
            stat[0] = mean;
            stat[1] = 1.0 / (variance + EPS).sqrt();
        }
    }
}

vectorised! {
    /// Normalises rows by the statistics of [`layer_norm_stats`].
    pub(crate) fn layer_norm<'a>(x: &'a [f32], stats: &'a [f32], gain: &'a [f32], bias: &'a [f32], y: &'a mut [f32]) {
        let width = gain.len();
        for ((row, stat), out) in x.chunks_exact(width).zip(stats.chunks_exact(2)).zip(y.chunks_exact_mut(width)) {
            let (mean, scale) = (stat[0], stat[1]);
            for (((o, x), g), b) in out.iter_mut().zip(row).zip(gain).zip(bias) {
                *o = ((x - mean) * scale).mul_add(*g, *b);
            }
        }
    }
}

vectorised! {
    /// The gradient: adds to `dx` (`[rows, width]`), `dgain` and `dbias` (`[width]`).
    ///
    /// With z the normalised row and e = dy * gain: dx = (e - mean(e) - z mean(e z)) / sqrt(var +
    /// eps).
    pub(crate) fn layer_norm_backward<'a>(
        x: &'a [f32], stats: &'a [f32], gain: &'a [f32], dy: &'a [f32],
        dx: &'a mut [f32], dgain: &'a mut [f32], dbias: &'a mut [f32],
    ) {
        let width = gain.len();
        let rows = x.chunks_exact(width).zip(dy.chunks_exact(width)).zip(stats.chunks_exact(2));
        for (((row, dy), stat), dx) in rows.zip(dx.chunks_exact_mut(width)) {
            let (mean, scale) = (stat[0], stat[1]);
            let mean_e = sum(width, |i| dy[i] * gain[i]) / width as f32;
            let mean_ez = sum(width, |i| dy[i] * gain[i] * (row[i] - mean)) * scale / width as f32;
            for i in 0..width {
                let z = (row[i] - mean) * scale;
                dgain[i] += dy[i] * z;
                dbias[i] += dy[i];
                dx[i] += (dy[i] * gain[i] - mean_e - z * mean_ez) * scale;
            }
        }
    }
}
