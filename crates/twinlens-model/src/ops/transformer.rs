//! A stack of residual attention blocks as one operation of candle's graph.
//!
//! For each graph edge with a gradient candle zero-fills fresh memory and adds to it, on one
//! thread. One operation for the whole stack leaves two edges. It also skips rows without effect:
//! positions after a text's end token (a causal mask hides them from everything that is read) and,
//! in the last block, every row but the one that is read. Both are exact: the reference
//! implementation in [`crate::reference`] computes all rows, and a test compares.

use super::block::{self, BlockShape, Rows, Saved, Scratch};
use super::{f32_slice, with_f32};
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;
use std::sync::{Arc, Mutex, PoisonError};

/// About how many rows a chunk has: at the width of small models its activations fit in a core's
/// cache.
const CHUNK_ROWS: usize = 256;

/// The sequences of a batch, with consecutive rows.
#[derive(Clone, Debug)]
pub(crate) struct Sequences {
    /// Length and read position of each.
    pub spans: Vec<(usize, usize)>,
    /// Whether a position attends only to itself and earlier ones.
    pub causal: bool,
    /// Whether each sequence is read only at its read position, or at every row.
    pub pooled: bool,
}

impl Sequences {
    /// `batch` sequences of `len` rows, read at their first row.
    pub(crate) fn uniform(batch: usize, len: usize) -> Self {
        Self { spans: vec![(len, 0); batch], causal: false, pooled: true }
    }

    /// Causal sequences, read at their last row.
    pub(crate) fn causal(lens: impl IntoIterator<Item = usize>) -> Self {
        Self { spans: lens.into_iter().map(|len| (len, len - 1)).collect(), causal: true, pooled: true }
    }

    /// The same sequences, read at every row.
    pub(crate) fn unpooled(self) -> Self {
        Self { pooled: false, ..self }
    }

    /// All rows.
    pub(crate) fn rows(&self) -> usize {
        self.spans.iter().map(|s| s.0).sum()
    }

    /// Rows that are read.
    fn rows_read(&self) -> usize {
        if self.pooled { self.spans.len() } else { self.rows() }
    }

    /// Groups of whole sequences with about [`CHUNK_ROWS`] rows. Depends on the batch alone, not on
    /// threads.
    fn chunks(&self) -> Vec<Vec<(usize, usize)>> {
        let mut chunks = vec![Vec::new()];
        let mut rows = 0;
        for &span in &self.spans {
            if rows > 0 && rows + span.0 > CHUNK_ROWS {
                chunks.push(Vec::new());
                rows = 0;
            }
            rows += span.0;
            if let Some(chunk) = chunks.last_mut() {
                chunk.push(span);
            }
        }
        chunks
    }
}

/// One chunk's rows and activations.
#[derive(Default)]
struct Chunk {
    rows: Rows,
    layers: Vec<Saved>,
    /// Inputs of the layers, if activations are recomputed.
    inputs: Vec<Vec<f32>>,
    scratch: Scratch,
    out: Vec<f32>,
}

/// Activation memory reused from step to step: fresh memory costs a page fault for every 4 KiB,
/// which at these sizes takes longer than the arithmetic.
///
/// A pool that recomputes keeps only the input of each block and recomputes its activations in the
/// backward pass (Chen et al. 2016).
#[derive(Clone, Default)]
pub struct Pool {
    chunks: Arc<Mutex<Vec<Chunk>>>,
    recompute: bool,
}

impl Pool {
    /// An empty pool.
    pub fn new(recompute: bool) -> Self {
        Self { chunks: Arc::default(), recompute }
    }

    /// Whether the backward pass recomputes activations.
    pub fn recomputes(&self) -> bool {
        self.recompute
    }

    fn take(&self, n: usize) -> Vec<Chunk> {
        let mut kept = self.chunks.lock().unwrap_or_else(PoisonError::into_inner);
        let first = kept.len().saturating_sub(n);
        let mut chunks = kept.split_off(first);
        chunks.resize_with(n, Chunk::default);
        chunks
    }

    fn put(&self, chunks: Vec<Chunk>) {
        self.chunks.lock().unwrap_or_else(PoisonError::into_inner).extend(chunks);
    }
}

struct Transformer {
    shape: BlockShape,
    layers: usize,
    sequences: Sequences,
    pool: Pool,
    /// Whether a backward pass will follow.
    train: bool,
    saved: Mutex<Option<Vec<Chunk>>>,
}

/// Applies the stack to `x` (`[rows, width]`). The result is read at each sequence's read position
/// (`[sequences, width]`) or everywhere (`[rows, width]`).
///
/// `params` holds the blocks' parameters in sequence, each packed in the order of
/// [`block::PARAMETERS`]. With `train` the activations are kept for one backward pass; without, no
/// graph is built and each block's activations overwrite those of the previous one.
pub(crate) fn transformer(
    x: &Tensor,
    params: &Tensor,
    shape: BlockShape,
    sequences: Sequences,
    pool: &Pool,
    train: bool,
) -> Result<Tensor> {
    let layers = params.elem_count() / shape.parameters_len();
    if x.dims() != [sequences.rows(), shape.width]
        || params.elem_count() != layers * shape.parameters_len()
        || layers == 0
    {
        bail!("transformer: {:?} rows for {} of width {}", x.shape(), sequences.rows(), shape.width);
    }
    let op = Transformer { shape, layers, sequences, pool: pool.clone(), train, saved: Mutex::new(None) };
    if train { x.apply_op2(params, op) } else { x.apply_op2_no_bwd(params, &op) }
}

