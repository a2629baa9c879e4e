//! A layer of a residual network as one operation: convolution, batch norm, what is added, relu.
//!
//! Candle pays a zero fill, an addition and an allocation for every tensor on a gradient's way; what lies between a
//! convolution and its norm stays inside.

use super::batch_norm::{Statistics, backward, forward};
use super::conv::Conv;
use super::linear;
use super::{f32_slice, with_f32};
use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, bail};
use std::sync::{Arc, Mutex, PoisonError};

/// Sizes of a layer.
#[derive(Clone, Copy, Debug)]
pub struct LayerShape {
    /// Side of the kernel: 1, or 3 with padding 1.
    pub kernel: usize,
    /// Step between outputs; 1 where the kernel is.
    pub stride: usize,
    /// Channels out.
    pub output: usize,
}

/// What the forward pass leaves.
#[derive(Default)]
struct Saved {
    /// The convolution's output, for one backward pass.
    convolved: Option<Vec<f32>>,
    statistics: Statistics,
}

struct ConvNorm {
    shape: LayerShape,
    conv: Conv,
    relu: bool,
    fixed: Option<Statistics>,
    saved: Arc<Mutex<Saved>>,
}

/// The layer on `x` (`[batch, side, side, channels]`): `[batch, side', side', output]`, side' being side over the stride,
/// rounded up; and the statistics of its batch norm.
///
/// `params` holds the kernel (`[output, channels, kernel, kernel]`), gains and biases, one after another. `residual` (as
/// large as the result) is added before the relu. With `fixed` statistics there is no gradient.
pub fn conv_norm(
    x: &Tensor,
    params: &Tensor,
    shape: LayerShape,
    residual: Option<&Tensor>,
    relu: bool,
    fixed: Option<Statistics>,
) -> Result<(Tensor, Statistics)> {
    let (batch, side, width, channels) = x.dims4()?;
    let LayerShape { kernel, stride, output } = shape;
    let conv = Conv { side, channels, stride };
    let out_dims = [batch, conv.out_side(), conv.out_side(), output];
    let fits = fixed.as_ref().is_none_or(|s| s.mean.len() == output && s.variance.len() == output);
    if side != width
        || !matches!((kernel, stride), (1, 1) | (3, 1..))
        || params.dims() != [output * channels * kernel * kernel + 2 * output]
        || residual.is_some_and(|r| r.dims() != out_dims)
        || !fits
    {
        bail!("{shape:?} on {:?} with {:?} parameters", x.shape(), params.shape());
    }
    let saved = Arc::new(Mutex::new(Saved::default()));
    let op = ConvNorm { shape, conv, relu, fixed, saved: saved.clone() };
    let y = match residual {
        None => x.apply_op2(params, op)?,
        Some(residual) => x.apply_op3(params, residual, op)?,
    };
    let statistics = saved.lock().unwrap_or_else(PoisonError::into_inner).statistics.clone();
    Ok((y, statistics))
}

/// From `[output, channels, 9]` to `[output, 9, channels]`, as patches lie.
fn channels_last(w: &[f32], channels: usize) -> Vec<f32> {
    let mut out = vec![0.0; w.len()];
    for (w, out) in w.chunks_exact(9 * channels).zip(out.chunks_exact_mut(9 * channels)) {
        for (channel, kernel) in w.chunks_exact(9).enumerate() {
            kernel.iter().enumerate().for_each(|(i, w)| out[i * channels + channel] = *w);
        }
    }
    out
}

/// The way back.
fn channels_first(w: &[f32], channels: usize) -> Vec<f32> {
    let mut out = vec![0.0; w.len()];
    for (w, out) in w.chunks_exact(9 * channels).zip(out.chunks_exact_mut(9 * channels)) {
        for (channel, kernel) in out.chunks_exact_mut(9).enumerate() {
            kernel.iter_mut().enumerate().for_each(|(i, out)| *out = w[i * channels + channel]);
        }
    }
    out
}

