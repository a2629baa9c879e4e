//! The vision transformer (Dosovitskiy et al. 2020), with a layer norm before its blocks as in
//! CLIP.

use super::blocks::{self, BlockInit, Blocks, Kept, pack};
use super::image::{DeviceContext, ImageTower, TowerContext, TowerKind};
use crate::ops::activation::Activation;
use crate::ops::block::BlockShape;
use crate::ops::device;
use crate::ops::embed::{PatchShape, patch_embed};
use crate::ops::linear::project;
use crate::ops::reference::{self, Norms, Tensors, get, like};
use crate::ops::transformer::{Pool, Sequences};
use crate::variables::{Declarations, Init};
use candle_core::{Result, Tensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

const STACK: &str = "visual.transformer";

pub(crate) static KIND: TowerKind = TowerKind::new::<VitConfig>(
    "vit",
    "A vision transformer.",
    Some(|settings| !settings.contains_key("stages")),
);

/// The shape of a vision transformer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VitConfig {
    /// Side of the square input, in pixels.
    pub image_size: usize,
    /// Side of a patch, in pixels; divides `image_size`.
    pub patch: usize,
    /// Numbers in a token.
    pub width: usize,
    /// Residual attention blocks.
    pub layers: usize,
    /// Attention heads; divides `width`.
    pub heads: usize,
}

impl VitConfig {
    fn patches(&self) -> usize {
        (self.image_size / self.patch).pow(2)
    }

    /// The rows of each image before the first norm (`[batch, patches + 1, width]`), in candle's
    /// basic operations.
    fn embed(&self, tensors: &Tensors, pixels: &Tensor) -> Result<Tensor> {
        let (batch, patch, width) = (pixels.dim(0)?, self.patch, self.width);
        let grid = self.image_size / patch;
        let patches =
            pixels.reshape(vec![batch, 3, grid, patch, grid, patch])?.permute(vec![0, 2, 4, 1, 3, 5])?;
        let patches = patches.contiguous()?.reshape((batch, grid * grid, 3 * patch * patch))?;
        let conv = get(tensors, "visual.conv1.weight")?.reshape((width, 3 * patch * patch))?;
        let patches = reference::project(&patches, &conv)?;
        let class = like(get(tensors, "visual.class_embedding")?, pixels)?
            .reshape((1, 1, width))?
            .broadcast_as((batch, 1, width))?;
        let x = Tensor::cat(&[&class.contiguous()?, &patches], 1)?;
        x.broadcast_add(&like(get(tensors, "visual.positional_embedding")?, pixels)?)
    }
}

