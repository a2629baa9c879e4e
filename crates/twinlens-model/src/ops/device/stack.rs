//! A stack of residual attention blocks, x + proj(attention(ln_1(x))), then + c_proj(act(c_fc(
//! ln_2(.)))), over sequences of one length.
//!
//! The end of each branch, its bias, the sum and the next layer norm are one kernel; so are bias
//! and activation, and attention with the bias of its queries, keys and values. In half precision
//! the gradients of weights are those of matrix products in half precision, widened to f32.

use super::computed::{Computed, DeviceOptions, is_tracked};
use crate::kernels::AttentionSizes;
use crate::kernels::plain::{Attended, Norm, Normed};
use crate::ops::block::BlockShape;
use crate::ops::reference::{like, widened};
use candle_core::{Result, Tensor, bail};

/// The sequences of a batch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    pub batch: usize,
    /// Tokens of each.
    pub len: usize,
    /// Whether a token attends only to itself and earlier ones.
    pub causal: bool,
}

/// Applies the stack to `x` (`[batch len, width]`, in any float type). `params` (f32, or wider)
/// holds the blocks' parameters in the order of [`crate::ops::block::PARAMETERS`].
pub(crate) fn stack(
    x: &Tensor,
    params: &Tensor,
    shape: BlockShape,
    span: Span,
    options: DeviceOptions,
) -> Result<Tensor> {
    let layers = params.elem_count() / shape.parameters_len();
    if x.dims() != [span.batch * span.len, shape.width]
        || !params.elem_count().is_multiple_of(shape.parameters_len())
    {
        bail!("transformer: {:?} rows for {span:?} of width {}", x.shape(), shape.width);
    }
    let (batch, len, heads) = (span.batch, span.len, shape.heads);
    let sizes = AttentionSizes { batch, len, heads, depth: shape.width / heads, causal: span.causal };
    let wide = params.detach();
    let narrow = like(&wide, x)?;
    let train = is_tracked(&[x, params]);
    let stack = Stack { shape, sizes, layers, wide, narrow, options, train };
    let (out, kept) = stack.forward(&x.detach().contiguous()?)?;
    if !train {
        return Ok(out);
    }
    let backward = move |d: &Tensor| stack.backward(kept, d);
    x.apply_op2(params, Computed::new("transformer", out, backward))
}

struct Stack {
    shape: BlockShape,
    sizes: AttentionSizes,
    layers: usize,
    /// All parameters, and those in the type of the activations.
    wide: Tensor,
    narrow: Tensor,
    options: DeviceOptions,
    /// Whether a backward pass will follow.
    train: bool,
}

/// The parameters of a block. Matrices have the type of the activations.
struct Parameters {
    gain_1: Tensor,
    bias_1: Tensor,
    qkv: Tensor,
    qkv_bias: Tensor,
    out: Tensor,
    out_bias: Tensor,
    gain_2: Tensor,
    bias_2: Tensor,
    fc: Tensor,
    fc_bias: Tensor,
    proj: Tensor,
    proj_bias: Tensor,
}

impl Parameters {
    fn norm_1(&self) -> Norm<'_> {
        Norm { gain: &self.gain_1, bias: &self.bias_1 }
    }

    fn norm_2(&self) -> Norm<'_> {
        Norm { gain: &self.gain_2, bias: &self.bias_2 }
    }
}

/// Activations of a block that its gradient needs.
struct Saved {
    norm_1: Normed,
    qkv: Tensor,
    attended: Tensor,
    log_sums: Tensor,
    norm_2: Normed,
    hidden: Tensor,
    active: Tensor,
}

/// What is kept of a block until the backward pass.
enum Kept {
    All(Box<Saved>),
    /// Its input.
    Input(Tensor),
}

/// `x w^T` of `x` (`[rows, in]`) and `w` (`[out, in]`).
fn product(x: &Tensor, w: &Tensor) -> Result<Tensor> {
    x.matmul(&w.t()?)
}

/// The gradient of `w` in [`product`]: `d^T x`.
fn weight_gradient(d: &Tensor, x: &Tensor) -> Result<Tensor> {
    d.t()?.matmul(x)
}

impl Stack {
    fn parameters(&self, layer: usize) -> Result<Parameters> {
        let start = layer * self.shape.parameters_len();
        let width = self.shape.width;
        let ranges = self.shape.ranges();
        let vector = |i: usize| self.wide.narrow(0, start + ranges[i].start, ranges[i].len());
        let matrix = |i: usize, columns: usize| {
            self.narrow.narrow(0, start + ranges[i].start, ranges[i].len())?.reshape(((), columns))
        };
        Ok(Parameters {
            gain_1: vector(0)?,
            bias_1: vector(1)?,
            qkv: matrix(2, width)?,
            qkv_bias: vector(3)?,
            out: matrix(4, width)?,
            out_bias: vector(5)?,
            gain_2: vector(6)?,
            bias_2: vector(7)?,
            fc: matrix(8, width)?,
            fc_bias: vector(9)?,
            proj: matrix(10, 4 * width)?,
            proj_bias: vector(11)?,
        })
    }

    /// A block from its first norm on: its activations, and the last branch without its bias.
    fn block(&self, norm_1: Normed, p: &Parameters) -> Result<(Saved, Tensor)> {
        let (kernels, activation) = (self.options.kernels, self.shape.activation);
        let qkv = product(&norm_1.y, &p.qkv)?;
        let (attended, log_sums) = self.attention(&qkv, &p.qkv_bias)?;
        let branch = product(&attended, &p.out)?;
        let norm_2 = kernels.add_norm(&norm_1.sum, Some((&branch, &p.out_bias)), p.norm_2())?;
        let hidden = product(&norm_2.y, &p.fc)?;
        let active = kernels.bias_activation(&hidden, &p.fc_bias, activation)?;
        let branch = product(&active, &p.proj)?;
        Ok((Saved { norm_1, qkv, attended, log_sums, norm_2, hidden, active }, branch))
    }

