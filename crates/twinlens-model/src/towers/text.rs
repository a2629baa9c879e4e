//! The text transformer: CLIP's text tower, and the language model that writes captions.

use super::blocks::{self, BlockInit, Blocks, Kept};
use crate::ops::activation::Activation;
use crate::ops::block::BlockShape;
use crate::ops::device::{self, DeviceOptions};
use crate::ops::embed::{Texts, text_embed};
use crate::ops::linear::project;
use crate::ops::reference::{self, Tensors, get, like};
use crate::ops::transformer::{Pool, Sequences};
use crate::variables::{Declarations, Init};
use candle_core::{D, DType, Result, Tensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

const STACK: &str = "transformer";

/// The shape of a causal text transformer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TextConfig {
    /// Maximum number of tokens of a text, start and end included.
    pub context: usize,
    /// Size of the vocabulary. The `train` stage takes it from the tokenizer.
    #[serde(default)]
    pub vocab: usize,
    /// Numbers in a token.
    pub width: usize,
    /// Residual attention blocks.
    pub layers: usize,
    /// Attention heads; divides `width`.
    pub heads: usize,
}

impl TextConfig {
    /// Declares embeddings, blocks and the final norm, as CLIP's code initialises them.
    pub(crate) fn declare(&self, variables: &mut Declarations) {
        let width = self.width as f64;
        variables.add("token_embedding.weight", &[self.vocab, self.width], Init::Normal(0.02));
        variables.add("positional_embedding", &[self.context, self.width], Init::Normal(0.01));
        variables.add_norm("ln_final", self.width);
        let residual = Init::Normal(width.powf(-0.5) * (2.0 * self.layers as f64).powf(-0.5));
        let init = BlockInit {
            qkv: Init::normal_fan_in(self.width),
            attention_out: residual,
            feed_forward_in: Init::normal_fan_in(2 * self.width),
            feed_forward_out: residual,
        };
        blocks::declare(variables, STACK, self.width, self.layers, &init);
    }

    /// Declares the projection to features of `embed` numbers.
    pub(crate) fn declare_projection(&self, variables: &mut Declarations, embed: usize) {
        variables.add("text_projection", &[self.width, embed], Init::normal_fan_in(self.width));
    }

    /// Numbers of one text's forward pass that the backward pass needs.
    pub(crate) fn kept(&self) -> Kept {
        blocks::kept(self.width, self.layers, self.context, self.heads)
    }

    /// Operations (additions and multiplications) of the blocks over one text of full length.
    pub(crate) fn flops(&self) -> usize {
        blocks::flops(self.width, self.layers, self.context)
    }
}

/// A text transformer with its variables and memory.
#[derive(Clone, Copy)]
pub(crate) struct TextTower<'a> {
    pub config: &'a TextConfig,
    pub activation: Activation,
    /// The variables, attached to the graph if they are trained.
    pub tensors: &'a Tensors,
    pub pool: &'a Pool,
    /// How operations run on a GPU and in half precision; `None` for those of the reference.
    pub device: Option<DeviceOptions>,
}

