//! The inverse cosine transform to 4 x 4 values (libjpeg's `jidctred.c`), with the vectors of AVX2.
//!
//! All sums are modulo 2^32, as the library's are, so that the values of damaged files are equal,
//! too.

use std::arch::x86_64::{__m128i, __m256i};

use pulp::cast;
use pulp::x86::V3;

/// Fraction bits of the constants.
const CONSTANT_BITS: i32 = 13;
/// Fraction bits between the passes.
const PASS_BITS: i32 = 2;
/// Zero of the values.
const CENTRE: i32 = 128;

/// Constants of the odd rows 1, 3, 5 and 7 for the outer values, and for the inner ones, and of the
/// even rows 2 and 6, times 2^13.
const OUTER: [i32; 4] = [20_995, 7_373, -4_926, -4_176];
const INNER: [i32; 4] = [8_697, -17_799, 11_893, -1_730];
const EVEN: [i32; 2] = [15_137, -6_270];

/// The rows of 4 x 4 values of a block, of which the quantised coefficients are given row by row.
#[inline(always)]
pub(super) fn transform_4x4(simd: V3, coefficients: &[i16; 64], quantization: &[u16; 64]) -> [[u8; 4]; 4] {
    across(simd, down(simd, coefficients, quantization))
}

/// All columns at once: four values of each, with [`PASS_BITS`].
#[inline(always)]
fn down(simd: V3, coefficients: &[i16; 64], quantization: &[u16; 64]) -> [__m256i; 4] {
    let avx2 = simd.avx2;
    let (coefficients, _) = coefficients.as_chunks::<8>();
    let (quantization, _) = quantization.as_chunks::<8>();
    let row = |row: usize| {
        let coefficients = avx2._mm256_cvtepi16_epi32(cast(coefficients[row]));
        avx2._mm256_mullo_epi32(coefficients, avx2._mm256_cvtepu16_epi32(cast(quantization[row])))
    };
    let add = |a, b| avx2._mm256_add_epi32(a, b);
    let sub = |a, b| avx2._mm256_sub_epi32(a, b);
    let or = |a, b| avx2._mm256_or_si256(a, b);
    let times = |row, constant: i32| avx2._mm256_mullo_epi32(row, cast([constant; 8]));
    // The fifth row and the fifth column have no part in this.
    let [r0, r1, r2, r3] = [row(0), row(1), row(2), row(3)];
    let [r5, r6, r7] = [row(5), row(6), row(7)];
    let start = avx2._mm256_slli_epi32::<{ CONSTANT_BITS + 1 }>(r0);
    let even = add(times(r2, EVEN[0]), times(r6, EVEN[1]));
    let odd =
        |of: [i32; 4]| add(add(times(r1, of[0]), times(r3, of[1])), add(times(r5, of[2]), times(r7, of[3])));
    let (outer, inner) = (odd(OUTER), odd(INNER));
    let (first, second) = (add(start, even), sub(start, even));
    // A column of a constant is not computed but copied, which differs where a sum overflows.
    let others = or(or(or(r1, r2), or(r3, r5)), or(r6, r7));
    let is_flat = avx2._mm256_cmpeq_epi32(others, simd.avx._mm256_setzero_si256());
    let flat = avx2._mm256_slli_epi32::<PASS_BITS>(r0);
    let value = |sum| {
        let half = cast([1 << (CONSTANT_BITS - PASS_BITS); 8]);
        let value = avx2._mm256_srai_epi32::<{ CONSTANT_BITS - PASS_BITS + 1 }>(add(sum, half));
        avx2._mm256_blendv_epi8(value, flat, is_flat)
    };
    [value(add(first, outer)), value(add(second, inner)), value(sub(second, inner)), value(sub(first, outer))]
}

