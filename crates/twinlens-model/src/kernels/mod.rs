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
mod layers;
mod optimizer;
mod pixels;
pub mod plain;

pub use choice::Kernels;
pub use contrastive::{ContrastiveGradient, RowLogSums};
pub use embedding::{Embed, EmbeddingGradient, IdPieces};
pub use layers::{
    AddNorm, AddNormBackward, Attention, AttentionBackward, AttentionSizes, BiasActivation,
    BiasActivationBackward, ColumnSums,
};
pub use optimizer::{AdamWFactors, AdamWLaunch, SumOfSquares, VariableBlocks};
pub use pixels::{ImageBatch, ImageCut, PixelFilter, PixelLaunch, PixelSizes};

use candle_core::{DType, Result, Tensor, bail};

/// How a kernel's large operands are stored. Parameters, statistics and sums are f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// 32 bits.
    F32,
    /// 16 bits with the range of f32.
    Bf16,
}

impl Storage {
    /// That of a tensor's type.
    ///
    /// # Errors
    /// For other types than f32 and bf16.
    pub fn of(dtype: DType) -> Result<Self> {
        match dtype {
            DType::F32 => Ok(Self::F32),
            DType::BF16 => Ok(Self::Bf16),
            other => bail!("the kernels take f32 and bf16, not {}", other.as_str()),
        }
    }

    fn suffix(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }
}

/// An argument of a kernel.
#[derive(Clone, Debug, PartialEq)]
pub enum Argument<B> {
    /// The address of a buffer.
    Buffer(B),
    /// An address that is left out.
    Null,
    /// An `int`.
    I32(i32),
    /// A `long long`.
    I64(i64),
    /// A `float`.
    F32(f32),
    /// The address of a table of buffers' addresses.
    Table(Vec<B>),
}

impl<B> From<Option<B>> for Argument<B> {
    fn from(buffer: Option<B>) -> Self {
        buffer.map_or(Self::Null, Self::Buffer)
    }
}

/// Threads of a block, as in `kernels/common.cuh`.
pub const THREADS: u32 = 128;
const WARPS: u32 = THREADS / 32;

/// One launch of a kernel, in blocks of [`THREADS`].
#[derive(Clone, Debug, PartialEq)]
pub struct Launch<B> {
    /// The source without its ending.
    pub source: &'static str,
    /// The kernel's name in it.
    pub kernel: String,
    /// Blocks.
    pub grid: [u32; 3],
    /// Bytes of shared memory of a block.
    pub shared: u32,
    /// In the kernel's order.
    pub arguments: Vec<Argument<B>>,
}

/// How many launches sum over rows: each block takes a group of them, and [`ColumnSums`] adds the
/// groups' sums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowGroups {
    /// Rows of a group; the last has fewer.
    pub group: usize,
    /// Groups.
    pub count: usize,
}

impl RowGroups {
    /// Depends on the rows alone, so that sums have the same bits on every GPU.
    pub fn of(rows: usize) -> Self {
        let group = rows.div_ceil(512).max(8);
        Self { group, count: rows.div_ceil(group) }
    }
}

/// A step of AdamW over variables on a GPU (f32, contiguous), all of which it changes in place.
#[derive(Clone, Debug, Default)]
pub struct AdamWStep {
    /// The variables.
    pub weights: Vec<Tensor>,
    /// Their gradients.
    pub gradients: Vec<Tensor>,
    /// First moments.
    pub m: Vec<Tensor>,
    /// Second moments.
    pub v: Vec<Tensor>,
    /// Learning rate and decay of each.
    pub rates: Vec<(f64, f64)>,
}

/// Makes the step in one launch; [`plain::adamw`] is its twin for one variable.
///
/// # Errors
/// If a tensor is not on a GPU, or this program was built without support for them.
pub fn adamw(step: &AdamWStep, factors: &AdamWFactors) -> Result<()> {
    #[cfg(feature = "cuda")]
    return cuda::adamw(step, factors);
    #[cfg(not(feature = "cuda"))]
    choice::not_built(&format!("step {} of {} variables", factors.step, step.weights.len()))
}

/// The sum of the squares of each gradient (f32, on a GPU), in one launch.
///
/// # Errors
/// As [`adamw`].
pub fn sums_of_squares(gradients: &[Tensor]) -> Result<Vec<f64>> {
    #[cfg(feature = "cuda")]
    return cuda::sums_of_squares(gradients);
    #[cfg(not(feature = "cuda"))]
    choice::not_built(&format!("the norm of {} gradients", gradients.len()))
}

/// A size as the kernels take it.
fn int(size: usize) -> Result<i32> {
    i32::try_from(size).map_err(|_| candle_core::Error::msg(format!("{size} is too large for a kernel")))
}

fn blocks(size: usize) -> Result<u32> {
    Ok(int(size)? as u32)
}
