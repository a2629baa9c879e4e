//! The twin of each kernel in candle's operations, for any device and float type.
//!
//! In half precision, statistics and sums are f32 and matrix products are in half precision, as in
//! PyTorch's autocast. Nothing here builds a graph: the gradients are formulas, which
//! tests hold to those of candle's graph.

use super::layers::AttentionSizes;
use super::optimizer::AdamWFactors;
use super::pixels::ImageBatch;
use crate::ops::activation::Activation;
use crate::ops::norm::EPS;
use crate::ops::reference::{like, widened};
use candle_core::{D, DType, Device, Error, Result, Tensor};
use twinlens_image::{Preprocess, Rgb, resize};

/// The result of [`add_norm`].
#[derive(Clone, Debug)]
pub struct Normed {
    /// What was normalised.
    pub sum: Tensor,
    /// The result.
    pub y: Tensor,
    /// Mean and 1 / sqrt(var + eps) of each row, `[rows, 2]`.
    pub stats: Tensor,
}

/// Gain and bias of a layer norm, `[width]` each.
#[derive(Clone, Copy, Debug)]
pub struct Norm<'a> {
    /// Factors.
    pub gain: &'a Tensor,
    /// Added last.
    pub bias: &'a Tensor,
}

/// A residual branch: `[rows, width]`, and a bias `[width]` on it.
pub type Delta<'a> = Option<(&'a Tensor, &'a Tensor)>;

/// Layer norm of `x` (`[rows, width]`) plus `delta`.
///
/// # Errors
/// If a shape does not match.
pub fn add_norm(x: &Tensor, delta: Delta<'_>, norm: Norm<'_>) -> Result<Normed> {
    let sum = match delta {
        None => x.clone(),
        Some((delta, bias)) => {
            let delta = widened(delta)?;
            let delta = delta.broadcast_add(&like(bias, &delta)?)?;
            (widened(x)? + delta)?.to_dtype(x.dtype())?
        }
    };
    let wide = widened(&sum)?;
    let mean = wide.mean_keepdim(D::Minus1)?;
    let centred = wide.broadcast_sub(&mean)?;
    let scale = (centred.sqr()?.mean_keepdim(D::Minus1)? + f64::from(EPS))?.sqrt()?.recip()?;
    let y = centred.broadcast_mul(&scale)?.broadcast_mul(&like(norm.gain, &wide)?)?;
    let y = y.broadcast_add(&like(norm.bias, &wide)?)?.to_dtype(x.dtype())?;
    Ok(Normed { sum, y, stats: Tensor::cat(&[mean, scale], D::Minus1)? })
}

/// The gradient of [`add_norm`] at `normed`, from that of the result, and from `d_sum`, which
/// reaches the sum another way: of the sum, and of gain, bias and the branch's bias.
///
/// # Errors
/// If a shape does not match.
pub fn add_norm_backward(
    normed: &Normed,
    gain: &Tensor,
    dy: &Tensor,
    d_sum: Option<&Tensor>,
) -> Result<(Tensor, [Tensor; 3])> {
    let (sum, dy, dtype) = (widened(&normed.sum)?, widened(dy)?, dy.dtype());
    let stats = normed.stats.to_dtype(sum.dtype())?;
    let (mean, scale) = (stats.narrow(1, 0, 1)?, stats.narrow(1, 1, 1)?);
    let z = sum.broadcast_sub(&mean)?.broadcast_mul(&scale)?;
    let e = dy.broadcast_mul(&like(gain, &dy)?)?;
    let mean_ez = (&e * &z)?.mean_keepdim(1)?;
    let d = (e.broadcast_sub(&e.mean_keepdim(1)?)? - z.broadcast_mul(&mean_ez)?)?.broadcast_mul(&scale)?;
    let d = if let Some(d_sum) = d_sum { (d + widened(d_sum)?)? } else { d };
    let sums = [(&dy * &z)?.sum(0)?, dy.sum(0)?, d.sum(0)?];
    Ok((d.to_dtype(dtype)?, sums))
}

