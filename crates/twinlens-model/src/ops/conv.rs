//! Convolution with 1 x 1 and 3 x 3 kernels of channels-last images (`[side, side, channels]`), on
//! slices.
//!
//! No patches are copied: in an image with a border of zeros, each row of a patch is one run of `3
//! channels` numbers, and the sums of a few output pixels by one or two vectors of output channels
//! stay in registers over the runs. The gradient of the images is the convolution of the output's
//! gradient with the flipped kernel; the kernel's gradient sums runs times gradients. The order of
//! additions depends on the sizes alone.

use pulp::bytemuck::cast_slice;
use pulp::{Arch, Simd, WithSimd};
use std::ops::Range;

/// Sizes of a convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Conv {
    /// Side of the kernel: 1, or 3 with padding 1.
    pub kernel: usize,
    /// Step between output pixels; 1 for a 1 x 1 kernel.
    pub stride: usize,
    /// Side of the input grid.
    pub side: usize,
    /// Input channels.
    pub channels: usize,
    /// Output channels.
    pub out: usize,
}

impl Conv {
    /// Side of the output grid.
    pub(crate) fn out_side(self) -> usize {
        self.side.div_ceil(self.stride)
    }

    /// Pixels of the output grid.
    pub(crate) fn out_pixels(self) -> usize {
        self.out_side() * self.out_side()
    }

    /// Numbers in an input image.
    pub(crate) fn image_len(self) -> usize {
        self.side * self.side * self.channels
    }

    /// Numbers in an output image.
    pub(crate) fn out_len(self) -> usize {
        self.out_pixels() * self.out
    }

    /// Numbers in the kernel, `[out, channels, kernel, kernel]`.
    pub(crate) fn weights_len(self) -> usize {
        self.kernel * self.kernel * self.channels * self.out
    }

    /// Width of the border of zeros, in pixels.
    pub(crate) fn border(self) -> usize {
        self.kernel / 2
    }

    /// The convolution that turns the output's gradient into the image's, for stride 1; for any
    /// stride, the layout of the output's gradient.
    pub(crate) fn back(self) -> Self {
        Self { stride: 1, side: self.out_side(), channels: self.out, out: self.channels, ..self }
    }

    /// Numbers in a row of the image with its border.
    fn pitch(self) -> usize {
        (self.side + 2 * self.border()) * self.channels
    }

    /// Numbers in an image with its border.
    pub(crate) fn bordered_len(self) -> usize {
        (self.side + 2 * self.border()) * self.pitch()
    }

    /// Start of each row of an image within the bordered image.
    pub(crate) fn row_starts(self) -> impl Iterator<Item = usize> {
        (0..self.side).map(move |y| (y + self.border()) * self.pitch() + self.border() * self.channels)
    }

    /// Start of the patch of each output pixel, in `images` bordered images.
    pub(crate) fn patch_starts(self, images: usize) -> Vec<usize> {
        let side = self.out_side();
        let row = |image: usize, y: usize| image * self.bordered_len() + y * self.stride * self.pitch();
        let rows = (0..images).flat_map(|image| (0..side).map(move |y| row(image, y)));
        rows.flat_map(|row| (0..side).map(move |x| row + x * self.stride * self.channels)).collect()
    }

    /// Start of each pixel, in `images` bordered images; for stride 1.
    pub(crate) fn pixel_starts(self, images: usize) -> Vec<usize> {
        let centre = self.border() * (self.pitch() + self.channels);
        self.patch_starts(images).into_iter().map(|at| at + centre).collect()
    }

    /// Numbers in a row of a patch.
    fn run(self) -> usize {
        self.kernel * self.channels
    }
}

/// A kernel packed for [`convolve`]: blocks of as many output channels as two vectors hold (the
/// last block has one vector if that is enough), each `[kernel, kernel, channels, lanes]`.
pub(crate) struct Packed {
    blocks: Vec<(usize, Vec<f32>)>,
}

impl Packed {
    fn new(conv: Conv, weight: impl Fn(usize, usize, usize) -> f32) -> Self {
        Self::for_vectors(Arch::new().dispatch(Lanes), conv, weight)
    }