impl TextTower<'_> {
    fn embed(&self, texts: Texts, train: bool) -> Result<Tensor> {
        let table = get(self.tensors, "token_embedding.weight")?;
        text_embed(table, get(self.tensors, "positional_embedding")?, texts, train)
    }

    fn stack(&self, x: &Tensor, sequences: Sequences, train: bool) -> Result<Tensor> {
        let TextConfig { width, heads, layers, .. } = *self.config;
        let shape = BlockShape { width, heads, activation: self.activation };
        let blocks = Blocks { stack: STACK, layers, shape, tensors: self.tensors, pool: self.pool };
        reference::layer_norm(&blocks.run(x, sequences, train)?, self.tensors, "ln_final")
    }

    /// Features `[texts, embed]` of any length.
    pub(crate) fn features(&self, texts: Texts, train: bool) -> Result<Tensor> {
        let sequences = Sequences::causal(texts.lens.iter().copied());
        let x = self.stack(&self.embed(texts, train)?, sequences, train)?;
        project(&x, get(self.tensors, "text_projection")?)
    }

    /// The language model's state before each word but the first (`[all tokens - texts, width]`),
    /// and the token that follows each. The projected `image` features (`[texts, embed]`) are added
    /// to each text's start token.
    pub(crate) fn next_tokens(
        &self,
        image: &Tensor,
        texts: &Texts,
        train: bool,
    ) -> Result<(Tensor, Vec<u32>)> {
        let mut inputs = Texts { ids: Vec::new(), lens: Vec::new() };
        let (mut targets, mut starts) = (Vec::new(), Vec::new());
        for text in texts.iter() {
            starts.push(inputs.ids.len() as u32);
            // A text of one token has nothing to predict; its row predicts that token.
            let known = text.len().max(2) - 1;
            inputs.ids.extend_from_slice(&text[..known]);
            inputs.lens.push(known);
            targets.extend_from_slice(&text[text.len() - known..]);
        }
        let sequences = Sequences::causal(inputs.lens.iter().copied()).unpooled();
        let image = image.matmul(get(self.tensors, "caption.image_projection")?)?;
        let starts = Tensor::new(starts, image.device())?;
        let x = self.embed(inputs, train)?.index_add(&starts, &image, 0)?;
        Ok((self.stack(&x, sequences, train)?, targets))
    }

    /// The embeddings of token `ids` (`[batch, context]`), `[batch, context, width]`, as `dtype`;
    /// in candle's basic operations.
    pub(crate) fn reference_embed(&self, ids: &Tensor, dtype: DType) -> Result<Tensor> {
        let (batch, context) = ids.dims2()?;
        let x = get(self.tensors, "token_embedding.weight")?.index_select(&ids.flatten_all()?, 0)?;
        x.reshape((batch, context, self.config.width))?.to_dtype(dtype)
    }

    /// Adds positions to embedded tokens (`[batch, context, width]`) and applies the blocks; in
    /// candle's basic operations.
    pub(crate) fn reference_stack(&self, x: &Tensor) -> Result<Tensor> {
        let context = x.dim(1)?;
        let positions = get(self.tensors, "positional_embedding")?.narrow(0, 0, context)?;
        self.reference_blocks(&x.broadcast_add(&like(&positions, x)?)?)
    }

    /// Applies the blocks to rows with positions (`[batch, context, width]`), in candle's basic
    /// operations, or those for GPUs and half precision.
    fn reference_blocks(&self, x: &Tensor) -> Result<Tensor> {
        let TextConfig { width, heads, layers, .. } = *self.config;
        if let Some(options) = self.device {
            let shape = BlockShape { width, heads, activation: self.activation };
            let blocks = Blocks { stack: STACK, layers, shape, tensors: self.tensors, pool: self.pool };
            return blocks.run_on_device(x, true, options);
        }
        let (mut x, context) = (x.clone(), x.dim(1)?);
        let mask = |row: usize, column: usize| if column > row { f64::NEG_INFINITY } else { 0.0 };
        let mask: Vec<f64> = (0..context).flat_map(|r| (0..context).map(move |c| mask(r, c))).collect();
        let mask = Tensor::from_vec(mask, (context, context), x.device())?.to_dtype(x.dtype())?;
        for layer in 0..layers {
            let name = format!("{STACK}.resblocks.{layer}");
            x = reference::block(&x, self.tensors, &name, heads, Some(&mask), self.activation)?;
        }
        Ok(x)
    }

    /// The last norm, as [`reference_stack`](Self::reference_stack).
    pub(crate) fn reference_norm(&self, x: &Tensor) -> Result<Tensor> {
        match self.device {
            None => reference::layer_norm(x, self.tensors, "ln_final"),
            Some(options) => {
                let [gain, bias] =
                    ["weight", "bias"].map(|part| get(self.tensors, &format!("ln_final.{part}")));
                device::layer_norm(x, gain?, bias?, options)
            }
        }
    }

    /// Features `[texts, embed]` of any length of token `ids` (`[texts, context]`), computed as
    /// `dtype` in candle's basic operations.
    pub(crate) fn reference_features(&self, ids: &Tensor, dtype: DType) -> Result<Tensor> {
        let (batch, context) = ids.dims2()?;
        let x = match self.device {
            Some(options) => {
                let [table, positions] =
                    ["token_embedding.weight", "positional_embedding"].map(|name| get(self.tensors, name));
                let x = device::embed(ids, table?, positions?, dtype, options)?;
                self.reference_blocks(&x.reshape((batch, context, self.config.width))?)?
            }
            None => self.reference_stack(&self.reference_embed(ids, dtype)?)?,
        };
        let ends = ids.to_dtype(DType::F32)?.argmax(D::Minus1)?.to_vec1::<u32>()?;
        let ends: Vec<u32> = ends.iter().enumerate().map(|(i, end)| (i * context) as u32 + end).collect();
        let ends = Tensor::new(ends, ids.device())?;
        let x = x.reshape((batch * context, self.config.width))?.index_select(&ends, 0)?;
        let projection = like(get(self.tensors, "text_projection")?, &x)?;
        self.reference_norm(&x)?.matmul(&projection)
    }
}