/// All rows at once: the four values of each.
#[inline(always)]
fn across(simd: V3, [a, b, c, d]: [__m256i; 4]) -> [[u8; 4]; 4] {
    let (avx2, sse2) = (simd.avx2, simd.sse2);
    let low = |pair| simd.avx._mm256_castsi256_si128(pair);
    let high = |pair| avx2._mm256_extracti128_si256::<1>(pair);
    // Columns of four: the first and the fifth in one vector, and so on.
    let (ab, cd) = (avx2._mm256_unpacklo_epi32(a, b), avx2._mm256_unpacklo_epi32(c, d));
    let (c04, c15) = (avx2._mm256_unpacklo_epi64(ab, cd), avx2._mm256_unpackhi_epi64(ab, cd));
    let (ab, cd) = (avx2._mm256_unpackhi_epi32(a, b), avx2._mm256_unpackhi_epi32(c, d));
    let (c26, c37) = (avx2._mm256_unpacklo_epi64(ab, cd), avx2._mm256_unpackhi_epi64(ab, cd));
    let add = |a, b| sse2._mm_add_epi32(a, b);
    let sub = |a, b| sse2._mm_sub_epi32(a, b);
    let times = |pair, [of, and]: [i32; 2]| -> __m256i {
        avx2._mm256_mullo_epi32(pair, cast([of, of, of, of, and, and, and, and]))
    };
    let sum = |pair| add(low(pair), high(pair));
    let c0 = low(c04);
    let start = sse2._mm_slli_epi32::<{ CONSTANT_BITS + 1 }>(c0);
    let even = sum(times(c26, EVEN));
    let odd =
        |of: [i32; 4]| sum(avx2._mm256_add_epi32(times(c15, [of[0], of[2]]), times(c37, [of[1], of[3]])));
    let (outer, inner) = (odd(OUTER), odd(INNER));
    let (first, second) = (add(start, even), sub(start, even));
    let others = avx2._mm256_or_si256(avx2._mm256_or_si256(c15, c26), c37);
    let others = sse2._mm_or_si128(low(others), high(others));
    let is_flat = sse2._mm_cmpeq_epi32(others, cast([0; 4]));
    let flat: __m128i = sse2._mm_srai_epi32::<{ PASS_BITS + 3 }>(add(c0, cast([1 << (PASS_BITS + 2); 4])));
    let value = |total| {
        let half = cast([1 << (CONSTANT_BITS + PASS_BITS + 3); 4]);
        let value = sse2._mm_srai_epi32::<{ CONSTANT_BITS + PASS_BITS + 4 }>(add(total, half));
        add(simd.sse4_1._mm_blendv_epi8(value, flat, is_flat), cast([CENTRE; 4]))
    };
    let left = sse2._mm_packs_epi32(value(add(first, outer)), value(add(second, inner)));
    let right = sse2._mm_packs_epi32(value(sub(second, inner)), value(sub(first, outer)));
    // Columns of bytes to rows.
    let order = [0_i8, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15];
    cast(simd.ssse3._mm_shuffle_epi8(sse2._mm_packus_epi16(left, right), cast(order)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use libjpeg_turbo_rs::decode::idct_scaled::idct_4x4;
    use proptest::prelude::*;

    /// Mostly zeros and small numbers, as in real files, and sometimes any number.
    fn coefficient() -> impl Strategy<Value = i16> {
        prop_oneof![4 => Just(0_i16), 4 => -40..40_i16, 1 => any::<i16>()]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]
        #[test]
        fn values_are_those_of_the_library(
            coefficients in prop::collection::vec(coefficient(), 64),
            of in prop::collection::vec(prop_oneof![4 => 1..100_u16, 1 => any::<u16>()], 64),
            kept in 1..65_usize,
        ) {
            let mut coefficients: [i16; 64] = coefficients.try_into().unwrap();
            coefficients[kept..].fill(0);
            let of: [u16; 64] = of.try_into().unwrap();
            let mut expected = [0; 16];
            idct_4x4(&coefficients, &of, &mut expected);
            if let Some(simd) = V3::try_new() {
                let values = transform_4x4(simd, &coefficients, &of);
                prop_assert_eq!(values.as_flattened(), &expected);
            }
        }
    }
}
