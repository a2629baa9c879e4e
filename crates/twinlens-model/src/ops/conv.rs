//! Convolution by kernels of 1 x 1 and 3 x 3 of images whose channels lie together (`[side, side, channels]`), on slices.
//!
//! No patches are copied out: in an image with a border of zeros, each row of a patch is one run of `3 channels` numbers, and a
//! few pixels by sixteen channels of the result are added up in registers over the runs. The gradient of the images is
//! the convolution of the result's gradient with the kernel turned around; that of the kernel adds up runs times gradients.
//! An order of additions is fixed by the sizes alone.

use super::simd::vectorised;

/// Channels of the result that are computed together.
const LANES: usize = 16;

/// Sizes of a convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv {
    /// Side of the kernel: 1, or 3 with padding 1.
    pub kernel: usize,
    /// Step between outputs; 1 where the kernel is.
    pub stride: usize,
    /// Side of the grid that comes in.
    pub side: usize,
    /// Channels in.
    pub channels: usize,
    /// Channels out.
    pub out: usize,
}

impl Conv {
    /// Side of the grid that goes out.
    pub fn out_side(self) -> usize {
        self.side.div_ceil(self.stride)
    }

    /// Pixels of the grid that goes out.
    pub fn out_pixels(self) -> usize {
        self.out_side() * self.out_side()
    }

    /// Numbers in an image that comes in.
    pub fn image_len(self) -> usize {
        self.side * self.side * self.channels
    }

    /// Numbers in an image that goes out.
    pub fn out_len(self) -> usize {
        self.out_pixels() * self.out
    }

    /// Numbers in the kernel, `[out, channels, kernel, kernel]`.
    pub fn weights_len(self) -> usize {
        self.kernel * self.kernel * self.channels * self.out
    }

    /// Zeros around the image.
    pub fn border(self) -> usize {
        self.kernel / 2
    }

    /// The convolution that takes the gradient of the result to that of the image, for a stride of 1; for any stride, how
    /// that gradient lies.
    pub fn back(self) -> Self {
        Self { stride: 1, side: self.out_side(), channels: self.out, out: self.channels, ..self }
    }

    /// Numbers in a row of the image with its border.
    fn pitch(self) -> usize {
        (self.side + 2 * self.border()) * self.channels
    }

    /// Numbers in an image with its border.
    pub fn bordered_len(self) -> usize {
        (self.side + 2 * self.border()) * self.pitch()
    }

    /// Where each row of an image begins within the image with its border.
    pub fn rows(self) -> impl Iterator<Item = usize> {
        (0..self.side).map(move |y| (y + self.border()) * self.pitch() + self.border() * self.channels)
    }

    /// Where the patch of each pixel of the result begins, in `images` images with their borders.
    pub fn patches(self, images: usize) -> Vec<usize> {
        let side = self.out_side();
        let row = |image: usize, y: usize| image * self.bordered_len() + y * self.stride * self.pitch();
        let rows = (0..images).flat_map(|image| (0..side).map(move |y| row(image, y)));
        rows.flat_map(|row| (0..side).map(move |x| row + x * self.stride * self.channels)).collect()
    }

    /// Where each pixel begins, in `images` images with their borders; for a stride of 1.
    pub fn pixels(self, images: usize) -> Vec<usize> {
        let centre = self.border() * (self.pitch() + self.channels);
        self.patches(images).into_iter().map(|at| at + centre).collect()
    }

    /// Numbers in a row of a patch.
    fn run(self) -> usize {
        self.kernel * self.channels
    }
}

/// A kernel as [`convolve`] takes it: blocks of [`LANES`] channels of the result (8 in the last, where that is enough), in
/// each `[kernel, kernel, channels, lanes]`.
pub struct Packed {
    blocks: Vec<(usize, Vec<f32>)>,
}

