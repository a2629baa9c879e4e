//! The forward pass, from pixels to the output grid.

use super::super::batch_norm::{Norm, Statistics};
use super::super::conv::Conv;
use super::layer::{Layer, convolve};
use super::source::Source;
use super::{Block, Parameters, ResNet, Saved, piece_len};
use rayon::prelude::*;
use std::sync::PoisonError;

/// Transposes channels-first images to channels-last.
fn channels_last(images: &[f32], channels: usize, image_len: usize, out: &mut [f32]) {
    let pixels = image_len / channels;
    out.par_chunks_mut(image_len).zip(images.par_chunks(image_len)).for_each(|(out, image)| {
        for (pixel, out) in out.chunks_exact_mut(channels).enumerate() {
            out.iter_mut().enumerate().for_each(|(channel, out)| *out = image[channel * pixels + pixel]);
        }
    });
}

impl ResNet {
    /// Runs one layer.
    fn layer(&self, p: Parameters<'_>, number: usize, source: Source<'_>, batch: usize) -> Layer {
        let mut convolved = self.buffers.take(batch * p.conv.out_len());
        let moments = convolve(p.conv, source, p.w, &mut convolved);
        let statistics = match &self.fixed {
            Some(fixed) => fixed[number].clone(),
            None => Statistics::merge(&moments),
        };
        let norm = Norm::new(&statistics, p.gain, p.bias);
        Layer { convolved, statistics, norm }
    }

    /// Returns a buffer that is not read again, unless a backward pass will read it.
    fn release(&self, buffer: &mut Vec<f32>) {
        if !self.train {
            self.buffers.put(std::mem::take(buffer));
        }
    }

    /// Computes the output grid, keeping what the backward pass needs.
    pub(super) fn run(&self, pixels: &[f32], params: &[f32]) -> Vec<f32> {
        let params = self.parameters(params);
        let first = self.trunk.stem[0];
        let batch = pixels.len() / first.image_len();
        self.buffers.for_batch(batch);
        let mut saved = Saved { pixels: self.buffers.take(pixels.len()), ..Saved::default() };
        channels_last(pixels, first.channels, first.image_len(), &mut saved.pixels);
        let layers = &mut saved.layers;
        for (i, &parameters) in params.iter().enumerate().take(self.trunk.stem.len()) {
            let source = layers.last().map_or_else(|| Source::direct(&saved.pixels), Layer::output);
            let layer = self.layer(parameters, i, source, batch);
            match layers.last_mut() {
                Some(before) => self.release(&mut before.convolved),
                None => self.release(&mut saved.pixels),
            }
            layers.push(layer);
        }
        let mut grid = self.stem_pooled(layers, batch);
        for block in &self.trunk.blocks {
            let out = self.block(block, &params, layers, &grid, batch);
            let mut before = std::mem::replace(&mut grid, out);
            self.release(&mut before);
            saved.grids.push(before);
        }
        let statistics = saved.layers.iter_mut().map(|layer| layer.statistics.clone()).collect();
        *self.statistics.lock().unwrap_or_else(PoisonError::into_inner) = statistics;
        if self.train {
            *self.saved.lock().unwrap_or_else(PoisonError::into_inner) = Some(saved);
        }
        grid
    }

    /// The stem's output after pooling.
    fn stem_pooled(&self, layers: &mut [Layer], batch: usize) -> Vec<f32> {
        let last = self.trunk.stem[self.trunk.stem.len() - 1];
        let grid =
            Conv { kernel: 1, stride: 1, side: last.out_side() / 2, channels: last.out, out: last.out };
        let mut out = self.buffers.take(batch * grid.image_len());
        if let Some(layer) = layers.last_mut() {
            let source = layer.output().pooled(true);
            let images = out.par_chunks_mut(grid.image_len()).enumerate();
            images.for_each_init(Default::default, |rows, (i, out)| source.image(grid, i, rows, out));
            self.release(&mut layer.convolved);
        }
        out
    }

    /// Runs one block on `grid`, appending its layers to `layers`.
    fn block(
        &self,
        block: &Block,
        params: &[Parameters<'_>],
        layers: &mut Vec<Layer>,
        grid: &[f32],
        batch: usize,
    ) -> Vec<f32> {
        let number = layers.len();
        let [first, second, third, shortcut] = [0, 1, 2, 3].map(|i| number + i);
        layers.push(self.layer(params[first], first, Source::direct(grid), batch));
        layers.push(self.layer(params[second], second, layers[first].output(), batch));
        self.release(&mut layers[first].convolved);
        layers.push(self.layer(params[third], third, layers[second].output().pooled(block.pooled), batch));
        self.release(&mut layers[second].convolved);
        if block.shortcut.is_some() {
            let source = Source::direct(grid).pooled(block.pooled);
            layers.push(self.layer(params[shortcut], shortcut, source, batch));
        }
        let piece = piece_len(block.main[2].out);
        let mut out = self.buffers.take(layers[third].convolved.len());
        let (main, other) = (&layers[third], layers.get(shortcut));
        let added = other.map_or(grid, |layer| &layer.convolved);
        let pieces = out.par_chunks_mut(piece).zip(main.convolved.par_chunks(piece));
        pieces.zip(added.par_chunks(piece)).for_each_init(Vec::new, |scratch, ((out, x), added)| {
            main.norm.rectified_sum(x, added, other.map(|layer| &layer.norm), scratch, out);
        });
        layers[third..].iter_mut().for_each(|layer| self.release(&mut layer.convolved));
        out
    }
}
