//! One residual attention block on slices: forward, and the gradient of everything.
//!
//! x + proj(attention(ln_1(x))), then + c_proj(act(c_fc(ln_2(.)))): pre-norm, as in CLIP's code. A
//! block works on one chunk: a few whole sequences with consecutive rows, whose activations fit in
//! the cache. The gradients of the weight matrices are sums over all chunks, see
//! [`weight_gradients`].

use super::activation::Activation;
use super::attention::Attention;
use super::linear::forward_chunk;
use super::matmul::{Mat, MatMut, multiply, multiply_add};
use super::norm::{layer_norm, layer_norm_backward, layer_norm_stats};
use super::simd;
use rayon::prelude::*;
use std::ops::Range;

/// The sizes of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BlockShape {
    /// Numbers in a token.
    pub width: usize,
    /// Attention heads; divides `width`.
    pub heads: usize,
    /// Activation between the two feed-forward layers.
    pub activation: Activation,
}

/// A block's parameters in packing order: name, and shape in multiples of the width (0: no second
/// dimension). Matrices are `[out, in]`, as in PyTorch.
pub(crate) const PARAMETERS: [(&str, usize, usize); 12] = [
    ("ln_1.weight", 1, 0),
    ("ln_1.bias", 1, 0),
    ("attn.in_proj_weight", 3, 1),
    ("attn.in_proj_bias", 3, 0),
    ("attn.out_proj.weight", 1, 1),
    ("attn.out_proj.bias", 1, 0),
    ("ln_2.weight", 1, 0),
    ("ln_2.bias", 1, 0),
    ("mlp.c_fc.weight", 4, 1),
    ("mlp.c_fc.bias", 4, 0),
    ("mlp.c_proj.weight", 1, 4),
    ("mlp.c_proj.bias", 1, 0),
];
const LN1_GAIN: usize = 0;
const LN1_BIAS: usize = 1;
const QKV: usize = 2;
const QKV_BIAS: usize = 3;
const OUT: usize = 4;
const OUT_BIAS: usize = 5;
const LN2_GAIN: usize = 6;
const LN2_BIAS: usize = 7;
const FC: usize = 8;
const FC_BIAS: usize = 9;
const PROJ: usize = 10;
const PROJ_BIAS: usize = 11;

impl BlockShape {
    /// Where each parameter lies among those of a block.
    pub(crate) fn ranges(self) -> [Range<usize>; 12] {
        let mut start = 0;
        PARAMETERS.map(|(_, rows, cols)| {
            let len = rows * self.width * if cols == 0 { 1 } else { cols * self.width };
            start += len;
            start - len..start
        })
    }

    /// Numbers in all parameters of a block.
    pub(crate) fn parameters_len(self) -> usize {
        12 * self.width * self.width + 13 * self.width
    }

    fn hidden(self) -> usize {
        4 * self.width
    }
}

/// The sequences of one chunk, with consecutive rows.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rows {
    /// Length and read position of each sequence.
    pub sequences: Vec<(usize, usize)>,
    /// Whether a position attends only to itself and earlier ones.
    pub causal: bool,
    /// Whether only the read position of each sequence is output (the last block), or every row.
    pub pooled: bool,
}

impl Rows {
    /// Input rows.
    pub(crate) fn rows_in(&self) -> usize {
        self.sequences.iter().map(|s| s.0).sum()
    }

    /// Output rows.
    pub(crate) fn rows_out(&self) -> usize {
        if self.pooled { self.sequences.len() } else { self.rows_in() }
    }

    /// For each sequence: its attention, input rows, output rows, and attention weights.
    fn attentions(
        &self,
        shape: BlockShape,
    ) -> impl Iterator<Item = (Attention, Range<usize>, Range<usize>, Range<usize>)> {
        let (mut row, mut query, mut weight) = (0, 0, 0);
        self.sequences.iter().map(move |&(len, read)| {
            let queries = if self.pooled { read..read + 1 } else { 0..len };
            let attention = Attention {
                width: shape.width,
                heads: shape.heads,
                len,
                queries: queries.clone(),
                causal: self.causal,
            };
            let inputs = row..row + len;
            let outputs = query..query + queries.len();
            let weights = weight..weight + attention.weights_len();
            (row, query, weight) = (inputs.end, outputs.end, weights.end);
            (attention, inputs, outputs, weights)
        })
    }

