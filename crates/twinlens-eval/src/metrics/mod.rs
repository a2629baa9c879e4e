//! Accuracies and their confidence intervals.
//!
//! Most are computed from a [`Tally`] (examples and correct predictions per class), so that memory
//! depends only on the number of classes. Small sets have wide errors: no accuracy leaves this
//! crate without its interval and chance level.

pub mod calibration;
pub mod paired;
pub mod ranking;
pub mod retrieval;

use rand::Rng;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The 97.5 % quantile of the standard normal distribution, for 95 % intervals.
pub const Z95: f64 = 1.959_963_984_540_054;

/// Bootstrap replicates: enough to determine the ends of an interval to about 5 % of its width.
pub const REPLICATES: usize = 2000;

/// Classes with fewer examples are pooled; see [`mean_per_class_interval`].
pub const SMALL_CLASS: u64 = 5;

/// A classification metric.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Share of examples whose class has the highest score.
    #[default]
    Top1,
    /// Share of examples whose class is among the five highest scores. Only for more than five
    /// classes.
    Top5,
    /// Mean of the accuracies of the classes that have examples: rare classes weigh as much as
    /// frequent ones.
    MeanPerClass,
    /// For two classes: area under the ROC curve of the difference of their scores.
    RocAuc,
    /// For multi-label sets: mean average precision over the classes.
    Map,
    /// For multi-label sets: mean of the 11-point average precision of PASCAL VOC 2007.
    #[serde(rename = "map_11_point")]
    Map11Point,
}

impl Metric {
    /// In reporting order.
    pub const ALL: [Metric; 6] =
        [Metric::Top1, Metric::Top5, Metric::MeanPerClass, Metric::RocAuc, Metric::Map, Metric::Map11Point];

    /// The name in tables and options.
    pub fn name(self) -> &'static str {
        match self {
            Metric::Top1 => "top1",
            Metric::Top5 => "top5",
            Metric::MeanPerClass => "mean_per_class",
            Metric::RocAuc => "roc_auc",
            Metric::Map => "map",
            Metric::Map11Point => "map_11_point",
        }
    }

    /// The expected value of random guessing among `classes` classes; `None` if it depends on class
    /// frequencies.
    pub fn chance(self, classes: usize) -> Option<f64> {
        match self {
            Metric::Top1 | Metric::MeanPerClass => Some(1.0 / classes as f64),
            Metric::Top5 => Some(classes.min(5) as f64 / classes as f64),
            Metric::RocAuc => Some(0.5),
            Metric::Map | Metric::Map11Point => None,
        }
    }

    /// Whether it is computed from the ranking of all scores, not from counts.
    pub fn is_ranking(self) -> bool {
        matches!(self, Metric::RocAuc | Metric::Map | Metric::Map11Point)
    }

    pub fn is_multi_label(self) -> bool {
        matches!(self, Metric::Map | Metric::Map11Point)
    }

    /// Whether the metric applies to a single-label set of `classes` classes.
    pub fn applies(self, classes: usize) -> bool {
        match self {
            Metric::Top1 | Metric::MeanPerClass => true,
            Metric::Top5 => classes > 5,
            Metric::RocAuc => classes == 2,
            Metric::Map | Metric::Map11Point => false,
        }
    }
}

/// A 95 % confidence interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Interval {
    pub low: f64,
    pub high: f64,
}

/// Wilson's score interval (E. B. Wilson, 1927) for `correct` of `n`; `None` if `n` is 0 or
/// `correct` is outside 0..=n.
///
/// Unlike the normal approximation it stays within 0..=1 and does not shrink to a point when none
/// or all are correct.
pub fn wilson(correct: f64, n: f64) -> Option<Interval> {
    if !(n > 0.0 && (0.0..=n).contains(&correct)) {
        return None;
    }
    let (share, z2) = (correct / n, Z95 * Z95);
    let centre = share + z2 / (2.0 * n);
    let spread = Z95 * (share * (1.0 - share) / n + z2 / (4.0 * n * n)).sqrt();
    let scale = 1.0 + z2 / n;
    // The formula gives exactly 0 or 1 here; rounding would not.
    let low = if correct == 0.0 { 0.0 } else { (centre - spread) / scale };
    let high = if correct == n { 1.0 } else { (centre + spread) / scale };
    Some(Interval { low, high })
}

