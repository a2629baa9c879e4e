//! CLIP's loss as one operation: symmetric cross-entropy over all pairs of a batch (Radford et al.
//! 2021, figure 3).
//!
//! With logits = exp(logit_scale) I T^T, it is the mean of the cross-entropies of rows (image to
//! texts) and columns (text to images) against the diagonal. The gradient has a closed form: G =
//! (P_rows + P_columns - 2 1) / 2N, dI = s G T, dT = s G^T I, d logit_scale = sum(G logits).

use super::similarity::{feature_gradients, similarities};
use super::{f32_slice, log_sum_exp};
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
use std::sync::{Mutex, PoisonError};

/// The scalar loss of `image` and `text` (`[n, embed]`, unit length, row i of each a pair) for the
/// scalar `logit_scale`, the logarithm of the factor on similarities. About ln n for a fresh model.
pub(crate) fn contrastive_loss(image: &Tensor, text: &Tensor, logit_scale: &Tensor) -> Result<Tensor> {
    if image.rank() != 2 || image.dims() != text.dims() {
        bail!("contrastive loss: images {:?}, texts {:?}", image.shape(), text.shape());
    }
    image.apply_op3(text, logit_scale, Contrastive { saved: Mutex::new(None) })
}

/// Keeps G and d logit_scale for the backward pass.
struct Contrastive {
    saved: Mutex<Option<(Vec<f32>, f32)>>,
}

impl Contrastive {
    fn run(&self, image: &[f32], text: &[f32], n: usize, logit_scale: f32) -> f32 {
        let mut logits = similarities(image, text, n, logit_scale.exp());
        let rows: Vec<f32> = logits.chunks_exact(n).map(|row| log_sum_exp(row.iter().copied())).collect();
        let columns: Vec<f32> = (0..n).map(|c| log_sum_exp(logits[c..].iter().step_by(n).copied())).collect();
        let half = 0.5 / n as f32;
        let (mut loss, mut d_scale) = (0.0_f64, 0.0_f64);
        for (i, row) in logits.chunks_exact_mut(n).enumerate() {
            loss += f64::from(rows[i] - row[i]) + f64::from(columns[i] - row[i]);
            for (j, x) in row.iter_mut().enumerate() {
                let target = if i == j { 2.0 } else { 0.0 };
                let g = half * ((*x - rows[i]).exp() + (*x - columns[j]).exp() - target);
                d_scale += f64::from(g * *x);
                *x = g;
            }
        }
        *self.saved.lock().unwrap_or_else(PoisonError::into_inner) = Some((logits, d_scale as f32));
        (loss * f64::from(half)) as f32
    }
}

impl CustomOp3 for Contrastive {
    fn name(&self) -> &'static str {
        "contrastive_loss"
    }

    fn cpu_fwd(
        &self,
        image: &CpuStorage,
        image_at: &Layout,
        text: &CpuStorage,
        text_at: &Layout,
        scale: &CpuStorage,
        scale_at: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let n = image_at.dims()[0];
        let [scale] = f32_slice(scale, scale_at)? else {
            bail!("contrastive loss: logit_scale is not a scalar")
        };
        let loss = self.run(f32_slice(image, image_at)?, f32_slice(text, text_at)?, n, *scale);
        Ok((CpuStorage::F32(vec![loss]), ().into()))
    }

    fn bwd(
        &self,
        image: &Tensor,
        text: &Tensor,
        scale: &Tensor,
        _: &Tensor,
        d_loss: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let saved = self.saved.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some((g, d_scale)) = saved else {
            bail!("contrastive loss: backward can run only once");
        };
        let d_loss = d_loss.to_scalar::<f32>()?;
        let factor = d_loss * scale.to_scalar::<f32>()?.exp();
        let (d_image, d_text) = feature_gradients(&g, factor, image, text)?;
        let d_scale = Tensor::new(d_loss * d_scale, scale.device())?;
        Ok((Some(d_image), Some(d_text), Some(d_scale)))
    }
}
