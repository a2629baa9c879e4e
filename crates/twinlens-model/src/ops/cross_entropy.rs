//! Word prediction: a linear layer over the vocabulary and its softmax cross-entropy, as one
//! operation.
//!
//! Logits of all rows over all words would be the largest tensor in training. They are computed for
//! a few rows at a time and turned into the gradients of rows, weights and bias at once; only those
//! are kept.

use super::linear::{bias_gradient, forward, input_gradient, weight_gradient};
use super::{f32_slice, simd::vectorised, with_f32};
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;
use std::sync::{Mutex, PoisonError};

/// About how many logits are held at a time.
const LOGITS: usize = 1 << 22;

/// Gradients of rows, weights and bias.
type Gradients = [Vec<f32>; 3];

struct CrossEntropy {
    targets: Vec<Vec<u32>>,
    train: bool,
    saved: Mutex<Option<Gradients>>,
}

/// The mean over rows of the cross-entropy between softmax(x w^T + bias) and the uniform
/// distribution over each row's targets: a scalar. Rows without targets are ignored.
///
/// `x` is `[rows, width]`, `w` `[words, width]`, `bias` `[words]`. With one target per row this is
/// the usual cross-entropy of a classifier.
pub(crate) fn linear_cross_entropy(
    x: &Tensor,
    w: &Tensor,
    bias: &Tensor,
    targets: Vec<Vec<u32>>,
    train: bool,
) -> Result<Tensor> {
    let ((rows, width), (words, inner)) = (x.dims2()?, w.dims2()?);
    let inside = targets.iter().flatten().all(|&t| (t as usize) < words);
    if width != inner || bias.dims() != [words] || targets.len() != rows || !inside {
        bail!("cross-entropy of {:?} with {:?} for {} targets", x.shape(), w.shape(), targets.len());
    }
    x.apply_op3(w, bias, CrossEntropy { targets, train, saved: Mutex::new(None) })
}

vectorised! {
    /// Replaces a row by its exponentials relative to its maximum; returns the maximum and their
    /// sum.
    fn shifted_sum<'a>(row: &'a mut [f32]) -> (f32, f32) {
        let top = row.iter().fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a });
        for x in row.iter_mut() {
            *x = super::simd::exp(*x - top);
        }
        (top, super::simd::sum(row.len(), |i| row[i]))
    }
}

vectorised! {
    fn scale<'a>(row: &'a mut [f32], factor: f32) {
        for x in row.iter_mut() {
            *x *= factor;
        }
    }
}

impl CrossEntropy {
    fn run(&self, x: &[f32], w: &[f32], bias: &[f32]) -> f32 {
        let (words, width) = (bias.len(), w.len() / bias.len());
        let counted = self.targets.iter().filter(|t| !t.is_empty()).count().max(1) as f32;
        let at_once = (LOGITS / words).max(1);
        let mut logits = vec![0.0; at_once.min(self.targets.len()) * words];
        let mut gradients = self.train.then(|| [x, w, bias].map(|v| vec![0.0; v.len()]));
        let mut loss = 0.0_f64;
        for (i, targets) in self.targets.chunks(at_once).enumerate() {
            let x = &x[i * at_once * width..][..targets.len() * width];
            let logits = &mut logits[..targets.len() * words];
            forward(logits, x, w, Some(bias), width);
            let losses: Vec<f64> = logits
                .par_chunks_mut(words)
                .zip(targets)
                .map(|(row, targets)| row_loss(row, targets, counted))
                .collect();
            loss += losses.iter().sum::<f64>();
            if let Some([dx, dw, db]) = &mut gradients {
                input_gradient(&mut dx[i * at_once * width..][..x.len()], logits, w, width);
                weight_gradient(dw, logits, x, width);
                bias_gradient(db, logits);
            }
        }
        *self.saved.lock().unwrap_or_else(PoisonError::into_inner) = gradients;
        (loss / f64::from(counted)) as f32
    }
}

/// The loss of one row of logits, which are replaced by their gradient.
fn row_loss(row: &mut [f32], targets: &[u32], counted: f32) -> f64 {
    if targets.is_empty() {
        row.fill(0.0);
        return 0.0;
    }
    let share = 1.0 / targets.len() as f32;
    let target_logit: f64 =
        targets.iter().map(|&t| f64::from(row[t as usize])).sum::<f64>() * f64::from(share);
    let (top, total) = shifted_sum(row);
    scale(row, 1.0 / (total * counted));
    targets.iter().for_each(|&t| row[t as usize] -= share / counted);
    f64::from(top) + f64::from(total).ln() - target_logit
}

impl CustomOp3 for CrossEntropy {
    fn name(&self) -> &'static str {
        "linear_cross_entropy"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_at: &Layout,
        w: &CpuStorage,
        w_at: &Layout,
        bias: &CpuStorage,
        bias_at: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let loss = self.run(f32_slice(x, x_at)?, f32_slice(w, w_at)?, f32_slice(bias, bias_at)?);
        Ok((CpuStorage::F32(vec![loss]), ().into()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        d: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let saved = self.saved.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some([mut dx, mut dw, mut db]) = saved else {
            bail!("cross-entropy: backward can run only once, and only in training");
        };
        let d = with_f32(d, |d| Ok(d[0]))?;
        if d != 1.0 {
            [&mut dx, &mut dw, &mut db].into_iter().for_each(|v| scale(v, d));
        }
        Ok((
            Some(Tensor::from_vec(dx, x.shape(), x.device())?),
            Some(Tensor::from_vec(dw, w.shape(), w.device())?),
            Some(Tensor::from_vec(db, bias.shape(), bias.device())?),
        ))
    }
}
