//! Kernels for GPUs in CUDA C (`kernels/*.cu`): how each is launched, and its plain twin.
//!
//! A [`Launch`] is what the driver needs: name, grid, shared memory and arguments. It is generic in
//! what stands for a buffer, so that one description serves the GPU, where that is an address
//! (`cuda`, feature `cuda`), and the tests, which run the same sources in a C++ emulation of
//! blocks, barriers and shuffles (`kernels/emulation.h`). [`plain`] has the twin of each kernel in
//! candle's operations, for any device and float type. [`Kernels`] chooses between the two.
//!
//! Sums are f32 in one order that depends on the sizes alone: no kernel uses atomics.

mod choice;
mod contrastive;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;
mod embedding;
mod launch;
mod layers;
mod optimizer;
mod pixels;
pub mod plain;

pub use choice::{Kernels, adamw, sums_of_squares};
pub use contrastive::{ContrastiveGradient, RowLogSums};
pub use embedding::{Embed, EmbeddingGradient, IdPieces};
pub use launch::{Argument, Launch, RowGroups, Storage, THREADS};
pub use layers::{
    AddNorm, AddNormBackward, Attention, AttentionBackward, AttentionSizes, BiasActivation,
    BiasActivationBackward, ColumnSums,
};
pub use optimizer::{AdamWFactors, AdamWLaunch, AdamWStep, SumOfSquares, VariableBlocks};
pub use pixels::{ImageBatch, ImageCut, PixelFilter, PixelLaunch, PixelSizes};
