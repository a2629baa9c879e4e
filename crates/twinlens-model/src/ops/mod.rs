//! Fused operations with gradients, where candle has no gradient or a slow one.
//!
//! [`matmul`], [`simd`], [`norm`], [`activation`], [`attention`], [`block`], [`conv`],
//! [`batch_norm`] and [`pairs`] work on slices. On top of them are candle operations: [`embed`],
//! [`transformer`], [`trunk`], [`linear`], [`pool`], and the losses [`contrastive`], [`sigmoid`]
//! and [`cross_entropy`]. All work on fixed pieces of their input and add in a fixed order, so
//! results are bit-identical for any number of threads. Each has a reference implementation in
//! candle's basic operations ([`crate::reference`]); tests compare values and all gradients.

pub(crate) mod activation;
pub(crate) mod attention;
pub(crate) mod batch_norm;
pub(crate) mod block;
pub(crate) mod contrastive;
pub(crate) mod conv;
pub(crate) mod cross_entropy;
pub(crate) mod device;
pub(crate) mod embed;
pub(crate) mod linear;
pub(crate) mod matmul;
pub(crate) mod norm;
pub(crate) mod pairs;
pub(crate) mod pool;
pub(crate) mod reference;
pub(crate) mod sigmoid;
pub(crate) mod simd;
mod similarity;
pub(crate) mod tensor_pairs;
pub(crate) mod transformer;
pub(crate) mod trunk;

use candle_core::{CpuStorage, Layout, Result, Storage, Tensor, bail};

/// The values of a contiguous f32 tensor.
fn f32_slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        bail!("the fused operations take contiguous tensors");
    };
    Ok(&storage.as_slice::<f32>()?[start..end])
}

/// Calls `f` with the values of an f32 tensor in main memory.
pub(crate) fn with_f32<R>(tensor: &Tensor, f: impl FnOnce(&[f32]) -> Result<R>) -> Result<R> {
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => f(f32_slice(storage, layout)?),
        _ => bail!("the fused operations run on the CPU"),
    }
}

/// ln sum exp, shifted against overflow.
pub(crate) fn log_sum_exp(values: impl Iterator<Item = f32> + Clone) -> f32 {
    let top = values.clone().fold(f32::NEG_INFINITY, f32::max);
    top + values.map(|x| f64::from(x - top).exp()).sum::<f64>().ln() as f32
}

#[cfg(test)]
mod tests;
