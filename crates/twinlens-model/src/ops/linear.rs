//! A linear layer over rows: y = x w^T + bias, and its gradient.
//!
//! candle's own needs an extra pass over the output for the bias, a transposed copy, and a serial
//! sum for the bias's gradient. The slice functions also serve [`super::cross_entropy`].

use super::matmul::{Mat, MatMut, multiply, multiply_add};
use super::{f32_slice, simd, with_f32};
use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

/// Rows that one thread multiplies at a time.
const ROWS: usize = 256;
/// Rows whose contribution to a weight gradient is one partial sum.
const GROUP: usize = 4096;
/// Numbers of a weight gradient that one thread computes at a time.
const PIECE: usize = 128 * 128;

/// The fewest rows for which the kernel adds up a row of `out` numbers in the order in which it
/// does for many rows. For fewer it has other loops: for one row, for at most 256 numbers, and for
/// at most 64 rows and columns.
fn least_rows(out: usize) -> usize {
    let few = 257_usize.div_ceil(out.max(1));
    few.max(if out > 64 { 2 } else { 65 }).min(ROWS)
}

/// `y = x w^T`, plus `bias` if given: `x` `[rows, inner]`, `w` `[out, inner]`.
pub(crate) fn forward(y: &mut [f32], x: &[f32], w: &[f32], bias: Option<&[f32]>, inner: usize) {
    let out = w.len() / inner;
    let chunks = y.par_chunks_mut(ROWS * out).zip(x.par_chunks(ROWS * inner));
    chunks.for_each(|(y, x)| forward_chunk(y, x, w, bias, inner));
}

/// As [`forward`], on this thread. A row of `y` does not depend on how many others there are.
pub(crate) fn forward_chunk(y: &mut [f32], x: &[f32], w: &[f32], bias: Option<&[f32]>, inner: usize) {
    let (out, rows) = (w.len() / inner, x.len() / inner);
    let least = least_rows(out);
    if (1..least).contains(&rows) {
        let (mut more_y, mut more_x) = (vec![0.0; least * out], vec![0.0; least * inner]);
        more_x[..x.len()].copy_from_slice(x);
        forward_chunk(&mut more_y, &more_x, w, bias, inner);
        y.copy_from_slice(&more_y[..y.len()]);
        return;
    }
    let w = Mat::new(w, out, inner).t();
    match bias {
        None => multiply(MatMut::new(y, rows, out), 1.0, Mat::new(x, rows, inner), w),
        Some(bias) => {
            y.chunks_exact_mut(out).for_each(|row| row.copy_from_slice(bias));
            multiply_add(MatMut::new(y, rows, out), Mat::new(x, rows, inner), w);
        }
    }
}

/// `x w`, for `x` `[rows, inner]`, `w` `[inner, out]`. On a CPU, a row does not depend on how many
/// others there are.
pub(crate) fn project(x: &Tensor, w: &Tensor) -> Result<Tensor> {
    let ((rows, inner), (_, out)) = (x.dims2()?, w.dims2()?);
    let least = least_rows(out);
    if !(1..least).contains(&rows) {
        return x.matmul(w);
    }
    let more = Tensor::zeros((least - rows, inner), x.dtype(), x.device())?;
    Tensor::cat(&[x, &more], 0)?.matmul(w)?.narrow(0, 0, rows)
}

/// `dx = d w`.
pub(crate) fn input_gradient(dx: &mut [f32], d: &[f32], w: &[f32], inner: usize) {
    let out = w.len() / inner;
    dx.par_chunks_mut(ROWS * inner).zip(d.par_chunks(ROWS * out)).for_each(|(dx, d)| {
        let rows = d.len() / out;
        multiply(MatMut::new(dx, rows, inner), 1.0, Mat::new(d, rows, out), Mat::new(w, out, inner));
    });
}