/// The ids of the `k` highest scores, best first; ties go to the lowest id. One pass, at most `k`
/// comparisons per class.
pub fn top_k(scores: &[f32], k: usize) -> Vec<usize> {
    let mut top: Vec<usize> = Vec::with_capacity(k + 1);
    for (id, score) in scores.iter().enumerate() {
        if top.len() == k && top.last().is_none_or(|last| *score <= scores[*last]) {
            continue;
        }
        let at = top.iter().position(|other| *score > scores[*other]).unwrap_or(top.len());
        top.insert(at, id);
        top.truncate(k);
    }
    top
}

/// Examples and correct predictions per class.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tally {
    n: Vec<u64>,
    correct: Vec<u64>,
    in_top5: u64,
}

impl Tally {
    pub fn new(classes: usize) -> Self {
        Self { n: vec![0; classes], correct: vec![0; classes], in_top5: 0 }
    }

    /// Counts an example of class `label`; `ranked` is its [`top_k`] with `k` = 5.
    pub fn add(&mut self, label: usize, ranked: &[usize]) {
        self.n[label] += 1;
        self.correct[label] += u64::from(ranked.first() == Some(&label));
        self.in_top5 += u64::from(ranked.iter().take(5).any(|id| *id == label));
    }

    /// Counts a multi-label example; a label is correct if it is among the `best`.
    pub fn add_multi_label(&mut self, labels: &[usize], best: &[usize]) {
        for label in labels {
            self.n[*label] += 1;
            self.correct[*label] += u64::from(best.contains(label));
        }
    }

    /// Examples per class.
    pub fn examples(&self) -> &[u64] {
        &self.n
    }

    /// Correct predictions per class.
    pub fn correct(&self) -> &[u64] {
        &self.correct
    }

    pub fn total(&self) -> u64 {
        self.n.iter().sum()
    }

    /// `(examples, correct)` of the classes that have examples.
    fn seen(&self) -> impl Iterator<Item = (u64, u64)> {
        self.n.iter().copied().zip(self.correct.iter().copied()).filter(|(n, _)| *n > 0)
    }

    /// The value of a metric; `None` without examples, and for [`ranking`] metrics.
    pub fn value(&self, metric: Metric) -> Option<f64> {
        let total = self.total();
        if total == 0 {
            return None;
        }
        Some(match metric {
            Metric::Top1 => self.correct.iter().sum::<u64>() as f64 / total as f64,
            Metric::Top5 => self.in_top5 as f64 / total as f64,
            Metric::MeanPerClass => {
                let shares: f64 = self.seen().map(|(n, correct)| correct as f64 / n as f64).sum();
                shares / self.seen().count() as f64
            }
            Metric::RocAuc | Metric::Map | Metric::Map11Point => return None,
        })
    }

    /// The 95 % interval of a metric: Wilson's for shares of examples, a bootstrap for the mean per
    /// class. `None` in the same cases as [`value`](Self::value).
    pub fn interval(&self, metric: Metric, rng: &mut impl Rng) -> Option<Interval> {
        let total = self.total() as f64;
        match metric {
            Metric::Top1 => wilson(self.correct.iter().sum::<u64>() as f64, total),
            Metric::Top5 => wilson(self.in_top5 as f64, total),
            Metric::MeanPerClass => mean_per_class_interval(self, REPLICATES, rng),
            Metric::RocAuc | Metric::Map | Metric::Map11Point => None,
        }
    }
}