    fn weights_len(&self, shape: BlockShape) -> usize {
        self.attentions(shape).map(|(a, ..)| a.weights_len()).sum()
    }
}

/// Activations of a block on one chunk, kept for the backward pass.
#[derive(Default)]
pub(crate) struct Saved {
    /// Input, `[rows in, width]`.
    pub x: Vec<f32>,
    stats1: Vec<f32>,
    qkv: Vec<f32>,
    weights: Vec<f32>,
    attended: Vec<f32>,
    mid: Vec<f32>,
    stats2: Vec<f32>,
    pre: Vec<f32>,
}

/// Scratch memory of one block, and the gradients that pass between blocks.
#[derive(Default)]
pub(crate) struct Scratch {
    /// Gradient of the block's output, set before [`backward`], `[rows out, width]`.
    pub d_out: Vec<f32>,
    /// Gradient of the block's input after [`backward`], `[rows in, width]`.
    pub d_in: Vec<f32>,
    normed1: Vec<f32>,
    normed2: Vec<f32>,
    hidden: Vec<f32>,
    d_hidden: Vec<f32>,
    d_mid: Vec<f32>,
    d_rows: Vec<f32>,
    d_weights: Vec<f32>,
    d_qkv: Vec<f32>,
    /// This chunk's part of the gradients of gains and biases, packed in the order of [`VECTORS`].
    d_vectors: Vec<f32>,
}

/// Resizes `buffer` to `len` numbers without clearing it: callers overwrite it. Reused buffers cost
/// no page faults.
pub(crate) fn sized(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    buffer.resize(len, 0.0);
    buffer
}

/// `y = x w^T + bias`, for `x` `[rows, in]`, `w` `[out, in]`.
fn linear(y: &mut [f32], x: &[f32], w: &[f32], bias: &[f32]) {
    forward_chunk(y, x, w, Some(bias), w.len() / bias.len());
}

/// Selects the output rows among the input rows.
fn gather(rows: &Rows, width: usize, x: &[f32], out: &mut [f32]) {
    if !rows.pooled {
        return out.copy_from_slice(x);
    }
    let mut start = 0;
    for (&(len, read), out) in rows.sequences.iter().zip(out.chunks_exact_mut(width)) {
        let row = (start + read) * width;
        out.copy_from_slice(&x[row..row + width]);
        start += len;
    }
}

/// The block on one chunk: from `saved.x` to `out` (`[rows out, width]`).
pub(crate) fn forward(
    shape: BlockShape,
    params: &[f32],
    rows: &Rows,
    saved: &mut Saved,
    scratch: &mut Scratch,
    out: &mut Vec<f32>,
) {
    let (width, hidden) = (shape.width, shape.hidden());
    let (n_in, n_out) = (rows.rows_in(), rows.rows_out());
    let p = shape.ranges().map(|r| &params[r]);

    let stats = sized(&mut saved.stats1, 2 * n_in);
    layer_norm_stats(&saved.x, width, stats);
    let normed = sized(&mut scratch.normed1, n_in * width);
    layer_norm(&saved.x, stats, p[LN1_GAIN], p[LN1_BIAS], normed);
    let qkv = sized(&mut saved.qkv, n_in * 3 * width);
    linear(qkv, normed, p[QKV], p[QKV_BIAS]);

    let attended = sized(&mut saved.attended, n_out * width);
    let weights = sized(&mut saved.weights, rows.weights_len(shape));
    for (attention, row, out, weight) in rows.attentions(shape) {
        let qkv = &qkv[row.start * 3 * width..row.end * 3 * width];
        attention.forward(qkv, &mut weights[weight], &mut attended[out.start * width..out.end * width]);
    }

    let mid = sized(&mut saved.mid, n_out * width);
    linear(mid, attended, p[OUT], p[OUT_BIAS]);
    let residual = sized(&mut scratch.d_rows, n_out * width);
    gather(rows, width, &saved.x, residual);
    simd::add(mid, residual);

    let stats = sized(&mut saved.stats2, 2 * n_out);
    layer_norm_stats(mid, width, stats);
    let normed = sized(&mut scratch.normed2, n_out * width);
    layer_norm(mid, stats, p[LN2_GAIN], p[LN2_BIAS], normed);
    let pre = sized(&mut saved.pre, n_out * hidden);
    linear(pre, normed, p[FC], p[FC_BIAS]);
    let act = sized(&mut scratch.hidden, n_out * hidden);
    shape.activation.forward(pre, act);
    let out = sized(out, n_out * width);
    linear(out, act, p[PROJ], p[PROJ_BIAS]);
    simd::add(out, mid);
}

