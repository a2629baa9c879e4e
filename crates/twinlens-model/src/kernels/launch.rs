//! What the driver needs to launch a kernel.

use candle_core::{DType, Result, bail};

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

    pub(super) fn suffix(self) -> &'static str {
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
/// Warps of a block.
pub(super) const WARPS: u32 = THREADS / 32;

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

/// How launches sum over rows: each block takes a group of them, and [`super::ColumnSums`] adds the
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

/// A size as the kernels take it.
pub(super) fn int(size: usize) -> Result<i32> {
    i32::try_from(size).map_err(|_| candle_core::Error::msg(format!("{size} is too large for a kernel")))
}

/// A size as a number of blocks.
pub(super) fn blocks(size: usize) -> Result<u32> {
    Ok(int(size)? as u32)
}