/// The interval of the mean per class: the percentile interval of a stratified bootstrap, which
/// resamples the examples of each class with replacement (B. Efron, R. Tibshirani, An Introduction
/// to the Bootstrap, 1993).
///
/// The plain bootstrap underestimates the uncertainty in two cases:
/// * A class of one example always draws that example. Classes of fewer than [`SMALL_CLASS`]
///   examples therefore form one stratum (the collapsed strata of survey sampling), from which
///   whole classes are drawn.
/// * A class whose examples are all correct, or all wrong, never varies; a model that always
///   predicts one class would get an interval of width 0. Such a stratum contributes Wilson's
///   interval instead, by the sum of the squared distances from the value (G. Zou, A. Donner,
///   Statistics in Medicine 27, 2008).
pub fn mean_per_class_interval(tally: &Tally, replicates: usize, rng: &mut impl Rng) -> Option<Interval> {
    let value = tally.value(Metric::MeanPerClass)?;
    let classes = tally.seen().count() as f64;
    let (large, small): (Vec<_>, Vec<_>) = tally.seen().partition(|(n, _)| *n >= SMALL_CLASS);
    let strata = large.into_iter().map(|class| vec![class]).chain((!small.is_empty()).then_some(small));
    let (uniform, mixed): (Vec<_>, Vec<_>) =
        strata.partition(|stratum| matches!(total(stratum), (n, correct) if correct == 0 || correct == n));
    let drawn = bootstrap(&mixed, replicates, rng);
    let centre: f64 = mixed.iter().flatten().map(share).sum();
    let mut below = (centre - percentile(&drawn, 0.025)?).max(0.0).powi(2);
    let mut above = (percentile(&drawn, 0.975)? - centre).max(0.0).powi(2);
    for stratum in &uniform {
        let (n, correct) = total(stratum);
        let (interval, share) = (wilson(correct as f64, n as f64)?, correct as f64 / n as f64);
        below += (stratum.len() as f64 * (share - interval.low)).powi(2);
        above += (stratum.len() as f64 * (interval.high - share)).powi(2);
    }
    Some(Interval {
        low: (value - below.sqrt() / classes).max(0.0),
        high: (value + above.sqrt() / classes).min(1.0),
    })
}

fn share((n, correct): &(u64, u64)) -> f64 {
    *correct as f64 / *n as f64
}

fn total(stratum: &[(u64, u64)]) -> (u64, u64) {
    stratum.iter().fold((0, 0), |(n, correct), class| (n + class.0, correct + class.1))
}

/// Sums of the classes' shares over resampled strata, sorted.
fn bootstrap(strata: &[Vec<(u64, u64)>], replicates: usize, rng: &mut impl Rng) -> Vec<f64> {
    let mut draw = |stratum: &Vec<(u64, u64)>| match stratum[..] {
        [(n, correct)] => redraw(n, correct, rng),
        _ => (0..stratum.len()).map(|_| share(&stratum[rng.random_range(0..stratum.len())])).sum(),
    };
    let mut sums: Vec<f64> = (0..replicates).map(|_| strata.iter().map(&mut draw).sum()).collect();
    sums.sort_by(f64::total_cmp);
    sums
}

/// The share of correct examples in a resample of `n` examples of which `correct` are correct.
fn redraw(n: u64, correct: u64, rng: &mut impl Rng) -> f64 {
    (0..n).filter(|_| rng.random_range(0..n) < correct).count() as f64 / n as f64
}

