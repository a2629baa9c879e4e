//! Metrics of ranking examples by a score: average precision and ROC AUC.
//!
//! They need every score: five bytes per example and class. Examples with equal scores are one step
//! of the curve, so that a value does not depend on the order of the examples.

use rand::Rng;

use super::{Interval, Metric, REPLICATES, percentile};

/// Whether an example belongs to a class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    Absent,
    Present,
    /// Not annotated: the example does not count for this class.
    Ignored,
}

/// Bound on the work of the bootstrap: a set of millions of scores gets fewer replicates.
const MAX_STEPS: usize = 400_000_000;
const MIN_REPLICATES: usize = 200;
/// Random rankings over which the chance level of the 11-point precision is averaged.
const SHUFFLES: usize = 200;

/// The scores of all examples for every class.
#[derive(Debug, Clone, Default)]
pub struct Scores {
    /// By class, then by example.
    scores: Vec<Vec<f32>>,
    truth: Vec<Vec<Presence>>,
}

/// The examples that count for a class, best first.
struct RankedClass {
    order: Vec<u32>,
    /// Whether an example has the same score as the next one.
    tied: Vec<bool>,
    present: Vec<bool>,
}

impl Scores {
    pub fn new(classes: usize) -> Self {
        Self { scores: vec![Vec::new(); classes], truth: vec![Vec::new(); classes] }
    }

    /// Adds an example: score and presence for each class.
    pub fn add(&mut self, example: impl IntoIterator<Item = (f32, Presence)>) {
        for ((scores, truth), (score, presence)) in self.scores.iter_mut().zip(&mut self.truth).zip(example) {
            scores.push(score);
            truth.push(presence);
        }
    }

    pub fn examples(&self) -> usize {
        self.scores.first().map_or(0, Vec::len)
    }

    /// Positive examples per class.
    pub fn present(&self) -> Vec<u64> {
        let count = |truth: &Vec<Presence>| {
            truth.iter().filter(|presence| **presence == Presence::Present).count() as u64
        };
        self.truth.iter().map(count).collect()
    }

    fn ranked(&self) -> Vec<RankedClass> {
        let rank = |(scores, truth): (&Vec<f32>, &Vec<Presence>)| {
            let mut order: Vec<u32> =
                (0..scores.len() as u32).filter(|at| truth[*at as usize] != Presence::Ignored).collect();
            order.sort_by(|a, b| scores[*b as usize].total_cmp(&scores[*a as usize]).then(a.cmp(b)));
            let tied = |pair: &[u32]| scores[pair[0] as usize] == scores[pair[1] as usize];
            let tied = order.windows(2).map(tied).chain([false]).collect();
            let present = order.iter().map(|at| truth[*at as usize] == Presence::Present).collect();
            RankedClass { order, tied, present }
        };
        self.scores.iter().zip(&self.truth).map(rank).collect()
    }

    /// The value of a metric, its 95 % interval (percentile bootstrap over the examples) and its
    /// chance level. The mean over classes excludes those without a positive example. `None` if the
    /// metric is undefined: for [`Metric::RocAuc`] unless there are two classes with examples.
    pub fn measure(&self, metric: Metric, rng: &mut impl Rng) -> Option<(f64, Interval, f64)> {
        let mut ranked = self.ranked();
        if metric == Metric::RocAuc {
            if ranked.len() != 2 {
                return None;
            }
            ranked.truncate(1);
        }
        let value = mean(&ranked, &vec![1; self.examples()], metric)?;
        let steps: usize = ranked.iter().map(|class| class.order.len()).sum::<usize>() + self.examples();
        let replicates = (MAX_STEPS / steps.max(1)).clamp(MIN_REPLICATES, REPLICATES);
        let mut drawn = Vec::with_capacity(replicates);
        let mut weights = vec![0_u32; self.examples()];
        for _ in 0..replicates {
            weights.fill(0);
            (0..weights.len()).for_each(|_| weights[rng.random_range(0..self.examples())] += 1);
            // A class without a positive example in a draw is undefined there.
            drawn.extend(mean(&ranked, &weights, metric));
        }
        drawn.sort_by(f64::total_cmp);
        let (low, high) = (percentile(&drawn, 0.025)?, percentile(&drawn, 0.975)?);
        let interval = Interval { low: low.min(value), high: high.max(value) };
        Some((value, interval, chance(&ranked, metric, rng)?))
    }
}

