//! The inverse cosine transform: to 4 x 4 and 2 x 2 values (libjpeg's `jidctred.c`) with the
//! vectors of AVX2, and of blocks with few coefficients to 8 x 8 values (`jidctint.c`).
//!
//! Sums are modulo 2^32 or 2^16, as the library's are, so that the values of files that hold too
//! large numbers are equal, too.

use std::arch::x86_64::{__m128i, __m256i};
use std::num::Wrapping;

use libjpeg_turbo_rs::simd::SimdRoutines;
use pulp::cast;
use pulp::x86::V3;

use super::codes::Nonzero;

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
/// Of the odd rows for 2 x 2 values.
const HALVES: [i32; 4] = [29_692, -10_426, 6_967, -5_906];

/// The one value of a block whose first coefficient alone is not zero.
#[inline(always)]
pub(super) fn flat(coefficients: &[i16; 64], quantization: &[u16; 64]) -> u8 {
    let sum = i32::from(coefficients[0]).wrapping_mul(i32::from(quantization[0]));
    let value = sum.wrapping_shl(PASS_BITS as u32).wrapping_add(1 << (PASS_BITS + 2)) >> (PASS_BITS + 3);
    (value + CENTRE).clamp(0, 255) as u8
}

/// The rows of 8 x 8 values of a block.
#[inline(always)]
pub(super) fn transform_8x8(
    routines: &SimdRoutines,
    coefficients: &[i16; 64],
    quantization: &[u16; 64],
    nonzero: Nonzero,
) -> [[u8; 8]; 8] {
    if nonzero.is_first_row_only() {
        return [equal_rows(coefficients, quantization); 8];
    }
    let mut values = [0; 64];
    (routines.idct_islow)(coefficients, quantization, &mut values);
    cast(values)
}

/// The first row of 8 x 8 values, which all others are equal to, of a block with coefficients in
/// the first row only.
#[inline(always)]
fn equal_rows(coefficients: &[i16; 64], quantization: &[u16; 64]) -> [u8; 8] {
    let s: [Wrapping<i32>; 8] = std::array::from_fn(|column| {
        let value = coefficients[column].wrapping_mul(quantization[column] as i16);
        Wrapping(i32::from(value.wrapping_shl(PASS_BITS as u32)))
    });
    let byte = |value: i32| (i32::from(value as i16) + CENTRE).clamp(0, 255) as u8;
    if s[1..] == [Wrapping(0); 7] {
        return [byte((s[0].0 + (1 << (PASS_BITS + 2))) >> (PASS_BITS + 3)); 8];
    }
    // The names and the constants are those of `jidctint.c`.
    let times = |constant: i32, value: Wrapping<i32>| Wrapping(constant) * value;
    let z1 = times(4_433, s[2] + s[6]);
    let (tmp2, tmp3) = (z1 - times(15_137, s[6]), z1 + times(6_270, s[2]));
    let (tmp0, tmp1) = (times(1 << CONSTANT_BITS, s[0] + s[4]), times(1 << CONSTANT_BITS, s[0] - s[4]));
    let even = [tmp0 + tmp3, tmp1 + tmp2, tmp1 - tmp2, tmp0 - tmp3];
    let (z1, z2, z3, z4) = (s[7] + s[1], s[5] + s[3], s[7] + s[3], s[5] + s[1]);
    let z5 = times(9_633, z3 + z4);
    let (z1, z2) = (times(-7_373, z1), times(-20_995, z2));
    let (z3, z4) = (z5 - times(16_069, z3), z5 - times(3_196, z4));
    let odd = [
        times(12_299, s[1]) + z1 + z4,
        times(25_172, s[3]) + z2 + z3,
        times(16_819, s[5]) + z2 + z4,
        times(2_446, s[7]) + z1 + z3,
    ];
    let shift = CONSTANT_BITS + PASS_BITS + 3;
    std::array::from_fn(|column| {
        let sum = match column {
            0..4 => even[column] + odd[column],
            _ => even[7 - column] - odd[7 - column],
        };
        byte((sum + Wrapping(1 << (shift - 1))).0 >> shift)
    })
}

/// The rows of 4 x 4 values of a block, of which the quantised coefficients are given row by row.
#[inline(always)]
pub(super) fn transform_4x4(simd: V3, coefficients: &[i16; 64], quantization: &[u16; 64]) -> [[u8; 4]; 4] {
    across(simd, down(simd, coefficients, quantization))
}

/// A row of coefficients.
#[inline(always)]
fn dequantized(simd: V3, coefficients: &[i16; 64], quantization: &[u16; 64], row: usize) -> __m256i {
    let (coefficients, _) = coefficients.as_chunks::<8>();
    let (quantization, _) = quantization.as_chunks::<8>();
    let coefficients = simd.avx2._mm256_cvtepi16_epi32(cast(coefficients[row]));
    simd.avx2._mm256_mullo_epi32(coefficients, simd.avx2._mm256_cvtepu16_epi32(cast(quantization[row])))
}

