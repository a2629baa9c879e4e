//! Twice as many values in both directions: a triangle filter (libjpeg's `h2v2_fancy_upsample`).

use pulp::NullaryFnOnce;
use pulp::x86::V3;

/// A row of twice the width. The row lies nearer to `near` than to `far`, which have one width.
pub(super) struct Double<'a> {
    pub(super) near: &'a [u8],
    pub(super) far: &'a [u8],
    /// Kept for its memory.
    pub(super) sums: &'a mut Vec<u16>,
    /// As many values as two of `near`.
    pub(super) row: &'a mut [u8],
}

impl Double<'_> {
    pub(super) fn make(self, simd: V3) {
        simd.vectorize(self);
    }
}

impl NullaryFnOnce for Double<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { near, far, sums, row } = self;
        let sum = |(near, far): (&u8, &u8)| 3 * u16::from(*near) + u16::from(*far);
        sums.clear();
        // The first and the last stand twice, as the neighbours of themselves.
        sums.extend(near.iter().zip(far).take(1).map(sum));
        sums.extend(near.iter().zip(far).map(sum));
        sums.extend(sums.last().copied());
        let (row, _) = row.as_chunks_mut::<2>();
        let neighbours = sums.iter().zip(&sums[1..]).zip(&sums[2..]);
        for (two, ((before, sum), after)) in row.iter_mut().zip(neighbours) {
            let (left, right) = ((3 * sum + before + 8) >> 4, (3 * sum + after + 7) >> 4);
            *two = (left | (right << 8)).to_le_bytes();
        }
    }
}
