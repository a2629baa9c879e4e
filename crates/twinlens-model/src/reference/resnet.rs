//! The plain twin of the ResNet: channels first, candle's convolution and pooling, batch norm
//! spelled out.

use super::{Norms, Tensors, get, like, widened};
use crate::config::ResNetConfig;
use crate::ops::batch_norm::EPS;
use crate::towers::resnet::{Bottleneck, Convolution};
use candle_core::{D, Result, Tensor};

/// Batch norm of `x` (`[batch, channels, side, side]`).
fn batch_norm(x: &Tensor, tensors: &Tensors, name: &str, norms: &mut Norms<'_>) -> Result<Tensor> {
    let part = |part: &str| get(tensors, &format!("{name}.{part}"))?.reshape((1, (), 1, 1));
    let wide = widened(x)?;
    let (centred, variance) = match norms {
        Norms::Running => (wide.broadcast_sub(&part("running_mean")?)?, part("running_var")?),
        Norms::Batch(found) => {
            let mean = wide.mean_keepdim((0, 2, 3))?;
            let centred = wide.broadcast_sub(&mean)?;
            let variance = centred.sqr()?.mean_keepdim((0, 2, 3))?;
            found.push([mean.detach().flatten_all()?, variance.detach().flatten_all()?]);
            (centred, variance)
        }
    };
    let scaled = centred.broadcast_div(&(variance + f64::from(EPS))?.sqrt()?)?;
    like(&scaled.broadcast_mul(&part("weight")?)?.broadcast_add(&part("bias")?)?, x)
}

/// `max(x, 0)` with the slope 0 at 0: candle's has 1 there.
fn relu(x: &Tensor) -> Result<Tensor> {
    x * x.gt(0.0)?.to_dtype(x.dtype())?
}

fn layer(x: &Tensor, tensors: &Tensors, layer: &Convolution, norms: &mut Norms<'_>) -> Result<Tensor> {
    let w = get(tensors, &format!("{}.weight", layer.name))?;
    let x = x.conv2d(&like(w, x)?, layer.kernel / 2, layer.stride, 1, 1)?;
    batch_norm(&x, tensors, &layer.norm, norms)
}

fn block(x: &Tensor, tensors: &Tensors, block: &Bottleneck, norms: &mut Norms<'_>) -> Result<Tensor> {
    let pooled = |x: Tensor| if block.pooled { x.avg_pool2d(2) } else { Ok(x) };
    let [first, second, third] = &block.main;
    let y = relu(&layer(x, tensors, first, norms)?)?;
    let y = pooled(relu(&layer(&y, tensors, second, norms)?)?)?;
    let y = layer(&y, tensors, third, norms)?;
    let beside = match &block.downsample {
        None => x.clone(),
        Some(beside) => layer(&pooled(x.clone())?, tensors, beside, norms)?,
    };
    relu(&(y + beside)?)
}

/// Features `[batch, embed]` of any length, of `pixels` (`[batch, 3, size, size]`).
pub fn features(
    tensors: &Tensors,
    config: &ResNetConfig,
    pixels: &Tensor,
    mut norms: Norms<'_>,
) -> Result<Tensor> {
    let norms = &mut norms;
    let mut x = pixels.clone();
    for convolution in config.stem() {
        x = relu(&layer(&x, tensors, &convolution, norms)?)?;
    }
    x = x.avg_pool2d(2)?;
    for bottleneck in config.blocks() {
        x = block(&x, tensors, &bottleneck, norms)?;
    }
    attention_pool(&x, tensors, config)
}

fn attention_pool(x: &Tensor, tensors: &Tensors, config: &ResNetConfig) -> Result<Tensor> {
    let (batch, width, _, _) = x.dims4()?;
    let x = x.flatten_from(2)?.transpose(1, 2)?.contiguous()?;
    let x = Tensor::cat(&[&x.mean_keepdim(1)?, &x], 1)?;
    let part = |name: &str| get(tensors, &format!("visual.attnpool.{name}"));
    let x = x.broadcast_add(&like(part("positional_embedding")?, &x)?)?;
    let linear = |x: &Tensor, name: &str| {
        super::linear(x, part(&format!("{name}.weight"))?, part(&format!("{name}.bias"))?)
    };
    let heads = |x: Tensor| {
        let split = x.reshape((batch, (), config.heads, width / config.heads))?;
        split.transpose(1, 2)?.contiguous()
    };
    let (q, k, v) =
        (heads(linear(&x, "q_proj")?)?, heads(linear(&x, "k_proj")?)?, heads(linear(&x, "v_proj")?)?);
    let scores = (q.matmul(&k.t()?.contiguous()?)? / ((width / config.heads) as f64).sqrt())?;
    let attended = like(&candle_nn::ops::softmax(&widened(&scores)?, D::Minus1)?, &v)?.matmul(&v)?;
    let attended = attended.transpose(1, 2)?.contiguous()?.reshape((batch, (), width))?;
    linear(&attended, "c_proj")?.narrow(1, 0, 1)?.squeeze(1)
}
