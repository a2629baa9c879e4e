//! The towers in fused operations: from pixels and token ids to features.

pub mod resnet;
pub mod text;
pub mod vit;

use crate::ops::block::{BlockShape, PARAMETERS};
use crate::ops::transformer::{Pool, Sequences, transformer};
use crate::reference::{self, Tensors};
use candle_core::{Result, Tensor};
use std::ops::Range;

/// What a tower is run for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// Evaluation: no graph; batch norm by its running statistics.
    Evaluate,
    /// The values that training sees, without a graph: batch norm by the batch, the running
    /// statistics left alone. For gradients that are computed in two passes.
    Preview,
    /// Training: with a graph for one backward pass; batch norm by the batch, which moves the
    /// running statistics.
    Train,
}

impl Pass {
    /// Whether a graph is built.
    pub fn trains(self) -> bool {
        self == Self::Train
    }
}

/// A tower's residual attention blocks, and where they find their parameters and room.
struct Blocks<'a> {
    tower: &'a str,
    layers: usize,
    shape: BlockShape,
    tensors: &'a Tensors,
    pool: &'a Pool,
}

impl Blocks<'_> {
    /// The names of some blocks' parameters, in the order in which they are packed.
    fn names(&self, layers: Range<usize>) -> impl Iterator<Item = String> {
        let name = move |layer| {
            PARAMETERS.iter().map(move |(name, ..)| format!("{}.resblocks.{layer}.{name}", self.tower))
        };
        layers.flat_map(name)
    }

    /// The blocks on `x` (`[rows, width]`), read as `sequences` says. In training, the first blocks
    /// are only evaluated where neither they nor what comes before them learns.
    fn run(&self, x: &Tensor, sequences: Sequences, train: bool) -> Result<Tensor> {
        let some = |x: &Tensor, layers: Range<usize>, sequences, train| {
            transformer(x, &pack(self.tensors, self.names(layers))?, self.shape, sequences, self.pool, train)
        };
        let learns = |layer: usize| {
            self.names(layer..layer + 1).any(|name| self.tensors.get(&name).is_some_and(Tensor::track_op))
        };
        let fixed =
            if x.track_op() { 0 } else { (0..self.layers).take_while(|layer| !learns(*layer)).count() };
        if !train || fixed == 0 || fixed == self.layers {
            return some(x, 0..self.layers, sequences, train && fixed == 0);
        }
        let x = some(x, 0..fixed, sequences.clone().unpooled(), false)?;
        some(&x, fixed..self.layers, sequences, true)
    }
}

/// Variables one after another in one flat tensor, as the fused operations take them; the gradient
/// finds its way back.
fn pack(tensors: &Tensors, names: impl Iterator<Item = String>) -> Result<Tensor> {
    let parts = names.map(|name| reference::get(tensors, &name)?.flatten_all());
    Tensor::cat(&parts.collect::<Result<Vec<_>>>()?, 0)
}
