//! One layer, a convolution and the batch norm after it, over the whole batch, forth and back.

use super::super::batch_norm::{Moments, Norm, NormGradient, Statistics, Sums};
use super::super::conv::{self, Conv, Packed};
use super::super::simd;
use super::source::{Room, Source, unpool};
use rayon::prelude::*;

/// Images that are worked on at once: enough for the loops to be long, and several such tiles for
/// every thread.
fn tile(conv: Conv, batch: usize) -> usize {
    256_usize.div_ceil(conv.out_pixels()).clamp(1, batch.div_ceil(16))
}

/// Parts of the batch whose gradients of a kernel are one sum: fewer where the kernel is large.
fn groups(conv: Conv) -> usize {
    if conv.weights_len() <= 1 << 16 { 16 } else { 8 }
}

/// A layer that has run.
#[derive(Default)]
pub(super) struct Layer {
    pub(super) convolved: Vec<f32>,
    pub(super) statistics: Statistics,
    pub(super) norm: Norm,
}

/// A convolution of the whole batch, and what its tiles add to the statistics.
pub(super) fn convolve(conv: Conv, source: Source<'_>, w: &[f32], y: &mut [f32]) -> Vec<Moments> {
    let tile = tile(conv, y.len() / conv.out_len());
    let (w, at) = (Packed::forward(conv, w), conv.patches(tile));
    let tiles = y.par_chunks_mut(tile * conv.out_len()).enumerate();
    let one = |room: &mut Room, (i, y): (usize, &mut [f32])| {
        let n = y.len() / conv.out_len();
        let x = source.images(conv, i * tile..i * tile + n, room);
        conv::convolve(conv, x, &at[..n * conv.out_pixels()], &w, y);
        Moments::of(y, conv.out)
    };
    tiles.map_init(|| Room::new(conv, tile), one).collect()
}

/// Where the gradient of a convolution's images goes, the way back to what its source kept.
pub(super) struct Sink<'a> {
    pub(super) d: &'a mut [f32],
    /// Whether it is added to what is there.
    pub(super) add: bool,
}

/// The gradient of a layer: `d` is that of its norm, `gradient` leads on to the convolution. Writes
/// that of the kernel (as it is stored), and the images' to the sink, whose sums are returned.
pub(super) fn convolve_backward(
    conv: Conv,
    source: Source<'_>,
    w: &[f32],
    (layer, gradient, d): (&Layer, &NormGradient, &[f32]),
    sink: Option<Sink<'_>>,
    d_kernel: &mut [f32],
) -> Vec<Sums> {
    let batch = d.len() / conv.out_len();
    let (tile, back) = (tile(conv, batch), conv.back());
    let group = batch.div_ceil(tile).div_ceil(groups(conv)) * tile;
    let packed = sink.is_some().then(|| Packed::back(conv, w));
    let (at, d_at, back_at) = (conv.patches(tile), back.pixels(tile), back.patches(tile));
    let starts = (0..batch).step_by(group);
    let add = sink.as_ref().is_some_and(|sink| sink.add);
    let mut parts: Vec<Option<&mut [f32]>> = starts.clone().map(|_| None).collect();
    if let Some(sink) = sink {
        let len = conv.image_len() * if source.pooled { 4 } else { 1 };
        parts = sink.d.chunks_mut(group * len).map(Some).collect();
    }
    let one = |(start, mut d_images): (usize, Option<&mut [f32]>)| {
        let (mut dw, mut sums) = (vec![0.0; conv.weights_len()], Vec::new());
        let (mut room, mut d_room) = (Room::new(conv, tile), Room::new(back, tile));
        let mut d_x = Vec::new();
        let end = (start + group).min(batch);
        for first in (start..end).step_by(tile) {
            let images = first..(first + tile).min(end);
            let (n, rows) = (images.len(), images.len() * conv.out_pixels());
            let x = source.images(conv, images.clone(), &mut room);
            for (image, out) in images.clone().zip(d_room.images.chunks_exact_mut(back.bordered_len())) {
                let line = back.side * back.channels;
                let lines = image * conv.out_len()..(image + 1) * conv.out_len();
                let given =
                    d[lines.clone()].chunks_exact(line).zip(layer.convolved[lines].chunks_exact(line));
                back.rows().zip(given).for_each(|(at, (d, y))| gradient.rows(d, y, &mut out[at..at + line]));
            }
            conv::add_kernel_gradient(conv, x, &at[..rows], &d_room.images, &d_at[..rows], &mut dw);
            let (Some(packed), Some(d_images)) = (&packed, &mut d_images) else { continue };
            let len = d_images.len() / (end - start);
            let d_images = &mut d_images[(first - start) * len..][..n * len];
            if add || source.pooled {
                d_x.resize(n * conv.image_len(), 0.0);
                conv::convolve(back, &d_room.images, &back_at[..rows], packed, &mut d_x);
                if add { simd::add(d_images, &d_x) } else { unpool(conv, &d_x, d_images) }
            } else {
                conv::convolve(back, &d_room.images, &back_at[..rows], packed, d_images);
            }
            let kept = &source.kept[first * len..][..n * len];
            sums.extend(source.norm.map(|norm| norm.rectified_backward(kept, d_images)));
        }
        (dw, sums)
    };
    let work: Vec<_> = starts.zip(parts).collect();
    let (kernels, sums): (Vec<Vec<f32>>, Vec<Vec<Sums>>) = work.into_par_iter().map(one).unzip();
    let mut kernels = kernels.into_iter();
    let mut total = kernels.next().unwrap_or_default();
    kernels.for_each(|part| simd::add(&mut total, &part));
    conv::kernel_as_stored(conv, &total, d_kernel);
    sums.into_iter().flatten().collect()
}