/// The mean over the classes that have examples; for the AUC, the one class.
fn mean(ranked: &[RankedClass], weights: &[u32], metric: Metric) -> Option<f64> {
    let values: Vec<f64> = ranked.iter().filter_map(|class| class.value(weights, metric)).collect();
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

impl RankedClass {
    /// After each distinct score, from the best: weighted counts `(present so far, absent so far)`.
    fn steps(&self, weights: &[u32]) -> impl Iterator<Item = (f64, f64)> {
        let (mut present, mut absent) = (0_u64, 0_u64);
        (0..self.order.len()).filter_map(move |place| {
            let weight = u64::from(weights[self.order[place] as usize]);
            if self.present[place] {
                present += weight
            } else {
                absent += weight
            }
            (!self.tied[place]).then_some((present as f64, absent as f64))
        })
    }

    fn totals(&self, weights: &[u32]) -> (f64, f64) {
        self.steps(weights).last().unwrap_or((0.0, 0.0))
    }

    fn value(&self, weights: &[u32], metric: Metric) -> Option<f64> {
        let (positives, negatives) = self.totals(weights);
        match metric {
            Metric::RocAuc if positives > 0.0 && negatives > 0.0 => {
                let (mut area, mut before) = (0.0, (0.0, 0.0));
                for step in self.steps(weights) {
                    // Trapezoids: a pair of equal scores counts half.
                    area += (step.1 - before.1) * (step.0 + before.0) / 2.0;
                    before = step;
                }
                Some(area / positives / negatives)
            }
            Metric::Map if positives > 0.0 => {
                let (mut sum, mut before) = (0.0, 0.0);
                for (present, absent) in self.steps(weights).filter(|step| step.0 + step.1 > 0.0) {
                    sum += (present - before) * present / (present + absent);
                    before = present;
                }
                Some(sum / positives)
            }
            Metric::Map11Point if positives > 0.0 => {
                // M. Everingham et al., IJCV 88 (2010), section 4.2.
                let mut best = [0.0_f64; 11];
                for (present, absent) in self.steps(weights).filter(|step| step.0 + step.1 > 0.0) {
                    // Every recall up to this one is reached.
                    let reached = (10.0 * present / positives + 1e-9).floor() as usize;
                    let precision = present / (present + absent);
                    best[reached.min(10)] = best[reached.min(10)].max(precision);
                }
                for recall in (0..10).rev() {
                    best[recall] = best[recall].max(best[recall + 1]);
                }
                Some(best.iter().sum::<f64>() / 11.0)
            }
            _ => None,
        }
    }
}

/// The expected value for a random ranking. Average precision with `P` positives among `N`: rank
/// `k` holds a positive with probability `P / N`, and its expected precision is then `(1 + (k - 1)
/// (P - 1) / (N - 1)) / k`.
fn chance(ranked: &[RankedClass], metric: Metric, rng: &mut impl Rng) -> Option<f64> {
    let whole =
        vec![1; ranked.iter().flat_map(|class| &class.order).max().map_or(0, |most| *most as usize + 1)];
    let expected = |class: &RankedClass| {
        let (positives, negatives) = class.totals(&whole);
        let n = positives + negatives;
        let harmonic: f64 = (1..=n as u64).map(|k| 1.0 / k as f64).sum();
        let others = if n > 1.0 { (positives - 1.0) / (n - 1.0) } else { 0.0 };
        (positives > 0.0).then(|| (harmonic + others * (n - harmonic)) / n)
    };
    match metric {
        Metric::RocAuc => Some(0.5),
        Metric::Map => {
            let values: Vec<f64> = ranked.iter().filter_map(expected).collect();
            Some(values.iter().sum::<f64>() / values.len() as f64)
        }
        _ => {
            let shuffled = |class: &RankedClass, rng: &mut dyn rand::RngCore| {
                let mut present = class.present.clone();
                rand::seq::SliceRandom::shuffle(&mut present[..], rng);
                RankedClass { order: class.order.clone(), tied: vec![false; present.len()], present }
            };
            let values: Vec<f64> = (0..SHUFFLES)
                .filter_map(|_| {
                    let drawn: Vec<RankedClass> =
                        ranked.iter().map(|class| shuffled(class, &mut *rng)).collect();
                    mean(&drawn, &whole, metric)
                })
                .collect();
            (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::Presence::{Absent, Ignored, Present};
    use super::*;

    fn rng() -> ChaCha8Rng {
        ChaCha8Rng::seed_from_u64(17)
    }

    fn of(classes: &[&[(f32, Presence)]]) -> Scores {
        let mut scores = Scores::new(classes.len());
        for example in 0..classes[0].len() {
            scores.add(classes.iter().map(|class| class[example]));
        }
        scores
    }

    fn value(classes: &[&[(f32, Presence)]], metric: Metric) -> Option<f64> {
        let (value, interval, _) = of(classes).measure(metric, &mut rng())?;
        assert!(interval.low <= value && value <= interval.high, "{value} {interval:?}");
        Some(value)
    }

    fn close(found: Option<f64>, expected: f64) {
        assert!((found.unwrap() - expected).abs() < 1e-9, "{found:?} {expected}");
    }

    #[test]
    fn rankings_by_hand() {
        // Best first: present, absent, present, absent.
        let mixed: &[_] = &[(0.9, Present), (0.1, Absent), (0.5, Absent), (0.4, Present)];
        close(value(&[mixed], Metric::Map), (1.0 + 2.0 / 3.0) / 2.0);
        // Recalls 0 to 0.5 reach precision 1, 0.6 to 1 reach 2/3.
        close(value(&[mixed], Metric::Map11Point), (6.0 + 5.0 * 2.0 / 3.0) / 11.0);
        let ignored: &[_] = &[(0.9, Present), (0.1, Absent), (0.5, Ignored), (0.4, Present)];
        close(value(&[ignored], Metric::Map), 1.0);
        let nobody: &[_] = &[(0.9, Absent), (0.1, Absent), (0.5, Absent), (0.4, Absent)];
        close(value(&[mixed, ignored, nobody], Metric::Map), ((1.0 + 2.0 / 3.0) / 2.0 + 1.0) / 2.0);
        assert_eq!(value(&[nobody], Metric::Map), None);
        // All equal: one step of the curve, whose precision is the share.
        let equal: &[_] = &[(0.5, Present), (0.5, Absent), (0.5, Absent), (0.5, Absent)];
        close(value(&[equal], Metric::Map), 0.25);
    }

    #[test]
    fn auc_is_the_share_of_correctly_ordered_pairs() {
        let (mut scores, mut pairs) = (Scores::new(2), (0.0, 0.0));
        let mut rng = rng();
        let examples: Vec<(f32, bool)> = (0..60)
            .map(|at| {
                let present = at % 3 == 0;
                // Few distinct scores: many ties.
                ((rng.random_range(0..8) + i32::from(present) * 2) as f32, present)
            })
            .collect();
        for (score, present) in &examples {
            let presence = |present: bool| if present { Present } else { Absent };
            scores.add([(*score, presence(*present)), (-score, presence(!present))]);
        }
        for (a, _) in examples.iter().filter(|example| example.1) {
            for (b, _) in examples.iter().filter(|example| !example.1) {
                pairs.0 += if a > b {
                    1.0
                } else if a == b {
                    0.5
                } else {
                    0.0
                };
                pairs.1 += 1.0;
            }
        }
        let (value, interval, chance) = scores.measure(Metric::RocAuc, &mut rng).unwrap();
        assert!((value - pairs.0 / pairs.1).abs() < 1e-12);
        assert!(
            interval.low < value && value < interval.high && interval.low > 0.5 && chance == 0.5,
            "{interval:?}"
        );
        assert_eq!(Scores::new(3).measure(Metric::RocAuc, &mut rng), None);
    }

    #[test]
    fn chance_is_the_mean_of_random_scores() {
        let mut rng = rng();
        for metric in [Metric::Map, Metric::Map11Point] {
            let (mut sum, mut expected) = (0.0, 0.0);
            for _ in 0..300 {
                let mut scores = Scores::new(2);
                for at in 0..40 {
                    let presence = |of: usize| if at % of == 0 { Present } else { Absent };
                    scores.add([(rng.random::<f32>(), presence(4)), (rng.random::<f32>(), presence(9))]);
                }
                let ranked = scores.ranked();
                sum += mean(&ranked, &[1; 40], metric).unwrap();
                expected = chance(&ranked, metric, &mut rng).unwrap();
            }
            assert!((sum / 300.0 - expected).abs() < 0.012, "{metric:?}: {} {expected}", sum / 300.0);
        }
    }
}
