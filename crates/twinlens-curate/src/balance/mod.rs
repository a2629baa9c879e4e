//! The arithmetic of balancing: which pairs a query contributes, and which pairs are kept.
//!
//! Every (pair, query) match has a hash of the seed, the pair's `uid` and the query's id. A query
//! contributes the pairs whose hash lies below its bound; a pair is kept if any of its queries
//! contributes it. The bound is
//!
//! - with [`Limit::Cap`]: the (cap + 1)-th smallest hash among the query's pairs, so that exactly
//!   the `cap` smallest contribute ("up to 20,000 pairs a query", Radford et al. 2021, section
//!   2.2);
//! - with [`Limit::Sample`]: t / count of the hash range, which is MetaCLIP's independent coin flip
//!   (Xu et al. 2023).
//!
//! Either way a query contributes a pair with probability min(1, t / count), independently of the
//! pair's other queries, so that a pair is kept with probability 1 - prod(1 - min(1, t / count))
//! over its queries.
//!
//! Bounds depend only on the set of matches, not on their order; partitions can be counted
//! separately and merged.

mod bounds;
mod curve;
mod hash;

pub(crate) use bounds::{Bounds, Round, Window};
pub(crate) use curve::{CurvePoint, QueryCounts, curve};
pub(crate) use hash::{match_hash, pair_hash};

use datafusion::common::HashMap;

/// How much one query may contribute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Limit {
    /// At most this many pairs, exactly.
    Cap(u64),
    /// This many pairs on average: each match of a more frequent query is kept by a coin flip.
    Sample(u64),
}

impl Limit {
    /// The number of pairs that a query contributes, at most or on average.
    #[must_use]
    pub(crate) fn pairs(self) -> u64 {
        match self {
            Self::Cap(pairs) | Self::Sample(pairs) => pairs,
        }
    }
}

/// The share of its matches that one query contributes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Share {
    /// Exclusive upper bound of contributing hashes; `None` if every match contributes.
    pub bound: Option<u64>,
    /// The probability that a match contributes.
    pub probability: f64,
}

/// Decides each pair independently, once the matches are counted.
#[derive(Debug, Clone)]
pub(crate) struct Balancer {
    seed: u64,
    shares: HashMap<i32, Share>,
}

impl Balancer {
    /// `counts` says how many pairs each query matched; a query that matched fewer than
    /// `min_matched` contributes none. `cap_bounds` gives, under [`Limit::Cap`], the (cap + 1)-th
    /// smallest [`match_hash`] of each query that matched more than the cap (see [`Bounds`]); it is
    /// not read under [`Limit::Sample`].
    #[must_use]
    pub(crate) fn new(
        seed: u64,
        limit: Limit,
        min_matched: u64,
        counts: &HashMap<i32, u64>,
        cap_bounds: &HashMap<i32, u64>,
    ) -> Self {
        let share = |query: &i32, matched: u64| {
            let pairs = limit.pairs();
            if matched < min_matched {
                return Share { bound: Some(0), probability: 0.0 };
            }
            if matched <= pairs {
                return Share { bound: None, probability: 1.0 };
            }
            let bound = match limit {
                // A query without a bound contributes nothing, rather than break the cap.
                Limit::Cap(_) => cap_bounds.get(query).copied().unwrap_or(0),
                // pairs < matched, hence the quotient fits.
                Limit::Sample(_) => ((u128::from(pairs) << 64) / u128::from(matched)) as u64,
            };
            Share { bound: Some(bound), probability: pairs as f64 / matched as f64 }
        };
        let shares = counts.iter().map(|(query, &matched)| (*query, share(query, matched))).collect();
        Self { seed, shares }
    }

    /// A balancer of these shares.
    #[must_use]
    pub(crate) fn of_shares(seed: u64, shares: impl IntoIterator<Item = (i32, Share)>) -> Self {
        Self { seed, shares: shares.into_iter().collect() }
    }

    /// The shares, by query.
    #[must_use]
    pub(crate) fn shares(&self) -> Vec<(i32, Share)> {
        let mut shares: Vec<_> = self.shares.iter().map(|(query, share)| (*query, *share)).collect();
        shares.sort_unstable_by_key(|(query, _)| *query);
        shares
    }

    /// The hash of a pair, as the other functions take it.
    #[must_use]
    pub(crate) fn pair(&self, uid: &str) -> u64 {
        pair_hash(self.seed, uid)
    }

    /// Whether `query` contributes a pair that it matches.
    #[must_use]
    pub(crate) fn contributes(&self, pair: u64, query: i32) -> bool {
        match self.shares.get(&query) {
            None => false,
            Some(Share { bound: None, .. }) => true,
            Some(Share { bound: Some(bound), .. }) => match_hash(pair, query) < *bound,
        }
    }

    /// Whether any of the queries that the pair matches contributes it.
    #[must_use]
    pub(crate) fn keeps(&self, pair: u64, queries: &[i32]) -> bool {
        queries.iter().any(|&query| self.contributes(pair, query))
    }

