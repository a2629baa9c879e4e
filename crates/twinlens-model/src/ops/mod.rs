//! Operations with a gradient of their own: what candle has none for, or a slow one.
//!
//! Plain slices below ([`matmul`], [`simd`], [`norm`], [`activation`], [`attention`], [`block`],
//! [`conv`], [`batch_norm`], [`pairs`]), candle operations above ([`embed`], [`transformer`],
//! [`trunk`], [`linear`], [`pool`], and the objectives' [`contrastive`], [`sigmoid`],
//! [`cross_entropy`]). Every one runs on fixed pieces of its input and adds in a fixed order:
//! results are the same bits whatever the threads. Each has a plain twin of candle's basic
//! operations in [`crate::reference`], and tests that values and all gradients agree.

pub mod activation;
pub mod attention;
pub mod batch_norm;
pub mod block;
pub mod contrastive;
pub mod conv;
pub mod cross_entropy;
pub mod embed;
pub mod linear;
pub mod matmul;
pub mod norm;
pub mod pairs;
pub mod pool;
pub mod sigmoid;
pub mod simd;
pub mod transformer;
pub mod trunk;

use candle_core::{CpuStorage, Layout, Result, Storage, Tensor, bail};

/// The numbers of a contiguous f32 tensor.
fn f32_slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        bail!("the fused operations take contiguous tensors");
    };
    Ok(&storage.as_slice::<f32>()?[start..end])
}

/// Calls `f` on the numbers of an f32 tensor in main memory.
pub(crate) fn with_f32<R>(tensor: &Tensor, f: impl FnOnce(&[f32]) -> Result<R>) -> Result<R> {
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => f(f32_slice(storage, layout)?),
        _ => bail!("the fused operations run on the CPU"),
    }
}

#[cfg(test)]
mod tests;