/// All columns at once: four values of each, with [`PASS_BITS`].
#[inline(always)]
fn down(simd: V3, coefficients: &[i16; 64], quantization: &[u16; 64]) -> [__m256i; 4] {
    let avx2 = simd.avx2;
    let row = |row| dequantized(simd, coefficients, quantization, row);
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

/// The rows of 2 x 2 values of a block, to which even rows and columns but the first add nothing.
#[inline(always)]
pub(super) fn transform_2x2(simd: V3, coefficients: &[i16; 64], quantization: &[u16; 64]) -> [[u8; 2]; 2] {
    let avx2 = simd.avx2;
    let row = |row| dequantized(simd, coefficients, quantization, row);
    let times = |row, constant: i32| avx2._mm256_mullo_epi32(row, cast([constant; 8]));
    let add = |a, b| avx2._mm256_add_epi32(a, b);
    let (first, odd) = (row(0), [row(1), row(3), row(5), row(7)]);
    let start = avx2._mm256_slli_epi32::<{ CONSTANT_BITS + 2 }>(first);
    let sum = add(
        add(times(odd[0], HALVES[0]), times(odd[1], HALVES[1])),
        add(times(odd[2], HALVES[2]), times(odd[3], HALVES[3])),
    );
    let or = |a, b| avx2._mm256_or_si256(a, b);
    let others = or(or(odd[0], odd[1]), or(odd[2], odd[3]));
    let is_flat = avx2._mm256_cmpeq_epi32(others, simd.avx._mm256_setzero_si256());
    let flat = avx2._mm256_slli_epi32::<PASS_BITS>(first);
    let half = cast([1 << (CONSTANT_BITS - PASS_BITS + 1); 8]);
    let value = |sum| -> [i32; 8] {
        let value = avx2._mm256_srai_epi32::<{ CONSTANT_BITS - PASS_BITS + 2 }>(add(sum, half));
        cast(avx2._mm256_blendv_epi8(value, flat, is_flat))
    };
    [halves(&value(add(start, sum))), halves(&value(avx2._mm256_sub_epi32(start, sum)))]
}

/// The two values of a row.
#[inline(always)]
fn halves(row: &[i32; 8]) -> [u8; 2] {
    let byte =
        |sum: i32, shift: i32| ((sum.wrapping_add(1 << (shift - 1)) >> shift) + CENTRE).clamp(0, 255) as u8;
    let places = [1, 3, 5, 7];
    if places.iter().all(|place| row[*place] == 0) {
        return [byte(row[0], PASS_BITS + 3); 2];
    }
    let sum = places.iter().zip(HALVES);
    let sum = sum.fold(0_i32, |sum, (place, constant)| sum.wrapping_add(row[*place].wrapping_mul(constant)));
    let start = row[0].wrapping_shl(CONSTANT_BITS as u32 + 2);
    [start.wrapping_add(sum), start.wrapping_sub(sum)].map(|sum| byte(sum, CONSTANT_BITS + PASS_BITS + 5))
}

#[cfg(test)]
mod tests {
    use super::*;
    use libjpeg_turbo_rs::decode::idct_scaled::{idct_2x2, idct_4x4};
    use libjpeg_turbo_rs::simd::detect;
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
            kept in prop_oneof![1..9_usize, 1..65_usize],
        ) {
            let mut coefficients: [i16; 64] = coefficients.try_into().unwrap();
            coefficients[kept..].fill(0);
            let of: [u16; 64] = of.try_into().unwrap();
            let routines = detect();
            let (mut least, mut small, mut large) = ([0; 4], [0; 16], [0; 64]);
            idct_2x2(&coefficients, &of, &mut least);
            idct_4x4(&coefficients, &of, &mut small);
            (routines.idct_islow)(&coefficients, &of, &mut large);
            if kept <= 8 {
                let rows = [equal_rows(&coefficients, &of); 8];
                prop_assert_eq!(rows.as_flattened(), &large);
            }
            if coefficients[1..] == [0; 63] {
                prop_assert_eq!([flat(&coefficients, &of); 16], small);
                prop_assert_eq!([flat(&coefficients, &of); 4], least);
            }
            if let Some(simd) = V3::try_new() {
                let values = transform_4x4(simd, &coefficients, &of);
                prop_assert_eq!(values.as_flattened(), &small);
                let values = transform_2x2(simd, &coefficients, &of);
                prop_assert_eq!(values.as_flattened(), &least);
            }
        }
    }
}
