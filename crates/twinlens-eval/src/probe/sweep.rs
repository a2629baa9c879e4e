//! The strength of the penalty, chosen on a validation part as the CLIP paper does (Radford et al.
//! 2021, appendix A.3): of the 97 values between 1e-6 and 1e6 that lie eight to a decade, by a
//! search that starts two decades apart and halves the distance around the best.

use super::lbfgs::Stop;
use super::logistic::{Examples, Linear};
use crate::error::EvalError;

/// Steps of the grid, from 0: the last is 1e6.
const STEPS: usize = 96;
/// The first distance.
const FIRST: usize = 16;

/// The strength at a place of the grid.
pub fn strength(place: usize) -> f64 {
    10f64.powf(place as f64 / 8.0 - 6.0)
}

/// The place whose score is highest; of equal ones that are compared, the strongest penalty: the
/// simplest classifier.
///
/// # Errors
/// Those of `score`.
pub fn search<E>(mut score: impl FnMut(usize) -> Result<f64, E>) -> Result<usize, E> {
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
            // A weaker penalty has to be better, a stronger one only as good.
            if found > best.0 || (found == best.0 && place > best.1) {
                best = (found, place);
            }
        }
        distance /= 2;
    }
    Ok(best.1)
}

/// The strength whose classifier of `train` is best on `validation`.
///
/// # Errors
/// Ours, of the arithmetic; or the run's, when it should stop.
pub fn choose(
    train: &Examples,
    validation: &Examples,
    classes: usize,
    go_on: impl Fn() -> Result<(), EvalError>,
) -> Result<f64, EvalError> {
    // Each search starts where the last one ended: neighbours on the grid are alike.
    let mut last: Option<Linear> = None;
    let place = search(|place| {
        go_on()?;
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
    fn of_equal_scores_the_strongest_penalty_is_taken() {
        assert_eq!(found(|_| 0.5).0, STEPS);
        assert_eq!(found(|place| if place <= 40 { 0.5 } else { 0.1 }).0, 40);
        assert!(
            (strength(0) - 1e-6).abs() < 1e-18
                && (strength(48) - 1.0).abs() < 1e-12
                && (strength(STEPS) - 1e6).abs() < 1e-6
        );
    }
}
