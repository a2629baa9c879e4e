//! 3 x 3 convolution of images whose channels lie together (`[batch, side, side, channels]`), padded by 1, on slices.
//!
//! Patches are copied to rows and multiplied (im2col), a few images at a time so that the rows stay within a few MiB.
//! candle's convolution has a naive transposed convolution for a gradient.

use super::linear::{forward, input_gradient, weight_gradient};
use super::simd;
use rayon::prelude::*;

/// Numbers in the patches that are held at a time, about.
const PATCHES: usize = 1 << 21;

/// Sizes of a convolution.
#[derive(Clone, Copy, Debug)]
pub struct Conv {
    /// Side of the grid that comes in.
    pub side: usize,
    /// Channels in.
    pub channels: usize,
    /// Step between outputs.
    pub stride: usize,
}

impl Conv {
    /// Side of the grid that goes out.
    pub fn out_side(self) -> usize {
        self.side.div_ceil(self.stride)
    }

    fn image_len(self) -> usize {
        self.side * self.side * self.channels
    }

    fn patch_len(self) -> usize {
        9 * self.channels
    }

    fn patches_len(self) -> usize {
        self.out_side() * self.out_side() * self.patch_len()
    }

    /// Images whose patches are held at a time.
    fn images(self) -> usize {
        (PATCHES / self.patches_len()).max(1)
    }

    /// Calls `each(patch, run in the image, run in the patch)` for every run of numbers that lie together in both.
    fn runs(self, mut each: impl FnMut(usize, std::ops::Range<usize>, std::ops::Range<usize>)) {
        let (side, channels) = (self.side, self.channels);
        for y in 0..self.out_side() {
            for x in 0..self.out_side() {
                // The leftmost column of the patch is x * stride - 1.
                let left = x * self.stride;
                let columns = left.max(1) - 1..(left + 2).min(side);
                let skipped = columns.start + 1 - left;
                for row in 0..3 {
                    let Some(from) = (y * self.stride + row).checked_sub(1).filter(|from| *from < side)
                    else {
                        continue;
                    };
                    let image =
                        (from * side + columns.start) * channels..(from * side + columns.end) * channels;
                    let first = (row * 3 + skipped) * channels;
                    each(y * self.out_side() + x, image.clone(), first..first + image.len());
                }
            }
        }
    }

    /// Patches of `images`, `[images * out_side^2, 9 channels]`.
    fn unfold(self, images: &[f32], patches: &mut [f32]) {
        let each = images.par_chunks(self.image_len()).zip(patches.par_chunks_mut(self.patches_len()));
        each.for_each(|(image, patches)| {
            patches.fill(0.0);
            self.runs(|patch, from, to| {
                let patch = &mut patches[patch * self.patch_len()..(patch + 1) * self.patch_len()];
                patch[to].copy_from_slice(&image[from]);
            });
        });
    }

    /// Adds each patch to where it came from.
    fn fold(self, patches: &[f32], images: &mut [f32]) {
        let each = images.par_chunks_mut(self.image_len()).zip(patches.par_chunks(self.patches_len()));
        each.for_each(|(image, patches)| {
            self.runs(|patch, to, from| {
                let patch = &patches[patch * self.patch_len()..(patch + 1) * self.patch_len()];
                simd::add(&mut image[to], &patch[from]);
            });
        });
    }

    /// `x` (`[batch, side, side, channels]`) convolved with `w` (`[out, 3, 3, channels]`), one zero around each image:
    /// `[batch, out_side, out_side, out]`.
    pub fn run(self, x: &[f32], w: &[f32]) -> Vec<f32> {
        let (batch, out) = (x.len() / self.image_len(), w.len() / self.patch_len());
        let out_len = self.out_side() * self.out_side() * out;
        let mut y = vec![0.0; batch * out_len];
        let mut patches = vec![0.0; self.images().min(batch) * self.patches_len()];
        let n = self.images();
        for (x, y) in x.chunks(n * self.image_len()).zip(y.chunks_mut(n * out_len)) {
            let patches = &mut patches[..x.len() / self.image_len() * self.patches_len()];
            self.unfold(x, patches);
            forward(y, patches, w, None, self.patch_len());
        }
        y
    }

    /// Gradients of the images, where they are wanted, and of the weights.
    pub fn run_back(self, x: &[f32], w: &[f32], d: &[f32], wanted: bool) -> (Option<Vec<f32>>, Vec<f32>) {
        let (batch, out) = (x.len() / self.image_len(), w.len() / self.patch_len());
        let (n, out_len) = (self.images(), self.out_side() * self.out_side() * out);
        let mut dw = vec![0.0; w.len()];
        let mut dx = wanted.then(|| vec![0.0; x.len()]);
        let mut patches = vec![0.0; n.min(batch) * self.patches_len()];
        for (i, (x, d)) in x.chunks(n * self.image_len()).zip(d.chunks(n * out_len)).enumerate() {
            let patches = &mut patches[..x.len() / self.image_len() * self.patches_len()];
            self.unfold(x, patches);
            weight_gradient(&mut dw, d, patches, self.patch_len());
            if let Some(dx) = &mut dx {
                input_gradient(patches, d, w, self.patch_len());
                let first = i * n * self.image_len();
                self.fold(patches, &mut dx[first..first + x.len()]);
            }
        }
        (dx, dw)
    }
}
