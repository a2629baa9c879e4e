//! Resizing with the vectors of x86.
//!
//! A product of 16 bits and the sum of two are one instruction, so a weight of 23 bits is split
//! into `high * 2^12 + low`; the sums of both are exact modulo 2^32, as is the whole. Along rows,
//! four rows are resized at once; along columns, rows are added in pairs.

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
    let weights: Vec<[i32; 4]> = taps.weights.chunks_exact(4).map(split_four).collect();
    // Loads at the end of a row reach beyond it, where weights are zero: into the next row, or, for
    // the last rows, into zeros. Four bytes are stored for a pixel, one of them too many.
    let length = stride + taps.count * 3 + LOAD;
    let mut padded: [Vec<u8>; ROWS] = std::array::from_fn(|_| Vec::new());
    let mut resized: [Vec<u8>; ROWS] = std::array::from_fn(|_| vec![0; width + 1]);
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
        let (starts, pairs, weights) = (&taps.starts, taps.pairs, &weights);
        let targets = resized.each_mut().map(Vec::as_mut_slice);
        match wide {
            Some(wide) => wide.vectorize(AlongRows { simd: wide, rows, starts, weights, pairs, targets }),
            None => simd.vectorize(AlongRows { simd: Half(simd), rows, starts, weights, pairs, targets }),
        }
        for (place, row) in target.chunks_exact_mut(width).zip(&resized) {
            place.copy_from_slice(&row[..width]);
        }
    }
    pixels
}

/// Four weights as pairs of 16 bits: the lower parts of the first two and the last two, then the
/// higher parts.
fn split_four(four: &[i32]) -> [i32; 4] {
    let ([low, high], [next_low, next_high]) = (split(&four[..2]), split(&four[2..]));
    [low, next_low, high, next_high]
}

/// Two weights as pairs of 16 bits: their lower parts, then their higher parts.
fn split(two: &[i32]) -> [i32; 2] {
    let pair = |part: fn(i32) -> i32| (part(two[0]) & 0xffff) | (part(two[1]) << 16);
    [pair(|weight| weight & ((1 << LOW_BITS) - 1)), pair(|weight| weight >> LOW_BITS)]
}

/// The order that puts the values of two neighbouring pixels side by side as 16 bits, channel by
/// channel; -1 makes a zero.
fn order_of_pairs(first: i8) -> [i8; LOAD] {
    let mut order = [-1; LOAD];
    for channel in 0..3 {
        order[4 * channel] = 3 * first + channel as i8;
        order[4 * channel + 2] = 3 * first + 3 + channel as i8;
    }
    order
}

/// Four rows of the target, each with room for one byte more.
struct AlongRows<'a, V> {
    simd: V,
    rows: [&'a [u8]; ROWS],
    starts: &'a [usize],
    /// As many for each start.
    weights: &'a [[i32; 4]],
    /// Pairs of weights that are not all zero.
    pairs: usize,
    targets: [&'a mut [u8]; ROWS],
}

impl<V: Vectors> NullaryFnOnce for AlongRows<'_, V> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        // No `map` on arrays: it is not always inlined, and then compiled without AVX2.
        let Self { simd, rows: [a, b, c, d], starts, weights, pairs, targets: [to_a, to_b, to_c, to_d] } =
            self;
        let (first, last) = (simd.repeat(order_of_pairs(0)), simd.repeat(order_of_pairs(2)));
        let quads = weights.len() / starts.len();
        for (x, (start, weights)) in starts.iter().zip(weights.chunks_exact(quads)).enumerate() {
            let (from, to) = (start * 3, start * 3 + 12 * quads + 4);
            let window = [&a[from..to], &b[from..to], &c[from..to], &d[from..to]];
            let (mut low, mut high) = (simd.splat(0), simd.splat(HALF >> LOW_BITS));
            for (four, weights) in weights.iter().enumerate() {
                let values = simd.load(window, 12 * four);
                let words = simd.shuffle(values, first);
                low = simd.add(low, simd.products(words, weights[0]));
                high = simd.add(high, simd.products(words, weights[2]));
                if 2 * four + 1 < pairs {
                    let words = simd.shuffle(values, last);
                    low = simd.add(low, simd.products(words, weights[1]));
                    high = simd.add(high, simd.products(words, weights[3]));
                }
            }
            let sums = simd.shift(simd.add(low, simd.shift_left(high)));
            let [a, b, c, d] = simd.pixels(sums);
            let place = 3 * x..3 * x + 4;
            to_a[place.clone()].copy_from_slice(&a);
            to_b[place.clone()].copy_from_slice(&b);
            to_c[place.clone()].copy_from_slice(&c);
            to_d[place].copy_from_slice(&d);
        }
    }
}

