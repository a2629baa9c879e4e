//! The assignment problem: the permutation of the columns with the largest sum.

/// The column assigned to each of `n` rows, each column once, that maximises the sum of
/// `weight(row, column)`; weights are finite. Shortest augmenting paths with potentials (H. W.
/// Kuhn, 1955; R. Jonker, A. Volgenant, Computing 38, 1987): O(n³) time and O(n) memory.
pub fn assign(n: usize, weight: impl Fn(usize, usize) -> f64) -> Vec<usize> {
    const NONE: usize = usize::MAX;
    let (mut of_row, mut of_column) = (vec![0.0; n], vec![0.0; n]);
    let mut row_of: Vec<usize> = vec![NONE; n];
    for start in 0..n {
        // The reduced cost of the shortest path from `start` to each column, and the column before
        // it on that path.
        let (mut cost_to, mut before, mut done) = (vec![f64::INFINITY; n], vec![NONE; n], vec![false; n]);
        let (mut row, mut column) = (start, NONE);
        loop {
            if column != NONE {
                done[column] = true;
                row = row_of[column];
            }
            let (mut step, mut next) = (f64::INFINITY, NONE);
            for other in (0..n).filter(|other| !done[*other]) {
                let cost = -weight(row, other) - of_row[row] - of_column[other];
                if cost < cost_to[other] {
                    (cost_to[other], before[other]) = (cost, column);
                }
                if next == NONE || cost_to[other] < step {
                    (step, next) = (cost_to[other], other);
                }
            }
            of_row[start] += step;
            for other in 0..n {
                if done[other] {
                    of_row[row_of[other]] += step;
                    of_column[other] -= step;
                } else {
                    cost_to[other] -= step;
                }
            }
            column = next;
            if row_of[column] == NONE {
                break;
            }
        }
        // Every row on the path moves to the next column.
        while before[column] != NONE {
            row_of[column] = row_of[before[column]];
            column = before[column];
        }
        row_of[column] = start;
    }
    let mut columns = vec![0; n];
    row_of.into_iter().enumerate().for_each(|(column, row)| columns[row] = column);
    columns
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn permutations(n: usize) -> Vec<Vec<usize>> {
        let Some(last) = n.checked_sub(1) else { return vec![vec![]] };
        let shorter = permutations(last);
        let insert = |at: usize, list: &Vec<usize>| [&list[..at], &[last], &list[at..]].concat();
        shorter.iter().flat_map(|list| (0..n).map(move |at| insert(at, list))).collect()
    }

    proptest! {
        /// Reference implementation: try every permutation.
        #[test]
        fn no_permutation_has_a_larger_sum(n in 0_usize..7, weights in prop::collection::vec(0_u8..6, 49)) {
            let weight = |row: usize, column: usize| f64::from(weights[7 * row + column]);
            let sum = |columns: &[usize]| columns.iter().enumerate().map(|(row, column)| weight(row, *column)).sum::<f64>();
            let found = assign(n, weight);
            let mut sorted = found.clone();
            sorted.sort_unstable();
            prop_assert_eq!(sorted, (0..n).collect::<Vec<_>>());
            let best = permutations(n).iter().map(|columns| sum(columns)).fold(0.0, f64::max);
            prop_assert_eq!(sum(&found), best);
        }
    }
}