impl Packed {
    fn new(conv: Conv, weight: impl Fn(usize, usize, usize) -> f32) -> Self {
        let taps = conv.kernel * conv.kernel;
        let block = |first: usize| {
            let lanes = if conv.out - first <= LANES / 2 { LANES / 2 } else { LANES };
            let mut packed = vec![0.0; taps * conv.channels * lanes];
            for (i, packed) in packed.chunks_exact_mut(lanes).enumerate() {
                for (out, packed) in (first..conv.out).zip(packed) {
                    *packed = weight(out, i % conv.channels, i / conv.channels);
                }
            }
            (lanes, packed)
        };
        Self { blocks: (0..conv.out).step_by(LANES).map(block).collect() }
    }

    /// `w` (`[out, channels, kernel, kernel]`) for the way forward.
    pub fn forward(conv: Conv, w: &[f32]) -> Self {
        let taps = conv.kernel * conv.kernel;
        Self::new(conv, |out, channel, tap| w[(out * conv.channels + channel) * taps + tap])
    }

    /// `w` turned around, for [`Conv::back`].
    pub fn back(conv: Conv, w: &[f32]) -> Self {
        let taps = conv.kernel * conv.kernel;
        Self::new(conv.back(), |channel, out, tap| w[(out * conv.channels + channel) * taps + taps - 1 - tap])
    }
}

/// The sums for `P` patches and `L` channels.
#[inline(always)]
fn strip<const P: usize, const L: usize>(conv: Conv, x: &[f32], at: &[usize; P], w: &[f32]) -> [[f32; L]; P] {
    let (run, pitch) = (conv.run(), conv.pitch());
    let mut sums = [[0.0; L]; P];
    for (row, w) in w.chunks_exact(run * L).enumerate() {
        let mut runs = [&x[..0]; P];
        for (kept, at) in runs.iter_mut().zip(at) {
            *kept = &x[at + row * pitch..][..run];
        }
        let w = &w.as_chunks::<L>().0[..run];
        for i in 0..run {
            let w = w[i];
            for (sums, run) in sums.iter_mut().zip(&runs) {
                for (sum, w) in sums.iter_mut().zip(w) {
                    *sum = run[i].mul_add(w, *sum);
                }
            }
        }
    }
    sums
}

#[inline(always)]
fn strips<const P: usize, const L: usize>(
    conv: Conv,
    x: &[f32],
    at: &[usize],
    w: &[f32],
    first: usize,
    y: &mut [f32],
) {
    let kept = L.min(conv.out - first);
    for (at, y) in at.as_chunks::<P>().0.iter().zip(y.chunks_exact_mut(P * conv.out)) {
        let sums = strip::<P, L>(conv, x, at, w);
        for (sums, y) in sums.iter().zip(y.chunks_exact_mut(conv.out)) {
            y[first..first + kept].copy_from_slice(&sums[..kept]);
        }
    }
}

#[inline(always)]
fn block<const L: usize>(conv: Conv, x: &[f32], at: &[usize], w: &[f32], first: usize, y: &mut [f32]) {
    let sixes = at.len() - at.len() % 6;
    let twos = at.len() - at.len() % 2;
    strips::<6, L>(conv, x, &at[..sixes], w, first, y);
    strips::<2, L>(conv, x, &at[sixes..twos], w, first, &mut y[sixes * conv.out..]);
    strips::<1, L>(conv, x, &at[twos..], w, first, &mut y[twos * conv.out..]);
}

vectorised! {
    /// The result's pixels (`y`, `[patches, out]`), whose patches begin `at` these places of `x`, images with their borders.
    pub fn convolve<'a>(conv: Conv, x: &'a [f32], at: &'a [usize], w: &'a Packed, y: &'a mut [f32]) {
        for (i, (lanes, w)) in w.blocks.iter().enumerate() {
            match *lanes {
                LANES => block::<LANES>(conv, x, at, w, i * LANES, y),
                _ => block::<{ LANES / 2 }>(conv, x, at, w, i * LANES, y),
            }
        }
    }
}