/// f(x + bias) of `x` (`[rows, width]`).
///
/// # Errors
/// If a shape does not match.
pub fn bias_activation(x: &Tensor, bias: &Tensor, activation: Activation) -> Result<Tensor> {
    let shifted = shifted(x, bias)?;
    (&shifted * gate(&shifted, activation)?)?.to_dtype(x.dtype())
}

fn shifted(x: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let wide = widened(x)?;
    wide.broadcast_add(&like(bias, &wide)?)
}

/// What x is multiplied with: sigmoid(1.702 x) or Phi(x).
fn gate(x: &Tensor, activation: Activation) -> Result<Tensor> {
    match activation {
        Activation::QuickGelu => ((x * -1.702)?.exp()? + 1.0)?.recip(),
        Activation::Gelu => ((x / 2f64.sqrt())?.erf()? + 1.0)? * 0.5,
    }
}

/// The gradients of `x` and `bias`.
///
/// # Errors
/// If a shape does not match.
pub fn bias_activation_backward(
    x: &Tensor,
    bias: &Tensor,
    dy: &Tensor,
    activation: Activation,
) -> Result<(Tensor, Tensor)> {
    let shifted = shifted(x, bias)?;
    let gate = gate(&shifted, activation)?;
    let slope = match activation {
        Activation::QuickGelu => (&gate * (((&shifted * 1.702)? * (1.0 - &gate)?)? + 1.0)?)?,
        Activation::Gelu => {
            let density = ((shifted.sqr()? * -0.5)?.exp()? * (2.0 * std::f64::consts::PI).sqrt().recip())?;
            (gate + (shifted * density)?)?
        }
    };
    let d = (widened(dy)? * slope)?;
    Ok((d.to_dtype(dy.dtype())?, d.sum(0)?))
}

/// The sum of the rows of `x` (`[rows, width]`).
///
/// # Errors
/// If the tensor cannot be read.
pub fn column_sums(x: &Tensor) -> Result<Tensor> {
    widened(x)?.sum(0)
}

/// Queries, keys and values, `[batch, heads, len, depth]` each.
fn parts(qkv: &Tensor, bias: &Tensor, s: AttentionSizes) -> Result<[Tensor; 3]> {
    let qkv = shifted(qkv, bias)?.to_dtype(qkv.dtype())?;
    let qkv = qkv.reshape((s.batch, s.len, 3, s.heads, s.depth))?;
    let part = |i: usize| qkv.narrow(2, i, 1)?.squeeze(2)?.transpose(1, 2)?.contiguous();
    Ok([part(0)?, part(1)?, part(2)?])
}

/// Attention weights, widened, and ln sum exp of the scores.
fn weights(queries: &Tensor, keys: &Tensor, s: AttentionSizes) -> Result<(Tensor, Tensor)> {
    let scores = widened(&queries.matmul(&keys.t()?)?)?;
    let mut scores = (scores * (s.depth as f64).sqrt().recip())?;
    if s.causal {
        let places = Tensor::arange(0, s.len as u32, scores.device())?;
        let hidden = places.reshape((1, s.len))?.broadcast_gt(&places.reshape((s.len, 1))?)?;
        let minus = Tensor::new(f32::NEG_INFINITY, scores.device())?.to_dtype(scores.dtype())?;
        let hidden = hidden.broadcast_as(scores.shape())?;
        scores = hidden.where_cond(&minus.broadcast_as(scores.shape())?, &scores)?;
    }
    let top = scores.max_keepdim(D::Minus1)?;
    let exponentials = scores.broadcast_sub(&top)?.exp()?;
    let total = exponentials.sum_keepdim(D::Minus1)?;
    Ok((exponentials.broadcast_div(&total)?, (top + total.log()?)?.squeeze(D::Minus1)?))
}

/// From `qkv` (`[batch len, 3 width]`) plus `bias` to `[batch len, width]`, and ln sum exp of each
/// query's scores, `[batch, heads, len]`.
///
/// # Errors
/// If a shape does not match.
pub fn attention(qkv: &Tensor, bias: &Tensor, s: AttentionSizes) -> Result<(Tensor, Tensor)> {
    let [queries, keys, values] = parts(qkv, bias, s)?;
    let (weights, log_sums) = weights(&queries, &keys, s)?;
    let out = like(&weights, qkv)?.matmul(&values)?.transpose(1, 2)?.contiguous()?;
    Ok((out.reshape((s.batch * s.len, s.heads * s.depth))?, log_sums))
}

