//! The plain twin: towers and objectives in candle's basic operations, in any float type.
//!
//! Nothing is skipped, nothing is fused: the full context of every text, every row of every block.
//! Tests hold the fused operations to it, in value and in every gradient. Softmax and cross-entropy
//! are candle-nn's composed ones; its layer norm and `softmax_last_dim` have no gradient and say so
//! to nobody, so layer norm is spelled out.

mod objectives;
mod resnet;

pub use objectives::{bag_of_words_loss, caption_loss, contrastive_loss, sigmoid_loss};
pub(crate) use objectives::{caption_logits, caption_loss_of, next_words};

use crate::config::{ClipConfig, VisionConfig, VitConfig};
use crate::objective::Objective;
use crate::ops::activation::Activation;
use crate::ops::norm::EPS;
use candle_core::{D, DType, Result, Tensor};
use std::collections::BTreeMap;

/// Variables or constants by name.
pub type Tensors = BTreeMap<String, Tensor>;

/// The tensor of that name.
///
/// # Errors
/// When there is none.
pub fn get<'a>(tensors: &'a Tensors, name: &str) -> Result<&'a Tensor> {
    tensors.get(name).ok_or_else(|| candle_core::Error::msg(format!("no tensor is called {name}")))
}

/// `weight` in the type that `x` is computed in.
fn like(weight: &Tensor, x: &Tensor) -> Result<Tensor> {
    weight.to_dtype(x.dtype())
}

/// In f32 where `x` is in half precision: what norms are computed in.
fn widened(x: &Tensor) -> Result<Tensor> {
    if matches!(x.dtype(), DType::BF16 | DType::F16) { x.to_dtype(DType::F32) } else { Ok(x.clone()) }
}

/// Layer norm of the last dimension with `{name}.weight` and `{name}.bias`.
///
/// # Errors
/// When a shape does not fit.
pub fn layer_norm(x: &Tensor, tensors: &Tensors, name: &str) -> Result<Tensor> {
    let wide = widened(x)?;
    let centred = wide.broadcast_sub(&wide.mean_keepdim(D::Minus1)?)?;
    let scale = (centred.sqr()?.mean_keepdim(D::Minus1)? + f64::from(EPS))?.sqrt()?;
    let (gain, bias) = (get(tensors, &format!("{name}.weight"))?, get(tensors, &format!("{name}.bias"))?);
    like(&centred.broadcast_div(&scale)?.broadcast_mul(gain)?.broadcast_add(bias)?, x)
}

/// `x / |x|` of the last dimension.
///
/// # Errors
/// When an operation fails.
pub fn normalise(x: &Tensor) -> Result<Tensor> {
    x.broadcast_div(&x.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?)
}