    /// Packs for vectors of `vector` numbers.
    fn for_vectors(vector: usize, conv: Conv, weight: impl Fn(usize, usize, usize) -> f32) -> Self {
        let taps = conv.kernel * conv.kernel;
        let block = |first: usize| {
            let lanes = if conv.out - first <= vector { vector } else { 2 * vector };
            let mut packed = vec![0.0; taps * conv.channels * lanes];
            for (i, packed) in packed.chunks_exact_mut(lanes).enumerate() {
                for (out, packed) in (first..conv.out).zip(packed) {
                    *packed = weight(out, i % conv.channels, i / conv.channels);
                }
            }
            (lanes, packed)
        };
        Self { blocks: (0..conv.out).step_by(2 * vector).map(block).collect() }
    }

    /// Packs `w` (`[out, channels, kernel, kernel]`) for the forward pass.
    pub(crate) fn forward(conv: Conv, w: &[f32]) -> Self {
        let taps = conv.kernel * conv.kernel;
        Self::new(conv, |out, channel, tap| w[(out * conv.channels + channel) * taps + tap])
    }

    /// Packs `w` flipped, for [`Conv::back`].
    pub(crate) fn back(conv: Conv, w: &[f32]) -> Self {
        let taps = conv.kernel * conv.kernel;
        Self::new(conv.back(), |channel, out, tap| w[(out * conv.channels + channel) * taps + taps - 1 - tap])
    }
}

/// Numbers in a vector of this machine.
struct Lanes;

impl WithSimd for Lanes {
    type Output = usize;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> usize {
        S::F32_LANES
    }
}

/// Computes output pixels (`y`, `[patches, out]`) from the patches that start `at` these offsets of
/// `x`, bordered images.
pub(crate) fn convolve(conv: Conv, x: &[f32], at: &[usize], w: &Packed, y: &mut [f32]) {
    Arch::new().dispatch(Convolve { conv, x, at, w, y });
}

struct Convolve<'a> {
    conv: Conv,
    x: &'a [f32],
    at: &'a [usize],
    w: &'a Packed,
    y: &'a mut [f32],
}

impl WithSimd for Convolve<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let mut first = 0;
        for (lanes, w) in &self.w.blocks {
            // Twelve sums hide the latency of a multiply-add and still fit in the registers.
            if *lanes == S::F32_LANES {
                self.block::<S, 12, 1>(simd, w, first);
            } else {
                self.block::<S, 6, 2>(simd, w, first);
            }
            first += lanes;
        }
    }
}

impl Convolve<'_> {
    /// `V` vectors of channels from `first` on, `P` pixels at a time.
    #[inline(always)]
    fn block<S: Simd, const P: usize, const V: usize>(&mut self, simd: S, w: &[f32], first: usize) {
        let whole = self.at.len() - self.at.len() % P;
        let twos = self.at.len() - self.at.len() % 2;
        self.strips::<S, P, V>(simd, w, first, 0..whole);
        self.strips::<S, 2, V>(simd, w, first, whole..twos);
        self.strips::<S, 1, V>(simd, w, first, twos..self.at.len());
    }

    #[inline(always)]
    fn strips<S: Simd, const P: usize, const V: usize>(
        &mut self,
        simd: S,
        w: &[f32],
        first: usize,
        pixels: Range<usize>,
    ) {
        let out = self.conv.out;
        let kept = (V * S::F32_LANES).min(out - first);
        let y = self.y[pixels.start * out..pixels.end * out].chunks_exact_mut(P * out);
        for (at, y) in self.at[pixels].as_chunks::<P>().0.iter().zip(y) {
            let sums = strip::<S, P, V>(simd, self.conv, self.x, at, w);
            for (sums, y) in sums.iter().zip(y.chunks_exact_mut(out)) {
                y[first..first + kept].copy_from_slice(&cast_slice::<S::f32s, f32>(sums)[..kept]);
            }
        }
    }
}

