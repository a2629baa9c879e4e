//! The kernels on candle's tensors: the functions of [`super::plain`], launched on a GPU.
//!
//! `build.rs` compiles the sources to PTX, which the driver translates for the GPU at hand. All
//! launches go to the stream of candle's device, so that they are in order with its own operations
//! and with the release of memory.

use super::contrastive::{ContrastiveGradient, RowLogSums};
use super::embedding::{Embed, EmbeddingGradient, IdPieces};
use super::launch::{Argument, Launch, RowGroups, Storage, THREADS};
use super::layers::{
    AddNorm, AddNormBackward, Attention, AttentionBackward, AttentionSizes, BiasActivation,
    BiasActivationBackward, ColumnSums,
};
use super::optimizer::{AdamWFactors, AdamWLaunch, AdamWStep, SumOfSquares, VariableBlocks};
use super::pixels::{ImageBatch, PixelFilter, PixelLaunch, PixelSizes};
use super::plain::{Attended, Delta, Norm, Normed};
use crate::ops::activation::Activation;
use candle_core::cuda_backend::cudarc::driver::sys::CUfunction_attribute_enum;
use candle_core::cuda_backend::cudarc::driver::{DevicePtr, LaunchConfig, PushKernelArg};
use candle_core::cuda_backend::{CudaStorageSlice, WrapErr};
use candle_core::{CudaDevice, DType, Device, Result, Shape, Tensor, bail};
use twinlens_image::Preprocess;

/// Shared memory that a block has without asking for more, in bytes.
const SHARED: u32 = 48 * 1024;

macro_rules! sources {
    ($($name:literal),*) => {
        fn ptx(source: &str) -> Result<&'static str> {
            Ok(match source {
                $($name => include_str!(concat!(env!("OUT_DIR"), "/", $name, ".ptx")),)*
                other => bail!("unknown kernel source `{other}`"),
            })
        }
    };
}

sources!("activation", "adamw", "attention", "contrastive", "embedding", "norm", "pixels");

/// The address of a tensor's first number, on the GPU.
fn address(tensor: &Tensor) -> Result<u64> {
    let (storage, layout) = tensor.storage_and_layout();
    let (candle_core::Storage::Cuda(storage), Some((start, _))) = (&*storage, layout.contiguous_offsets())
    else {
        bail!("the kernels take contiguous tensors on a GPU, not {:?} on {:?}", layout, tensor.device());
    };
    let stream = storage.device.cuda_stream();
    // The guard that comes with an address orders work of other streams; all of a tensor's work is
    // on its device's stream.
    let base = match &storage.slice {
        CudaStorageSlice::U8(slice) => slice.device_ptr(&stream).0,
        CudaStorageSlice::U32(slice) => slice.device_ptr(&stream).0,
        CudaStorageSlice::I64(slice) => slice.device_ptr(&stream).0,
        CudaStorageSlice::BF16(slice) => slice.device_ptr(&stream).0,
        CudaStorageSlice::F32(slice) => slice.device_ptr(&stream).0,
        CudaStorageSlice::F64(slice) => slice.device_ptr(&stream).0,
        _ => bail!("the kernels do not take {}", tensor.dtype().as_str()),
    };
    Ok(base + (start * tensor.dtype().size_in_bytes()) as u64)
}

/// A tensor that a kernel will fill.
#[expect(unsafe_code, reason = "memory without values: every launch below writes all of its results")]
fn fresh(shape: impl Into<Shape>, dtype: DType, device: &Device) -> Result<Tensor> {
    // SAFETY: no number is read before the launch that writes it, which is next in the stream.
    unsafe { Tensor::empty(shape, dtype, device) }
}

/// An argument's value while the launch is made.
enum Slot {
    Address(u64),
    I32(i32),
    I64(i64),
    F32(f32),
}