/// `x w^T` over the last dimension of `x` (`[.., in]`); the rows go through one product, in which
/// `w` is not repeated.
fn project(x: &Tensor, w: &Tensor) -> Result<Tensor> {
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
/// A mask is the causal one.
fn attention(qkv: &Tensor, heads: usize, mask: Option<&Tensor>) -> Result<Tensor> {
    let (batch, len, packed) = qkv.dims3()?;
    let width = packed / 3;
    let scale = 1.0 / ((width / heads) as f64).sqrt();
    let part =
        |i: usize| qkv.narrow(D::Minus1, i * width, width)?.reshape((batch, len, heads, width / heads));
    #[cfg(feature = "flash-attn")]
    if takes_flash_attention(qkv, width / heads) {
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

/// Whether the kernel of `candle-flash-attn` may stand in: it has no gradient, knows half precision
/// alone, and not every depth.
#[cfg(feature = "flash-attn")]
fn takes_flash_attention(qkv: &Tensor, depth: usize) -> bool {
    let half = matches!(qkv.dtype(), DType::BF16 | DType::F16);
    qkv.device().is_cuda() && half && !qkv.track_op() && depth.is_multiple_of(8) && depth <= 256
}

/// One block on `x` (`[batch, len, width]`).
fn block(
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

/// Image features `[batch, embed]` of `pixels` (`[batch, 3, size, size]`): of unit length where the
/// objective embeds texts too. With `running`, batch norms use the running statistics, which are
/// then among the tensors.
///
/// # Errors
/// When a shape does not fit.
pub fn encode_image(
    tensors: &Tensors,
    config: &ClipConfig,
    pixels: &Tensor,
    running: bool,
) -> Result<Tensor> {
    let mut found = Vec::new();
    let norms = if running { Norms::Running } else { Norms::Batch(&mut found) };
    let features = image_features(tensors, config, pixels, norms)?;
    if config.objective.embeds_texts() { normalise(&features) } else { Ok(features) }
}

/// What batch norms go by.
pub(crate) enum Norms<'a> {
    /// The tensors `{name}.running_mean` and `{name}.running_var`.
    Running,
    /// The batch; mean and variance of each norm are left here.
    Batch(&'a mut Vec<[Tensor; 2]>),
}

/// Image features of any length, computed in the type of `pixels`.
pub(crate) fn image_features(
    tensors: &Tensors,
    config: &ClipConfig,
    pixels: &Tensor,
    norms: Norms<'_>,
) -> Result<Tensor> {
    match &config.vision {
        VisionConfig::Vit(v) => vit(tensors, v, config.activation, pixels),
        VisionConfig::ResNet(r) => resnet::features(tensors, r, pixels, norms),
    }
}

fn vit(tensors: &Tensors, v: &VitConfig, activation: Activation, pixels: &Tensor) -> Result<Tensor> {
    let (batch, grid) = (pixels.dim(0)?, v.image_size / v.patch);
    let patches =
        pixels.reshape(vec![batch, 3, grid, v.patch, grid, v.patch])?.permute(vec![0, 2, 4, 1, 3, 5])?;
    let patches = patches.contiguous()?.reshape((batch, grid * grid, 3 * v.patch * v.patch))?;
    let conv = get(tensors, "visual.conv1.weight")?.reshape((v.width, 3 * v.patch * v.patch))?;
    let patches = project(&patches, &conv)?;
    let class = like(get(tensors, "visual.class_embedding")?, pixels)?
        .reshape((1, 1, v.width))?
        .broadcast_as((batch, 1, v.width))?;
    let x = Tensor::cat(&[&class.contiguous()?, &patches], 1)?;
    let x = x.broadcast_add(&like(get(tensors, "visual.positional_embedding")?, pixels)?)?;
    let mut x = layer_norm(&x, tensors, "visual.ln_pre")?;
    for layer in 0..v.layers {
        let name = format!("visual.transformer.resblocks.{layer}");
        x = block(&x, tensors, &name, v.heads, None, activation)?;
    }
    let x = layer_norm(&x.narrow(1, 0, 1)?.squeeze(1)?, tensors, "visual.ln_post")?;
    x.matmul(&like(get(tensors, "visual.proj")?, pixels)?)
}

/// The causal stack on embedded tokens (`[batch, context, width]`), to which positions are added
/// first.
fn text_stack(tensors: &Tensors, config: &ClipConfig, x: &Tensor) -> Result<Tensor> {
    let (t, context) = (&config.text, x.dim(1)?);
    let positions = get(tensors, "positional_embedding")?.narrow(0, 0, context)?;
    let mut x = x.broadcast_add(&like(&positions, x)?)?;
    let hidden = |(row, column): (usize, usize)| if column > row { f64::NEG_INFINITY } else { 0.0 };
    let mask: Vec<f64> = (0..context).flat_map(|r| (0..context).map(move |c| (r, c))).map(hidden).collect();
    let mask = Tensor::from_vec(mask, (context, context), x.device())?.to_dtype(x.dtype())?;
    for layer in 0..t.layers {
        let name = format!("transformer.resblocks.{layer}");
        x = block(&x, tensors, &name, t.heads, Some(&mask), config.activation)?;
    }
    Ok(x)
}

/// Normalised features `[batch, embed]` of token `ids` (`[batch, context]`), read at each text's
/// highest id.
///
/// # Errors
/// When a shape does not fit.
pub fn encode_text(tensors: &Tensors, config: &ClipConfig, ids: &Tensor) -> Result<Tensor> {
    let compute = get(tensors, "token_embedding.weight")?.dtype();
    normalise(&text_features(tensors, config, ids, compute)?)
}

/// The tokens' embeddings, `[batch, context, width]`, as `compute`.
fn embed(tensors: &Tensors, config: &ClipConfig, ids: &Tensor, compute: DType) -> Result<Tensor> {
    let (batch, context) = ids.dims2()?;
    let x = get(tensors, "token_embedding.weight")?.index_select(&ids.flatten_all()?, 0)?;
    x.reshape((batch, context, config.text.width))?.to_dtype(compute)
}

/// Text features of any length, computed in `compute`.
pub(crate) fn text_features(
    tensors: &Tensors,
    config: &ClipConfig,
    ids: &Tensor,
    compute: DType,
) -> Result<Tensor> {
    let (batch, context) = ids.dims2()?;
    let x = text_stack(tensors, config, &embed(tensors, config, ids, compute)?)?;
    let ends = ids.to_dtype(DType::F32)?.argmax(D::Minus1)?.to_vec1::<u32>()?;
    let read: Vec<u32> = ends.iter().enumerate().map(|(i, end)| (i * context) as u32 + end).collect();
    let x = x
        .reshape((batch * context, config.text.width))?
        .index_select(&Tensor::new(read, ids.device())?, 0)?;
    layer_norm(&x, tensors, "ln_final")?.matmul(&like(get(tensors, "text_projection")?, &x)?)
}

/// The loss of a batch of pairs in training: a scalar.
///
/// # Errors
/// When a shape does not fit.
pub fn loss(tensors: &Tensors, config: &ClipConfig, pixels: &Tensor, ids: &Tensor) -> Result<Tensor> {
    let image = encode_image(tensors, config, pixels, false)?;
    let text = || encode_text(tensors, config, ids);
    let scale = || get(tensors, "logit_scale");
    match config.objective {
        Objective::Contrastive => contrastive_loss(&image, &text()?, scale()?),
        Objective::Sigmoid => sigmoid_loss(&image, &text()?, scale()?, get(tensors, "logit_bias")?),
        Objective::BagOfWords => bag_of_words_loss(tensors, &image, ids),
        Objective::Caption => caption_loss(tensors, config, &image, ids),
    }
}
