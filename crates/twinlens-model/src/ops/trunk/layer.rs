//! One layer (a convolution and its batch norm) over the whole batch, forward and backward.

use super::super::batch_norm::{Moments, Norm, NormGradient, Statistics, Sums};
use super::super::conv::{self, Conv, Packed};
use super::super::simd;
use super::source::{Scratch, Source, unpool};
use rayon::prelude::*;

/// Images that a thread works on at once: enough for long loops, few enough for several tiles per
/// thread.
fn tile_images(conv: Conv, batch: usize) -> usize {
    256_usize.div_ceil(conv.out_pixels()).clamp(1, batch.div_ceil(16))
}

/// Into how many partial sums a kernel's gradient is split: fewer for large kernels.
fn group_count(conv: Conv) -> usize {
    if conv.weights_len() <= 1 << 16 { 16 } else { 8 }
}

/// The activations of a layer.
#[derive(Default)]
pub(super) struct Layer {
    pub(super) convolved: Vec<f32>,
    pub(super) statistics: Statistics,
    pub(super) norm: Norm,
}

impl Layer {
    /// The layer's output, normalised and rectified, as the input of the next.
    pub(super) fn output(&self) -> Source<'_> {
        Source { kept: &self.convolved, norm: Some(&self.norm), pooled: false }
    }
}

/// Convolves the whole batch; returns the moments of each tile.
pub(super) fn convolve(conv: Conv, source: Source<'_>, w: &[f32], y: &mut [f32]) -> Vec<Moments> {
    let tile = tile_images(conv, y.len() / conv.out_len());
    let (w, at) = (Packed::forward(conv, w), conv.patch_starts(tile));
    let tiles = y.par_chunks_mut(tile * conv.out_len()).enumerate();
    let run_tile = |scratch: &mut Scratch, (i, y): (usize, &mut [f32])| {
        let n = y.len() / conv.out_len();
        let x = source.images(conv, i * tile..i * tile + n, scratch);
        conv::convolve(conv, x, &at[..n * conv.out_pixels()], &w, y);
        Moments::new(y, conv.out)
    };
    tiles.map_init(|| Scratch::new(conv, tile), run_tile).collect()
}

/// The destination of the gradient of a convolution's input.
pub(super) struct Sink<'a> {
    pub(super) d: &'a mut [f32],
    /// Whether the gradient is added to `d`, or overwrites it.
    pub(super) add: bool,
}

/// The gradient of a layer, from the gradient `d` of its norm's output; `gradient` carries it back
/// through the norm. Writes the kernel's gradient to `d_kernel` and the input's to the sink;
/// returns the sums of the latter for the norm before.
pub(super) fn convolve_backward(
    conv: Conv,
    source: Source<'_>,
    w: &[f32],
    (layer, gradient, d): (&Layer, &NormGradient, &[f32]),
    sink: Option<Sink<'_>>,
    d_kernel: &mut [f32],
) -> Vec<Sums> {
    let batch = d.len() / conv.out_len();
    let (tile, back) = (tile_images(conv, batch), conv.back());
    let group = batch.div_ceil(tile).div_ceil(group_count(conv)) * tile;
    let packed = sink.is_some().then(|| Packed::back(conv, w));
    let (at, d_at, back_at) = (conv.patch_starts(tile), back.pixel_starts(tile), back.patch_starts(tile));
    let starts = (0..batch).step_by(group);
    let add = sink.as_ref().is_some_and(|sink| sink.add);
    let mut parts: Vec<Option<&mut [f32]>> = starts.clone().map(|_| None).collect();
    if let Some(sink) = sink {
        let len = conv.image_len() * if source.pooled { 4 } else { 1 };
        parts = sink.d.chunks_mut(group * len).map(Some).collect();
    }
    let run_group = |(start, mut d_images): (usize, Option<&mut [f32]>)| {
        let (mut dw, mut sums) = (vec![0.0; conv.weights_len()], Vec::new());
        let (mut scratch, mut d_scratch) = (Scratch::new(conv, tile), Scratch::new(back, tile));
        let mut d_x = Vec::new();
        let end = (start + group).min(batch);
        for first in (start..end).step_by(tile) {
            let images = first..(first + tile).min(end);
            let (n, rows) = (images.len(), images.len() * conv.out_pixels());
            let x = source.images(conv, images.clone(), &mut scratch);
            for (image, out) in images.clone().zip(d_scratch.images.chunks_exact_mut(back.bordered_len())) {
                let line = back.side * back.channels;
                let lines = image * conv.out_len()..(image + 1) * conv.out_len();
                let rows = d[lines.clone()].chunks_exact(line).zip(layer.convolved[lines].chunks_exact(line));
                for (at, (d, y)) in back.row_starts().zip(rows) {
                    gradient.input_rows(d, y, &mut out[at..at + line]);
                }
            }
            conv::add_kernel_gradient(conv, x, &at[..rows], &d_scratch.images, &d_at[..rows], &mut dw);
            let (Some(packed), Some(d_images)) = (&packed, &mut d_images) else { continue };
            let len = d_images.len() / (end - start);
            let d_images = &mut d_images[(first - start) * len..][..n * len];
            if add || source.pooled {
                d_x.resize(n * conv.image_len(), 0.0);
                conv::convolve(back, &d_scratch.images, &back_at[..rows], packed, &mut d_x);
                if add { simd::add(d_images, &d_x) } else { unpool(conv, &d_x, d_images) }
            } else {
                conv::convolve(back, &d_scratch.images, &back_at[..rows], packed, d_images);
            }
            let kept = &source.kept[first * len..][..n * len];
            sums.extend(source.norm.map(|norm| norm.rectified_backward(kept, d_images)));
        }
        (dw, sums)
    };
    let work: Vec<_> = starts.zip(parts).collect();
    let (kernels, sums): (Vec<Vec<f32>>, Vec<Vec<Sums>>) = work.into_par_iter().map(run_group).unzip();
    let mut kernels = kernels.into_iter();
    let mut total = kernels.next().unwrap_or_default();
    kernels.for_each(|part| simd::add(&mut total, &part));
    conv::store_kernel(conv, &total, d_kernel);
    sums.into_iter().flatten().collect()
}
