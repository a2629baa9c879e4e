//! Chooses the strength of the penalty on validation examples as in the CLIP paper (Radford et al.
//! 2021, appendix A.3): from 97 values between 1e-6 and 1e6, eight per decade, by a search that
//! starts with steps of two decades and halves the step around the best value.

use super::lbfgs::Stop;
use super::logistic::{Examples, Linear};
use crate::error::EvalError;

/// Index of the last value of the grid, 1e6.
const STEPS: usize = 96;
/// The first step of the search.
const FIRST: usize = 16;

/// The strength at an index of the grid.
pub(super) fn strength(place: usize) -> f64 {
    10f64.powf(place as f64 / 8.0 - 6.0)
}

/// The index with the highest score; among equal scores, the strongest penalty, which gives the
/// simplest classifier.
///
/// # Errors
/// The errors of `score`.
pub(super) fn search<E>(mut score: impl FnMut(usize) -> Result<f64, E>) -> Result<usize, E> {
    let mut best = (f64::NEG_INFINITY, 0);
    for place in (0..=STEPS).step_by(FIRST) {
        let found = score(place)?;
        if found >= best.0 {
            best = (found, place);
        }
    }
    let mut distance = FIRST / 2;
    while distance > 0 {
        let centre = best.1;
        for place in [centre.checked_sub(distance), Some(centre + distance).filter(|place| *place <= STEPS)] {
            let Some(place) = place else { continue };
            let found = score(place)?;
            // A weaker penalty must score higher, a stronger one at least as high.
            if found > best.0 || (found == best.0 && place > best.1) {
                best = (found, place);
            }
        }
        distance /= 2;
    }
    Ok(best.1)
}

/// The strength whose classifier, fitted on `train`, is best on `validation`.
///
/// # Errors
/// A failed tensor operation, or an interruption.
pub(super) fn choose(
    train: &Examples,
    validation: &Examples,
    classes: usize,
    check_cancelled: impl Fn() -> Result<(), EvalError>,
) -> Result<f64, EvalError> {
    // Start each fit at the previous one: neighbours on the grid are similar.
    let mut last: Option<Linear> = None;
    let place = search(|place| {
        check_cancelled()?;
        let linear = Linear::fit(train, classes, strength(place), last.as_ref(), Stop::default())?;
        let score = linear.accuracy(validation)?;
        last = Some(linear);
        Ok::<_, EvalError>(score)
    })?;
    Ok(strength(place))
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    fn found(score: impl Fn(usize) -> f64) -> (usize, usize) {
        let mut asked = 0;
        let Ok(place) = search(|place| {
            asked += 1;
            Ok::<_, Infallible>(score(place))
        });
        (place, asked)
    }

    #[test]
    fn a_single_peak_is_found_in_fifteen_evaluations() {
        for peak in 0..=STEPS {
            let (place, asked) = found(|place| -(place as f64 - peak as f64).abs());
            assert_eq!(place, peak);
            assert!(asked <= 15, "{asked}");
        }
    }

    #[test]
    fn among_equal_scores_the_strongest_penalty_wins() {
        assert_eq!(found(|_| 0.5).0, STEPS);
        assert_eq!(found(|place| if place <= 40 { 0.5 } else { 0.1 }).0, 40);
        assert!(
            (strength(0) - 1e-6).abs() < 1e-18
                && (strength(48) - 1.0).abs() < 1e-12
                && (strength(STEPS) - 1e6).abs() < 1e-6
        );
    }
}
