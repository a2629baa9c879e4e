//! A whole ResNet, from pixels to the last grid, as one operation of candle's graph.
//!
//! Of each layer only the convolution's output is kept: whoever reads it normalises, rectifies and averages on the way, a few
//! images at a time that stay in the cache, and so does the backward pass. A layer is thus read once and written once, and
//! the sums of its batch norm are taken while it is written. Work is split by the sizes alone: results are the same bits
//! whatever the threads.

use super::batch_norm::{Moments, Norm, NormGradient, Statistics, Sums, relu_backward};
use super::conv::{self, Conv, Packed};
use super::simd::{self, vectorised};
use super::{f32_slice, with_f32};
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

/// The convolutions of a ResNet, a batch norm after each.
#[derive(Clone, Debug)]
pub struct Trunk {
    /// One after another on the pixels, each with a relu; then averages over squares of four pixels.
    pub stem: Vec<Conv>,
    /// Residual blocks.
    pub blocks: Vec<Block>,
}

/// relu(main(x) + beside(x)).
#[derive(Clone, Debug)]
pub struct Block {
    /// One after another, with a relu between.
    pub main: [Conv; 3],
    /// Beside them; without it x itself is added.
    pub beside: Option<Conv>,
    /// Whether averages over squares of four pixels are what the third convolution and the one beside take.
    pub pooled: bool,
}

impl Trunk {
    /// Every convolution, in the order of their parameters.
    pub fn convolutions(&self) -> impl Iterator<Item = Conv> {
        let blocks = self.blocks.iter().flat_map(|b| b.main.iter().chain(&b.beside));
        self.stem.iter().chain(blocks).copied()
    }

    /// Numbers in all parameters.
    pub fn parameters_len(&self) -> usize {
        self.convolutions().map(|c| c.weights_len() + 2 * c.out).sum()
    }

    /// Side and channels of the last grid.
    fn last(&self) -> (usize, usize) {
        let last = self.blocks.last().map_or_else(|| self.stem[self.stem.len() - 1], |block| block.main[2]);
        (last.out_side(), last.out)
    }
}

/// Memory kept from one step to the next, by length: memory fresh from the system costs a page fault for every 4 KiB.
#[derive(Clone, Default)]
pub struct Buffers(Arc<Mutex<(usize, BTreeMap<usize, Vec<Vec<f32>>>)>>);

impl Buffers {
    /// Lets go of what was kept for batches of another size.
    fn for_batch(&self, batch: usize) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.0 != batch {
            *kept = (batch, BTreeMap::new());
        }
    }

    /// Numbers to be overwritten.
    fn take(&self, len: usize) -> Vec<f32> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.1.get_mut(&len).and_then(Vec::pop).unwrap_or_else(|| vec![0.0; len])
    }

    fn put(&self, buffer: Vec<f32>) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.1.entry(buffer.len()).or_default().push(buffer);
    }
}

vectorised! {
    /// The means of squares of four pixels of two rows.
    fn average<'a>(first: &'a [f32], second: &'a [f32], channels: usize, out: &'a mut [f32]) {
        let pairs = first.chunks_exact(2 * channels).zip(second.chunks_exact(2 * channels));
        for ((first, second), out) in pairs.zip(out.chunks_exact_mut(channels)) {
            let ((a, b), (c, d)) = (first.split_at(channels), second.split_at(channels));
            for ((((o, a), b), c), d) in out.iter_mut().zip(a).zip(b).zip(c).zip(d) {
                *o = 0.25 * ((a + b) + (c + d));
            }
        }
    }
}

vectorised! {
    /// The gradient of [`average`] for one of the two rows.
    fn spread<'a>(d: &'a [f32], channels: usize, out: &'a mut [f32]) {
        for (d, out) in d.chunks_exact(channels).zip(out.chunks_exact_mut(2 * channels)) {
            let (a, b) = out.split_at_mut(channels);
            for ((a, b), d) in a.iter_mut().zip(b).zip(d) {
                *a = 0.25 * d;
                *b = 0.25 * d;
            }
        }
    }
}