/// `dw += d^T x`, in an order that does not depend on the number of threads. A small matrix over
/// many rows is summed in groups of rows, so that all threads have work.
pub(crate) fn weight_gradient(dw: &mut [f32], d: &[f32], x: &[f32], inner: usize) {
    let (out, len) = (dw.len() / inner, dw.len());
    let rows = x.len() / inner;
    let groups = if len >= 16 * PIECE { 1 } else { rows.div_ceil(GROUP).max(1) };
    let size = rows.div_ceil(groups).max(1);
    let tall = (PIECE / inner).clamp(1, out);
    let part = |piece: &mut [f32], group: usize, first: usize| {
        let rows = (group * size).min(rows)..((group + 1) * size).min(rows);
        let (d, x) = (&d[rows.start * out..rows.end * out], &x[rows.start * inner..rows.end * inner]);
        let tall = piece.len() / inner;
        let d = Mat::strided(&d[first.min(d.len())..], rows.len(), tall, out);
        multiply_add(MatMut::new(piece, tall, inner), d.t(), Mat::new(x, rows.len(), inner));
    };
    if groups == 1 {
        dw.par_chunks_mut(tall * inner).enumerate().for_each(|(i, piece)| part(piece, 0, i * tall));
        return;
    }
    let mut parts = vec![0.0; groups * len];
    let pieces = parts.chunks_mut(len).enumerate().flat_map(|(group, part)| {
        part.chunks_mut(tall * inner).enumerate().map(move |(i, piece)| (group, i * tall, piece))
    });
    let pieces: Vec<_> = pieces.collect();
    pieces.into_par_iter().for_each(|(group, first, piece)| part(piece, group, first));
    parts.chunks_exact(len).for_each(|part| simd::add(dw, part));
}

/// Adds the sum of the rows of `d` to `db`.
pub(crate) fn bias_gradient(db: &mut [f32], d: &[f32]) {
    let out = db.len();
    let sums: Vec<Vec<f32>> = d
        .par_chunks(GROUP * out)
        .map(|rows| {
            let mut sums = vec![0.0; out];
            simd::add_rows(&mut sums, rows);
            sums
        })
        .collect();
    sums.iter().for_each(|sums| simd::add(db, sums));
}

/// The layer as one operation.
struct Linear;

/// `x w^T + bias` over the last dimension of `x` (`[.., inner]`), `w` `[out, inner]`, `bias`
/// `[out]`.
pub(crate) fn linear(x: &Tensor, w: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (out, inner) = w.dims2()?;
    if x.dims().last() != Some(&inner) || bias.is_some_and(|b| b.dims() != [out]) {
        bail!("linear: {:?} times {:?}", x.shape(), w.shape());
    }
    match bias {
        None => x.apply_op2(w, Linear),
        Some(bias) => x.apply_op3(w, bias, Linear),
    }
}

impl Linear {
    fn run(
        x: (&CpuStorage, &Layout),
        w: (&CpuStorage, &Layout),
        bias: Option<(&CpuStorage, &Layout)>,
    ) -> Result<(CpuStorage, Shape)> {
        let (out, inner) = w.1.shape().dims2()?;
        let mut shape = x.1.dims().to_vec();
        let mut y = vec![0.0; x.1.shape().elem_count() / inner * out];
        let bias = bias.map(|(storage, at)| f32_slice(storage, at)).transpose()?;
        forward(&mut y, f32_slice(x.0, x.1)?, f32_slice(w.0, w.1)?, bias, inner);
        if let Some(last) = shape.last_mut() {
            *last = out;
        }
        Ok((CpuStorage::F32(y), shape.into()))
    }

    fn run_back(x: &Tensor, w: &Tensor, d: &Tensor) -> Result<(Option<Tensor>, Tensor)> {
        let (_, inner) = w.dims2()?;
        let mut dw = vec![0.0; w.elem_count()];
        let mut dx = x.track_op().then(|| vec![0.0; x.elem_count()]);
        with_f32(d, |d| {
            with_f32(x, |x| {
                weight_gradient(&mut dw, d, x, inner);
                Ok(())
            })?;
            let Some(dx) = &mut dx else { return Ok(()) };
            with_f32(w, |w| {
                input_gradient(dx, d, w, inner);
                Ok(())
            })
        })?;
        let dx = dx.map(|dx| Tensor::from_vec(dx, x.shape(), x.device())).transpose()?;
        Ok((dx, Tensor::from_vec(dw, w.shape(), w.device())?))
    }
}

impl CustomOp2 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_at: &Layout,
        w: &CpuStorage,
        w_at: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        Self::run((x, x_at), (w, w_at), None)
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        _: &Tensor,
        d: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (dx, dw) = Self::run_back(x, w, d)?;
        Ok((dx, Some(dw)))
    }
}

impl CustomOp3 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_at: &Layout,
        w: &CpuStorage,
        w_at: &Layout,
        bias: &CpuStorage,
        bias_at: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        Self::run((x, x_at), (w, w_at), Some((bias, bias_at)))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        d: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (dx, dw) = Self::run_back(x, w, d)?;
        let mut db = vec![0.0; bias.elem_count()];
        with_f32(d, |d| {
            bias_gradient(&mut db, d);
            Ok(())
        })?;
        Ok((dx, Some(dw), Some(Tensor::from_vec(db, bias.shape(), bias.device())?)))
    }
}
