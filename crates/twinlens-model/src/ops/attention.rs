//! Multi-head attention of one sequence on packed queries, keys and values, and its gradient.
//!
//! softmax(Q K^T / sqrt(d)) V for each head (Vaswani et al. 2017, section 3.2). The projections
//! before and after it belong to the block. Queries are a range of the positions (all of them, or
//! the one whose output is read); keys are all positions.

use super::matmul::{Mat, MatMut, multiply};
use super::simd::{exp, sum, vectorised};
use std::ops::Range;

/// The sizes of one sequence's attention.
#[derive(Clone, Debug)]
pub(crate) struct Attention {
    /// Numbers in a token, over all heads.
    pub width: usize,
    /// Heads; divides `width`.
    pub heads: usize,
    /// Tokens of the sequence.
    pub len: usize,
    /// The positions whose output is computed.
    pub queries: Range<usize>,
    /// Whether a position attends only to itself and earlier ones.
    pub causal: bool,
}

impl Attention {
    /// Numbers in the attention weights, `[heads, queries, len]`.
    pub(crate) fn weights_len(&self) -> usize {
        self.heads * self.queries.len() * self.len
    }

    fn scale(&self) -> f32 {
        1.0 / ((self.width / self.heads) as f32).sqrt()
    }

    /// Head `head` of part 0 (queries), 1 (keys) or 2 (values) of `qkv` (`[len, 3 width]`).
    fn part<'a>(&self, qkv: &'a [f32], part: usize, head: usize) -> Mat<'a> {
        let depth = self.width / self.heads;
        let rows = if part == 0 { self.queries.clone() } else { 0..self.len };
        let first = rows.start * 3 * self.width + part * self.width + head * depth;
        Mat::strided(&qkv[first..], rows.len(), depth, 3 * self.width)
    }

    fn part_mut<'a>(&self, qkv: &'a mut [f32], part: usize, head: usize) -> MatMut<'a> {
        let depth = self.width / self.heads;
        let rows = if part == 0 { self.queries.clone() } else { 0..self.len };
        let first = rows.start * 3 * self.width + part * self.width + head * depth;
        MatMut::strided(&mut qkv[first..], rows.len(), depth, 3 * self.width)
    }

    /// From `qkv` (`[len, 3 width]`) to `out` (`[queries, width]`); writes the attention weights,
    /// which the gradient needs.
    pub(crate) fn forward(&self, qkv: &[f32], weights: &mut [f32], out: &mut [f32]) {
        let (queries, depth) = (self.queries.len(), self.width / self.heads);
        for (head, weights) in weights.chunks_exact_mut(queries * self.len).enumerate() {
            let scores = MatMut::new(weights, queries, self.len);
            multiply(scores, self.scale(), self.part(qkv, 0, head), self.part(qkv, 1, head).t());
        }
        softmax(weights, self.len, queries, if self.causal { self.queries.start + 1 } else { self.len });
        for (head, weights) in weights.chunks_exact(queries * self.len).enumerate() {
            let out = MatMut::strided(&mut out[head * depth..], queries, depth, self.width);
            multiply(out, 1.0, Mat::new(weights, queries, self.len), self.part(qkv, 2, head));
        }
    }

    /// The gradient with respect to `qkv`, from `d_out` (`[queries, width]`). `d_weights` is
    /// scratch of [`weights_len`](Self::weights_len) numbers; `d_qkv` is overwritten.
    pub(crate) fn backward(
        &self,
        qkv: &[f32],
        weights: &[f32],
        d_out: &[f32],
        d_weights: &mut [f32],
        d_qkv: &mut [f32],
    ) {
        let (queries, depth, len) = (self.queries.len(), self.width / self.heads, self.len);
        let d_out = |head: usize| Mat::strided(&d_out[head * depth..], queries, depth, self.width);
        for (head, d_weights) in d_weights.chunks_exact_mut(queries * len).enumerate() {
            multiply(MatMut::new(d_weights, queries, len), 1.0, d_out(head), self.part(qkv, 2, head).t());
        }
        softmax_backward(weights, d_weights, len, self.scale());
        if queries < len {
            // The queries of other positions get no gradient.
            d_qkv.fill(0.0);
        }
        let heads = weights.chunks_exact(queries * len).zip(d_weights.chunks_exact(queries * len));
        for (head, (weights, d_scores)) in heads.enumerate() {
            let (weights, d_scores) = (Mat::new(weights, queries, len), Mat::new(d_scores, queries, len));
            multiply(self.part_mut(d_qkv, 0, head), 1.0, d_scores, self.part(qkv, 1, head));
            multiply(self.part_mut(d_qkv, 1, head), 1.0, d_scores.t(), self.part(qkv, 0, head));
            multiply(self.part_mut(d_qkv, 2, head), 1.0, weights.t(), d_out(head));
        }
    }
}

#[inline(always)]
fn max(row: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; 16];
    let whole = row.chunks_exact(16);
    let rest = whole.remainder();
    for chunk in whole {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane = if x > *lane { x } else { *lane };
        }
    }
    lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a })
}

vectorised! {
    /// Softmax of each row of `scores` (`[heads * queries, len]`) in place. Query `q` of a head
    /// attends to the first `first + q` positions (at most all); the others become 0.
    fn softmax<'a>(scores: &'a mut [f32], len: usize, queries: usize, first: usize) {
        for (i, row) in scores.chunks_exact_mut(len).enumerate() {
            let (visible, hidden) = row.split_at_mut((first + i % queries).min(len));
            let top = max(visible);
            for x in visible.iter_mut() {
                *x = exp(*x - top);
            }
            let total = 1.0 / sum(visible.len(), |i| visible[i]);
            for x in visible.iter_mut() {
                *x *= total;
            }
            hidden.fill(0.0);
        }
    }
}

vectorised! {
    /// d becomes scale * p * (d - sum(p d)), row by row: the gradient of the unscaled scores.
    fn softmax_backward<'a>(p: &'a [f32], d: &'a mut [f32], len: usize, scale: f32) {
        for (p, d) in p.chunks_exact(len).zip(d.chunks_exact_mut(len)) {
            let mean = sum(len, |i| p[i] * d[i]);
            for (d, p) in d.iter_mut().zip(p) {
                *d = scale * p * (*d - mean);
            }
        }
    }
}
