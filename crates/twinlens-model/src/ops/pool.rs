//! Attention with one query: the last layer of a ResNet (Radford et al. 2021, section 2.4).

use super::simd::{exp, sum};
use super::{f32_slice, with_f32};
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

/// Attention of one query over the tokens of each image.
struct QueryAttention {
    width: usize,
    heads: usize,
}

/// softmax(q K^T / sqrt(d)) V for each head: `q` (`[batch, width]`), `kv` (`[batch, tokens, 2
/// width]`: keys, then values); `[batch, width]`.
pub(crate) fn query_attention(q: &Tensor, kv: &Tensor, heads: usize) -> Result<Tensor> {
    let ((batch, width), (images, _, both)) = (q.dims2()?, kv.dims3()?);
    if batch != images || both != 2 * width || heads == 0 || width % heads != 0 {
        bail!("attention of {:?} over {:?} with {heads} heads", q.shape(), kv.shape());
    }
    q.apply_op2(kv, QueryAttention { width, heads })
}

impl QueryAttention {
    fn depth(&self) -> usize {
        self.width / self.heads
    }

    fn scale(&self) -> f32 {
        1.0 / (self.depth() as f32).sqrt()
    }

    /// The attention weights of one head of one image.
    fn weights(&self, q: &[f32], kv: &[f32], head: usize, weights: &mut Vec<f32>) {
        let (depth, first) = (self.depth(), head * self.depth());
        weights.clear();
        weights.extend(
            kv.chunks_exact(2 * self.width)
                .map(|token| self.scale() * sum(depth, |i| q[first + i] * token[first + i])),
        );
        let top = weights.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        weights.iter_mut().for_each(|w| *w = exp(*w - top));
        let total = 1.0 / weights.iter().sum::<f32>();
        weights.iter_mut().for_each(|w| *w *= total);
    }

    fn image(&self, q: &[f32], kv: &[f32], out: &mut [f32], weights: &mut Vec<f32>) {
        for head in 0..self.heads {
            self.weights(q, kv, head, weights);
            let part = head * self.depth()..(head + 1) * self.depth();
            let out = &mut out[part.clone()];
            for (token, weight) in kv.chunks_exact(2 * self.width).zip(&*weights) {
                let value = &token[self.width + part.start..self.width + part.end];
                out.iter_mut().zip(value).for_each(|(o, v)| *o += weight * v);
            }
        }
    }

    fn image_back(&self, q: &[f32], kv: &[f32], d: &[f32], dq: &mut [f32], dkv: &mut [f32]) {
        let (depth, mut weights, mut d_weights) = (self.depth(), Vec::new(), Vec::new());
        for head in 0..self.heads {
            self.weights(q, kv, head, &mut weights);
            let (key, value) = (head * depth, self.width + head * depth);
            d_weights.clear();
            let tokens = kv.chunks_exact(2 * self.width);
            d_weights.extend(tokens.map(|token| sum(depth, |i| d[key + i] * token[value + i])));
            let mean: f32 = weights.iter().zip(&d_weights).map(|(p, d)| p * d).sum();
            let tokens = kv.chunks_exact(2 * self.width).zip(dkv.chunks_exact_mut(2 * self.width));
            for ((token, d_token), (p, dp)) in tokens.zip(weights.iter().zip(&d_weights)) {
                let score = self.scale() * p * (dp - mean);
                for i in 0..depth {
                    dq[key + i] += score * token[key + i];
                    d_token[key + i] = score * q[key + i];
                    d_token[value + i] = p * d[key + i];
                }
            }
        }
    }
}

impl CustomOp2 for QueryAttention {
    fn name(&self) -> &'static str {
        "query_attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_at: &Layout,
        kv: &CpuStorage,
        kv_at: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (q, kv) = (f32_slice(q, q_at)?, f32_slice(kv, kv_at)?);
        let mut out = vec![0.0; q.len()];
        let image = kv_at.dims()[1] * 2 * self.width;
        let each = out.par_chunks_mut(self.width).zip(q.par_chunks(self.width)).zip(kv.par_chunks(image));
        each.for_each_init(Vec::new, |weights, ((out, q), kv)| self.image(q, kv, out, weights));
        Ok((CpuStorage::F32(out), q_at.shape().clone()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        kv: &Tensor,
        _: &Tensor,
        d: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (mut dq, mut dkv) = (vec![0.0; q.elem_count()], vec![0.0; kv.elem_count()]);
        let (width, image) = (self.width, kv.dim(1)? * 2 * self.width);
        let mut run = |q: &[f32], kv: &[f32], d: &[f32]| {
            let operands = q.par_chunks(width).zip(kv.par_chunks(image)).zip(d.par_chunks(width));
            let gradients = dq.par_chunks_mut(width).zip(dkv.par_chunks_mut(image));
            gradients.zip(operands).for_each(|((dq, dkv), ((q, kv), d))| self.image_back(q, kv, d, dq, dkv));
            Ok(())
        };
        with_f32(q, |q| with_f32(kv, |kv| with_f32(d, |d| run(q, kv, d))))?;
        Ok((
            Some(Tensor::from_vec(dq, q.shape(), q.device())?),
            Some(Tensor::from_vec(dkv, kv.shape(), kv.device())?),
        ))
    }
}
