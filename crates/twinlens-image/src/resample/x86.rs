//! Resizing with the vectors of x86.
//!
//! Along rows, four rows are resized at once. A product of 16 bits and the sum of two are one
//! instruction, so a weight of 23 bits is split into `high * 2^12 + low`; the sums of both are
//! exact modulo 2^32, as is the whole. Along columns, products have 32 bits.

mod vectors;

use std::arch::x86_64::__m256i;

use pulp::x86::{V3, V4};
use pulp::{NullaryFnOnce, cast};

use crate::resample::taps::{FRACTION_BITS, HALF, Taps};
use vectors::{Half, LOAD, LOW_BITS, ROWS, Vectors};

/// Columns that are summed at once.
pub(super) const COLUMNS: usize = 32;

pub(super) fn along_rows(simd: V3, source: &[u8], stride: usize, taps: &Taps) -> Vec<u8> {
    let width = taps.starts.len() * 3;
    let mut pixels = vec![0; source.len() / stride * width];
    let weights: Vec<[i32; 4]> = taps.weights.chunks_exact(4).map(split).collect();
    // Loads at the end of a row reach beyond it, where weights are zero: into the next row, or, for
    // the last rows, into zeros.
    let length = stride + taps.count * 3 + LOAD;
    let mut padded: [Vec<u8>; ROWS] = std::array::from_fn(|_| Vec::new());
    let wide = V4::try_new();
    for (group, target) in pixels.chunks_mut(ROWS * width).enumerate() {
        let row = |index| (ROWS * group + index) * stride;
        let rows = match [0, 1, 2, 3].map(|index| source.get(row(index)..row(index) + length)) {
            [Some(a), Some(b), Some(c), Some(d)] => [a, b, c, d],
            _ => {
                for (index, padded) in padded.iter_mut().enumerate() {
                    padded.clear();
                    padded.extend(source.get(row(index)..row(index) + stride).unwrap_or_default());
                    padded.resize(length, 0);
                }
                padded.each_ref().map(Vec::as_slice)
            }
        };
        let (starts, weights) = (&taps.starts, &weights);
        match wide {
            Some(wide) => wide.vectorize(AlongRows { simd: wide, rows, starts, weights, target }),
            None => simd.vectorize(AlongRows { simd: Half(simd), rows, starts, weights, target }),
        }
    }
    pixels
}

/// Four weights as pairs of 16 bits: the lower parts of the first two and the last two, then the
/// higher parts.
fn split(four: &[i32]) -> [i32; 4] {
    let pair = |part: fn(i32) -> i32, at: usize| (part(four[at]) & 0xffff) | (part(four[at + 1]) << 16);
    let low = |weight: i32| weight & ((1 << LOW_BITS) - 1);
    let high = |weight: i32| weight >> LOW_BITS;
    [pair(low, 0), pair(low, 2), pair(high, 0), pair(high, 2)]
}

/// The order that puts the values of two neighbouring pixels side by side as 16 bits, channel by
/// channel; -1 makes a zero.
fn pairs(first: i8) -> [i8; LOAD] {
    let mut order = [-1; LOAD];
    for channel in 0..3 {
        order[4 * channel] = 3 * first + channel as i8;
        order[4 * channel + 2] = 3 * first + 3 + channel as i8;
    }
    order
}

/// Up to four rows of the target.
struct AlongRows<'a, V> {
    simd: V,
    rows: [&'a [u8]; ROWS],
    starts: &'a [usize],
    /// As many for each start.
    weights: &'a [[i32; 4]],
    target: &'a mut [u8],
}

impl<V: Vectors> NullaryFnOnce for AlongRows<'_, V> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { simd, rows, starts, weights, target } = self;
        let [first, last] = [pairs(0), pairs(2)].map(|order| simd.repeat(order));
        let quads = weights.len() / starts.len();
        for (x, (start, weights)) in starts.iter().zip(weights.chunks_exact(quads)).enumerate() {
            let window = rows.map(|row| &row[start * 3..start * 3 + 12 * quads + 4]);
            let (mut low, mut high) = (simd.splat(0), simd.splat(HALF >> LOW_BITS));
            for (four, weights) in weights.iter().enumerate() {
                let values = simd.load(window, 12 * four);
                let (a, b) = (simd.shuffle(values, first), simd.shuffle(values, last));
                low = simd.add(low, simd.products(a, weights[0], b, weights[1]));
                high = simd.add(high, simd.products(a, weights[2], b, weights[3]));
            }
            let sums = simd.shift(simd.add(low, simd.shift_left(high)));
            for (row, pixel) in simd.pixels(sums).into_iter().enumerate() {
                let at = (row * starts.len() + x) * 3;
                if let Some(place) = target.get_mut(at..at + 3) {
                    place.copy_from_slice(&pixel[..3]);
                }
            }
        }
    }
}

pub(super) fn along_columns(simd: V3, source: &[u8], stride: usize, taps: &Taps) -> Vec<u8> {
    let mut pixels = vec![0; taps.starts.len() * stride];
    for ((start, weights), target) in taps.iter().zip(pixels.chunks_exact_mut(stride)) {
        let end = source.len().min((start + weights.len()) * stride);
        let rows = &source[start * stride..end];
        simd.vectorize(AlongColumns { simd, rows, stride, weights, target });
    }
    pixels
}

/// One row of the target, of at least [`COLUMNS`] bytes.
struct AlongColumns<'a> {
    simd: V3,
    rows: &'a [u8],
    stride: usize,
    weights: &'a [i32],
    target: &'a mut [u8],
}

impl NullaryFnOnce for AlongColumns<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { simd, rows, stride, weights, target } = self;
        let avx2 = simd.avx2;
        let mut at = 0;
        while at < stride {
            // The last columns are summed with some that were summed before.
            at = at.min(stride - COLUMNS);
            let mut sums = [cast::<_, __m256i>([HALF; 8]); COLUMNS / 8];
            for (row, weight) in rows.chunks_exact(stride).zip(weights) {
                let weight: __m256i = cast([*weight; 8]);
                let (eights, _) = row[at..at + COLUMNS].as_chunks::<8>();
                for (sum, eight) in sums.iter_mut().zip(eights) {
                    let values = avx2._mm256_cvtepu8_epi32(cast([u64::from_le_bytes(*eight), 0]));
                    *sum = avx2._mm256_add_epi32(*sum, avx2._mm256_mullo_epi32(values, weight));
                }
            }
            let [a, b, c, d] = sums.map(|sum| avx2._mm256_srai_epi32::<{ FRACTION_BITS as i32 }>(sum));
            let (left, right) = (avx2._mm256_packs_epi32(a, b), avx2._mm256_packs_epi32(c, d));
            // Each half holds four of a, of b, of c and of d.
            let bytes: [[u8; 4]; 8] = cast(avx2._mm256_packus_epi16(left, right));
            let order = [0, 4, 1, 5, 2, 6, 3, 7].map(|four| bytes[four]);
            target[at..at + COLUMNS].copy_from_slice(order.as_flattened());
            at += COLUMNS;
        }
    }
}
