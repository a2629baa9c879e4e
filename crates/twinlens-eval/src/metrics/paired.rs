//! Paired comparison of two models, or two prompt sets, on the same examples: the size of the
//! difference, and whether it is significant.
//!
//! Two accuracies may differ significantly although their intervals overlap: only the examples on
//! which the two disagree carry information.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Binomial, Distribution};
use sha2::{Digest, Sha256};

use super::{Interval, percentile, wilson};

/// Replicates of the paired bootstrap.
pub const PAIRED_REPLICATES: usize = 10_000;

/// Outcomes of the same examples in two evaluations, A and B.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PairedCounts {
    /// Both are correct.
    pub both: u64,
    /// Only A is correct.
    pub a_only: u64,
    /// Only B is correct.
    pub b_only: u64,
    /// Neither is correct.
    pub neither: u64,
}

/// How A compares to B.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Comparison {
    /// Accuracy of A minus that of B.
    pub difference: f64,
    /// The 95 % interval of the difference.
    pub interval: Interval,
    /// Two-sided p-value of McNemar's exact test.
    pub p: f64,
    pub n: u64,
}

impl PairedCounts {
    pub fn add(&mut self, a: bool, b: bool) {
        *match (a, b) {
            (true, true) => &mut self.both,
            (true, false) => &mut self.a_only,
            (false, true) => &mut self.b_only,
            (false, false) => &mut self.neither,
        } += 1;
    }

    pub fn merge(&mut self, other: &Self) {
        self.both += other.both;
        self.a_only += other.a_only;
        self.b_only += other.b_only;
        self.neither += other.neither;
    }

    pub fn n(&self) -> u64 {
        self.both + self.a_only + self.b_only + self.neither
    }

    /// The comparison; `None` without examples.
    ///
    /// The interval is the percentile interval of [`PAIRED_REPLICATES`] bootstrap replicates, each
    /// of which resamples the pairs with replacement (B. Efron, R. Tibshirani, An Introduction to
    /// the Bootstrap, 1993). Only the kind of a pair matters, so that a replicate is one draw from
    /// the multinomial distribution of the four counts, which equals drawing row by row. The random
    /// stream is seeded by the counts: the interval does not depend on the order of the rows, and B
    /// against A is A against B with the sign flipped.
    ///
    /// If no pair differs, or all differ in the same direction, every replicate would be the same;
    /// the interval is then Wilson's for the share of pairs that might have differed, or agreed.
    ///
    /// `p` is exact: the probability that a fair coin favours one side at least as often among the
    /// pairs that differ. In small samples it is the more conservative of the two.
    pub fn compare(&self) -> Option<Comparison> {
        let n = self.n();
        let (larger, smaller) = (self.a_only.max(self.b_only), self.a_only.min(self.b_only));
        let mut interval = if larger == 0 {
            let high = wilson(0.0, n as f64)?.high;
            Interval { low: -high, high }
        } else if larger == n {
            wilson(n as f64, n as f64)?
        } else {
            let drawn = replicates(n, larger, smaller, PAIRED_REPLICATES)?;
            Interval { low: percentile(&drawn, 0.025)?, high: percentile(&drawn, 0.975)? }
        };
        if self.b_only > self.a_only {
            interval = Interval { low: -interval.high, high: -interval.low };
        }
        let difference = (self.a_only as f64 - self.b_only as f64) / n as f64;
        Some(Comparison { difference, interval, p: sign_test(larger, smaller), n })
    }
}

/// Differences of `count` replicates, sorted. Never `None` for counts within `n`.
fn replicates(n: u64, larger: u64, smaller: u64, count: usize) -> Option<Vec<f64>> {
    let mut seed = Sha256::new_with_prefix(b"twinlens paired bootstrap 1");
    [n, larger, smaller].iter().for_each(|part| seed.update(part.to_le_bytes()));
    let mut rng = ChaCha8Rng::from_seed(seed.finalize().into());
    let differ = larger + smaller;
    let differing = Binomial::new(n, differ as f64 / n as f64).ok()?;
    let share = larger as f64 / differ as f64;
    let mut drawn = Vec::with_capacity(count);
    for _ in 0..count {
        let differing = differing.sample(&mut rng);
        let wins = Binomial::new(differing, share).ok()?.sample(&mut rng);
        drawn.push((2.0 * wins as f64 - differing as f64) / n as f64);
    }
    drawn.sort_by(f64::total_cmp);
    Some(drawn)
}