/// The sums, over all pixels, of `I` numbers of a patch times `L` channels of the gradient.
#[inline(always)]
fn outer<const I: usize, const L: usize>(
    x: &[f32],
    at: &[usize],
    d: &[f32],
    d_at: &[usize],
) -> [[f32; L]; I] {
    let mut sums = [[0.0; L]; I];
    for (at, d_at) in at.iter().zip(d_at) {
        let (x, d) = (&x[*at..][..I], &d[*d_at..][..L]);
        for (sums, x) in sums.iter_mut().zip(x) {
            for (sum, d) in sums.iter_mut().zip(d) {
                *sum = x.mul_add(*d, *sum);
            }
        }
    }
    sums
}

/// Adds sums to `I` rows of the kernel's gradient, from column `first` on.
#[inline(always)]
fn add_outer<const I: usize, const L: usize>(
    x: &[f32],
    at: &[usize],
    d: &[f32],
    d_at: &[usize],
    dw: &mut [f32],
    (out, first): (usize, usize),
) {
    let sums = outer::<I, L>(x, at, d, d_at);
    for (sums, dw) in sums.iter().zip(dw.chunks_exact_mut(out)) {
        dw[first..first + L].iter_mut().zip(sums).for_each(|(dw, sum)| *dw += sum);
    }
}

/// `L` columns of the kernel's gradient: their gradients of the result stay in the cache while the patches go by.
#[inline(always)]
fn kernel_columns<const L: usize>(
    conv: Conv,
    x: &[f32],
    at: &[usize],
    d: &[f32],
    d_at: &[usize],
    dw: &mut [f32],
    first: usize,
) {
    let (run, out, d, to) = (conv.run(), conv.out, &d[first..], (conv.out, first));
    for (row, dw) in dw.chunks_exact_mut(run * out).enumerate() {
        let x = &x[row * conv.pitch()..];
        let (sixes, fours) = (run - run % 6, run - run % 6 % 4);
        for i in (0..sixes).step_by(6) {
            add_outer::<6, L>(&x[i..], at, d, d_at, &mut dw[i * out..], to);
        }
        for i in (sixes..fours).step_by(4) {
            add_outer::<4, L>(&x[i..], at, d, d_at, &mut dw[i * out..], to);
        }
        for i in fours..run {
            add_outer::<1, L>(&x[i..], at, d, d_at, &mut dw[i * out..], to);
        }
    }
}

vectorised! {
    /// Adds to `dw` (`[kernel, kernel, channels, out]`) the gradient of the kernel: patches that begin `at` these places of `x`
    /// and gradients of the result's pixels that begin at `d_at` of `d`.
    pub fn add_kernel_gradient<'a>(
        conv: Conv, x: &'a [f32], at: &'a [usize], d: &'a [f32], d_at: &'a [usize], dw: &'a mut [f32],
    ) {
        let mut first = 0;
        while first < conv.out {
            first += match conv.out - first {
                LANES.. => {
                    kernel_columns::<LANES>(conv, x, at, d, d_at, dw, first);
                    LANES
                }
                8.. => {
                    kernel_columns::<8>(conv, x, at, d, d_at, dw, first);
                    8
                }
                _ => {
                    kernel_columns::<1>(conv, x, at, d, d_at, dw, first);
                    1
                }
            };
        }
    }
}

/// From `[kernel, kernel, channels, out]` to `[out, channels, kernel, kernel]`.
pub fn kernel_as_stored(conv: Conv, dw: &[f32], stored: &mut [f32]) {
    let taps = conv.kernel * conv.kernel;
    for (i, dw) in dw.chunks_exact(conv.out).enumerate() {
        let (tap, channel) = (i / conv.channels, i % conv.channels);
        for (out, dw) in dw.iter().enumerate() {
            stored[(out * conv.channels + channel) * taps + tap] = *dw;
        }
    }
}
