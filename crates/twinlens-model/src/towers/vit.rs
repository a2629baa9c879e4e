//! The vision transformer.

use super::{Blocks, pack};
use crate::config::VitConfig;
use crate::ops::activation::Activation;
use crate::ops::block::BlockShape;
use crate::ops::embed::{PatchShape, patch_embed};
use crate::ops::transformer::{Pool, Sequences};
use crate::reference::{self, Tensors};
use candle_core::{Result, Tensor};

/// Features `[batch, embed]` of `pixels` (`[batch, 3, size, size]`), of any length.
pub fn features(
    config: &VitConfig,
    activation: Activation,
    tensors: &Tensors,
    pixels: &Tensor,
    pool: &Pool,
    train: bool,
) -> Result<Tensor> {
    let shape = PatchShape { image: config.image_size, patch: config.patch, width: config.width };
    let names = ["conv1.weight", "class_embedding", "positional_embedding", "ln_pre.weight", "ln_pre.bias"];
    let params = pack(tensors, names.iter().map(|name| format!("visual.{name}")))?;
    let x = patch_embed(&pixels.contiguous()?, &params, shape, train)?;
    let sequences = Sequences::uniform(pixels.dim(0)?, shape.tokens());
    let shape = BlockShape { width: config.width, heads: config.heads, activation };
    let blocks = Blocks { tower: "visual.transformer", layers: config.layers, shape, tensors, pool };
    let x = blocks.run(&x, sequences, train)?;
    let x = reference::layer_norm(&x, tensors, "visual.ln_post")?;
    x.matmul(reference::get(tensors, "visual.proj")?)
}