/// The sums for `P` patches and `V` vectors of channels.
#[inline(always)]
fn strip<S: Simd, const P: usize, const V: usize>(
    simd: S,
    conv: Conv,
    x: &[f32],
    at: &[usize; P],
    w: &[f32],
) -> [[S::f32s; V]; P] {
    let (run, pitch) = (conv.run(), conv.pitch());
    let mut sums = [[simd.splat_f32s(0.0); V]; P];
    for (row, w) in w.chunks_exact(run * V * S::F32_LANES).enumerate() {
        let mut runs = [&x[..0]; P];
        for (kept, at) in runs.iter_mut().zip(at) {
            *kept = &x[at + row * pitch..][..run];
        }
        let w = &S::as_simd_f32s(w).0.as_chunks::<V>().0[..run];
        for i in 0..run {
            let w = w[i];
            for p in 0..P {
                let x = simd.splat_f32s(runs[p][i]);
                for v in 0..V {
                    sums[p][v] = simd.mul_add_f32s(x, w[v], sums[p][v]);
                }
            }
        }
    }
    sums
}

/// Adds the kernel's gradient to `dw` (`[kernel, kernel, channels, out]`), from patches that start
/// `at` these offsets of `x` and gradients of output pixels that start at `d_at` of `d`.
pub(crate) fn add_kernel_gradient(
    conv: Conv,
    x: &[f32],
    at: &[usize],
    d: &[f32],
    d_at: &[usize],
    dw: &mut [f32],
) {
    Arch::new().dispatch(KernelGradient { conv, x, at, d, d_at, dw });
}

struct KernelGradient<'a> {
    conv: Conv,
    x: &'a [f32],
    at: &'a [usize],
    d: &'a [f32],
    d_at: &'a [usize],
    dw: &'a mut [f32],
}

impl WithSimd for KernelGradient<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let mut first = 0;
        while first < self.conv.out {
            let left = self.conv.out - first;
            if left > S::F32_LANES {
                self.columns::<S, 6, 2>(simd, first, left.min(2 * S::F32_LANES));
            } else {
                self.columns::<S, 12, 1>(simd, first, left);
            }
            first += left.min(2 * S::F32_LANES);
        }
    }
}

impl KernelGradient<'_> {
    /// `wide` columns of the kernel's gradient; their output gradients stay in the cache over all
    /// patches.
    #[inline(always)]
    fn columns<S: Simd, const I: usize, const V: usize>(&mut self, simd: S, first: usize, wide: usize) {
        for row in 0..self.conv.kernel {
            let run = self.conv.run();
            let (whole, twos) = (run - run % I, run - run % 2);
            for i in (0..whole).step_by(I) {
                self.add::<S, I, V>(simd, row, i, first, wide);
            }
            for i in (whole..twos).step_by(2) {
                self.add::<S, 2, V>(simd, row, i, first, wide);
            }
            for i in twos..run {
                self.add::<S, 1, V>(simd, row, i, first, wide);
            }
        }
    }

    /// Adds the sums, over all pixels, of `I` numbers of a patch's row times `wide` channels of the
    /// gradient.
    #[inline(always)]
    fn add<S: Simd, const I: usize, const V: usize>(
        &mut self,
        simd: S,
        row: usize,
        i: usize,
        first: usize,
        wide: usize,
    ) {
        let (run, out) = (self.conv.run(), self.conv.out);
        let (x, d) = (&self.x[row * self.conv.pitch() + i..], &self.d[first..]);
        let sums = if wide == V * S::F32_LANES {
            outer_products::<S, I, V>(simd, x, self.at, self.d_at, |at| {
                let (vectors, _) = S::as_simd_f32s(&d[at..][..V * S::F32_LANES]);
                vectors.as_chunks::<V>().0[0]
            })
        } else {
            outer_products::<S, I, V>(simd, x, self.at, self.d_at, |at| {
                let d = &d[at..][..wide];
                let place = |v: usize| (v * S::F32_LANES).min(wide);
                std::array::from_fn(|v| simd.partial_load_f32s(&d[place(v)..place(v + 1)]))
            })
        };
        let dw = self.dw[(row * run + i) * out..].chunks_exact_mut(out);
        for (sums, dw) in sums.iter().zip(dw) {
            let sums = cast_slice::<S::f32s, f32>(sums);
            dw[first..first + wide].iter_mut().zip(sums).for_each(|(dw, sum)| *dw += sum);
        }
    }
}