/// What a convolution takes, made from what is kept.
#[derive(Clone, Copy)]
struct Source<'a> {
    /// `[batch, side, side, channels]`.
    kept: &'a [f32],
    /// Normalised by this, then rectified.
    norm: Option<&'a Norm>,
    /// Then averaged over squares of four pixels.
    pooled: bool,
}

impl<'a> Source<'a> {
    fn plain(kept: &'a [f32]) -> Self {
        Self { kept, norm: None, pooled: false }
    }

    fn of(layer: &'a Layer) -> Self {
        Self { kept: &layer.convolved, norm: Some(&layer.norm), pooled: false }
    }

    fn pooled(self, pooled: bool) -> Self {
        Self { pooled, ..self }
    }

    fn row(&self, kept: &[f32], out: &mut [f32]) {
        match self.norm {
            Some(norm) => norm.rectified(kept, out),
            None => out.copy_from_slice(kept),
        }
    }

    /// One image, for `conv`, into its place within a border.
    fn image(&self, conv: Conv, image: usize, rows: &mut [Vec<f32>; 2], out: &mut [f32]) {
        let line = conv.side * conv.channels;
        if !self.pooled {
            let kept = self.kept[image * conv.image_len()..].chunks_exact(line);
            conv.rows().zip(kept).for_each(|(at, kept)| self.row(kept, &mut out[at..at + line]));
            return;
        }
        let kept = self.kept[image * 4 * conv.image_len()..].chunks_exact(4 * line);
        for (at, kept) in conv.rows().zip(kept) {
            let mut halves = kept.chunks_exact(2 * line);
            for row in rows.iter_mut() {
                row.resize(2 * line, 0.0);
                halves.next().into_iter().for_each(|kept| self.row(kept, row));
            }
            average(&rows[0], &rows[1], conv.channels, &mut out[at..at + line]);
        }
    }

    /// Images one after another with their borders, for `conv`: in `room`, whose borders are 0, or as they are kept.
    fn images<'b>(&'b self, conv: Conv, images: Range<usize>, room: &'b mut Room) -> &'b [f32] {
        if self.norm.is_none() && !self.pooled && conv.border() == 0 {
            return &self.kept[images.start * conv.image_len()..images.end * conv.image_len()];
        }
        for (image, out) in images.clone().zip(room.images.chunks_exact_mut(conv.bordered_len())) {
            self.image(conv, image, &mut room.rows, out);
        }
        &room.images[..images.len() * conv.bordered_len()]
    }
}

/// Where a thread puts images together.
struct Room {
    images: Vec<f32>,
    rows: [Vec<f32>; 2],
}

impl Room {
    fn new(conv: Conv, images: usize) -> Self {
        Self { images: vec![0.0; images * conv.bordered_len()], rows: Default::default() }
    }
}

/// Images that are worked on at once: enough for the loops to be long, and several such tiles for every thread.
fn tile(conv: Conv, batch: usize) -> usize {
    256_usize.div_ceil(conv.out_pixels()).clamp(1, batch.div_ceil(16))
}

/// Parts of the batch whose gradients of a kernel are one sum: fewer where the kernel is large.
fn groups(conv: Conv) -> usize {
    if conv.weights_len() <= 1 << 16 { 16 } else { 8 }
}

/// A layer that has run.
#[derive(Default)]
struct Layer {
    convolved: Vec<f32>,
    statistics: Statistics,
    norm: Norm,
}

/// A convolution of the whole batch, and what its tiles add to the statistics.
fn convolve(conv: Conv, source: Source<'_>, w: &[f32], y: &mut [f32]) -> Vec<Moments> {
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
struct Sink<'a> {
    d: &'a mut [f32],
    /// Whether it is added to what is there.
    add: bool,
}

