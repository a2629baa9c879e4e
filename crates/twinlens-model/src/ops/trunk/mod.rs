//! A ResNet from pixels to the last grid as one operation of candle's graph.
//!
//! Only the convolution's output of each layer is kept. Its readers, including the backward pass,
//! normalise, rectify and average it on the fly, a few images at a time that stay in the cache.
//! Each layer is thus read once and written once, and the sums of its batch norm are taken while it
//! is written. The split of work depends on the sizes alone, so results are bit-identical for any
//! number of threads.

mod backward;
mod buffers;
mod forward;
mod layer;
mod source;

use super::batch_norm::Statistics;
use super::conv::Conv;
use super::{f32_slice, with_f32};
pub(crate) use buffers::Buffers;
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};
use layer::Layer;
use std::sync::{Arc, Mutex, PoisonError};

/// The convolutions of a ResNet, a batch norm after each.
#[derive(Clone, Debug)]
pub(crate) struct Trunk {
    /// Applied in turn to the pixels, each with a relu; followed by 2 x 2 average pooling.
    pub stem: Vec<Conv>,
    /// Residual blocks.
    pub blocks: Vec<Block>,
}

/// relu(main(x) + shortcut(x)).
#[derive(Clone, Debug)]
pub(crate) struct Block {
    /// Applied in turn, with a relu between.
    pub main: [Conv; 3],
    /// Convolution of the shortcut; without it x itself is added.
    pub shortcut: Option<Conv>,
    /// Whether the inputs of the third convolution and of the shortcut are pooled (2 x 2 averages).
    pub pooled: bool,
}

impl Trunk {
    /// Every convolution, in the order of their parameters.
    pub(crate) fn convolutions(&self) -> impl Iterator<Item = Conv> {
        let blocks = self.blocks.iter().flat_map(|b| b.main.iter().chain(&b.shortcut));
        self.stem.iter().chain(blocks).copied()
    }

    /// Numbers in all parameters.
    pub(crate) fn parameters_len(&self) -> usize {
        self.convolutions().map(|c| c.weights_len() + 2 * c.out).sum()
    }

    /// Side and channels of the output grid.
    fn last(&self) -> (usize, usize) {
        let last = self.blocks.last().map_or_else(|| self.stem[self.stem.len() - 1], |block| block.main[2]);
        (last.out_side(), last.out)
    }
}

/// How many numbers one thread works on at a time in element-wise loops: whole rows.
fn piece_len(channels: usize) -> usize {
    ((1 << 15) / channels).max(1) * channels
}

/// One layer's parameters.
#[derive(Clone, Copy)]
struct Parameters<'a> {
    conv: Conv,
    w: &'a [f32],
    gain: &'a [f32],
    bias: &'a [f32],
}

/// Activations kept for the backward pass.
#[derive(Default)]
struct Saved {
    pixels: Vec<f32>,
    layers: Vec<Layer>,
    /// The input of each block.
    grids: Vec<Vec<f32>>,
}

struct ResNet {
    trunk: Trunk,
    buffers: Buffers,
    fixed: Option<Vec<Statistics>>,
    train: bool,
    /// Output: the statistics of each norm.
    statistics: Arc<Mutex<Vec<Statistics>>>,
    saved: Mutex<Option<Saved>>,
}

/// The output grid (`[batch, side, side, channels]`) for `pixels` (`[batch, 3, size, size]`), and
/// the statistics of each norm.
///
/// `params` holds, for each convolution in the order of [`Trunk::convolutions`], its kernel (`[out,
/// channels, kernel, kernel]`) and its norm's gains and biases. Norms use the batch's statistics,
/// or `fixed` ones. With `train`, if any parameter is trained, activations are kept for one
/// backward pass; without, no graph is built. Pixels get no gradient.
pub(crate) fn resnet(
    pixels: &Tensor,
    params: &Tensor,
    trunk: Trunk,
    fixed: Option<Vec<Statistics>>,
    buffers: &Buffers,
    train: bool,
) -> Result<(Tensor, Vec<Statistics>)> {
    let (_, channels, height, width) = pixels.dims4()?;
    let first = trunk.convolutions().next().map(|conv| (conv.channels, conv.side, conv.side));
    let known = |s: &Vec<Statistics>| s.iter().map(|s| s.mean.len()).eq(trunk.convolutions().map(|c| c.out));
    if first != Some((channels, height, width))
        || params.elem_count() != trunk.parameters_len()
        || !fixed.as_ref().is_none_or(known)
    {
        bail!("a ResNet on {:?} with {} parameters", pixels.shape(), params.elem_count());
    }
    let train = train && params.track_op();
    let statistics = Arc::new(Mutex::new(Vec::new()));
    let op = ResNet {
        trunk,
        buffers: buffers.clone(),
        fixed,
        train,
        statistics: statistics.clone(),
        saved: Mutex::new(None),
    };
    let y = if train { pixels.apply_op2(params, op)? } else { pixels.apply_op2_no_bwd(params, &op)? };
    let statistics = std::mem::take(&mut *statistics.lock().unwrap_or_else(PoisonError::into_inner));
    Ok((y, statistics))
}

impl ResNet {
    fn parameters<'a>(&self, mut params: &'a [f32]) -> Vec<Parameters<'a>> {
        let mut take = |len: usize| {
            let (part, rest) = params.split_at(len);
            params = rest;
            part
        };
        let each = self.trunk.convolutions();
        each.map(|conv| {
            let [w, gain, bias] = [conv.weights_len(), conv.out, conv.out].map(&mut take);
            Parameters { conv, w, gain, bias }
        })
        .collect()
    }
}

impl CustomOp2 for ResNet {
    fn name(&self) -> &'static str {
        "resnet"
    }

    fn cpu_fwd(
        &self,
        pixels: &CpuStorage,
        pixels_at: &Layout,
        params: &CpuStorage,
        params_at: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let out = self.run(f32_slice(pixels, pixels_at)?, f32_slice(params, params_at)?);
        let (side, channels) = self.trunk.last();
        Ok((CpuStorage::F32(out), (pixels_at.dims()[0], side, side, channels).into()))
    }

    fn bwd(
        &self,
        _: &Tensor,
        params: &Tensor,
        y: &Tensor,
        d: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let grads =
            with_f32(params, |params| with_f32(y, |y| with_f32(d, |d| Ok(self.run_back(params, y, d)))))?;
        let Some(grads) = grads else {
            bail!("resnet: backward can run only once");
        };
        Ok((None, Some(Tensor::from_vec(grads, params.shape(), params.device())?)))
    }
}