impl ImageTower for VitConfig {
    fn kind(&self) -> &'static TowerKind {
        &KIND
    }

    fn settings(&self) -> Vec<(&'static str, Value)> {
        vec![
            ("image_size", json!(self.image_size)),
            ("patch", json!(self.patch)),
            ("width", json!(self.width)),
            ("layers", json!(self.layers)),
            ("heads", json!(self.heads)),
        ]
    }

    fn multiples(&self) -> Vec<(&'static str, usize, &'static str, usize)> {
        vec![
            ("vision.width", self.width, "vision.heads", self.heads),
            ("vision.image_size", self.image_size, "vision.patch", self.patch),
        ]
    }

    fn image_size(&self) -> usize {
        self.image_size
    }

    fn declare(&self, variables: &mut Declarations, embed: usize) {
        let (width, patch) = (self.width, self.patch);
        let normal = Init::normal_fan_in(width);
        let conv = Init::uniform_fan_in(3 * patch * patch);
        variables.add("visual.class_embedding", &[width], normal);
        variables.add("visual.conv1.weight", &[width, 3, patch, patch], conv);
        variables.add("visual.positional_embedding", &[self.patches() + 1, width], normal);
        variables.add("visual.proj", &[width, embed], normal);
        variables.add_norm("visual.ln_pre", width);
        variables.add_norm("visual.ln_post", width);
        let init = BlockInit {
            // Xavier: sqrt(6 / (inputs + outputs)), with queries, keys and values as outputs.
            qkv: Init::Uniform((6.0 / (4.0 * width as f64)).sqrt()),
            attention_out: Init::uniform_fan_in(width),
            feed_forward_in: Init::uniform_fan_in(width),
            feed_forward_out: Init::uniform_fan_in(4 * width),
        };
        blocks::declare(variables, STACK, width, self.layers, &init);
    }

    fn flops(&self, embed: usize) -> usize {
        let patches = self.patches();
        let embedding = 2 * 3 * self.patch * self.patch * self.width * patches;
        embedding + blocks::flops(self.width, self.layers, patches + 1) + 2 * self.width * embed
    }

    fn kept(&self) -> Kept {
        blocks::kept(self.width, self.layers, self.patches() + 1, self.heads)
    }

    fn features(&self, cx: &TowerContext<'_>, pixels: &Tensor) -> Result<Tensor> {
        let shape = PatchShape { image: self.image_size, patch: self.patch, width: self.width };
        let names =
            ["conv1.weight", "class_embedding", "positional_embedding", "ln_pre.weight", "ln_pre.bias"];
        let params = pack(cx.tensors, names.iter().map(|name| format!("visual.{name}")))?;
        let x = patch_embed(&pixels.contiguous()?, &params, shape, cx.pass.trains())?;
        let sequences = Sequences::uniform(pixels.dim(0)?, shape.tokens());
        let shape = BlockShape { width: self.width, heads: self.heads, activation: cx.activation };
        let (layers, tensors, pool) = (self.layers, cx.tensors, &cx.memory.pool);
        let x = Blocks { stack: STACK, layers, shape, tensors, pool }.run(&x, sequences, cx.pass.trains())?;
        let x = reference::layer_norm(&x, tensors, "visual.ln_post")?;
        project(&x, get(tensors, "visual.proj")?)
    }

    fn reference_features(
        &self,
        tensors: &Tensors,
        activation: Activation,
        pixels: &Tensor,
        _: Norms<'_>,
    ) -> Result<Tensor> {
        let mut x = reference::layer_norm(&self.embed(tensors, pixels)?, tensors, "visual.ln_pre")?;
        for layer in 0..self.layers {
            let name = format!("{STACK}.resblocks.{layer}");
            x = reference::block(&x, tensors, &name, self.heads, None, activation)?;
        }
        let x = reference::layer_norm(&x.narrow(1, 0, 1)?.squeeze(1)?, tensors, "visual.ln_post")?;
        x.matmul(&like(get(tensors, "visual.proj")?, pixels)?)
    }

    fn device_features(&self, cx: &DeviceContext<'_>, pixels: &Tensor) -> Result<Option<Tensor>> {
        let norm = |x: &Tensor, name: &str| {
            let parameter = |part: &str| get(cx.tensors, &format!("visual.{name}.{part}"));
            device::layer_norm(x, parameter("weight")?, parameter("bias")?, cx.options)
        };
        let shape = BlockShape { width: self.width, heads: self.heads, activation: cx.activation };
        let (layers, tensors) = (self.layers, cx.tensors);
        let blocks = Blocks { stack: STACK, layers, shape, tensors, pool: &Pool::default() };
        let x = norm(&self.embed(tensors, pixels)?, "ln_pre")?;
        let x = blocks.run_on_device(&x, false, cx.options)?;
        let x = norm(&x.narrow(1, 0, 1)?.squeeze(1)?, "ln_post")?;
        Ok(Some(x.matmul(&like(get(tensors, "visual.proj")?, pixels)?)?))
    }

    fn to_open_clip(&self) -> Option<Value> {
        Some(json!({
            "image_size": self.image_size, "layers": self.layers, "width": self.width, "patch_size": self.patch,
            "head_width": self.width / self.heads,
        }))
    }
}
