//! How values are divided among ranks for a sum: each rank adds up one piece, in the order of the
//! ranks, and all gather the sums. Each rank sends and receives `2 (n - 1) / n` of the data, as
//! with a ring (Patarasuk and Yuan 2009, "Bandwidth optimal all-reduce algorithms"), but the sums
//! do not depend on who carries them.

use std::ops::Range;

/// The values that `rank` of `size` ranks adds up, of `length`.
pub fn piece(length: usize, size: usize, rank: usize) -> Range<usize> {
    let start = |rank: usize| (length as u128 * rank as u128 / size as u128) as usize;
    start(rank)..start(rank + 1)
}

/// Values that are added at a time: they stay in the nearest cache while every rank's pass by.
pub(crate) const BLOCK: usize = 4096;

/// Adds the values of `size` ranks in the order of the ranks. `own` are those of `rank`, and are
/// replaced by the sums; `of` gives those of the others.
pub(crate) fn add_in_order<'a>(
    own: &mut [f32],
    (rank, size): (usize, usize),
    of: impl Fn(usize) -> &'a [f32],
) {
    for (number, own) in own.chunks_mut(BLOCK).enumerate() {
        let mut sums = [0.0; BLOCK];
        let sums = &mut sums[..own.len()];
        for other in 0..size {
            let values = if other == rank { &*own } else { &of(other)[number * BLOCK..][..sums.len()] };
            sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
        }
        own.copy_from_slice(sums);
    }
}

/// Adds the pieces of all ranks, which follow each other in `all`, in the order of the ranks.
/// `own` is this rank's piece and takes the place of the piece `rank` of `all`.
pub fn sum_in_order(own: &mut [f32], all: &[f32], rank: usize) {
    let length = own.len();
    let size = all.len().checked_div(length).unwrap_or(0);
    add_in_order(own, (rank, size), |other| &all[other * length..][..length]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_all_values_once() {
        for (length, size) in [(0, 3), (1, 4), (10, 3), (1_000_003, 7), (5, 5)] {
            let pieces: Vec<_> = (0..size).map(|rank| piece(length, size, rank)).collect();
            assert_eq!((pieces[0].start, pieces[size - 1].end), (0, length));
            assert!(pieces.windows(2).all(|two| two[0].end == two[1].start));
        }
    }

    #[test]
    fn sums_are_added_in_the_order_of_the_ranks() {
        // A small number survives only if the large ones have cancelled out before it is added.
        let all = [1e8, 1.0, -1e8, 1e8, 1.0, -1e8];
        for rank in 0..3 {
            let mut own = all[2 * rank..][..2].to_vec();
            let mut others = all.to_vec();
            others[2 * rank..][..2].fill(f32::NAN);
            sum_in_order(&mut own, &others, rank);
            assert_eq!(own, [1.0, 0.0]);
        }
        let mut empty = [];
        sum_in_order(&mut empty, &[], 0);
        let mut long = vec![1.0; 10_000];
        sum_in_order(&mut long, &[2.0; 30_000], 1);
        assert!(long.iter().all(|sum| *sum == 5.0));
    }
}
