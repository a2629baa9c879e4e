//! Calibration: whether confidence matches accuracy.
//!
//! The confidence of a prediction is the largest softmax probability over the classes, of
//! similarities scaled by the model's logit scale. Of the predictions with confidence 0.8, 80 %
//! should be correct.

use rand::Rng;
use rand_distr::{Binomial, Distribution};

use super::{Interval, REPLICATES, percentile};

/// Confidence bins of equal width.
pub const BINS: usize = 15;

/// The softmax probability of `scale * similarities` for `best`, the class with the highest.
pub fn confidence(similarities: &[f32], best: usize, scale: f32) -> f64 {
    let highest = similarities[best];
    let sum: f64 = similarities.iter().map(|value| f64::from(scale * (value - highest)).exp()).sum();
    sum.recip()
}

#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Bin {
    n: u64,
    correct: u64,
    confidence: f64,
}

/// Confidences and outcomes in bins, in constant memory.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Calibration {
    bins: [Bin; BINS],
}

impl Calibration {
    /// Counts an example in the bin `((b - 1) / 15, b / 15]` that contains its confidence.
    pub fn add(&mut self, confidence: f64, correct: bool) {
        let bin = ((confidence * BINS as f64).ceil() as usize).clamp(1, BINS) - 1;
        let bin = &mut self.bins[bin];
        bin.n += 1;
        bin.correct += u64::from(correct);
        bin.confidence += confidence;
    }

    pub fn n(&self) -> u64 {
        self.bins.iter().map(|bin| bin.n).sum()
    }

    /// The mean confidence; `None` without examples.
    pub fn confidence(&self) -> Option<f64> {
        let n = self.n();
        (n > 0).then(|| self.bins.iter().map(|bin| bin.confidence).sum::<f64>() / n as f64)
    }

    /// The share of correct predictions; `None` without examples.
    pub fn accuracy(&self) -> Option<f64> {
        let n = self.n();
        (n > 0).then(|| self.bins.iter().map(|bin| bin.correct).sum::<u64>() as f64 / n as f64)
    }

    /// The expected calibration error: the mean over the examples of the gap between accuracy and
    /// mean confidence in the example's bin (M. P. Naeini et al., AAAI 2015; C. Guo et al., ICML
    /// 2017, equation 5). `None` without examples.
    pub fn error(&self) -> Option<f64> {
        let n = self.n();
        let gap = |bin: &Bin| (bin.correct as f64 - bin.confidence).abs();
        (n > 0).then(|| self.bins.iter().map(gap).sum::<f64>() / n as f64)
    }

    /// The 95 % interval of the error (for simulated models of known error and 400 examples it
    /// covers that error in 86 to 96 %); `None` without examples.
    ///
    /// The error cannot be negative, so that noise biases it upwards: on few examples even a
    /// perfectly calibrated model shows an error, and a bootstrap replicate a larger one. The basic
    /// bootstrap interval (A. Davison, D. Hinkley, Bootstrap Methods and their Application, 1997,
    /// section 5.2) reflects the replicates around the value, which removes this bias. If the error
    /// is no larger than the 95th percentile for a perfectly calibrated model of the same
    /// confidences (J. Bröcker, L. Smith, Weather and Forecasting 22, 2007), the interval begins at
    /// 0. It always contains the value. A replicate draws bins and outcomes; the mean confidence of
    /// a bin is fixed.
    pub fn interval(&self, rng: &mut impl Rng) -> Option<Interval> {
        let error = self.error()?;
        let perfect = sorted(|| self.perfect(rng)?.error())?;
        let drawn = sorted(|| self.redraw(rng)?.error())?;
        let by_chance = error <= percentile(&perfect, 0.95)?;
        let low = if by_chance { 0.0 } else { 2.0 * error - percentile(&drawn, 0.975)? };
        let high = 2.0 * error - percentile(&drawn, 0.025)?;
        Some(Interval { low: low.clamp(0.0, error), high: high.clamp(error, 1.0) })
    }