/// The gradient of a layer: `d` is that of its norm, `gradient` leads on to the convolution. Writes that of the kernel
/// (as it is stored), and the images' to the sink, whose sums are returned.
fn convolve_backward(
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

/// The gradient of averages (`d`, of the size that `conv` takes) over squares of four pixels.
fn unpool(conv: Conv, d: &[f32], out: &mut [f32]) {
    let line = conv.side * conv.channels;
    for (d, out) in d.chunks_exact(line).zip(out.chunks_exact_mut(4 * line)) {
        let (first, second) = out.split_at_mut(2 * line);
        spread(d, conv.channels, first);
        second.copy_from_slice(first);
    }
}

/// Numbers that one thread works on at a time where nothing but rows matters, in whole rows.
fn piece(channels: usize) -> usize {
    ((1 << 15) / channels).max(1) * channels
}

/// One layer's parameters.
#[derive(Clone, Copy)]
struct Parameters<'a> {
    conv: Conv,
    w: &'a [f32],
    gain: &'a [f32],
    bias: &'a [f32],
}

/// What is kept for the backward pass.
#[derive(Default)]
struct Saved {
    pixels: Vec<f32>,
    layers: Vec<Layer>,
    /// What goes into each block.
    grids: Vec<Vec<f32>>,
}

struct ResNet {
    trunk: Trunk,
    buffers: Buffers,
    fixed: Option<Vec<Statistics>>,
    train: bool,
    found: Arc<Mutex<Vec<Statistics>>>,
    saved: Mutex<Option<Saved>>,
}

/// The last grid (`[batch, side, side, channels]`) for `pixels` (`[batch, 3, size, size]`), and the statistics of each norm.
///
/// `params` holds of each convolution, in the order of [`Trunk::convolutions`], kernel (`[out, channels, kernel, kernel]`),
/// gains and biases. Norms go by the batch, or by `fixed` statistics. With `train`, where anything is trained, what is
/// needed is kept for one backward pass; without, no graph is built. Pixels get no gradient.
pub fn resnet(
    pixels: &Tensor,
    params: &Tensor,
    trunk: Trunk,
    fixed: Option<Vec<Statistics>>,
    buffers: &Buffers,
    train: bool,
) -> Result<(Tensor, Vec<Statistics>)> {
    let (_, channels, height, width) = pixels.dims4()?;
    let first = trunk.convolutions().next().map(|conv| (conv.channels, conv.side, conv.side));
    let known = |s: &Vec<Statistics>| s.iter().map(|s| s.mean.len()).eq(trunk.convolutions().map(|c| c.out));
    if first != Some((channels, height, width))
        || params.elem_count() != trunk.parameters_len()
        || !fixed.as_ref().is_none_or(known)
    {
        bail!("a ResNet on {:?} with {} parameters", pixels.shape(), params.elem_count());
    }
    let train = train && params.track_op();
    let found = Arc::new(Mutex::new(Vec::new()));
    let op = ResNet {
        trunk,
        buffers: buffers.clone(),
        fixed,
        train,
        found: found.clone(),
        saved: Mutex::new(None),
    };
    let y = if train { pixels.apply_op2(params, op)? } else { pixels.apply_op2_no_bwd(params, &op)? };
    let statistics = std::mem::take(&mut *found.lock().unwrap_or_else(PoisonError::into_inner));
    Ok((y, statistics))
}

/// From channels apart to channels together.
fn channels_last(images: &[f32], channels: usize, image_len: usize, out: &mut [f32]) {
    let pixels = image_len / channels;
    out.par_chunks_mut(image_len).zip(images.par_chunks(image_len)).for_each(|(out, image)| {
        for (pixel, out) in out.chunks_exact_mut(channels).enumerate() {
            out.iter_mut().enumerate().for_each(|(channel, out)| *out = image[channel * pixels + pixel]);
        }
    });
}

