//! Few-shot curves: linear probes on a few examples per class, repeated for several random draws.

use rand::Rng;
use rand::seq::SliceRandom;

use super::lbfgs::Stop;
use super::logistic::{Examples, Linear};
use super::sweep;
use crate::error::EvalError;
use crate::metrics::{Interval, Z95, wilson};

/// Maximum validation examples per class, on which the penalty is chosen (K. Zhou et al., CoOp,
/// 2022).
const VALIDATION: usize = 4;

/// Draws `shots` training examples of each class and as many others (at most four) for validation,
/// or fewer if the class is smaller. Returns both lists sorted.
pub(super) fn draw(
    labels: &[usize],
    classes: usize,
    shots: usize,
    rng: &mut impl Rng,
) -> (Vec<usize>, Vec<usize>) {
    let mut of_class: Vec<Vec<usize>> = vec![Vec::new(); classes];
    labels.iter().enumerate().for_each(|(example, label)| of_class[*label].push(example));
    let (mut train, mut validation) = (Vec::new(), Vec::new());
    for examples in &mut of_class {
        examples.shuffle(rng);
        train.extend(examples.iter().take(shots));
        validation.extend(examples.iter().skip(shots).take(shots.min(VALIDATION)));
    }
    train.sort_unstable();
    validation.sort_unstable();
    (train, validation)
}

/// Fits a linear probe on a random draw. The penalty is chosen on the validation examples, or is 1
/// if there are none.
///
/// # Errors
/// A failed tensor operation, or an interruption.
pub(super) fn fit(
    examples: &Examples,
    classes: usize,
    shots: usize,
    rng: &mut impl Rng,
    check_cancelled: impl Fn() -> Result<(), EvalError>,
) -> Result<Linear, EvalError> {
    let (train, validation) = draw(&examples.labels, classes, shots, rng);
    let (train, validation) = (examples.of(&train), examples.of(&validation));
    let l2 = if validation.is_empty() {
        1.0
    } else {
        sweep::choose(&train, &validation, classes, check_cancelled)?
    };
    Linear::fit(&train, classes, l2, None, Stop::default())
}

/// The mean accuracy over several draws, each on `n` test examples, and its 95 % interval: the
/// variation between draws and the sampling of the test examples, combined as the root of the sum
/// of squares. `None` without draws or test examples.
pub(super) fn mean(accuracies: &[f64], n: u64) -> Option<(f64, Interval)> {
    let repeats = accuracies.len() as f64;
    let mean = accuracies.iter().sum::<f64>() / repeats;
    let sample = wilson(mean * n as f64, n as f64)?;
    let spread =
        accuracies.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (repeats - 1.0).max(1.0);
    let drawing = Z95 * (spread / repeats).sqrt();
    let low = (mean - sample.low).hypot(drawing);
    let high = (sample.high - mean).hypot(drawing);
    Some((mean, Interval { low: (mean - low).max(0.0), high: (mean + high).min(1.0) }))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    #[test]
    fn a_draw_has_the_shots_of_each_class_and_other_validation_examples() {
        let labels: Vec<usize> = (0..60).map(|i| if i < 3 { 2 } else { i % 2 }).collect();
        let (train, validation) = draw(&labels, 3, 8, &mut ChaCha8Rng::seed_from_u64(1));
        let count =
            |of: &[usize], class: usize| of.iter().filter(|example| labels[**example] == class).count();
        assert_eq!([0, 1, 2].map(|class| count(&train, class)), [8, 8, 3]);
        assert_eq!([0, 1, 2].map(|class| count(&validation, class)), [4, 4, 0]);
        let train: BTreeSet<usize> = train.into_iter().collect();
        assert!(validation.iter().all(|example| !train.contains(example)));
        let again = draw(&labels, 3, 8, &mut ChaCha8Rng::seed_from_u64(1));
        let other = draw(&labels, 3, 8, &mut ChaCha8Rng::seed_from_u64(2));
        assert!(again.0.iter().eq(train.iter()) && again != other);
    }

    #[test]
    fn the_interval_combines_draws_and_sampling() {
        let (value, alike) = mean(&[0.5, 0.5, 0.5], 100).unwrap();
        assert_eq!((value, alike), (0.5, wilson(50.0, 100.0).unwrap()));
        let (_, apart) = mean(&[0.3, 0.5, 0.7], 100).unwrap();
        assert!(apart.low < alike.low && apart.high > alike.high);
        assert_eq!(mean(&[1.0], 10).unwrap().1.high, 1.0);
        assert!(mean(&[0.5], 0).is_none());
    }
}