/// The probability that at least `larger` of `larger + smaller` tosses of a fair coin show the same
/// side (Q. McNemar, Psychometrika 12, 1947, with the exact binomial distribution).
fn sign_test(larger: u64, smaller: u64) -> f64 {
    if larger == smaller {
        return 1.0;
    }
    let tosses = (larger + smaller) as f64;
    // The logarithm of `tosses` over `smaller`: the binomial coefficient itself would overflow.
    let ways: f64 = (1..=smaller).map(|i| ((larger + i) as f64 / i as f64).ln()).sum();
    let mut term = (ways - tosses * std::f64::consts::LN_2).exp();
    let mut tail = 0.0;
    let mut heads = larger as f64;
    while heads <= tosses && term > tail * 1e-17 {
        tail += term;
        term *= (tosses - heads) / (heads + 1.0);
        heads += 1.0;
    }
    (2.0 * tail).min(1.0)
}

#[cfg(test)]
mod tests {
    use rand::Rng;

    use super::*;

    fn paired(both: u64, a_only: u64, b_only: u64, neither: u64) -> PairedCounts {
        PairedCounts { both, a_only, b_only, neither }
    }

    /// Reference implementation: every replicate draws rows, one by one.
    #[test]
    fn drawing_counts_equals_drawing_rows() {
        for counts in
            [paired(60, 30, 10, 50), paired(0, 3, 2, 15), paired(400, 5, 1, 94), paired(10, 20, 60, 10)]
        {
            let kinds =
                [(0.0, counts.both), (1.0, counts.a_only), (-1.0, counts.b_only), (0.0, counts.neither)];
            let rows: Vec<f64> =
                kinds.iter().flat_map(|(kind, count)| std::iter::repeat_n(*kind, *count as usize)).collect();
            let mut rng = ChaCha8Rng::seed_from_u64(17);
            let mut drawn: Vec<f64> = (0..4000)
                .map(|_| {
                    let sum: f64 = rows.iter().map(|_| rows[rng.random_range(0..rows.len())]).sum();
                    sum / rows.len() as f64
                })
                .collect();
            drawn.sort_by(f64::total_cmp);
            let (low, high) = (percentile(&drawn, 0.025).unwrap(), percentile(&drawn, 0.975).unwrap());
            let found = counts.compare().unwrap();
            let near = |a: f64, b: f64| (a - b).abs() <= 0.08 * (high - low) + 1.0 / rows.len() as f64;
            assert!(
                near(found.interval.low, low) && near(found.interval.high, high),
                "{found:?} {low} {high}"
            );
            assert!((found.difference - rows.iter().sum::<f64>() / rows.len() as f64).abs() < 1e-12);
        }
    }

    #[test]
    fn swapping_a_and_b_flips_the_sign() {
        let (ab, ba) = (paired(60, 30, 10, 50).compare().unwrap(), paired(50, 10, 30, 60).compare().unwrap());
        assert_eq!((ab.difference, ab.p, ab.n), (-ba.difference, ba.p, ba.n));
        assert_eq!(ab.interval, Interval { low: -ba.interval.high, high: -ba.interval.low });
        assert_eq!(ab, paired(60, 30, 10, 50).compare().unwrap(), "seeded by the counts");
        // Normal theory: the standard error of the difference is sqrt(p10 + p01 - d^2) / sqrt(n).
        let error = ((40.0 / 150.0 - (20.0_f64 / 150.0).powi(2)) / 150.0).sqrt();
        assert!(
            (ab.interval.high - ab.interval.low - 2.0 * super::super::Z95 * error).abs() < 0.2 * error,
            "{ab:?}"
        );
    }

    #[test]
    fn outcomes_without_variance_have_an_interval() {
        assert_eq!(PairedCounts::default().compare(), None);
        let upper = wilson(0.0, 20.0).unwrap().high;
        let same = paired(12, 0, 0, 8).compare().unwrap();
        assert_eq!(
            (same.difference, same.p, same.interval),
            (0.0, 1.0, Interval { low: -upper, high: upper })
        );
        let worse = paired(0, 0, 5, 0).compare().unwrap();
        assert_eq!((worse.difference, worse.p), (-1.0, 0.0625));
        assert_eq!(worse.interval, Interval { low: -1.0, high: -wilson(5.0, 5.0).unwrap().low });
    }

    #[test]
    fn exact_test_matches_known_values() {
        // By hand, from the binomial coefficients of 2^m.
        let cases = [
            (5, 0, 2.0 / 32.0),
            (8, 2, 2.0 * 56.0 / 1024.0),
            (3, 3, 1.0),
            (4, 3, 1.0),
            (0, 0, 1.0),
            (15, 5, 2.0 * 21_700.0 / 1_048_576.0),
        ];
        for (larger, smaller, expected) in cases {
            assert!((sign_test(larger, smaller) - expected).abs() < 1e-12, "{larger} {smaller}");
        }
        // Many: the normal distribution beyond 2 standard deviations, with continuity correction.
        let p = sign_test(501_000, 499_000);
        assert!((p - 0.0456).abs() < 2e-4, "{p}");
        assert!(sign_test(900_000, 100) < 1e-300);
    }
}
