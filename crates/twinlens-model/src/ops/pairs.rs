//! The losses over all pairs of a batch, restricted to some of its rows, without a graph: those
//! rows' share of the loss, and the gradients of their features in closed form.
//!
//! Gradient-cached accumulation (Gao et al. 2021) and training on several ranks build on it. The
//! formulas are those of [`super::contrastive`] and [`super::sigmoid`], which are faster when one
//! process has all rows. Here logits are computed for a few rows at a time and never kept, so
//! memory grows linearly with the batch, not quadratically.

use super::log_sum_exp;
use super::matmul::{Mat, MatMut, multiply};
use rayon::prelude::*;
use std::ops::Range;

/// Rows whose logits one thread holds at a time.
const ROWS: usize = 64;

/// Features of some rows of a batch, `[rows, embed]` each; row i of both is a pair.
#[derive(Clone, Copy)]
pub(crate) struct Block<'a> {
    pub image: &'a [f32],
    pub text: &'a [f32],
    /// The number of the first row.
    pub first: usize,
}

/// A range of the rows of a batch, and the rows that it is compared with.
#[derive(Clone, Copy)]
pub(crate) struct Pairs<'a> {
    pub own: Block<'a>,
    /// The whole batch, or, for a loss that is a sum over blocks of pairs, any part of it.
    pub others: Block<'a>,
    /// Rows of the batch.
    pub n: usize,
    pub embed: usize,
    /// The factor on the similarities.
    pub scale: f32,
}

/// The range's share of the loss and of the scalars' gradients, and the gradients of its features.
#[derive(Default)]
pub(crate) struct Shares {
    pub loss: f64,
    pub image: Vec<f32>,
    pub text: Vec<f32>,
    /// Gradient of `logit_scale`.
    pub scale: f64,
    /// Gradient of `logit_bias`.
    pub bias: f64,
}

/// Sums over some rows of one side (images or texts).
#[derive(Default)]
struct Side {
    features: Vec<f32>,
    loss: f64,
    scale: f64,
    bias: f64,
}

impl Pairs<'_> {
    /// Calls `f` for pieces of the range, of which `own` is a side: with the row numbers, and the
    /// logits of these rows against all of `to`. Pieces do not depend on the number of threads.
    fn pieces<R: Send>(
        &self,
        own: &[f32],
        to: &[f32],
        f: impl Fn(Range<usize>, &mut [f32]) -> R + Sync,
    ) -> Vec<R> {
        let (embed, n) = (self.embed, to.len() / self.embed);
        let piece = |(piece, rows): (usize, &[f32])| {
            let count = rows.len() / embed;
            let mut logits = vec![0.0; count * n];
            let (rows, columns) = (Mat::new(rows, count, embed), Mat::new(to, n, embed));
            multiply(MatMut::new(&mut logits, count, n), self.scale, rows, columns.t());
            let first = self.own.first + piece * ROWS;
            f(first..first + count, &mut logits)
        };
        own.par_chunks(ROWS * embed).enumerate().map(piece).collect()
    }

    /// ln sum exp of the logits: for each image of the range over all texts, and for each text of
    /// the range over all images.
    pub(crate) fn log_sums(&self) -> [Vec<f32>; 2] {
        let n = self.others.image.len() / self.embed;
        [(self.own.image, self.others.text), (self.own.text, self.others.image)].map(|(own, to)| {
            let sums = |_, logits: &mut [f32]| {
                logits.chunks_exact(n).map(|row| log_sum_exp(row.iter().copied())).collect::<Vec<_>>()
            };
            self.pieces(own, to, sums).concat()
        })
    }

    /// Sums over one side. `gradient` gets the two row numbers of a logit and the logit, adds to
    /// the sums, and returns the gradient of the loss by the logit.
    fn side(
        &self,
        own: &[f32],
        to: &[f32],
        gradient: impl Fn(usize, usize, f32, &mut Side) -> f32 + Sync,
    ) -> Side {
        let (embed, n) = (self.embed, to.len() / self.embed);
        let pieces = self.pieces(own, to, |rows, logits| {
            let mut side = Side::default();
            for (i, logits) in rows.clone().zip(logits.chunks_exact_mut(n)) {
                for (j, x) in logits.iter_mut().enumerate() {
                    *x = gradient(i, self.others.first + j, *x, &mut side);
                }
            }
            side.features = vec![0.0; rows.len() * embed];
            let (g, to) = (Mat::new(logits, rows.len(), n), Mat::new(to, n, embed));
            multiply(MatMut::new(&mut side.features, rows.len(), embed), self.scale, g, to);
            side
        });
        pieces.into_iter().fold(Side::default(), |mut all, piece| {
            all.features.extend(piece.features);
            all.loss += piece.loss;
            all.scale += piece.scale;
            all.bias += piece.bias;
            all
        })
    }

    /// The symmetric cross-entropy, given [`log_sums`](Self::log_sums) of all images and of all
    /// texts.
    pub(crate) fn contrastive(&self, images: &[f32], texts: &[f32]) -> Shares {
        let half = 0.5 / images.len() as f32;
        let side = |rows, to, own: &[f32], other: &[f32]| {
            self.side(rows, to, |i, j, x, side| {
                let target = if i == j { 2.0 } else { 0.0 };
                if i == j {
                    side.loss += f64::from(own[i] - x) * f64::from(half);
                }
                let g = half * ((x - own[i]).exp() + (x - other[j]).exp() - target);
                side.scale += f64::from(g * x);
                g
            })
        };
        let image = side(self.own.image, self.others.text, images, texts);
        let text = side(self.own.text, self.others.image, texts, images);
        // Each logit belongs to one image and one text, so one side alone gives the scale's
        // gradient.
        let loss = image.loss + text.loss;
        Shares { loss, image: image.features, text: text.features, scale: image.scale, bias: 0.0 }
    }

    /// SigLIP's loss, with `bias` on the logits: a sum over blocks of pairs.
    pub(crate) fn sigmoid(&self, bias: f32) -> Shares {
        let n = self.n as f64;
        let side = |own, to| {
            self.side(own, to, |i, j, x, side| {
                let z = if i == j { 1.0 } else { -1.0 };
                let a = z * (f64::from(x) + f64::from(bias));
                let small = (-a.abs()).exp();
                side.loss += (small.ln_1p() + (-a).max(0.0)) / n;
                let sigmoid = if a > 0.0 { small / (1.0 + small) } else { 1.0 / (1.0 + small) };
                let g = -z * sigmoid / n;
                side.scale += g * f64::from(x);
                side.bias += g;
                g as f32
            })
        };
        let image = side(self.own.image, self.others.text);
        let text = side(self.own.text, self.others.image);
        let Side { features, loss, scale, bias } = image;
        Shares { loss, image: features, text: text.features, scale, bias }
    }
}
