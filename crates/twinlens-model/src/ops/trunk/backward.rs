//! The backward pass, from the gradient of the output grid to those of the parameters.

use super::super::batch_norm::{NormGradient, Sums, relu_backward};
use super::super::conv::Conv;
use super::layer::{Layer, Sink, convolve_backward};
use super::source::{Source, unpool};
use super::{Block, Buffers, Parameters, ResNet, Saved, piece_len};
use rayon::prelude::*;
use std::sync::PoisonError;

impl ResNet {
    /// The gradient of the parameters, from the output grid `last` and its gradient `d`.
    pub(super) fn run_back(&self, params: &[f32], last: &[f32], d: &[f32]) -> Option<Vec<f32>> {
        let saved = self.saved.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        let params_len = params.len();
        let params = self.parameters(params);
        let mut back = Backward {
            buffers: &self.buffers,
            params: &params,
            layers: &saved.layers,
            grads: vec![0.0; params_len],
        };
        let mut d_grid = self.buffers.take(d.len());
        d_grid.copy_from_slice(d);
        let (mut out, mut end) = (last, saved.layers.len());
        for (block, grid) in self.trunk.blocks.iter().zip(&saved.grids).rev() {
            let first = end - 3 - usize::from(block.shortcut.is_some());
            d_grid = back.block(block, first, grid, out, d_grid);
            (out, end) = (grid, first);
        }
        back.stem(&saved.pixels, self.trunk.stem.len(), d_grid);
        let grads = back.grads;
        let Saved { pixels, layers, grids } = saved;
        let buffers = layers.into_iter().map(|layer| layer.convolved).chain(grids).chain([pixels]);
        buffers.for_each(|buffer| self.buffers.put(buffer));
        Some(grads)
    }
}

/// The backward pass.
struct Backward<'a> {
    buffers: &'a Buffers,
    params: &'a [Parameters<'a>],
    layers: &'a [Layer],
    grads: Vec<f32>,
}

impl<'a> Backward<'a> {
    /// The gradients of one layer's parameters and input, from the gradient `d` of its norm and the
    /// sums of `d`.
    fn layer(
        &mut self,
        number: usize,
        source: Source<'_>,
        d: &[f32],
        sums: &[Sums],
        sink: Option<(&mut [f32], bool)>,
    ) -> Vec<Sums> {
        let (p, layer) = (self.params[number], &self.layers[number]);
        let start: usize = self.params[..number].iter().map(|p| p.w.len() + 2 * p.conv.out).sum();
        let (d_kernel, rest) = self.grads[start..].split_at_mut(p.w.len());
        let (d_gain, rest) = rest.split_at_mut(p.conv.out);
        let rows = d.len() / p.conv.out;
        let gradient =
            NormGradient::new(&layer.norm, &layer.statistics, rows, sums, d_gain, &mut rest[..p.conv.out]);
        let sink = sink.map(|(d, add)| Sink { d, add });
        convolve_backward(p.conv, source, p.w, (layer, &gradient, d), sink, d_kernel)
    }

    /// [`layer`](Self::layer) where the input is the output of layer `before`: returns the gradient
    /// of that layer's norm and its sums.
    fn chained(
        &mut self,
        number: usize,
        before: usize,
        pooled: bool,
        d: &[f32],
        sums: &[Sums],
    ) -> (Vec<f32>, Vec<Sums>) {
        let source = self.layers[before].output().pooled(pooled);
        let mut d_before = self.buffers.take(source.kept.len());
        let sums = self.layer(number, source, d, sums, Some((&mut d_before, false)));
        (d_before, sums)
    }

    /// Turns the gradient `d` of a block's output (`out`) into that of its input (`grid`).
    fn block(&mut self, block: &Block, first: usize, grid: &[f32], out: &[f32], mut d: Vec<f32>) -> Vec<f32> {
        let layers = self.layers;
        let (third, shortcut) = (&layers[first + 2], block.shortcut.map(|_| &layers[first + 3]));
        let piece = piece_len(block.main[2].out);
        let pieces = d.par_chunks_mut(piece).zip(out.par_chunks(piece)).enumerate();
        let masked = pieces.map(|(i, (d, out))| {
            relu_backward(out, d);
            let sums = |layer: &Layer| layer.norm.sums(&layer.convolved[i * piece..][..d.len()], d);
            (sums(third), shortcut.map(sums))
        });
        let (third_sums, shortcut_sums): (Vec<Sums>, Vec<Option<Sums>>) = masked.unzip();
        let (d_second, second_sums) = self.chained(first + 2, first + 1, block.pooled, &d, &third_sums);
        let mut d_grid = if shortcut.is_some() {
            let sums: Vec<Sums> = shortcut_sums.into_iter().flatten().collect();
            let mut d_grid = self.buffers.take(grid.len());
            let source = Source::direct(grid).pooled(block.pooled);
            self.layer(first + 3, source, &d, &sums, Some((&mut d_grid, false)));
            self.buffers.put(d);
            d_grid
        } else {
            d
        };
        let (d_first, first_sums) = self.chained(first + 1, first, false, &d_second, &second_sums);
        self.buffers.put(d_second);
        self.layer(first, Source::direct(grid), &d_first, &first_sums, Some((&mut d_grid, true)));
        self.buffers.put(d_first);
        d_grid
    }

    /// The stem, from the gradient of its pooled output.
    fn stem(&mut self, pixels: &[f32], depth: usize, d_grid: Vec<f32>) {
        let layer = &self.layers[depth - 1];
        let conv = self.params[depth - 1].conv;
        let averaged =
            Conv { kernel: 1, stride: 1, side: conv.out_side() / 2, channels: conv.out, out: conv.out };
        let mut d = self.buffers.take(layer.convolved.len());
        let images = d.par_chunks_mut(conv.out_len()).zip(d_grid.par_chunks(averaged.image_len()));
        let mut sums: Vec<Sums> = images
            .zip(layer.convolved.par_chunks(conv.out_len()))
            .map(|((d, d_grid), kept)| {
                unpool(averaged, d_grid, d);
                layer.norm.rectified_backward(kept, d)
            })
            .collect();
        self.buffers.put(d_grid);
        for number in (1..depth).rev() {
            let (before, before_sums) = self.chained(number, number - 1, false, &d, &sums);
            self.buffers.put(std::mem::replace(&mut d, before));
            sums = before_sums;
        }
        self.layer(0, Source::direct(pixels), &d, &sums, None);
        self.buffers.put(d);
    }
}