#[expect(unsafe_code, reason = "a launch; grid and arguments are those that the tests run in the emulation")]
fn run(device: &CudaDevice, launch: &Launch<u64>) -> Result<()> {
    if launch.grid.contains(&0) {
        return Ok(());
    }
    let module = format!("twinlens_{}", launch.source);
    let function = device.get_or_load_custom_func(&launch.kernel, &module, ptx(launch.source)?)?;
    if launch.shared > SHARED {
        let attribute = CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        function.set_attribute(attribute, launch.shared as i32).w()?;
    }
    // Tables live until the launch is in the stream, which frees them afterwards.
    let mut tables = Vec::new();
    let mut slots = Vec::with_capacity(launch.arguments.len());
    for argument in &launch.arguments {
        slots.push(match argument {
            Argument::Buffer(address) => Slot::Address(*address),
            Argument::Null => Slot::Address(0),
            Argument::I32(number) => Slot::I32(*number),
            Argument::I64(number) => Slot::I64(*number),
            Argument::F32(number) => Slot::F32(*number),
            Argument::Table(addresses) => {
                let table = device.clone_htod(addresses)?;
                let address = table.device_ptr(&device.cuda_stream()).0;
                tables.push(table);
                Slot::Address(address)
            }
        });
    }
    let mut builder = function.builder();
    for slot in &slots {
        match slot {
            Slot::Address(value) => builder.arg(value),
            Slot::I32(value) => builder.arg(value),
            Slot::I64(value) => builder.arg(value),
            Slot::F32(value) => builder.arg(value),
        };
    }
    let [x, y, z] = launch.grid;
    let config =
        LaunchConfig { grid_dim: (x, y, z), block_dim: (THREADS, 1, 1), shared_mem_bytes: launch.shared };
    // SAFETY: the arguments have the kernel's types and order, and its buffers the sizes that it
    // writes: `Launch` is built from the same description that the emulation checks.
    unsafe { builder.launch(config) }.w()?;
    Ok(())
}

/// The device of a tensor, to launch on.
fn cuda(tensor: &Tensor) -> Result<CudaDevice> {
    match tensor.device() {
        Device::Cuda(device) => Ok(device.clone()),
        other => bail!("the kernels run on a GPU, not on {other:?}"),
    }
}

fn float(tensor: &Tensor) -> Result<Tensor> {
    tensor.to_dtype(DType::F32)?.contiguous()
}

/// Adds the sums of groups of rows: `parts` is `[groups, width]`.
fn sum_parts(parts: &Tensor) -> Result<Tensor> {
    let shape @ (count, width) = parts.dims2()?;
    let sums = fresh(width, DType::F32, parts.device())?;
    let groups = RowGroups { group: count, count: 1 };
    let launch = ColumnSums { x: address(parts)?, sums: address(&sums)?, shape, groups };
    run(&cuda(parts)?, &launch.launch(Storage::F32)?)?;
    Ok(sums)
}

pub(crate) fn add_norm(x: &Tensor, delta: Delta<'_>, norm: Norm<'_>) -> Result<Normed> {
    let (shape, device, dtype) = (x.dims2()?, x.device(), x.dtype());
    let (x, gain, bias) = (x.contiguous()?, float(norm.gain)?, float(norm.bias)?);
    let (y, stats) = (fresh(shape, dtype, device)?, fresh((shape.0, 2), DType::F32, device)?);
    let delta = delta.map(|(delta, bias)| Ok::<_, candle_core::Error>((delta.contiguous()?, float(bias)?)));
    let delta = delta.transpose()?;
    let sum = if delta.is_some() { fresh(shape, dtype, device)? } else { x.clone() };
    let launch = AddNorm {
        x: address(&x)?,
        delta: match &delta {
            Some((delta, _)) => Some((address(delta)?, address(&sum)?)),
            None => None,
        },
        delta_bias: delta.as_ref().map(|(_, bias)| address(bias)).transpose()?,
        gain: address(&gain)?,
        bias: address(&bias)?,
        y: address(&y)?,
        stats: address(&stats)?,
        shape,
    };
    run(&cuda(&x)?, &launch.launch(Storage::of(dtype)?)?)?;
    Ok(Normed { sum, y, stats })
}

