//! Transformer stacks: their variables, their cost, and the fused operation over them.

use crate::ops::block::{BlockShape, PARAMETERS};
use crate::ops::device::{DeviceOptions, Span, stack};
use crate::ops::reference::{Tensors, get};
use crate::ops::transformer::{Pool, Sequences, transformer};
use crate::variables::{Declarations, Init};
use candle_core::{Result, Tensor};
use std::ops::Range;

/// Initial distributions of a block's matrices.
pub(super) struct BlockInit {
    pub qkv: Init,
    pub attention_out: Init,
    pub feed_forward_in: Init,
    pub feed_forward_out: Init,
}

/// Declares the variables of `layers` blocks named `{stack}.resblocks.{layer}`.
pub(super) fn declare(
    variables: &mut Declarations,
    stack: &str,
    width: usize,
    layers: usize,
    init: &BlockInit,
) {
    let (one, zero) = (Init::ONE, Init::ZERO);
    let (bias_in, bias_out) = (Init::uniform_fan_in(width), Init::uniform_fan_in(4 * width));
    // In the order of `PARAMETERS`. Biases are PyTorch's defaults: its attention starts without.
    let norm_and_attention = [one, zero, init.qkv, zero, init.attention_out, zero];
    let norm_and_feed_forward = [one, zero, init.feed_forward_in, bias_in, init.feed_forward_out, bias_out];
    for layer in 0..layers {
        let inits = norm_and_attention.iter().chain(&norm_and_feed_forward);
        for ((name, rows, columns), init) in PARAMETERS.into_iter().zip(inits) {
            let shape = [rows * width, columns * width];
            let shape = if columns == 0 { &shape[..1] } else { &shape[..] };
            variables.add(format!("{stack}.resblocks.{layer}.{name}"), shape, *init);
        }
    }
}

/// Operations (additions and multiplications) of a stack over one sequence of `tokens`.
pub(super) fn flops(width: usize, layers: usize, tokens: usize) -> usize {
    layers * (2 * 12 * width * width * tokens + 4 * tokens * tokens * width)
}

/// Numbers of the forward pass of one image or text that the backward pass needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// Without gradient checkpointing.
    pub all: u64,
    /// With gradient checkpointing: the inputs of all blocks, and all of one block.
    pub recomputed: u64,
}

/// Numbers that a stack keeps of one sequence of `tokens` for its backward pass: in each block 16
/// per token and width, and the attention of each head (Korthikanti et al. 2022, eq. 1, without
/// dropout).
pub(super) fn kept(width: usize, layers: usize, tokens: usize, heads: usize) -> Kept {
    let block = 16 * tokens * width + heads * tokens * tokens;
    Kept { all: (layers * block) as u64, recomputed: (layers * tokens * width + block) as u64 }
}

/// A stack with its parameters and its memory.
pub(super) struct Blocks<'a> {
    pub stack: &'a str,
    pub layers: usize,
    pub shape: BlockShape,
    pub tensors: &'a Tensors,
    pub pool: &'a Pool,
}

impl Blocks<'_> {
    /// The names of the parameters of some layers, in packing order.
    fn names(&self, layers: Range<usize>) -> impl Iterator<Item = String> {
        let name = move |layer| {
            PARAMETERS.iter().map(move |(name, ..)| format!("{}.resblocks.{layer}.{name}", self.stack))
        };
        layers.flat_map(name)
    }

    fn run_layers(&self, x: &Tensor, layers: Range<usize>, s: Sequences, train: bool) -> Result<Tensor> {
        transformer(x, &pack(self.tensors, self.names(layers))?, self.shape, s, self.pool, train)
    }

    /// How many leading layers need no gradient, since neither they nor `x` are trained.
    fn fixed(&self, x: &Tensor) -> usize {
        let is_trained = |layer: usize| {
            self.names(layer..layer + 1).any(|name| self.tensors.get(&name).is_some_and(Tensor::track_op))
        };
        if x.track_op() { 0 } else { (0..self.layers).take_while(|layer| !is_trained(*layer)).count() }
    }

    /// Applies the stack to `x` (`[batch, len, width]`) in the operations for GPUs and half
    /// precision.
    pub(super) fn run_on_device(&self, x: &Tensor, causal: bool, options: DeviceOptions) -> Result<Tensor> {
        let (batch, len, width) = x.dims3()?;
        let (mut rows, fixed) = (x.reshape((batch * len, width))?, self.fixed(x));
        for layers in [0..fixed, fixed..self.layers].into_iter().filter(|layers| !layers.is_empty()) {
            let params = pack(self.tensors, self.names(layers))?;
            rows = stack(&rows, &params, self.shape, Span { batch, len, causal }, options)?;
        }
        rows.reshape((batch, len, width))
    }

    /// Applies the stack to `x` (`[rows, width]`). In training, the leading layers are only
    /// evaluated if neither they nor anything before them is trained.
    pub(super) fn run(&self, x: &Tensor, sequences: Sequences, train: bool) -> Result<Tensor> {
        let fixed = self.fixed(x);
        if !train || fixed == 0 || fixed == self.layers {
            return self.run_layers(x, 0..self.layers, sequences, train && fixed == 0);
        }
        let x = self.run_layers(x, 0..fixed, sequences.clone().unpooled(), false)?;
        self.run_layers(&x, fixed..self.layers, sequences, true)
    }
}

/// Concatenates tensors into a flat one, as the fused operations take them; gradients flow back.
pub(super) fn pack(tensors: &Tensors, names: impl Iterator<Item = String>) -> Result<Tensor> {
    let parts = names.map(|name| get(tensors, &name)?.flatten_all());
    Tensor::cat(&parts.collect::<Result<Vec<_>>>()?, 0)
}
