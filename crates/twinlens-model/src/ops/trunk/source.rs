//! The input of a convolution, computed a few images at a time from a kept activation by
//! normalising, rectifying and pooling it.

use super::super::batch_norm::Norm;
use super::super::conv::Conv;
use super::super::simd::vectorised;
use std::ops::Range;

/// The input of a convolution.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    /// The kept activation, `[batch, side, side, channels]`.
    pub(super) kept: &'a [f32],
    /// Applied first, followed by a relu.
    pub(super) norm: Option<&'a Norm>,
    /// Whether 2 x 2 average pooling follows.
    pub(super) pooled: bool,
}

impl<'a> Source<'a> {
    /// The activation as it is.
    pub(super) fn direct(kept: &'a [f32]) -> Self {
        Self { kept, norm: None, pooled: false }
    }

    pub(super) fn pooled(self, pooled: bool) -> Self {
        Self { pooled, ..self }
    }

    fn row(&self, kept: &[f32], out: &mut [f32]) {
        match self.norm {
            Some(norm) => norm.rectified(kept, out),
            None => out.copy_from_slice(kept),
        }
    }

    /// Writes one image for `conv` into a bordered image.
    pub(super) fn image(&self, conv: Conv, image: usize, rows: &mut [Vec<f32>; 2], out: &mut [f32]) {
        let line = conv.side * conv.channels;
        if !self.pooled {
            let kept = self.kept[image * conv.image_len()..].chunks_exact(line);
            conv.row_starts().zip(kept).for_each(|(at, kept)| self.row(kept, &mut out[at..at + line]));
            return;
        }
        let kept = self.kept[image * 4 * conv.image_len()..].chunks_exact(4 * line);
        for (at, kept) in conv.row_starts().zip(kept) {
            let mut halves = kept.chunks_exact(2 * line);
            for row in rows.iter_mut() {
                row.resize(2 * line, 0.0);
                halves.next().into_iter().for_each(|kept| self.row(kept, row));
            }
            average(&rows[0], &rows[1], conv.channels, &mut out[at..at + line]);
        }
    }

    /// Consecutive bordered images for `conv`: in `scratch`, whose borders are 0, or the kept
    /// activation itself.
    pub(super) fn images<'b>(
        &'b self,
        conv: Conv,
        images: Range<usize>,
        scratch: &'b mut Scratch,
    ) -> &'b [f32] {
        if self.norm.is_none() && !self.pooled && conv.border() == 0 {
            return &self.kept[images.start * conv.image_len()..images.end * conv.image_len()];
        }
        for (image, out) in images.clone().zip(scratch.images.chunks_exact_mut(conv.bordered_len())) {
            self.image(conv, image, &mut scratch.rows, out);
        }
        &scratch.images[..images.len() * conv.bordered_len()]
    }
}

/// Bordered images that a thread assembles.
pub(super) struct Scratch {
    pub(super) images: Vec<f32>,
    rows: [Vec<f32>; 2],
}

impl Scratch {
    pub(super) fn new(conv: Conv, images: usize) -> Self {
        Self { images: vec![0.0; images * conv.bordered_len()], rows: Default::default() }
    }
}

vectorised! {
    /// 2 x 2 average pooling of two rows.
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

/// The gradient of 2 x 2 average pooling, from `d`, which has the size of `conv`'s input.
pub(super) fn unpool(conv: Conv, d: &[f32], out: &mut [f32]) {
    let line = conv.side * conv.channels;
    for (d, out) in d.chunks_exact(line).zip(out.chunks_exact_mut(4 * line)) {
        let (first, second) = out.split_at_mut(2 * line);
        spread(d, conv.channels, first);
        second.copy_from_slice(first);
    }
}
