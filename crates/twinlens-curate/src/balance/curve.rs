//! The cumulative matches and contributions of the most frequent queries.

/// The pairs that one query matched, contributed and kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct QueryCounts {
    pub matched: u64,
    /// Within the limit.
    pub contributed: u64,
    /// Matched pairs that any query kept.
    pub kept: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CurvePoint {
    /// From 1, by decreasing number of matches.
    pub rank: u64,
    /// Matches of the query at this rank.
    pub matched: u64,
    /// Matches of all queries up to this rank.
    pub matched_upto: u64,
    /// Contributions of all queries up to this rank.
    pub contributed_upto: u64,
}

/// The curve at ranks 1 to 10, then at ten ranks per decade, and at the last rank. It shows how
/// heavy the head was (MetaCLIP: 16,000 of 500,000 queries held 5.35 of 5.67 billion matches) and
/// what balancing left of it.
#[must_use]
pub(crate) fn curve(mut queries: Vec<QueryCounts>) -> Vec<CurvePoint> {
    // Ties are broken by contributions (which differ where some queries are below the minimum), so
    // that the sums do not depend on the input's order.
    queries.sort_unstable_by_key(|counts| std::cmp::Reverse((counts.matched, counts.contributed)));
    let (mut points, mut next) = (Vec::new(), 1);
    let (mut matched_upto, mut contributed_upto) = (0, 0);
    for (index, counts) in queries.iter().enumerate() {
        let rank = index as u64 + 1;
        matched_upto += counts.matched;
        contributed_upto += counts.contributed;
        if rank == next || index + 1 == queries.len() {
            points.push(CurvePoint { rank, matched: counts.matched, matched_upto, contributed_upto });
        }
        if rank == next {
            next = rank_after(rank);
        }
    }
    points
}

/// From 10 on, ranks are round(10^(i / 10)) for i = 10, 11, ...
fn rank_after(rank: u64) -> u64 {
    if rank < 10 {
        rank + 1
    } else {
        10f64.powf(((10.0 * (rank as f64).log10()).round() + 1.0) / 10.0).round() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_run_from_head_to_tail() {
        let counts = |matched: u64| QueryCounts { matched, contributed: matched.min(20), kept: 0 };
        let points = curve((1..=100).map(counts).collect());
        assert_eq!(points[0], CurvePoint { rank: 1, matched: 100, matched_upto: 100, contributed_upto: 20 });
        let last = points[points.len() - 1];
        assert_eq!((last.rank, last.matched, last.matched_upto), (100, 1, 5050));
        assert_eq!(last.contributed_upto, 81 * 20 + 19 * 20 / 2);
        assert!(points.is_sorted_by_key(|point| point.rank) && points.len() == 20, "{points:?}");
        assert_eq!(curve(Vec::new()), []);
    }
}
