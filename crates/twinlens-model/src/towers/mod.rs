//! The towers in fused operations: from pixels and token ids to features.

pub mod resnet;
pub mod text;
pub mod vit;

use crate::ops::block::PARAMETERS;
use crate::reference::{self, Tensors};
use candle_core::{Result, Tensor};

/// What a tower is run for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// Evaluation: no graph; batch norm by its running statistics.
    Evaluate,
    /// The values that training sees, without a graph: batch norm by the batch, the running statistics left alone. For
    /// gradients that are computed in two passes.
    Preview,
    /// Training: with a graph for one backward pass; batch norm by the batch, which moves the running statistics.
    Train,
}

impl Pass {
    /// Whether a graph is built.
    pub fn trains(self) -> bool {
        self == Self::Train
    }
}

/// The names of a stack of blocks' parameters, in the order in which they are packed.
fn block_names(tower: &str, layers: usize) -> impl Iterator<Item = String> {
    let names =
        move |layer| PARAMETERS.iter().map(move |(name, ..)| format!("{tower}.resblocks.{layer}.{name}"));
    (0..layers).flat_map(names)
}

/// Variables one after another in one flat tensor, as the fused operations take them; the gradient finds its way back.
fn pack(tensors: &Tensors, names: impl Iterator<Item = String>) -> Result<Tensor> {
    let parts = names.map(|name| reference::get(tensors, &name)?.flatten_all());
    Tensor::cat(&parts.collect::<Result<Vec<_>>>()?, 0)
}