impl Transformer {
    fn run_chunk(&self, chunk: &mut Chunk, x: &[f32], params: &[f32]) {
        let recompute = self.train && self.pool.recompute;
        let kept = if self.train && !recompute { self.layers } else { 1 };
        // The vectors never shrink: a pool also serves passes without a graph.
        chunk.layers.resize_with(kept.max(chunk.layers.len()), Saved::default);
        chunk.inputs.resize_with(if recompute { self.layers } else { chunk.inputs.len() }, Vec::new);
        block::sized(&mut chunk.layers[0].x, x.len()).copy_from_slice(x);
        for (layer, params) in params.chunks_exact(self.shape.parameters_len()).enumerate() {
            chunk.rows.pooled = self.sequences.pooled && layer + 1 == self.layers;
            let saved = &mut chunk.layers[layer.min(kept - 1)];
            if recompute {
                block::sized(&mut chunk.inputs[layer], saved.x.len()).copy_from_slice(&saved.x);
            }
            block::forward(self.shape, params, &chunk.rows, saved, &mut chunk.scratch, &mut chunk.out);
            if layer + 1 < self.layers {
                std::mem::swap(&mut chunk.layers[(layer + 1).min(kept - 1)].x, &mut chunk.out);
            }
        }
    }

    fn run(&self, x: &[f32], params: &[f32]) -> Vec<f32> {
        let width = self.shape.width;
        let spans = self.sequences.chunks();
        let mut chunks = self.pool.take(spans.len());
        let mut rest = x;
        let mut work = Vec::with_capacity(chunks.len());
        for (chunk, sequences) in chunks.iter_mut().zip(spans) {
            chunk.rows = Rows { sequences, causal: self.sequences.causal, pooled: false };
            let (x, tail) = rest.split_at(chunk.rows.rows_in() * width);
            rest = tail;
            work.push((chunk, x));
        }
        work.into_par_iter().for_each(|(chunk, x)| self.run_chunk(chunk, x, params));
        let mut out = Vec::with_capacity(self.sequences.rows_read() * width);
        for chunk in &chunks {
            out.extend_from_slice(&chunk.out);
        }
        if self.train {
            *self.saved.lock().unwrap_or_else(PoisonError::into_inner) = Some(chunks);
        } else {
            self.pool.put(chunks);
        }
        out
    }

    /// Gradients of the input and of the parameters.
    fn run_back(&self, params: &[f32], d_out: &[f32]) -> Option<(Vec<f32>, Vec<f32>)> {
        let width = self.shape.width;
        let mut chunks = self.saved.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        let mut rest = d_out;
        for chunk in &mut chunks {
            chunk.rows.pooled = self.sequences.pooled;
            let (d, tail) = rest.split_at(chunk.rows.rows_out() * width);
            rest = tail;
            block::sized(&mut chunk.scratch.d_out, d.len()).copy_from_slice(d);
        }
        let mut grads = vec![0.0; params.len()];
        let each = self.shape.parameters_len();
        let layers = params.chunks_exact(each).zip(grads.chunks_exact_mut(each)).enumerate();
        for (layer, (params, grads)) in layers.rev() {
            let place = if self.pool.recompute { 0 } else { layer };
            chunks.par_iter_mut().for_each(|Chunk { rows, layers, inputs, scratch, out }| {
                rows.pooled = self.sequences.pooled && layer + 1 == self.layers;
                let saved = &mut layers[place];
                // The forward pass left the last layer's activations in place.
                if self.pool.recompute && layer + 1 < self.layers {
                    block::sized(&mut saved.x, inputs[layer].len()).copy_from_slice(&inputs[layer]);
                    block::forward(self.shape, params, rows, saved, scratch, out);
                }
                block::backward(self.shape, params, rows, saved, scratch);
            });
            let parts: Vec<_> = chunks.iter().map(|c| (&c.layers[place], &c.scratch)).collect();
            block::weight_gradients(self.shape, &parts, grads);
            for chunk in &mut chunks {
                std::mem::swap(&mut chunk.scratch.d_in, &mut chunk.scratch.d_out);
            }
        }
        let mut d_x = Vec::with_capacity(self.sequences.rows() * width);
        for chunk in &chunks {
            d_x.extend_from_slice(&chunk.scratch.d_out);
        }
        self.pool.put(chunks);
        Some((d_x, grads))
    }
}

impl CustomOp2 for Transformer {
    fn name(&self) -> &'static str {
        "transformer"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_at: &Layout,
        params: &CpuStorage,
        params_at: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let out = self.run(f32_slice(x, x_at)?, f32_slice(params, params_at)?);
        Ok((CpuStorage::F32(out), (self.sequences.rows_read(), self.shape.width).into()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        params: &Tensor,
        _: &Tensor,
        d_out: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let grads = with_f32(params, |params| with_f32(d_out, |d_out| Ok(self.run_back(params, d_out))))?;
        let Some((d_x, d_params)) = grads else {
            bail!("transformer: backward can run only once");
        };
        let d_x = Tensor::from_vec(d_x, x.shape(), x.device())?;
        Ok((Some(d_x), Some(Tensor::from_vec(d_params, params.shape(), params.device())?)))
    }
}