    fn attention(&self, qkv: &Tensor, bias: &Tensor) -> Result<(Tensor, Tensor)> {
        #[cfg(feature = "flash-attn")]
        if !self.train && crate::ops::reference::supports_flash_attention(qkv, self.sizes.depth) {
            return Ok((self.flash_attention(qkv, bias)?, bias.clone()));
        }
        self.options.kernels.attention(qkv, bias, self.sizes)
    }

    /// The library's kernel, which has no gradient.
    #[cfg(feature = "flash-attn")]
    fn flash_attention(&self, qkv: &Tensor, bias: &Tensor) -> Result<Tensor> {
        let s = self.sizes;
        let qkv = qkv.broadcast_add(&like(bias, qkv)?)?.reshape((s.batch, s.len, 3, s.heads, s.depth))?;
        let part = |i: usize| qkv.narrow(2, i, 1)?.squeeze(2);
        let scale = 1.0 / (s.depth as f32).sqrt();
        let out = candle_flash_attn::flash_attn(&part(0)?, &part(1)?, &part(2)?, scale, s.causal)?;
        out.reshape((s.batch * s.len, s.heads * s.depth))
    }

    fn forward(&self, x: &Tensor) -> Result<(Tensor, Vec<Kept>)> {
        let (mut x, mut branch, mut kept) = (x.clone(), None, Vec::new());
        for layer in 0..self.layers {
            let p = self.parameters(layer)?;
            let delta = branch.as_ref().map(|(branch, bias)| (branch, bias));
            let norm_1 = self.options.kernels.add_norm(&x, delta, p.norm_1())?;
            let input = norm_1.sum.clone();
            let (saved, last) = self.block(norm_1, &p)?;
            x = saved.norm_2.sum.clone();
            branch = Some((last, p.proj_bias));
            if self.train {
                kept.push(if self.options.recompute { Kept::Input(input) } else { Kept::All(saved.into()) });
            }
        }
        if let Some((branch, bias)) = branch {
            let branch = widened(&branch)?;
            let branch = branch.broadcast_add(&like(&bias, &branch)?)?;
            x = (widened(&x)? + branch)?.to_dtype(x.dtype())?;
        }
        Ok((x, kept))
    }

    /// Gradients of the input and of the parameters.
    fn backward(&self, kept: Vec<Kept>, d_out: &Tensor) -> Result<[Tensor; 2]> {
        let kernels = self.options.kernels;
        let mut d = d_out.clone();
        let mut d_proj_bias = kernels.column_sums(&d)?;
        let mut gradients = Vec::with_capacity(self.layers);
        for (layer, kept) in kept.into_iter().enumerate().rev() {
            let p = self.parameters(layer)?;
            let saved = match kept {
                Kept::All(saved) => *saved,
                Kept::Input(x) => self.block(kernels.add_norm(&x, None, p.norm_1())?, &p)?.0,
            };
            let (d_in, mut of_block, d_bias) = self.block_backward(&saved, &p, &d)?;
            of_block.push(d_proj_bias);
            gradients.push(of_block);
            (d, d_proj_bias) = (d_in, d_bias);
        }
        let flat = gradients.into_iter().rev().flatten();
        let flat = flat.map(|gradient| gradient.flatten_all()?.to_dtype(self.wide.dtype()));
        Ok([d, Tensor::cat(&flat.collect::<Result<Vec<_>>>()?, 0)?])
    }

    /// From the gradient of a block's output: that of its input, those of its parameters in their
    /// order but for the last, and that of the previous block's last bias.
    fn block_backward(
        &self,
        saved: &Saved,
        p: &Parameters,
        d: &Tensor,
    ) -> Result<(Tensor, Vec<Tensor>, Tensor)> {
        let (kernels, activation) = (self.options.kernels, self.shape.activation);
        let d_proj = weight_gradient(d, &saved.active)?;
        let d_active = d.matmul(&p.proj)?;
        let (d_hidden, d_fc_bias) =
            kernels.bias_activation_backward(&saved.hidden, &p.fc_bias, &d_active, activation)?;
        let d_fc = weight_gradient(&d_hidden, &saved.norm_2.y)?;
        let d_normed = d_hidden.matmul(&p.fc)?;
        let (d, [d_gain_2, d_bias_2, d_out_bias]) =
            kernels.add_norm_backward(&saved.norm_2, &p.gain_2, &d_normed, Some(d))?;
        let d_out = weight_gradient(&d, &saved.attended)?;
        let Saved { qkv, attended, log_sums, .. } = saved;
        let of_attention = Attended { qkv, bias: &p.qkv_bias, out: attended, log_sums };
        let d_attended = d.matmul(&p.out)?;
        let d_qkv = kernels.attention_backward(of_attention, &d_attended, self.sizes)?;
        let d_qkv_bias = kernels.column_sums(&d_qkv)?;
        let d_qkv_weight = weight_gradient(&d_qkv, &saved.norm_1.y)?;
        let d_normed = d_qkv.matmul(&p.qkv)?;
        let (d, [d_gain_1, d_bias_1, d_previous]) =
            kernels.add_norm_backward(&saved.norm_1, &p.gain_1, &d_normed, Some(&d))?;
        let first = [d_gain_1, d_bias_1, d_qkv_weight, d_qkv_bias, d_out, d_out_bias];
        let second = [d_gain_2, d_bias_2, d_fc, d_fc_bias, d_proj];
        Ok((d, first.into_iter().chain(second).collect(), d_previous))
    }
}
