//! Basic layers in candle's own operations, in any float type: the parts of [`crate::reference`].
//!
//! Softmax and cross-entropy are candle-nn's composed ones. Its fused layer norm and
//! `softmax_last_dim` silently have no gradient, so layer norm is spelled out here.

use super::activation::Activation;
use super::norm::EPS;
use candle_core::{D, DType, Result, Tensor};
use std::collections::BTreeMap;

/// Tensors by name.
pub type Tensors = BTreeMap<String, Tensor>;

/// The tensor of that name.
///
/// # Errors
/// If it is missing.
pub fn get<'a>(tensors: &'a Tensors, name: &str) -> Result<&'a Tensor> {
    tensors.get(name).ok_or_else(|| candle_core::Error::msg(format!("tensor {name} is missing")))
}

/// `weight` in the type of `x`.
pub(crate) fn like(weight: &Tensor, x: &Tensor) -> Result<Tensor> {
    weight.to_dtype(x.dtype())
}

/// `x` widened to f32 if it is in half precision, as norms need it.
pub(crate) fn widened(x: &Tensor) -> Result<Tensor> {
    if matches!(x.dtype(), DType::BF16 | DType::F16) { x.to_dtype(DType::F32) } else { Ok(x.clone()) }
}

/// Layer norm of the last dimension with `{name}.weight` and `{name}.bias`.
pub(crate) fn layer_norm(x: &Tensor, tensors: &Tensors, name: &str) -> Result<Tensor> {
    let wide = widened(x)?;
    let centred = wide.broadcast_sub(&wide.mean_keepdim(D::Minus1)?)?;
    let scale = (centred.sqr()?.mean_keepdim(D::Minus1)? + f64::from(EPS))?.sqrt()?;
    let (gain, bias) = (get(tensors, &format!("{name}.weight"))?, get(tensors, &format!("{name}.bias"))?);
    like(&centred.broadcast_div(&scale)?.broadcast_mul(gain)?.broadcast_add(bias)?, x)
}

/// `x / |x|` over the last dimension.
pub fn normalise(x: &Tensor) -> Result<Tensor> {
    x.broadcast_div(&x.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?)
}

/// `x w^T` over the last dimension of `x` (`[.., in]`), as one product of all rows.
pub(crate) fn project(x: &Tensor, w: &Tensor) -> Result<Tensor> {
    let (out, inner) = w.dims2()?;
    let rows = x.contiguous()?.reshape(((), inner))?.matmul(&like(w, x)?.t()?)?;
    let mut shape = x.dims().to_vec();
    if let Some(last) = shape.last_mut() {
        *last = out;
    }
    rows.reshape(shape)
}

/// `x w^T + bias` over the last dimension of `x` (`[.., in]`).
pub(crate) fn linear(x: &Tensor, w: &Tensor, bias: &Tensor) -> Result<Tensor> {
    project(x, w)?.broadcast_add(&like(bias, x)?)
}

/// Attention of packed queries, keys and values (`[batch, len, 3 width]`) to `[batch, len, width]`.
/// If given, `mask` is the causal mask.
fn attention(qkv: &Tensor, heads: usize, mask: Option<&Tensor>) -> Result<Tensor> {
    let (batch, len, packed) = qkv.dims3()?;
    let width = packed / 3;
    let scale = 1.0 / ((width / heads) as f64).sqrt();
    let part =
        |i: usize| qkv.narrow(D::Minus1, i * width, width)?.reshape((batch, len, heads, width / heads));
    #[cfg(feature = "flash-attn")]
    if supports_flash_attention(qkv, width / heads) {
        let attended =
            candle_flash_attn::flash_attn(&part(0)?, &part(1)?, &part(2)?, scale as f32, mask.is_some())?;
        return attended.reshape((batch, len, width));
    }
    let part = |i: usize| part(i)?.transpose(1, 2)?.contiguous();
    let scores = (widened(&part(0)?.matmul(&part(1)?.t()?.contiguous()?)?)? * scale)?;
    let scores = if let Some(mask) = mask { scores.broadcast_add(&like(mask, &scores)?)? } else { scores };
    like(&candle_nn::ops::softmax(&scores, D::Minus1)?, qkv)?
        .matmul(&part(2)?)?
        .transpose(1, 2)?
        .contiguous()?
        .reshape((batch, len, width))
}

/// Whether `candle-flash-attn` supports the case: it has no gradient, and is limited to half
/// precision and some depths.
#[cfg(feature = "flash-attn")]
pub(crate) fn supports_flash_attention(qkv: &Tensor, depth: usize) -> bool {
    let half = matches!(qkv.dtype(), DType::BF16 | DType::F16);
    qkv.device().is_cuda() && half && !qkv.track_op() && depth.is_multiple_of(8) && depth <= 256
}

/// A residual attention block on `x` (`[batch, len, width]`).
pub(crate) fn block(
    x: &Tensor,
    tensors: &Tensors,
    name: &str,
    heads: usize,
    mask: Option<&Tensor>,
    activation: Activation,
) -> Result<Tensor> {
    let parameter = |part: &str| get(tensors, &format!("{name}.{part}"));
    let normed = layer_norm(x, tensors, &format!("{name}.ln_1"))?;
    let qkv = linear(&normed, parameter("attn.in_proj_weight")?, parameter("attn.in_proj_bias")?)?;
    let attended = attention(&qkv, heads, mask)?;
    let x = (x + linear(&attended, parameter("attn.out_proj.weight")?, parameter("attn.out_proj.bias")?)?)?;
    let normed = layer_norm(&x, tensors, &format!("{name}.ln_2"))?;
    let hidden = linear(&normed, parameter("mlp.c_fc.weight")?, parameter("mlp.c_fc.bias")?)?;
    let hidden = match activation {
        Activation::QuickGelu => (&hidden * ((&hidden * -1.702)?.exp()? + 1.0)?.recip()?)?,
        Activation::Gelu => (&hidden * 0.5)?.mul(&((&hidden / 2f64.sqrt())?.erf()? + 1.0)?)?,
    };
    x + linear(&hidden, parameter("mlp.c_proj.weight")?, parameter("mlp.c_proj.bias")?)?
}

/// The statistics that batch norms use.
pub enum Norms<'a> {
    /// The tensors `{name}.running_mean` and `{name}.running_var`.
    Running,
    /// Those of the batch; mean and variance of each norm are appended here.
    Batch(&'a mut Vec<[Tensor; 2]>),
}