impl ConvNorm {
    /// Kernel, gains and biases.
    fn split<'a>(&self, params: &'a [f32]) -> (&'a [f32], &'a [f32], &'a [f32]) {
        let (w, rest) = params.split_at(params.len() - 2 * self.shape.output);
        let (gain, bias) = rest.split_at(self.shape.output);
        (w, gain, bias)
    }

    fn run(
        &self,
        x: (&CpuStorage, &Layout),
        params: (&CpuStorage, &Layout),
        residual: Option<&[f32]>,
    ) -> Result<(CpuStorage, Shape)> {
        let (batch, at) = (x.1.dims()[0], x.1);
        let (x, (w, gain, bias)) = (f32_slice(x.0, at)?, self.split(f32_slice(params.0, params.1)?));
        let convolved = if self.shape.kernel == 1 {
            let mut y = vec![0.0; x.len() / self.conv.channels * self.shape.output];
            linear::forward(&mut y, x, w, None, self.conv.channels);
            y
        } else {
            self.conv.run(x, &channels_last(w, self.conv.channels))
        };
        let (y, statistics) = forward(&convolved, gain, bias, residual, self.relu, self.fixed.as_ref());
        let convolved = self.fixed.is_none().then_some(convolved);
        *self.saved.lock().unwrap_or_else(PoisonError::into_inner) = Saved { convolved, statistics };
        let side = self.conv.out_side();
        Ok((CpuStorage::F32(y), (batch, side, side, self.shape.output).into()))
    }

    /// Gradients of `x` (where it has one), the parameters and the residual.
    fn run_back(
        &self,
        x: &Tensor,
        params: &Tensor,
        y: &Tensor,
        d: &Tensor,
    ) -> Result<(Option<Tensor>, Tensor, Vec<f32>)> {
        let (convolved, statistics) = {
            let mut saved = self.saved.lock().unwrap_or_else(PoisonError::into_inner);
            (saved.convolved.take(), saved.statistics.clone())
        };
        let Some(convolved) = convolved else {
            bail!("convolution and norm: one backward pass, and none with fixed statistics");
        };
        let (wanted, channels) = (x.track_op(), self.conv.channels);
        let back = |x: &[f32], params: &[f32], y: &[f32], d: &[f32]| {
            let (w, gain, _) = self.split(params);
            let gradients = backward(&convolved, gain, &statistics, self.relu.then_some(y), d);
            let d = &gradients.x;
            let (dx, mut dw) = if self.shape.kernel == 1 {
                let mut dw = vec![0.0; w.len()];
                linear::weight_gradient(&mut dw, d, x, channels);
                let mut dx = wanted.then(|| vec![0.0; x.len()]);
                if let Some(dx) = &mut dx {
                    linear::input_gradient(dx, d, w, channels);
                }
                (dx, dw)
            } else {
                let (dx, dw) = self.conv.run_back(x, &channels_last(w, channels), d, wanted);
                (dx, channels_first(&dw, channels))
            };
            dw.extend(gradients.params);
            (dx, dw, gradients.residual)
        };
        let (dx, d_params, d_residual) = with_f32(x, |x| {
            with_f32(params, |params| with_f32(y, |y| with_f32(d, |d| Ok(back(x, params, y, d)))))
        })?;
        let dx = dx.map(|dx| Tensor::from_vec(dx, x.shape(), x.device())).transpose()?;
        Ok((dx, Tensor::from_vec(d_params, params.shape(), params.device())?, d_residual))
    }
}

impl CustomOp2 for ConvNorm {
    fn name(&self) -> &'static str {
        "conv_norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_at: &Layout,
        params: &CpuStorage,
        params_at: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.run((x, x_at), (params, params_at), None)
    }

    fn bwd(
        &self,
        x: &Tensor,
        params: &Tensor,
        y: &Tensor,
        d: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (dx, d_params, _) = self.run_back(x, params, y, d)?;
        Ok((dx, Some(d_params)))
    }
}

impl CustomOp3 for ConvNorm {
    fn name(&self) -> &'static str {
        "conv_norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_at: &Layout,
        params: &CpuStorage,
        params_at: &Layout,
        residual: &CpuStorage,
        residual_at: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.run((x, x_at), (params, params_at), Some(f32_slice(residual, residual_at)?))
    }

    fn bwd(
        &self,
        x: &Tensor,
        params: &Tensor,
        residual: &Tensor,
        y: &Tensor,
        d: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (dx, d_params, d_residual) = self.run_back(x, params, y, d)?;
        let d_residual = Tensor::from_vec(d_residual, residual.shape(), residual.device())?;
        Ok((dx, Some(d_params), Some(d_residual)))
    }
}