    /// The probability, over seeds, that a pair with these queries (sorted, each once) is kept.
    #[must_use]
    pub(crate) fn keep_probability(&self, queries: &[i32]) -> f64 {
        let share = |query| self.shares.get(query).map_or(0.0, |share| share.probability);
        1.0 - queries.iter().map(|query| 1.0 - share(query)).product::<f64>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    type Pairs = Vec<(String, Vec<i32>)>;

    fn counts(pairs: &Pairs) -> HashMap<i32, u64> {
        let mut counts = HashMap::new();
        pairs.iter().flat_map(|(_, queries)| queries).for_each(|q| *counts.entry(*q).or_insert(0) += 1);
        counts
    }

    fn hashes(pairs: &Pairs, seed: u64, query: i32) -> Vec<u64> {
        let of_query = pairs.iter().filter(|(_, queries)| queries.contains(&query));
        let mut hashes: Vec<u64> = of_query.map(|(uid, _)| match_hash(pair_hash(seed, uid), query)).collect();
        hashes.sort_unstable();
        hashes
    }

    fn balancer(pairs: &Pairs, seed: u64, limit: Limit, min_matched: u64) -> Balancer {
        let counts = counts(pairs);
        let at = limit.pairs() as usize;
        let exceeding = counts.iter().filter(|(_, matched)| **matched > at as u64);
        let bounds = exceeding.map(|(q, _)| (*q, hashes(pairs, seed, *q)[at])).collect();
        Balancer::new(seed, limit, min_matched, &counts, &bounds)
    }

    fn kept(pairs: &Pairs, balancer: &Balancer) -> HashSet<String> {
        pairs
            .iter()
            .filter(|(uid, queries)| balancer.keeps(balancer.pair(uid), queries))
            .map(|(uid, _)| uid.clone())
            .collect()
    }

    fn some_pairs() -> impl Strategy<Value = Pairs> {
        let queries =
            prop::collection::btree_set(0..6i32, 1..4).prop_map(|set| set.into_iter().collect::<Vec<_>>());
        prop::collection::vec(queries, 1..60)
            .prop_map(|all| all.into_iter().enumerate().map(|(i, q)| (format!("{i:032x}"), q)).collect())
    }

    proptest! {
        /// The plain twin of the cap: sort each query's pairs by hash and take the first `cap`.
        #[test]
        fn cap_keeps_what_sorting_and_taking_keeps(pairs in some_pairs(), seed: u64, cap in 1u64..9) {
            let balancer = balancer(&pairs, seed, Limit::Cap(cap), 0);
            let mut expected = HashSet::new();
            for (&query, &matched) in &counts(&pairs) {
                let mut of_query: Vec<_> = pairs.iter().filter(|(_, queries)| queries.contains(&query)).collect();
                of_query.sort_by_key(|(uid, _)| match_hash(pair_hash(seed, uid), query));
                expected.extend(of_query.iter().take(cap as usize).map(|(uid, _)| uid.clone()));
                let contributed = of_query.iter().filter(|(uid, _)| balancer.contributes(balancer.pair(uid), query)).count() as u64;
                prop_assert_eq!(contributed, matched.min(cap));
            }
            prop_assert_eq!(kept(&pairs, &balancer), expected);
        }

        #[test]
        fn order_does_not_matter(pairs in some_pairs(), seed: u64, t in 1u64..9, hard: bool) {
            let limit = if hard { Limit::Cap(t) } else { Limit::Sample(t) };
            let mut turned = pairs.clone();
            turned.reverse();
            let (a, b) = (balancer(&pairs, seed, limit, 0), balancer(&turned, seed, limit, 0));
            prop_assert_eq!(kept(&pairs, &a), kept(&turned, &b));
        }
    }

    /// Ties cannot break the cap: pairs of one uid have one hash, and contribute together or not at
    /// all.
    #[test]
    fn repeated_uids_never_exceed_the_cap() {
        let pairs: Pairs = (0..10).map(|_| ("same".to_string(), vec![1])).collect();
        let balancer = balancer(&pairs, 7, Limit::Cap(4), 0);
        assert!(!balancer.contributes(balancer.pair("same"), 1));
    }

    #[test]
    fn probabilities_are_the_formula_and_the_coins_obey_them() {
        // Query 0 matches 4,000 pairs, query 1 the half of them, query 2 ten; t is 500.
        let pairs: Pairs = (0..4000)
            .map(|i| {
                (
                    format!("{i:032x}"),
                    (0..3)
                        .filter(|q| [1, 2, 400][*q as usize] * (i / [1, 2, 400][*q as usize]) == i)
                        .collect(),
                )
            })
            .collect();
        for limit in [Limit::Sample(500), Limit::Cap(500)] {
            let mut total = 0;
            for seed in 0..20 {
                let balancer = balancer(&pairs, seed, limit, 0);
                assert!((balancer.keep_probability(&[0]) - 0.125).abs() < 1e-12);
                assert!((balancer.keep_probability(&[0, 1]) - (1.0 - 0.875 * 0.75)).abs() < 1e-12);
                assert!((balancer.keep_probability(&[0, 1, 2]) - 1.0).abs() < 1e-12);
                total += kept(&pairs, &balancer).len();
            }
            // 2,000 pairs at 0.125, 1,990 at 0.34375, 10 at 1: 944 a seed, standard deviation about
            // 26.
            assert!((total as f64 / 20.0 - 944.1).abs() < 25.0, "{limit:?} keeps {}", total as f64 / 20.0);
        }
    }

    /// Datasets that were published must come out the same: the hash may not change.
    #[test]
    fn the_hash_is_what_it_was() {
        assert_eq!(match_hash(pair_hash(17, "00000000000000000000000000000001"), 5), 1799035574082320283);
    }

    #[test]
    fn rare_queries_contribute_nothing() {
        let pairs: Pairs = vec![("a".into(), vec![1, 2]), ("b".into(), vec![2])];
        let balancer = balancer(&pairs, 0, Limit::Cap(9), 2);
        let pair = balancer.pair("a");
        assert!(!balancer.contributes(pair, 1) && balancer.contributes(pair, 2));
        assert_eq!(balancer.keep_probability(&[1]), 0.0);
        assert!(!balancer.keeps(balancer.pair("c"), &[3]), "a query that was not counted");
    }
}
