//! Four rows in one vector of AVX-512, or in two of AVX2.

use std::arch::x86_64::{__m256i, __m512i};

use pulp::cast;
use pulp::x86::{V3, V4};

use crate::resample::taps::FRACTION_BITS;

/// Bits of the lower part of a weight.
pub(super) const LOW_BITS: u32 = 12;
/// Bytes that one load reads of a row: four pixels, and four bytes more.
pub(super) const LOAD: usize = 16;
/// Rows that are resized at once.
pub(super) const ROWS: usize = 4;

/// 16 bytes, 8 words or 4 sums for each of four rows.
pub(super) trait Vectors: Copy {
    type Vector: Copy;
    /// The same sum in all places.
    fn splat(self, value: i32) -> Self::Vector;
    /// The same order of bytes for each row.
    fn repeat(self, order: [i8; LOAD]) -> Self::Vector;
    /// 16 bytes of each row, from `at`.
    fn load(self, rows: [&[u8]; ROWS], at: usize) -> Self::Vector;
    /// The bytes of each row in another order.
    fn shuffle(self, bytes: Self::Vector, order: Self::Vector) -> Self::Vector;
    /// Words times a pair of weights, each pair of products summed.
    fn products(self, words: Self::Vector, weights: i32) -> Self::Vector;
    fn add(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// Sums of the higher parts of weights, in the units of the lower parts.
    fn shift_left(self, sums: Self::Vector) -> Self::Vector;
    /// Sums without their fraction.
    fn shift(self, sums: Self::Vector) -> Self::Vector;
    /// The sums of each row, clamped to 0..=255.
    fn pixels(self, sums: Self::Vector) -> [[u8; 4]; ROWS];
}

impl Vectors for V4 {
    type Vector = __m512i;

    #[inline(always)]
    fn splat(self, value: i32) -> __m512i {
        cast([value; 16])
    }

    #[inline(always)]
    fn repeat(self, order: [i8; LOAD]) -> __m512i {
        cast([order; ROWS])
    }

    #[inline(always)]
    fn load(self, [a, b, c, d]: [&[u8]; ROWS], at: usize) -> __m512i {
        cast([sixteen(a, at), sixteen(b, at), sixteen(c, at), sixteen(d, at)])
    }

    #[inline(always)]
    fn shuffle(self, bytes: __m512i, order: __m512i) -> __m512i {
        self.avx512bw._mm512_shuffle_epi8(bytes, order)
    }

    #[inline(always)]
    fn products(self, words: __m512i, weights: i32) -> __m512i {
        self.avx512bw._mm512_madd_epi16(words, self.splat(weights))
    }

    #[inline(always)]
    fn add(self, a: __m512i, b: __m512i) -> __m512i {
        self.avx512f._mm512_add_epi32(a, b)
    }

    #[inline(always)]
    fn shift_left(self, sums: __m512i) -> __m512i {
        self.avx512f._mm512_slli_epi32::<LOW_BITS>(sums)
    }

    #[inline(always)]
    fn shift(self, sums: __m512i) -> __m512i {
        self.avx512f._mm512_srai_epi32::<FRACTION_BITS>(sums)
    }

    #[inline(always)]
    fn pixels(self, sums: __m512i) -> [[u8; 4]; ROWS] {
        let words = self.avx512bw._mm512_packs_epi32(sums, sums);
        let bytes: [[u8; 4]; 16] = cast(self.avx512bw._mm512_packus_epi16(words, words));
        [bytes[0], bytes[4], bytes[8], bytes[12]]
    }
}

#[inline(always)]
fn sixteen(row: &[u8], at: usize) -> [u8; LOAD] {
    let mut bytes = [0; LOAD];
    bytes.copy_from_slice(&row[at..at + LOAD]);
    bytes
}

/// Two vectors of two rows.
#[derive(Clone, Copy)]
pub(super) struct Half(pub(super) V3);

impl Half {
    #[inline(always)]
    fn both(
        self,
        a: [__m256i; 2],
        b: [__m256i; 2],
        op: impl Fn(__m256i, __m256i) -> __m256i,
    ) -> [__m256i; 2] {
        [op(a[0], b[0]), op(a[1], b[1])]
    }
}

impl Vectors for Half {
    type Vector = [__m256i; 2];

    #[inline(always)]
    fn splat(self, value: i32) -> [__m256i; 2] {
        [cast([value; 8]); 2]
    }

    #[inline(always)]
    fn repeat(self, order: [i8; LOAD]) -> [__m256i; 2] {
        [cast([order; 2]); 2]
    }

    #[inline(always)]
    fn load(self, [a, b, c, d]: [&[u8]; ROWS], at: usize) -> [__m256i; 2] {
        [cast([sixteen(a, at), sixteen(b, at)]), cast([sixteen(c, at), sixteen(d, at)])]
    }

    #[inline(always)]
    fn shuffle(self, bytes: [__m256i; 2], order: [__m256i; 2]) -> [__m256i; 2] {
        self.both(bytes, order, |bytes, order| self.0.avx2._mm256_shuffle_epi8(bytes, order))
    }

    #[inline(always)]
    fn products(self, words: [__m256i; 2], weights: i32) -> [__m256i; 2] {
        self.both(words, self.splat(weights), |words, weights| self.0.avx2._mm256_madd_epi16(words, weights))
    }

    #[inline(always)]
    fn add(self, a: [__m256i; 2], b: [__m256i; 2]) -> [__m256i; 2] {
        self.both(a, b, |a, b| self.0.avx2._mm256_add_epi32(a, b))
    }

    #[inline(always)]
    fn shift_left(self, sums: [__m256i; 2]) -> [__m256i; 2] {
        let shift = |sums| self.0.avx2._mm256_slli_epi32::<{ LOW_BITS as i32 }>(sums);
        [shift(sums[0]), shift(sums[1])]
    }

    #[inline(always)]
    fn shift(self, sums: [__m256i; 2]) -> [__m256i; 2] {
        let shift = |sums| self.0.avx2._mm256_srai_epi32::<{ FRACTION_BITS as i32 }>(sums);
        [shift(sums[0]), shift(sums[1])]
    }

    #[inline(always)]
    fn pixels(self, sums: [__m256i; 2]) -> [[u8; 4]; ROWS] {
        // The lower half holds rows a and c, the upper one b and d.
        let words = self.0.avx2._mm256_packs_epi32(sums[0], sums[1]);
        let bytes: [[u8; 4]; 8] = cast(self.0.avx2._mm256_packus_epi16(words, words));
        [bytes[0], bytes[4], bytes[1], bytes[5]]
    }
}
