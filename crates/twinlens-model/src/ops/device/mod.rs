//! The operations of a model on a GPU, and in half precision anywhere: each is one operation of
//! candle's graph with a gradient by formula.
//!
//! Matrix products are candle's (cuBLAS); what lies between is a kernel or its plain twin
//! ([`crate::kernels`]). The result is computed first, from tensors without a graph, and then
//! handed to the graph as a [`computed::Computed`] operation that knows its gradient. So a stack of
//! blocks is one node, whose backward pass may recompute activations, on any device and in any
//! float type: with the plain twins the tests run it on the CPU.

mod computed;
mod contrastive;
mod layers;
mod stack;

pub(crate) use computed::DeviceOptions;
pub(crate) use contrastive::contrastive_loss;
pub(crate) use layers::{embed, layer_norm};
pub(crate) use stack::{Span, stack};

#[cfg(test)]
mod tests;