pub(super) fn along_columns(simd: V3, source: &[u8], stride: usize, taps: &Taps) -> Vec<u8> {
    let mut pixels = vec![0; taps.starts.len() * stride];
    let mut weights = Vec::with_capacity(taps.pairs);
    for ((start, of), target) in taps.iter().zip(pixels.chunks_exact_mut(stride)) {
        weights.clear();
        weights.extend(of.chunks_exact(2).take(taps.pairs).map(split));
        let end = source.len().min((start + of.len()) * stride);
        let rows = &source[start * stride..end];
        simd.vectorize(AlongColumns { simd, rows, stride, weights: &weights, target });
    }
    pixels
}

/// One row of the target, of at least [`COLUMNS`] bytes.
struct AlongColumns<'a> {
    simd: V3,
    rows: &'a [u8],
    stride: usize,
    /// Of each pair of rows.
    weights: &'a [[i32; 2]],
    target: &'a mut [u8],
}

impl NullaryFnOnce for AlongColumns<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { simd, rows, stride, weights, target } = self;
        let (avx2, sse2) = (simd.avx2, simd.sse2);
        let order: __m256i = cast([0, 4, 1, 5, 2, 6, 3, 7]);
        let mut at = 0;
        while at < stride {
            // The last columns are summed with some that were summed before.
            at = at.min(stride - COLUMNS);
            let mut low: [__m256i; COLUMNS / 8] = [cast([0; 8]); COLUMNS / 8];
            let mut high: [__m256i; COLUMNS / 8] = [cast([HALF >> LOW_BITS; 8]); COLUMNS / 8];
            for (two, weights) in rows.chunks(2 * stride).zip(weights) {
                let one = &two[at..at + COLUMNS];
                // The weight of a row after the last is zero.
                let other = two.get(stride + at..stride + at + COLUMNS).unwrap_or(one);
                let (of_low, of_high): (__m256i, __m256i) = (cast([weights[0]; 8]), cast([weights[1]; 8]));
                let (one, _) = one.as_chunks::<16>();
                let (other, _) = other.as_chunks::<16>();
                for (number, (one, other)) in one.iter().zip(other).enumerate() {
                    let (one, other) = (cast(*one), cast(*other));
                    let left = avx2._mm256_cvtepu8_epi16(sse2._mm_unpacklo_epi8(one, other));
                    let right = avx2._mm256_cvtepu8_epi16(sse2._mm_unpackhi_epi8(one, other));
                    for (place, words) in [(2 * number, left), (2 * number + 1, right)] {
                        low[place] = avx2._mm256_add_epi32(low[place], avx2._mm256_madd_epi16(words, of_low));
                        high[place] =
                            avx2._mm256_add_epi32(high[place], avx2._mm256_madd_epi16(words, of_high));
                    }
                }
            }
            let value = |place: usize| {
                let high = avx2._mm256_slli_epi32::<{ LOW_BITS as i32 }>(high[place]);
                avx2._mm256_srai_epi32::<{ FRACTION_BITS as i32 }>(avx2._mm256_add_epi32(low[place], high))
            };
            let left = avx2._mm256_packs_epi32(value(0), value(1));
            let right = avx2._mm256_packs_epi32(value(2), value(3));
            // Each half holds four columns of each eight.
            let bytes = avx2._mm256_packus_epi16(left, right);
            let bytes: [u8; COLUMNS] = cast(avx2._mm256_permutevar8x32_epi32(bytes, order));
            target[at..at + COLUMNS].copy_from_slice(&bytes);
            at += COLUMNS;
        }
    }
}
