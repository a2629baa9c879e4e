//! The (cap + 1)-th smallest hash of each of many queries, exactly, in little memory.
//!
//! Hashes are uniform, so the bound of a query with `matched` pairs lies near (cap + 1) / matched
//! of the range. One pass over the matches counts the hashes below a window around that point and
//! keeps those inside it, about 16 sqrt(cap) of them. If the bound is outside the window (eight
//! standard deviations away, or repeated uids), another pass searches the side where it must be.
//! Results of partitions and of splits merge in any order and equal those of sorting.

use datafusion::common::HashMap;

use super::hash::match_hash;

/// Half the width of a window, in standard deviations of the position of the bound.
const DEVIATIONS: f64 = 8.0;

/// The range that is searched for a bound, inclusive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Window {
    pub low: u64,
    pub high: u64,
}

impl Window {
    /// Around the expected value of the `(cap + 1)`-th smallest of `matched` uniform hashes.
    fn expected(cap: u64, matched: u64) -> Self {
        let place = (cap as f64 + 1.0) / (matched as f64 + 1.0);
        let deviation = (place * (1.0 - place) / matched as f64).sqrt();
        // Conversion from f64 saturates at both ends.
        let hash = |place: f64| (place * (1u128 << 64) as f64) as u64;
        Self { low: hash(place - DEVIATIONS * deviation), high: hash(place + DEVIATIONS * deviation) }
    }

    fn share(self) -> f64 {
        (self.high - self.low) as f64 / u64::MAX as f64
    }
}

/// Finds the bounds of all queries above the cap, round by round.
#[derive(Debug)]
pub(crate) struct Bounds {
    cap: u64,
    /// Sorted by query, so that rounds do not depend on the order of the counts.
    open: Vec<(i32, Window, u64)>,
    found: HashMap<i32, u64>,
}

impl Bounds {
    /// For all queries that matched more pairs than `cap`.
    #[must_use]
    pub(crate) fn new(cap: u64, counts: &HashMap<i32, u64>) -> Self {
        let exceeding = counts.iter().filter(|(_, matched)| **matched > cap);
        let mut open: Vec<_> =
            exceeding.map(|(query, matched)| (*query, Window::expected(cap, *matched), *matched)).collect();
        open.sort_unstable_by_key(|(query, ..)| *query);
        Self { cap, open, found: HashMap::new() }
    }

    /// The next pass: as many queries as fit in about `budget` bytes, at least one. `None` when all
    /// bounds are known.
    #[must_use]
    pub(crate) fn next_round(&mut self, budget: usize) -> Option<Round> {
        let mut round = Round { cap: self.cap, queries: HashMap::new() };
        let (mut bytes, mut taken) = (0.0, 0);
        for (query, window, matched) in &self.open {
            // Twice: vectors grow by doubling.
            bytes += 16.0 * (*matched as f64 * window.share()).min(2.0 * (self.cap as f64 + 1.0)) + 64.0;
            if bytes > budget as f64 && taken > 0 {
                break;
            }
            round.queries.insert(*query, WindowCounts { window: *window, below: 0, within: Vec::new() });
            taken += 1;
        }
        (taken > 0).then_some(round)
    }

    /// Takes the result of a pass over all matches.
    pub(crate) fn settle(&mut self, round: Round) {
        let mut queries = round.queries;
        let cap = self.cap;
        let found = &mut self.found;
        self.open.retain_mut(|(query, window, _)| {
            let Some(mut seen) = queries.remove(query) else { return true };
            if seen.below > cap {
                // Some hash is below `low`, so it is not 0.
                *window = Window { low: 0, high: window.low - 1 };
                return true;
            }
            let place = (cap - seen.below) as usize;
            if place < seen.within.len() {
                found.insert(*query, *seen.within.select_nth_unstable(place).1);
                return false;
            }
            match window.high.checked_add(1) {
                Some(low) => {
                    *window = Window { low, high: u64::MAX };
                    true
                }
                // There are fewer matches than were counted. Without a bound, the query contributes
                // nothing.
                None => false,
            }
        });
    }

    #[must_use]
    pub(crate) fn into_bounds(self) -> HashMap<i32, u64> {
        self.found
    }
}

/// One pass over the matches, or over one partition of them.
#[derive(Debug, Clone)]
pub(crate) struct Round {
    cap: u64,
    queries: HashMap<i32, WindowCounts>,
}

#[derive(Debug, Clone)]
struct WindowCounts {
    window: Window,
    below: u64,
    within: Vec<u64>,
}

impl WindowCounts {
    fn add(&mut self, hash: u64, cap: u64) {
        if hash < self.window.low {
            self.below += 1;
        } else if hash <= self.window.high && self.below <= cap {
            self.within.push(hash);
            self.prune(cap);
        }
    }

    /// Drops the hashes that can no longer be the bound, once half of them cannot.
    fn prune(&mut self, cap: u64) {
        if self.below > cap {
            self.within = Vec::new();
            return;
        }
        let needed = (cap + 1 - self.below) as usize;
        if self.within.len() >= 2 * needed {
            self.within.select_nth_unstable(needed - 1);
            self.within.truncate(needed);
        }
    }
}

impl Round {
    /// A pass that searches these windows.
    #[must_use]
    pub(crate) fn searching(cap: u64, windows: impl IntoIterator<Item = (i32, Window)>) -> Self {
        let unseen = |window| WindowCounts { window, below: 0, within: Vec::new() };
        Self { cap, queries: windows.into_iter().map(|(query, window)| (query, unseen(window))).collect() }
    }