    /// The same confidences with outcomes of a perfectly calibrated model. Never `None`.
    fn perfect(&self, rng: &mut impl Rng) -> Option<Self> {
        let mut drawn = self.clone();
        for bin in drawn.bins.iter_mut().filter(|bin| bin.n > 0) {
            // Rounding may push a mean of ones above 1.
            let share = (bin.confidence / bin.n as f64).min(1.0);
            bin.correct = Binomial::new(bin.n, share).ok()?.sample(rng);
        }
        Some(drawn)
    }

    /// A resample with replacement. Never `None`.
    fn redraw(&self, rng: &mut impl Rng) -> Option<Self> {
        let mut drawn = Self::default();
        let (mut left, mut from) = (self.n(), self.n());
        for (bin, drawn) in self.bins.iter().zip(&mut drawn.bins).filter(|(bin, _)| bin.n > 0) {
            let n = Binomial::new(left, bin.n as f64 / from as f64).ok()?.sample(rng);
            let correct = Binomial::new(n, bin.correct as f64 / bin.n as f64).ok()?.sample(rng);
            *drawn = Bin { n, correct, confidence: bin.confidence / bin.n as f64 * n as f64 };
            (left, from) = (left - n, from - bin.n);
        }
        Some(drawn)
    }
}

/// [`REPLICATES`] draws, sorted.
fn sorted(draw: impl FnMut() -> Option<f64>) -> Option<Vec<f64>> {
    let mut drawn = std::iter::repeat_with(draw).take(REPLICATES).collect::<Option<Vec<f64>>>()?;
    drawn.sort_by(f64::total_cmp);
    Some(drawn)
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    #[test]
    fn confidence_is_the_largest_of_a_softmax() {
        // exp(0), exp(-1), exp(-2) over their sum.
        let expected = 1.0 / (1.0 + (-1.0_f64).exp() + (-2.0_f64).exp());
        assert!((confidence(&[0.1, 0.3, 0.2], 1, 10.0) - expected).abs() < 1e-6);
        assert_eq!(confidence(&[0.5, 0.5], 0, 100.0), 0.5);
        assert_eq!(confidence(&[-1.0, 1.0], 1, 1e6), 1.0);
    }

    #[test]
    fn the_error_of_a_small_table_by_hand() {
        assert_eq!(Calibration::default().error(), None);
        let mut calibration = Calibration::default();
        // Bins by 1/15: 0.95 and 0.99 share the last, 0.9 has (0.866, 0.933], 0.2 ends the third,
        // 0.21 begins the fourth.
        for (confidence, correct) in
            [(0.95, true), (0.99, false), (0.9, true), (0.2, false), (0.21, true), (1.0, true)]
        {
            calibration.add(confidence, correct);
        }
        // Last bin: 2 of 3 right, sum of confidences 2.94.
        let expected = ((2.0_f64 - 2.94).abs() + 0.1 + 0.2 + 0.79) / 6.0;
        assert!((calibration.error().unwrap() - expected).abs() < 1e-12, "{calibration:?}");
        assert!((calibration.confidence().unwrap() - 4.25 / 6.0).abs() < 1e-12);
        assert_eq!((calibration.accuracy(), calibration.n()), (Some(4.0 / 6.0), 6));
    }

    /// Coverage on simulated models of known error.
    #[test]
    fn the_interval_covers_the_truth() {
        let mut rng = ChaCha8Rng::seed_from_u64(17);
        for (overconfident, truth) in [(0.0, 0.0), (0.07, 0.07), (0.2, 0.2)] {
            let mut covered = 0;
            for _ in 0..60 {
                let mut calibration = Calibration::default();
                for _ in 0..400 {
                    let confidence = rng.random_range(0.4..1.0);
                    calibration.add(confidence, rng.random_bool(confidence - overconfident));
                }
                let (error, found) = (calibration.error().unwrap(), calibration.interval(&mut rng).unwrap());
                assert!(found.low <= error && error <= found.high);
                covered += u32::from(found.low <= truth && truth <= found.high);
            }
            assert!(covered >= 50, "{overconfident}: {covered} of 60");
        }
    }
}