pub(crate) fn add_norm_backward(
    normed: &Normed,
    gain: &Tensor,
    dy: &Tensor,
    d_sum: Option<&Tensor>,
) -> Result<(Tensor, [Tensor; 3])> {
    let (shape @ (rows, width), device, dtype) = (dy.dims2()?, dy.device(), dy.dtype());
    let (gain, dy) = (float(gain)?, dy.contiguous()?);
    let d_sum = d_sum.map(Tensor::contiguous).transpose()?;
    let d = fresh(shape, dtype, device)?;
    let parts = fresh((RowGroups::of(rows).count, 3 * width), DType::F32, device)?;
    let launch = AddNormBackward {
        sum: address(&normed.sum)?,
        stats: address(&normed.stats)?,
        gain: address(&gain)?,
        dy: address(&dy)?,
        d_sum: d_sum.as_ref().map(address).transpose()?,
        d: address(&d)?,
        parts: address(&parts)?,
        shape,
    };
    run(&cuda(&dy)?, &launch.launch(Storage::of(dtype)?)?)?;
    let sums = sum_parts(&parts)?;
    let part = |i: usize| sums.narrow(0, i * width, width);
    Ok((d, [part(0)?, part(1)?, part(2)?]))
}

pub(crate) fn bias_activation(x: &Tensor, bias: &Tensor, activation: Activation) -> Result<Tensor> {
    let (shape, x, bias) = (x.dims2()?, x.contiguous()?, float(bias)?);
    let y = fresh(shape, x.dtype(), x.device())?;
    let launch =
        BiasActivation { x: address(&x)?, bias: address(&bias)?, y: address(&y)?, shape, activation };
    run(&cuda(&x)?, &launch.launch(Storage::of(x.dtype())?)?)?;
    Ok(y)
}

pub(crate) fn bias_activation_backward(
    x: &Tensor,
    bias: &Tensor,
    dy: &Tensor,
    activation: Activation,
) -> Result<(Tensor, Tensor)> {
    let (shape @ (rows, width), bias) = (x.dims2()?, float(bias)?);
    let (x, dy) = (x.contiguous()?, dy.contiguous()?);
    let dx = fresh(shape, dy.dtype(), dy.device())?;
    let parts = fresh((RowGroups::of(rows).count, width), DType::F32, dy.device())?;
    let launch = BiasActivationBackward {
        x: address(&x)?,
        bias: address(&bias)?,
        dy: address(&dy)?,
        dx: address(&dx)?,
        parts: address(&parts)?,
        shape,
        activation,
    };
    run(&cuda(&x)?, &launch.launch(Storage::of(x.dtype())?)?)?;
    Ok((dx, sum_parts(&parts)?))
}

pub(crate) fn column_sums(x: &Tensor) -> Result<Tensor> {
    let (shape @ (rows, width), x) = (x.dims2()?, x.contiguous()?);
    let groups = RowGroups::of(rows);
    let parts = fresh((groups.count, width), DType::F32, x.device())?;
    let launch = ColumnSums { x: address(&x)?, sums: address(&parts)?, shape, groups };
    run(&cuda(&x)?, &launch.launch(Storage::of(x.dtype())?)?)?;
    sum_parts(&parts)
}

pub(crate) fn attention(qkv: &Tensor, bias: &Tensor, sizes: AttentionSizes) -> Result<(Tensor, Tensor)> {
    let AttentionSizes { batch, len, heads, depth, .. } = sizes;
    let (qkv, bias) = (qkv.contiguous()?, float(bias)?);
    let out = fresh((batch * len, heads * depth), qkv.dtype(), qkv.device())?;
    let log_sums = fresh((batch, heads, len), DType::F32, qkv.device())?;
    let launch = Attention {
        qkv: address(&qkv)?,
        bias: Some(address(&bias)?),
        out: address(&out)?,
        log_sums: address(&log_sums)?,
        lens: None,
        sizes,
    };
    run(&cuda(&qkv)?, &launch.launch(Storage::of(qkv.dtype())?)?)?;
    Ok((out, log_sums))
}