impl ResNet {
    fn parameters<'a>(&self, mut params: &'a [f32]) -> Vec<Parameters<'a>> {
        let mut take = |len: usize| {
            let (part, rest) = params.split_at(len);
            params = rest;
            part
        };
        let each = self.trunk.convolutions();
        each.map(|conv| {
            let [w, gain, bias] = [conv.weights_len(), conv.out, conv.out].map(&mut take);
            Parameters { conv, w, gain, bias }
        })
        .collect()
    }

    /// The next layer.
    fn layer(&self, p: Parameters<'_>, number: usize, source: Source<'_>, batch: usize) -> Layer {
        let mut convolved = self.buffers.take(batch * p.conv.out_len());
        let moments = convolve(p.conv, source, p.w, &mut convolved);
        let statistics = match &self.fixed {
            Some(fixed) => fixed[number].clone(),
            None => Statistics::join(&moments),
        };
        let norm = Norm::new(&statistics, p.gain, p.bias);
        Layer { convolved, statistics, norm }
    }

    /// What nobody will read again goes back, unless there will be a backward pass.
    fn done(&self, buffer: &mut Vec<f32>) {
        if !self.train {
            self.buffers.put(std::mem::take(buffer));
        }
    }

    fn run(&self, pixels: &[f32], params: &[f32]) -> Vec<f32> {
        let params = self.parameters(params);
        let first = self.trunk.stem[0];
        let batch = pixels.len() / first.image_len();
        self.buffers.for_batch(batch);
        let mut saved = Saved { pixels: self.buffers.take(pixels.len()), ..Saved::default() };
        channels_last(pixels, first.channels, first.image_len(), &mut saved.pixels);
        let layers = &mut saved.layers;
        for i in 0..self.trunk.stem.len() {
            let source = layers.last().map_or_else(|| Source::plain(&saved.pixels), Source::of);
            let layer = self.layer(params[i], i, source, batch);
            match layers.last_mut() {
                Some(before) => self.done(&mut before.convolved),
                None => self.done(&mut saved.pixels),
            }
            layers.push(layer);
        }
        let mut grid = self.stem_pooled(layers, batch);
        for block in &self.trunk.blocks {
            let out = self.block(block, &params, layers, &grid, batch);
            let mut before = std::mem::replace(&mut grid, out);
            self.done(&mut before);
            saved.grids.push(before);
        }
        let statistics = saved.layers.iter_mut().map(|layer| layer.statistics.clone()).collect();
        *self.found.lock().unwrap_or_else(PoisonError::into_inner) = statistics;
        if self.train {
            *self.saved.lock().unwrap_or_else(PoisonError::into_inner) = Some(saved);
        }
        grid
    }

    /// The stem's last layer, averaged.
    fn stem_pooled(&self, layers: &mut [Layer], batch: usize) -> Vec<f32> {
        let last = self.trunk.stem[self.trunk.stem.len() - 1];
        let grid =
            Conv { kernel: 1, stride: 1, side: last.out_side() / 2, channels: last.out, out: last.out };
        let mut out = self.buffers.take(batch * grid.image_len());
        if let Some(layer) = layers.last_mut() {
            let source = Source::of(layer).pooled(true);
            let images = out.par_chunks_mut(grid.image_len()).enumerate();
            images.for_each_init(Default::default, |rows, (i, out)| source.image(grid, i, rows, out));
            self.done(&mut layer.convolved);
        }
        out
    }

    /// One block on `grid`; its layers are added to `layers`.
    fn block(
        &self,
        block: &Block,
        params: &[Parameters<'_>],
        layers: &mut Vec<Layer>,
        grid: &[f32],
        batch: usize,
    ) -> Vec<f32> {
        let number = layers.len();
        let [first, second, third, beside] = [0, 1, 2, 3].map(|i| number + i);
        layers.push(self.layer(params[first], first, Source::plain(grid), batch));
        layers.push(self.layer(params[second], second, Source::of(&layers[first]), batch));
        self.done(&mut layers[first].convolved);
        layers.push(self.layer(
            params[third],
            third,
            Source::of(&layers[second]).pooled(block.pooled),
            batch,
        ));
        self.done(&mut layers[second].convolved);
        if block.beside.is_some() {
            layers.push(self.layer(params[beside], beside, Source::plain(grid).pooled(block.pooled), batch));
        }
        let channels = block.main[2].out;
        let mut out = self.buffers.take(layers[third].convolved.len());
        let (main, other) = (&layers[third], layers.get(beside));
        let added = other.map_or(grid, |layer| &layer.convolved);
        let pieces = out.par_chunks_mut(piece(channels)).zip(main.convolved.par_chunks(piece(channels)));
        pieces.zip(added.par_chunks(piece(channels))).for_each_init(Vec::new, |room, ((out, x), added)| {
            main.norm.rectified_sum(x, added, other.map(|layer| &layer.norm), room, out);
        });
        layers[third..].iter_mut().for_each(|layer| self.done(&mut layer.convolved));
        out
    }

    /// The gradient of the parameters; `last` is the last grid, `d` its gradient.
    fn run_back(&self, params: &[f32], last: &[f32], d: &[f32]) -> Option<Vec<f32>> {
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
            let first = end - 3 - usize::from(block.beside.is_some());
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
    /// The gradient of one layer's parameters, and of its images; `d` is that of its norm, and its sums.
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

    /// As [`layer`](Self::layer), where the images are those of layer `before`: returns the gradient of that layer's norm.
    fn chained(
        &mut self,
        number: usize,
        before: usize,
        pooled: bool,
        d: &[f32],
        sums: &[Sums],
    ) -> (Vec<f32>, Vec<Sums>) {
        let source = Source::of(&self.layers[before]).pooled(pooled);
        let mut d_before = self.buffers.take(source.kept.len());
        let sums = self.layer(number, source, d, sums, Some((&mut d_before, false)));
        (d_before, sums)
    }

    /// From the gradient of a block's result (`out`) to that of what went in (`grid`).
    fn block(&mut self, block: &Block, first: usize, grid: &[f32], out: &[f32], mut d: Vec<f32>) -> Vec<f32> {
        let layers = self.layers;
        let (third, beside) = (&layers[first + 2], block.beside.map(|_| &layers[first + 3]));
        let piece = piece(block.main[2].out);
        let pieces = d.par_chunks_mut(piece).zip(out.par_chunks(piece)).enumerate();
        let masked = pieces.map(|(i, (d, out))| {
            relu_backward(out, d);
            let sums = |layer: &Layer| layer.norm.sums(&layer.convolved[i * piece..][..d.len()], d);
            (sums(third), beside.map(sums))
        });
        let (third_sums, beside_sums): (Vec<Sums>, Vec<Option<Sums>>) = masked.unzip();
        let (d_second, second_sums) = self.chained(first + 2, first + 1, block.pooled, &d, &third_sums);
        let mut d_grid = if beside.is_some() {
            let sums: Vec<Sums> = beside_sums.into_iter().flatten().collect();
            let mut d_grid = self.buffers.take(grid.len());
            let source = Source::plain(grid).pooled(block.pooled);
            self.layer(first + 3, source, &d, &sums, Some((&mut d_grid, false)));
            self.buffers.put(d);
            d_grid
        } else {
            d
        };
        let (d_first, first_sums) = self.chained(first + 1, first, false, &d_second, &second_sums);
        self.buffers.put(d_second);
        self.layer(first, Source::plain(grid), &d_first, &first_sums, Some((&mut d_grid, true)));
        self.buffers.put(d_first);
        d_grid
    }

    /// The stem, from the gradient of its averages.
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
        self.layer(0, Source::plain(pixels), &d, &sums, None);
        self.buffers.put(d);
    }
}

impl CustomOp2 for ResNet {
    fn name(&self) -> &'static str {
        "resnet"
    }

    fn cpu_fwd(
        &self,
        pixels: &CpuStorage,
        pixels_at: &Layout,
        params: &CpuStorage,
        params_at: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let out = self.run(f32_slice(pixels, pixels_at)?, f32_slice(params, params_at)?);
        let (side, channels) = self.trunk.last();
        Ok((CpuStorage::F32(out), (pixels_at.dims()[0], side, side, channels).into()))
    }

    fn bwd(
        &self,
        _: &Tensor,
        params: &Tensor,
        y: &Tensor,
        d: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let grads =
            with_f32(params, |params| with_f32(y, |y| with_f32(d, |d| Ok(self.run_back(params, y, d)))))?;
        let Some(grads) = grads else {
            bail!("resnet: its activations serve one backward pass, and this is the second");
        };
        Ok((None, Some(Tensor::from_vec(grads, params.shape(), params.device())?)))
    }
}