/// The gradient of the block on one chunk, from `scratch.d_out` to `scratch.d_in`. Leaves in
/// `scratch` what [`weight_gradients`] needs.
pub(crate) fn backward(shape: BlockShape, params: &[f32], rows: &Rows, saved: &Saved, scratch: &mut Scratch) {
    let (width, hidden) = (shape.width, shape.hidden());
    let (n_in, n_out) = (rows.rows_in(), rows.rows_out());
    let p = shape.ranges().map(|r| &params[r]);
    let Scratch {
        d_out,
        d_in,
        normed1,
        normed2,
        hidden: act,
        d_hidden,
        d_mid,
        d_rows,
        d_weights,
        d_qkv,
        d_vectors,
    } = scratch;
    let d_vectors = sized(d_vectors, 13 * width);
    d_vectors.fill(0.0);
    let [d_ln1_gain, d_ln1_bias, d_qkv_bias, d_out_bias, d_ln2_gain, d_ln2_bias, d_fc_bias, d_proj_bias] =
        split_vectors(d_vectors, width);

    // Feed-forward half.
    let d_pre = sized(d_hidden, n_out * hidden);
    multiply(
        MatMut::new(d_pre, n_out, hidden),
        1.0,
        Mat::new(d_out, n_out, width),
        Mat::new(p[PROJ], width, hidden),
    );
    shape.activation.backward(&saved.pre, sized(act, n_out * hidden), d_pre);
    simd::add_rows(d_proj_bias, d_out);
    simd::add_rows(d_fc_bias, d_pre);
    let d_normed = sized(d_rows, n_out * width);
    multiply(
        MatMut::new(d_normed, n_out, width),
        1.0,
        Mat::new(d_pre, n_out, hidden),
        Mat::new(p[FC], hidden, width),
    );
    layer_norm(&saved.mid, &saved.stats2, p[LN2_GAIN], p[LN2_BIAS], sized(normed2, n_out * width));
    let d_mid = sized(d_mid, n_out * width);
    d_mid.copy_from_slice(d_out);
    layer_norm_backward(&saved.mid, &saved.stats2, p[LN2_GAIN], d_normed, d_mid, d_ln2_gain, d_ln2_bias);

    // Attention half.
    simd::add_rows(d_out_bias, d_mid);
    multiply(
        MatMut::new(d_normed, n_out, width),
        1.0,
        Mat::new(d_mid, n_out, width),
        Mat::new(p[OUT], width, width),
    );
    let d_qkv = sized(d_qkv, n_in * 3 * width);
    let d_weights = sized(d_weights, saved.weights.len());
    for (attention, row, out, weight) in rows.attentions(shape) {
        let row = row.start * 3 * width..row.end * 3 * width;
        let d_attended = &d_normed[out.start * width..out.end * width];
        let (weights, d_weights) = (&saved.weights[weight.clone()], &mut d_weights[weight]);
        attention.backward(&saved.qkv[row.clone()], weights, d_attended, d_weights, &mut d_qkv[row]);
    }
    simd::add_rows(d_qkv_bias, d_qkv);
    let d_normed = sized(d_rows, n_in * width);
    multiply(
        MatMut::new(d_normed, n_in, width),
        1.0,
        Mat::new(d_qkv, n_in, 3 * width),
        Mat::new(p[QKV], 3 * width, width),
    );
    layer_norm(&saved.x, &saved.stats1, p[LN1_GAIN], p[LN1_BIAS], sized(normed1, n_in * width));
    let d_in = sized(d_in, n_in * width);
    scatter(rows, width, d_mid, d_in);
    layer_norm_backward(&saved.x, &saved.stats1, p[LN1_GAIN], d_normed, d_in, d_ln1_gain, d_ln1_bias);
}