    /// The windows that it searches, by query.
    #[must_use]
    pub(crate) fn windows(&self) -> Vec<(i32, Window)> {
        let mut windows: Vec<_> = self.queries.iter().map(|(query, seen)| (*query, seen.window)).collect();
        windows.sort_unstable_by_key(|(query, _)| *query);
        windows
    }

    /// What was seen of each query, by query: how many hashes below its window, and those within.
    #[must_use]
    pub(crate) fn into_seen(self) -> Vec<(i32, u64, Vec<u64>)> {
        let seen = self.queries.into_iter().filter(|(_, seen)| seen.below > 0 || !seen.within.is_empty());
        let mut seen: Vec<_> = seen.map(|(query, seen)| (query, seen.below, seen.within)).collect();
        seen.sort_unstable_by_key(|(query, ..)| *query);
        // In an order that does not depend on that of the pairs.
        seen.iter_mut().for_each(|(.., within)| within.sort_unstable());
        seen
    }

    /// Adds what another process saw of a query.
    pub(crate) fn add_seen(&mut self, query: i32, below: u64, within: &[u64]) {
        if let Some(seen) = self.queries.get_mut(&query) {
            seen.below += below;
            seen.within.extend(within);
            seen.prune(self.cap);
        }
    }

    /// Adds a pair, by its [`super::hash::pair_hash`], and the distinct queries that it matches.
    pub(crate) fn add(&mut self, pair: u64, queries: &[i32]) {
        for query in queries {
            if let Some(seen) = self.queries.get_mut(query) {
                seen.add(match_hash(pair, *query), self.cap);
            }
        }
    }

    /// Adds the result of another partition for the same round.
    pub(crate) fn merge(&mut self, other: Self) {
        for (query, other) in other.queries {
            if let Some(seen) = self.queries.get_mut(&query) {
                seen.below += other.below;
                seen.within.extend(other.within);
                seen.prune(self.cap);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::hash::pair_hash;
    use super::*;
    use proptest::prelude::*;

    /// Reference implementation: sort all hashes.
    fn sorted(pairs: &[(u64, Vec<i32>)], cap: u64) -> HashMap<i32, u64> {
        let mut hashes: HashMap<i32, Vec<u64>> = HashMap::new();
        for (pair, queries) in pairs {
            queries
                .iter()
                .for_each(|query| hashes.entry(*query).or_default().push(match_hash(*pair, *query)));
        }
        hashes.values_mut().for_each(|of_query| of_query.sort_unstable());
        let bound = |(query, hashes): (i32, Vec<u64>)| Some((query, *hashes.get(cap as usize)?));
        hashes.into_iter().filter_map(bound).collect()
    }

    fn bounds(pairs: &[(u64, Vec<i32>)], cap: u64, budget: usize, parts: usize) -> (HashMap<i32, u64>, u32) {
        let mut counts = HashMap::new();
        pairs
            .iter()
            .flat_map(|(_, queries)| queries)
            .for_each(|query| *counts.entry(*query).or_insert(0) += 1);
        let (mut bounds, mut rounds) = (Bounds::new(cap, &counts), 0);
        while let Some(empty) = bounds.next_round(budget) {
            let mut whole = empty.clone();
            for (place, part) in pairs.chunks(pairs.len().div_ceil(parts)).enumerate() {
                let mut round = Round::searching(cap, empty.windows());
                part.iter().for_each(|(pair, queries)| round.add(*pair, queries));
                // As from another partition, or another process.
                if place % 2 == 0 {
                    whole.merge(round);
                } else {
                    let seen = round.into_seen();
                    seen.iter().for_each(|(query, below, within)| whole.add_seen(*query, *below, within));
                }
            }
            bounds.settle(whole);
            rounds += 1;
        }
        (bounds.into_bounds(), rounds)
    }

    #[test]
    fn uniform_hashes_need_one_pass() {
        let pairs: Vec<_> = (0..50_000u32)
            .map(|i| (pair_hash(3, &format!("{i:032x}")), vec![0, 1 + (i % 7) as i32]))
            .collect();
        let (found, rounds) = bounds(&pairs, 2_000, 1 << 30, 3);
        assert_eq!((found, rounds), (sorted(&pairs, 2_000), 1));
        // A tiny budget takes one round for each of the eight queries.
        assert_eq!(bounds(&pairs, 2_000, 1, 1), (sorted(&pairs, 2_000), 8));
    }

    #[test]
    fn repeated_pairs_take_a_second_pass() {
        // All hashes of query 1 are equal, far from the bound of uniform hashes.
        let pairs: Vec<_> = (0..1_000).map(|i| (9, if i % 2 == 0 { vec![1] } else { vec![1, 2] })).collect();
        let (found, rounds) = bounds(&pairs, 100, 1 << 20, 4);
        assert_eq!(found, sorted(&pairs, 100));
        assert_eq!(rounds, 2);
    }

    proptest! {
        #[test]
        fn agrees_with_sorting(
            pairs in prop::collection::vec((prop_oneof![0u64..6, any::<u64>()], prop::collection::btree_set(0..4i32, 1..4)), 1..80),
            cap in 1u64..12,
            budget in 1usize..3_000,
            parts in 1usize..4,
        ) {
            let pairs: Vec<_> = pairs.into_iter().map(|(pair, queries)| (pair, queries.into_iter().collect())).collect();
            prop_assert_eq!(bounds(&pairs, cap, budget, parts).0, sorted(&pairs, cap));
        }
    }
}