pub(crate) fn attention_backward(
    attended: Attended<'_>,
    d_out: &Tensor,
    sizes: AttentionSizes,
) -> Result<Tensor> {
    let (qkv, bias) = (attended.qkv.contiguous()?, float(attended.bias)?);
    let (out, d_out) = (attended.out.contiguous()?, d_out.contiguous()?);
    let means = fresh(attended.log_sums.shape(), DType::F32, qkv.device())?;
    let d_qkv = fresh(qkv.shape(), qkv.dtype(), qkv.device())?;
    let launch = AttentionBackward {
        qkv: address(&qkv)?,
        bias: Some(address(&bias)?),
        out: address(&out)?,
        log_sums: address(attended.log_sums)?,
        d_out: address(&d_out)?,
        means: address(&means)?,
        d_qkv: address(&d_qkv)?,
        lens: None,
        sizes,
    };
    let device = cuda(&qkv)?;
    launch.launches(Storage::of(qkv.dtype())?)?.iter().try_for_each(|launch| run(&device, launch))?;
    Ok(d_qkv)
}

pub(crate) fn row_log_sums(logits: &Tensor) -> Result<Tensor> {
    let (shape, logits) = (logits.dims2()?, logits.contiguous()?);
    let log_sums = fresh(shape.0, DType::F32, logits.device())?;
    let launch = RowLogSums { logits: address(&logits)?, log_sums: address(&log_sums)?, shape };
    run(&cuda(&logits)?, &launch.launch(Storage::of(logits.dtype())?)?)?;
    Ok(log_sums)
}

pub(crate) fn contrastive_gradient(
    logits: &Tensor,
    own: &Tensor,
    other: &Tensor,
    first: usize,
) -> Result<(Tensor, Tensor)> {
    let (shape, g) = (logits.dims2()?, logits.copy()?);
    let (own, other) = (float(own)?, float(other)?);
    let shares = fresh((shape.0, 2), DType::F32, g.device())?;
    let launch = ContrastiveGradient {
        logits: address(&g)?,
        own: address(&own)?,
        other: address(&other)?,
        shares: address(&shares)?,
        shape,
        first,
    };
    run(&cuda(&g)?, &launch.launch(Storage::of(g.dtype())?)?)?;
    Ok((g, shares))
}

pub(crate) fn embed(
    ids: &Tensor,
    table: &Tensor,
    positions: &Tensor,
    len: usize,
    dtype: DType,
) -> Result<Tensor> {
    let (ids, shape) = (ids.contiguous()?, (ids.elem_count(), table.dim(1)?));
    let (table, positions) = (float(table)?, float(positions)?);
    let out = fresh(shape, dtype, table.device())?;
    let launch = Embed {
        ids: address(&ids)?,
        table: address(&table)?,
        positions: address(&positions)?,
        out: address(&out)?,
        shape,
        len,
    };
    run(&cuda(&table)?, &launch.launch(Storage::of(dtype)?)?)?;
    Ok(out)
}

pub(crate) fn embedding_gradient(d: &Tensor, ids: &[u32], vocabulary: usize) -> Result<Tensor> {
    let (device, d, pieces) = (d.device(), d.contiguous()?, IdPieces::of(ids));
    let width = d.dim(1)?;
    let upload = |numbers: &[u32]| Tensor::new(numbers, device);
    let [order, starts] = [upload(&pieces.order)?, upload(&pieces.starts)?];
    let [used, firsts] = [upload(&pieces.ids)?, upload(&pieces.firsts)?];
    let parts = fresh((pieces.count(), width), DType::F32, device)?;
    let d_table = Tensor::zeros((vocabulary, width), DType::F32, device)?;
    let launch = EmbeddingGradient {
        d: address(&d)?,
        order: address(&order)?,
        starts: address(&starts)?,
        ids: address(&used)?,
        firsts: address(&firsts)?,
        parts: address(&parts)?,
        d_table: address(&d_table)?,
        width,
    };
    let cuda = cuda(&d)?;
    let launches = launch.launches(Storage::of(d.dtype())?, &pieces)?;
    launches.iter().try_for_each(|launch| run(&cuda, launch))?;
    Ok(d_table)
}