/// What the backward pass of attention needs of the forward pass.
#[derive(Clone, Copy, Debug)]
pub struct Attended<'a> {
    /// `[batch len, 3 width]`.
    pub qkv: &'a Tensor,
    /// `[3 width]`.
    pub bias: &'a Tensor,
    /// The result of [`attention`].
    pub out: &'a Tensor,
    /// Its second result.
    pub log_sums: &'a Tensor,
}

/// The gradient of `qkv` (`[batch len, 3 width]`), from that of the result.
///
/// # Errors
/// If a shape does not match.
pub fn attention_backward(attended: Attended<'_>, d_out: &Tensor, s: AttentionSizes) -> Result<Tensor> {
    let [queries, keys, values] = parts(attended.qkv, attended.bias, s)?;
    let (weights, _) = weights(&queries, &keys, s)?;
    let d_out = d_out.reshape((s.batch, s.len, s.heads, s.depth))?.transpose(1, 2)?.contiguous()?;
    let d_values = like(&weights, &d_out)?.t()?.contiguous()?.matmul(&d_out)?;
    let d_weights = widened(&d_out.matmul(&values.t()?)?)?;
    let mean = (&weights * &d_weights)?.sum_keepdim(D::Minus1)?;
    let d_scores = (weights * d_weights.broadcast_sub(&mean)?)?;
    let d_scores = like(&(d_scores * (s.depth as f64).sqrt().recip())?, &d_out)?;
    let d_queries = d_scores.matmul(&keys)?;
    let d_keys = d_scores.t()?.contiguous()?.matmul(&queries)?;
    let all = Tensor::stack(&[d_queries, d_keys, d_values], 0)?;
    // [3, batch, heads, len, depth] to [batch, len, 3, heads, depth].
    all.permute((1, 3, 0, 2, 4))?.contiguous()?.reshape((s.batch * s.len, 3 * s.heads * s.depth))
}

/// ln sum exp of each row of `logits` (`[rows, n]`).
///
/// # Errors
/// If the tensor cannot be read.
pub fn row_log_sums(logits: &Tensor) -> Result<Tensor> {
    let wide = widened(logits)?;
    let top = wide.max_keepdim(1)?;
    (&top + wide.broadcast_sub(&top)?.exp()?.sum_keepdim(1)?.log()?)?.squeeze(1)
}

/// The gradient of the symmetric cross-entropy by the logits (`[rows, n]`) of the rows of one side
/// from `first` on, and of each row its share of the loss and of the gradient of the temperature's
/// logarithm (`[rows, 2]`). `own` and `other` are [`row_log_sums`] of all rows of both sides.
///
/// # Errors
/// If a shape does not match.
pub fn contrastive_gradient(
    logits: &Tensor,
    own: &Tensor,
    other: &Tensor,
    first: usize,
) -> Result<(Tensor, Tensor)> {
    let (rows, n) = logits.dims2()?;
    let wide = widened(logits)?;
    let half = 0.5 / n as f64;
    let own = like(own, &wide)?.narrow(0, first, rows)?.reshape((rows, 1))?;
    let columns = Tensor::arange(0, n as u32, logits.device())?.reshape((1, n))?;
    let pairs = Tensor::arange(first as u32, (first + rows) as u32, logits.device())?;
    let pairs = columns.broadcast_eq(&pairs.reshape((rows, 1))?)?.to_dtype(wide.dtype())?;
    let softmaxes = (wide.broadcast_sub(&own)?.exp()?
        + wide.broadcast_sub(&like(other, &wide)?.reshape((1, n))?)?.exp()?)?;
    let g = ((softmaxes - (&pairs * 2.0)?)? * half)?;
    let loss = ((own - (&pairs * &wide)?.sum_keepdim(1)?)? * half)?;
    let shares = Tensor::cat(&[loss, (&g * &wide)?.sum_keepdim(1)?], 1)?;
    Ok((like(&g, logits)?, shares))
}