/// The percentile of sorted values, linearly interpolated; `None` without values.
fn percentile(sorted: &[f64], share: f64) -> Option<f64> {
    let at = share * sorted.len().checked_sub(1)? as f64;
    let (below, above) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    Some(below + (above - below) * at.fract())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    fn rng() -> ChaCha8Rng {
        ChaCha8Rng::seed_from_u64(17)
    }

    fn tally(classes: &[(u64, u64)]) -> Tally {
        let (n, correct) = classes.iter().copied().unzip();
        Tally { n, correct, in_top5: 0 }
    }

    fn close(found: f64, expected: f64, within: f64) -> bool {
        (found - expected).abs() <= within
    }

    #[test]
    fn wilson_gives_the_published_intervals() {
        // R. G. Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
        let cases = [
            (81, 263, 0.2553, 0.3662),
            (15, 148, 0.0624, 0.1605),
            (0, 20, 0.0, 0.1611),
            (1, 29, 0.0061, 0.1718),
        ];
        for (correct, n, low, high) in cases {
            let found = wilson(f64::from(correct), f64::from(n)).unwrap();
            assert!(close(found.low, low, 5e-5) && close(found.high, high, 5e-5), "{correct}/{n}: {found:?}");
        }
        assert_eq!(wilson(20.0, 20.0).unwrap().high, 1.0);
        for (correct, n) in [(0.0, 0.0), (2.0, 1.0), (-1.0, 5.0), (f64::NAN, 5.0), (1.0, f64::NAN)] {
            assert_eq!(wilson(correct, n), None, "{correct}/{n}");
        }
    }

    #[test]
    fn metrics_of_a_small_table_by_hand() {
        let mut tally = Tally::new(7);
        // Class 0: one of two correct; class 1: wrong but in the top five; class 6: not even that.
        for (label, ranked) in
            [(0, [0, 1, 2, 3, 4]), (0, [1, 0, 2, 3, 4]), (1, [0, 2, 3, 4, 1]), (6, [0, 1, 2, 3, 4])]
        {
            tally.add(label, &ranked);
        }
        assert_eq!(tally.value(Metric::Top1), Some(0.25));
        assert_eq!(tally.value(Metric::Top5), Some(0.75));
        assert!(close(tally.value(Metric::MeanPerClass).unwrap(), 0.5 / 3.0, 1e-12));
        assert_eq!(
            (tally.examples(), tally.correct()),
            (&[2, 1, 0, 0, 0, 0, 1][..], &[1, 0, 0, 0, 0, 0, 0][..])
        );
        for metric in Metric::ALL {
            assert_eq!(Tally::new(3).value(metric), None);
            assert_eq!(Tally::new(3).interval(metric, &mut rng()), None);
        }
    }

    #[test]
    fn chance_levels() {
        let cases = [
            (Metric::Top1, 9, 1.0 / 9.0),
            (Metric::Top5, 20, 0.25),
            (Metric::Top5, 3, 1.0),
            (Metric::MeanPerClass, 4, 0.25),
            (Metric::RocAuc, 2, 0.5),
        ];
        for (metric, classes, expected) in cases {
            assert!(close(metric.chance(classes).unwrap(), expected, 1e-12), "{metric:?}");
        }
        assert!(Metric::Top5.applies(6) && !Metric::Top5.applies(5) && Metric::Top1.applies(1));
        assert!(Metric::RocAuc.applies(2) && !Metric::RocAuc.applies(3) && !Metric::Map.applies(2));
    }

    #[test]
    fn bootstrap_width_matches_theory() {
        // Standard error of the mean of k shares: sqrt(sum p (1 - p) / n) / k.
        let many_single: Vec<(u64, u64)> = (0..400).map(|class| (1, u64::from(class < 40))).collect();
        let cases = [
            (
                "two large classes",
                vec![(100, 50), (100, 80)],
                0.65,
                (0.25_f64 / 100.0 + 0.16 / 100.0).sqrt() / 2.0,
            ),
            ("one example per class", many_single, 0.1, (0.09_f64 / 400.0).sqrt()),
            ("an empty class is excluded", vec![(0, 0), (200, 50)], 0.25, (0.1875_f64 / 200.0).sqrt()),
        ];
        for (name, classes, value, error) in cases {
            let found = tally(&classes).interval(Metric::MeanPerClass, &mut rng()).unwrap();
            let (low, high) = (value - Z95 * error, value + Z95 * error);
            assert!(
                close(found.low, low, 0.3 * error) && close(found.high, high, 0.3 * error),
                "{name}: {found:?} {low} {high}"
            );
            assert_eq!(
                found,
                tally(&classes).interval(Metric::MeanPerClass, &mut rng()).unwrap(),
                "{name}: seeded"
            );
        }
    }

    #[test]
    fn all_correct_or_all_wrong_has_an_interval() {
        let interval =
            |classes: &[(u64, u64)]| tally(classes).interval(Metric::MeanPerClass, &mut rng()).unwrap();
        assert_eq!(interval(&[(10, 0)]), wilson(0.0, 10.0).unwrap());
        assert_eq!(interval(&[(10, 10)]), wilson(10.0, 10.0).unwrap());
        // Forty classes of one image each, none correct: as forty examples.
        assert_eq!(interval(&[(1, 0); 40]), wilson(0.0, 40.0).unwrap());
        // A model that always predicts the first of seven classes: Wilson's interval of 0 in 10
        // ends at 0.2775.
        let one_prediction: Vec<(u64, u64)> =
            (0..7).map(|class| (10, if class == 0 { 10 } else { 0 })).collect();
        let found = interval(&one_prediction);
        assert!(close(found.low, (1.0 - 0.2775) / 7.0, 1e-4), "{found:?}");
        assert!(close(found.high, (1.0 + 6.0_f64.sqrt() * 0.2775) / 7.0, 1e-4), "{found:?}");
    }

    /// Coverage on simulated outcomes of known probability.
    #[test]
    fn intervals_cover_the_truth() {
        let mut rng = rng();
        let spread = |class: usize, of: usize| (class as f64 + 0.5) / of as f64;
        let groups: Vec<(u64, f64)> = (0..9).map(|class| (40, spread(class, 9) * 0.7)).collect();
        let names: Vec<(u64, f64)> =
            (0..300).map(|class| (1 + class % 3, spread(class as usize, 300).powi(4))).collect();
        let one_prediction: Vec<(u64, f64)> =
            (0..9).map(|class| (10, if class == 4 { 0.98 } else { 0.02 })).collect();
        for (name, classes) in [("groups", groups), ("names", names), ("one prediction", one_prediction)] {
            let truth =
                classes.iter().map(|(_, probability)| probability).sum::<f64>() / classes.len() as f64;
            let mut covered = 0;
            for _ in 0..200 {
                let drawn: Vec<(u64, u64)> = (classes.iter())
                    .map(|(n, probability)| {
                        (*n, (0..*n).filter(|_| rng.random_bool(*probability)).count() as u64)
                    })
                    .collect();
                let found = mean_per_class_interval(&tally(&drawn), 200, &mut rng).unwrap();
                covered += u32::from(found.low <= truth && truth <= found.high);
            }
            assert!((180..=200).contains(&covered), "{name}: {covered} of 200");
        }
    }

    proptest! {
        /// Reference implementation: a stable sort. Few distinct values make many ties.
        #[test]
        fn top_k_matches_a_stable_sort(scores in prop::collection::vec(-3_i8..3, 0..40), k in 1_usize..8) {
            let scores: Vec<f32> = scores.into_iter().map(f32::from).collect();
            let mut sorted: Vec<usize> = (0..scores.len()).collect();
            sorted.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
            sorted.truncate(k);
            prop_assert_eq!(top_k(&scores, k), sorted);
        }

        #[test]
        fn an_interval_contains_its_value(classes in prop::collection::vec((1_u64..30, 0.0..=1.0_f64), 1..12)) {
            let classes: Vec<(u64, u64)> = classes.into_iter().map(|(n, share)| (n, (n as f64 * share).round() as u64)).collect();
            let tally = tally(&classes);
            for metric in [Metric::Top1, Metric::MeanPerClass] {
                let (value, found) = (tally.value(metric).unwrap(), tally.interval(metric, &mut rng()).unwrap());
                prop_assert!(0.0 <= found.low && found.low <= value + 1e-9 && value <= found.high + 1e-9 && found.high <= 1.0,
                    "{metric:?} {value} {found:?}");
            }
        }
    }
}