/// The sums, over all pixels, of `I` numbers of a patch times `V` vectors of the gradient.
#[inline(always)]
fn outer_products<S: Simd, const I: usize, const V: usize>(
    simd: S,
    x: &[f32],
    at: &[usize],
    d_at: &[usize],
    d: impl Fn(usize) -> [S::f32s; V],
) -> [[S::f32s; V]; I] {
    let mut sums = [[simd.splat_f32s(0.0); V]; I];
    for (at, d_at) in at.iter().zip(d_at) {
        let (x, d) = (&x[*at..][..I], d(*d_at));
        for i in 0..I {
            let x = simd.splat_f32s(x[i]);
            for v in 0..V {
                sums[i][v] = simd.mul_add_f32s(x, d[v], sums[i][v]);
            }
        }
    }
    sums
}

/// Transposes `[kernel, kernel, channels, out]` to `[out, channels, kernel, kernel]`.
pub(crate) fn store_kernel(conv: Conv, dw: &[f32], stored: &mut [f32]) {
    let taps = conv.kernel * conv.kernel;
    for (i, dw) in dw.chunks_exact(conv.out).enumerate() {
        let (tap, channel) = (i / conv.channels, i % conv.channels);
        for (out, dw) in dw.iter().enumerate() {
            stored[(out * conv.channels + channel) * taps + tap] = *dw;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pulp::Scalar;

    fn numbers(len: usize, step: usize) -> Vec<f32> {
        (0..len).map(|i| ((i * step) % 17) as f32 - 8.0).collect()
    }

    /// Compares with naive sums on small integers, where every order of additions is exact.
    fn check<S: Simd>(simd: S) {
        let (vector, side, images) = (S::F32_LANES, 4, 3);
        for out in
            [1, vector - 1, vector, vector + 1, 2 * vector, 2 * vector + 3].into_iter().filter(|n| *n > 0)
        {
            let conv = Conv { kernel: 3, stride: 1, side, channels: 5, out };
            let (at, run) = (conv.patch_starts(images), conv.run());
            let x = numbers(images * conv.bordered_len(), 7);
            let w = |out: usize, channel: usize, tap: usize| {
                ((out * 3 + channel * 5 + tap * 7) % 11) as f32 - 5.0
            };
            let d = numbers(at.len() * out, 5);
            let d_at: Vec<usize> = (0..at.len()).map(|pixel| pixel * out).collect();
            let place = |at: usize, i: usize| at + i / run * conv.pitch() + i % run;

            let packed = Packed::for_vectors(vector, conv, w);
            let mut y = vec![0.0; at.len() * out];
            simd.vectorize(Convolve { conv, x: &x, at: &at, w: &packed, y: &mut y });
            let mut dw = vec![1.0; 3 * run * out];
            simd.vectorize(KernelGradient { conv, x: &x, at: &at, d: &d, d_at: &d_at, dw: &mut dw });

            for (pixel, at) in at.iter().enumerate() {
                for channel in 0..out {
                    let part = |i: usize| x[place(*at, i)] * w(channel, i % 5, i / 5);
                    assert_eq!(
                        y[pixel * out + channel],
                        (0..3 * run).map(part).sum::<f32>(),
                        "{vector}: {conv:?}"
                    );
                }
            }
            for (i, dw) in dw.chunks_exact(out).enumerate() {
                for (channel, dw) in dw.iter().enumerate() {
                    let part = |(at, d_at): (&usize, &usize)| x[place(*at, i)] * d[d_at + channel];
                    assert_eq!(*dw, 1.0 + at.iter().zip(&d_at).map(part).sum::<f32>(), "{vector}: {conv:?}");
                }
            }
        }
    }

    #[test]
    fn vectors_of_every_width_agree_with_naive_sums() {
        struct Check;
        impl WithSimd for Check {
            type Output = ();

            fn with_simd<S: Simd>(self, simd: S) {
                check(simd);
            }
        }
        Arch::new().dispatch(Check);
        check(Scalar);
        #[cfg(target_arch = "x86_64")]
        if let Some(simd) = pulp::x86::V3::try_new() {
            check(simd);
        }
    }
}
