//! SigLIP's loss as one operation: a binary classification of each image-text pair of a batch (Zhai
//! et al. 2023, section 3.2).
//!
//! With logits = exp(logit_scale) I T^T + logit_bias and z = 1 on the diagonal, -1 elsewhere, the
//! loss is the sum of -ln sigmoid(z logits) over all pairs, divided by n. The gradient has a closed
//! form: G = -z sigmoid(-z logits) / n, dI = s G T, dT = s G^T I, d logit_scale = sum(G (logits -
//! bias)), d logit_bias = sum(G).

use super::f32_slice;
use super::similarity::{feature_gradients, similarities};
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
use std::sync::{Mutex, PoisonError};

/// Keeps G and the gradients of scale and bias for the backward pass.
struct Sigmoid {
    saved: Mutex<Option<(Vec<f32>, [f32; 2])>>,
}

/// The scalar loss of `image` and `text` (`[n, embed]`, unit length, row i of each a pair) for the
/// scalars `logit_scale` (the logarithm of the factor on similarities) and `logit_bias`.
pub(crate) fn sigmoid_loss(
    image: &Tensor,
    text: &Tensor,
    logit_scale: &Tensor,
    logit_bias: &Tensor,
) -> Result<Tensor> {
    if image.rank() != 2 || image.dims() != text.dims() {
        bail!("sigmoid loss: images {:?}, texts {:?}", image.shape(), text.shape());
    }
    let both = Tensor::stack(&[logit_scale, logit_bias], 0)?;
    image.apply_op3(text, &both, Sigmoid { saved: Mutex::new(None) })
}

impl Sigmoid {
    fn run(&self, image: &[f32], text: &[f32], n: usize, scale: f32, bias: f32) -> f32 {
        let mut logits = similarities(image, text, n, scale.exp());
        let (mut loss, mut d_scale, mut d_bias) = (0.0_f64, 0.0_f64, 0.0_f64);
        for (i, x) in logits.iter_mut().enumerate() {
            let z = if i / n == i % n { 1.0 } else { -1.0 };
            let logit = f64::from(*x) + f64::from(bias);
            // -ln sigmoid(a) = ln(1 + e^-a), without overflow on either side.
            let a = z * logit;
            let small = (-a.abs()).exp();
            loss += small.ln_1p() + (-a).max(0.0);
            let sigmoid = if a > 0.0 { small / (1.0 + small) } else { 1.0 / (1.0 + small) };
            let g = -z * sigmoid / n as f64;
            d_scale += g * f64::from(*x);
            d_bias += g;
            *x = g as f32;
        }
        let kept = (logits, [d_scale as f32, d_bias as f32]);
        *self.saved.lock().unwrap_or_else(PoisonError::into_inner) = Some(kept);
        (loss / n as f64) as f32
    }
}

impl CustomOp3 for Sigmoid {
    fn name(&self) -> &'static str {
        "sigmoid_loss"
    }

    fn cpu_fwd(
        &self,
        image: &CpuStorage,
        image_at: &Layout,
        text: &CpuStorage,
        text_at: &Layout,
        both: &CpuStorage,
        both_at: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let [scale, bias] = f32_slice(both, both_at)? else {
            bail!("sigmoid loss: logit_scale and logit_bias are not scalars")
        };
        let (image, text) = (f32_slice(image, image_at)?, f32_slice(text, text_at)?);
        let loss = self.run(image, text, image_at.dims()[0], *scale, *bias);
        Ok((CpuStorage::F32(vec![loss]), ().into()))
    }

    fn bwd(
        &self,
        image: &Tensor,
        text: &Tensor,
        both: &Tensor,
        _: &Tensor,
        d_loss: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let Some((g, d_both)) = self.saved.lock().unwrap_or_else(PoisonError::into_inner).take() else {
            bail!("sigmoid loss: backward can run only once");
        };
        let d_loss = d_loss.to_scalar::<f32>()?;
        let factor = d_loss * both.to_vec1::<f32>()?[0].exp();
        let (d_image, d_text) = feature_gradients(&g, factor, image, text)?;
        let d_scalars = Tensor::new(&d_both.map(|d| d_loss * d), both.device())?;
        Ok((Some(d_image), Some(d_text), Some(d_scalars)))
    }
}