/// Rows of tokens (`[ids, width]`) as `dtype`: of `table` (`[vocabulary, width]`) at each id, plus
/// `positions` (`[context, width]`) at its place in its sequence of `len`.
///
/// # Errors
/// If a shape does not match.
pub fn embed(ids: &Tensor, table: &Tensor, positions: &Tensor, len: usize, dtype: DType) -> Result<Tensor> {
    let (rows, width) = (ids.elem_count(), table.dim(1)?);
    let tokens = table.index_select(&ids.flatten_all()?, 0)?.reshape((rows / len, len, width))?;
    tokens.broadcast_add(&positions.narrow(0, 0, len)?)?.reshape((rows, width))?.to_dtype(dtype)
}

/// The gradient of the table (`[vocabulary, width]`, f32 or wider) from that of the rows of `ids`.
///
/// # Errors
/// If a shape does not match.
pub fn embedding_gradient(d: &Tensor, ids: &[u32], vocabulary: usize) -> Result<Tensor> {
    let wide = widened(d)?;
    let table = Tensor::zeros((vocabulary, d.dim(1)?), wide.dtype(), d.device())?;
    table.index_add(&Tensor::new(ids, d.device())?, &wide, 0)
}

/// A variable and its moments.
#[derive(Clone, Debug)]
pub struct AdamWState {
    /// The variable.
    pub weights: Tensor,
    /// First moment.
    pub m: Tensor,
    /// Second moment.
    pub v: Tensor,
}

/// A step of AdamW for one variable with its learning rate and decay.
///
/// # Errors
/// If a shape does not match.
pub fn adamw(
    state: &AdamWState,
    gradient: &Tensor,
    (rate, decay): (f64, f64),
    step: &AdamWFactors,
) -> Result<AdamWState> {
    let AdamWFactors { beta1, beta2, eps, scale, .. } = *step;
    let g = (gradient.detach() * f64::from(scale))?;
    let m = ((&state.m * beta1)? + (&g * (1.0 - beta1))?)?;
    let v = ((&state.v * beta2)? + (g.sqr()? * (1.0 - beta2))?)?;
    let rate_now = rate / (1.0 - beta1.powf(step.step as f64));
    let root = (1.0 - beta2.powf(step.step as f64)).sqrt();
    let change = (&m * rate_now)?.div(&((v.sqrt()? / root)? + eps)?)?;
    let kept = (&state.weights * (1.0 - rate * decay))?;
    Ok(AdamWState { weights: (kept - change)?, m, v })
}

/// The input of an image tower, `[images, 3, size, size]` in f32 on `device`: squares of images,
/// resized, mirrored and normalised, on the CPU.
///
/// # Errors
/// If a square is empty or beyond its image.
pub fn prepare_pixels(batch: ImageBatch<'_>, preprocess: &Preprocess, device: &Device) -> Result<Tensor> {
    batch.check()?;
    let size = preprocess.size as usize;
    let mut input = vec![0.0; batch.cuts.len() * 3 * size * size];
    for (cut, out) in batch.cuts.iter().zip(input.chunks_exact_mut(3 * size * size)) {
        let row = |row: usize| {
            let first = cut.start + 3 * ((cut.top + row) * cut.width + cut.left);
            &batch.bytes[first..first + 3 * cut.side]
        };
        let square = (0..cut.side).flat_map(row).copied().collect();
        let square = Rgb::new(cut.side as u32, cut.side as u32, square).map_err(Error::wrap)?;
        let resized = resize(&square, preprocess.size, preprocess.size, preprocess.filter);
        let resized = resized.map_err(Error::wrap)?.into_pixels();
        preprocess.normalize_into(&resized, out).map_err(Error::wrap)?;
        if cut.mirror {
            out.chunks_exact_mut(size).for_each(<[f32]>::reverse);
        }
    }
    Tensor::from_vec(input, (batch.cuts.len(), 3, size, size), device)
}