pub(crate) fn prepare_pixels(
    batch: ImageBatch<'_>,
    preprocess: &Preprocess,
    device: &Device,
) -> Result<Tensor> {
    batch.check()?;
    let (size, images) = (preprocess.size as usize, batch.cuts.len());
    let (sizes, table) = PixelSizes::pack(batch.cuts, size, PixelFilter::of(preprocess.filter)?);
    let channels: Vec<f32> = (0..3).flat_map(|c| [preprocess.mean[c], preprocess.std[c]]).collect();
    let (bytes, table) = (Tensor::new(batch.bytes, device)?, Tensor::new(&table[..], device)?);
    let channels = Tensor::new(channels, device)?;
    // The kernels keep signed numbers in these.
    let [starts, weights] = [images * size, images * size * sizes.taps].map(|n| fresh(n, DType::U32, device));
    let (starts, weights) = (starts?, weights?);
    let between = fresh(sizes.between, DType::U8, device)?;
    let out = fresh((images, 3, size, size), DType::F32, device)?;
    let launch = PixelLaunch {
        bytes: address(&bytes)?,
        images: address(&table)?,
        channels: address(&channels)?,
        starts: address(&starts)?,
        weights: address(&weights)?,
        between: address(&between)?,
        out: address(&out)?,
    };
    let cuda = cuda(&out)?;
    launch.launches(Storage::F32, &sizes)?.iter().try_for_each(|launch| run(&cuda, launch))?;
    Ok(out)
}

/// Tables of the sizes of variables, on the GPU.
struct Tables {
    blocks: VariableBlocks,
    lens: Tensor,
    firsts: Tensor,
}

impl Tables {
    fn new(tensors: &[Tensor], device: &Device) -> Result<Self> {
        let blocks = VariableBlocks::new(tensors.iter().map(Tensor::elem_count))?;
        let lens = Tensor::new(&blocks.lens[..], device)?;
        let firsts = Tensor::new(&blocks.blocks[..], device)?;
        Ok(Self { blocks, lens, firsts })
    }
}

fn addresses(tensors: &[Tensor]) -> Result<Vec<u64>> {
    tensors.iter().map(address).collect()
}

/// A step of AdamW in place; see [`super::choice::adamw`].
pub(crate) fn adamw(step: &AdamWStep, factors: &AdamWFactors) -> Result<()> {
    let Some(first) = step.weights.first() else { return Ok(()) };
    let device = first.device();
    let tables = Tables::new(&step.weights, device)?;
    let of_variables: Vec<f32> =
        step.rates.iter().flat_map(|&(rate, decay)| factors.of(rate, decay)).collect();
    let of_variables = Tensor::new(of_variables, device)?;
    let launch = AdamWLaunch {
        weights: addresses(&step.weights)?,
        gradients: addresses(&step.gradients)?,
        m: addresses(&step.m)?,
        v: addresses(&step.v)?,
        lens: address(&tables.lens)?,
        blocks: address(&tables.firsts)?,
        factors: address(&of_variables)?,
    };
    run(&cuda(first)?, &launch.launch(&tables.blocks, factors)?)
}

/// The sum of the squares of each gradient; see [`super::choice::sums_of_squares`].
pub(crate) fn sums_of_squares(gradients: &[Tensor]) -> Result<Vec<f64>> {
    let mut sums = vec![0.0; gradients.len()];
    let Some(first) = gradients.first() else { return Ok(sums) };
    let tables = Tables::new(gradients, first.device())?;
    let parts = fresh(tables.blocks.count() as usize, DType::F64, first.device())?;
    let launch = SumOfSquares {
        gradients: addresses(gradients)?,
        lens: address(&tables.lens)?,
        blocks: address(&tables.firsts)?,
        parts: address(&parts)?,
    };
    run(&cuda(first)?, &launch.launch(&tables.blocks)?)?;
    let parts = parts.to_vec1::<f64>()?;
    tables.blocks.variables().zip(parts).for_each(|(variable, part)| sums[variable] += part);
    Ok(sums)
}