/// The reverse of [`gather`]: rows that were not selected get 0.
fn scatter(rows: &Rows, width: usize, out: &[f32], x: &mut [f32]) {
    if !rows.pooled {
        return x.copy_from_slice(out);
    }
    x.fill(0.0);
    let mut start = 0;
    for (&(len, read), out) in rows.sequences.iter().zip(out.chunks_exact(width)) {
        let row = (start + read) * width;
        x[row..row + width].copy_from_slice(out);
        start += len;
    }
}

/// The gains and biases, in the order of [`PARAMETERS`].
const VECTORS: [usize; 8] = [LN1_GAIN, LN1_BIAS, QKV_BIAS, OUT_BIAS, LN2_GAIN, LN2_BIAS, FC_BIAS, PROJ_BIAS];

fn split_vectors(mut rest: &mut [f32], width: usize) -> [&mut [f32]; 8] {
    VECTORS.map(|index| {
        let (part, tail) = std::mem::take(&mut rest).split_at_mut(PARAMETERS[index].1 * width);
        rest = tail;
        part
    })
}

/// Numbers in one piece of a weight gradient: enough work for a thread, and enough pieces for many
/// threads.
const PIECE: usize = 128 * 128;

/// Writes the gradients of a block's parameters, summed over its chunks, to `grads`, packed like
/// the parameters.
///
/// Parallel over pieces of the result; each piece adds the chunks in order, so the sum does not
/// depend on the number of threads.
pub(crate) fn weight_gradients(shape: BlockShape, chunks: &[(&Saved, &Scratch)], grads: &mut [f32]) {
    let width = shape.width;
    let mut pieces: Vec<(usize, usize, &mut [f32])> = Vec::new();
    let mut rest = grads;
    for (index, (_, rows, cols)) in PARAMETERS.into_iter().enumerate() {
        let cols = if cols == 0 { 1 } else { cols * width };
        let (part, tail) = rest.split_at_mut(rows * width * cols);
        rest = tail;
        let tall = (PIECE / cols).max(32);
        let split = part.chunks_mut(tall * cols).enumerate();
        pieces.extend(split.map(|(i, piece)| (index, i * tall, piece)));
    }
    pieces.into_par_iter().for_each(|(index, first, piece)| {
        piece.fill(0.0);
        for &(saved, scratch) in chunks {
            // d[rows, out] and x[rows, in] give the gradient d^T x.
            let (d, x): (&[f32], &[f32]) = match index {
                QKV => (&scratch.d_qkv, &scratch.normed1),
                OUT => (&scratch.d_mid, &saved.attended),
                FC => (&scratch.d_hidden, &scratch.normed2),
                PROJ => (&scratch.d_out, &scratch.hidden),
                _ => {
                    let start: usize =
                        VECTORS.iter().take_while(|v| **v != index).map(|v| PARAMETERS[*v].1).sum();
                    let start = start * width + first;
                    simd::add(piece, &scratch.d_vectors[start..start + piece.len()]);
                    continue;
                }
            };
            let (_, out, inner) = PARAMETERS[index];
            let (out, inner) = (out * width, inner * width);
            let (rows, tall) = (d.len() / out, piece.len() / inner);
            let d = Mat::strided(&d[first.min(d.len())..], rows, tall, out);
            multiply_add(MatMut::new(piece, tall, inner), d.t(), Mat::new(x, rows, inner));
        }
    });
}
