//! Fits error = a * compute^-b as a line through the logarithms, by ordinary least squares.

use super::student::t95;
use crate::metrics::Interval;

/// A line through the logarithms of points, ln(error) = ln(a) - b ln(compute).
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Fit {
    /// Number of points.
    pub n: usize,
    /// ln(a).
    pub ln_a: f64,
    /// The exponent.
    pub b: f64,
    /// Standard deviation of the residuals, in ln(error); `None` for two points, which fit exactly.
    pub residual: Option<f64>,
    /// The share of the variance explained by the line; `None` if all errors are equal.
    pub r2: Option<f64>,
    mean: f64,
    spread: f64,
}

impl Fit {
    /// Fits points (compute, error).
    ///
    /// # Errors
    /// A point has no logarithm, or all points have the same compute.
    pub(crate) fn new(points: &[(f64, f64)]) -> Result<Self, String> {
        if let Some((compute, error)) =
            points.iter().find(|(compute, error)| !(*compute > 0.0 && *error > 0.0))
        {
            return Err(format!("an error of {error} at a compute of {compute} has no logarithm"));
        }
        let n = points.len();
        let logs: Vec<(f64, f64)> =
            points.iter().map(|(compute, error)| (compute.ln(), error.ln())).collect();
        let mean = |of: fn(&(f64, f64)) -> f64| logs.iter().map(of).sum::<f64>() / n as f64;
        let (x, y) = (mean(|point| point.0), mean(|point| point.1));
        let spread: f64 = logs.iter().map(|point| (point.0 - x).powi(2)).sum();
        // Tolerates rounding in equal computes.
        if n < 2 || spread <= 1e-18 {
            return Err(format!("a line needs models of two sizes, and there are {n} of one"));
        }
        let slope = logs.iter().map(|point| (point.0 - x) * (point.1 - y)).sum::<f64>() / spread;
        let ln_a = y - slope * x;
        let left: f64 = logs.iter().map(|point| (point.1 - ln_a - slope * point.0).powi(2)).sum();
        let total: f64 = logs.iter().map(|point| (point.1 - y).powi(2)).sum();
        Ok(Self {
            n,
            ln_a,
            b: -slope,
            residual: (n > 2).then(|| (left / (n - 2) as f64).sqrt()),
            r2: (total > 0.0).then(|| 1.0 - left / total),
            mean: x,
            spread,
        })
    }

    /// Half the width of the 95 % interval of an estimate with a standard error of `scale`
    /// residuals.
    fn half(&self, scale: f64) -> Option<f64> {
        let freedom = u32::try_from(self.n.checked_sub(2)?).ok()?;
        Some(t95(freedom)? * self.residual? * scale)
    }

    /// The 95 % interval of b; `None` for two points.
    pub(crate) fn b_interval(&self) -> Option<Interval> {
        let half = self.half(1.0 / self.spread.sqrt())?;
        Some(Interval { low: self.b - half, high: self.b + half })
    }

    /// The error predicted by the line.
    pub(crate) fn error(&self, compute: f64) -> f64 {
        (self.ln_a - self.b * compute.ln()).exp()
    }

    /// The 95 % prediction interval for the error of another model, assuming normal residuals: it
    /// includes the uncertainty of the line and the residual of the model.
    pub(crate) fn prediction(&self, compute: f64) -> Option<Interval> {
        let away = (compute.ln() - self.mean).powi(2) / self.spread;
        let half = self.half((1.0 + 1.0 / self.n as f64 + away).sqrt())?;
        let line = self.ln_a - self.b * compute.ln();
        Some(Interval { low: (line - half).exp(), high: (line + half).exp() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn near(found: f64, expected: f64) -> bool {
        (found - expected).abs() <= 1e-9 * expected.abs().max(1.0)
    }

    #[test]
    fn a_power_law_is_recovered() {
        let law = |compute: f64| 0.8 * compute.powf(-0.3);
        let points = [0.5, 2.0, 7.0, 40.0].map(|compute| (compute, law(compute)));
        let fit = Fit::new(&points).unwrap();
        assert!(near(fit.ln_a.exp(), 0.8) && near(fit.b, 0.3) && near(fit.r2.unwrap(), 1.0), "{fit:?}");
        assert!(near(fit.error(300.0), law(300.0)));
        let interval = fit.prediction(300.0).unwrap();
        assert!(near(interval.low, interval.high), "exact points have no uncertainty: {interval:?}");
    }

    /// R: `x <- log(c(1,2,4,8)); y <- log(c(.9,.7,.72,.5)); m <- lm(y ~ x); confint(m); predict(m,
    /// data.frame(x=log(50)), interval="prediction")`, computed here by hand from the textbook's
    /// formulas.
    #[test]
    fn intervals_match_linear_regression() {
        let points = [(1.0, 0.9), (2.0, 0.7), (4.0, 0.72), (8.0, 0.5)];
        let fit = Fit::new(&points).unwrap();
        let l: Vec<f64> = points.iter().map(|point: &(f64, f64)| point.1.ln()).collect();
        let step = 2f64.ln();
        // x = 0, 1, 2, 3 steps: slope = sum((x - 1.5) y) / 5 per step.
        let slope = (-1.5 * l[0] - 0.5 * l[1] + 0.5 * l[2] + 1.5 * l[3]) / 5.0 / step;
        assert!(near(fit.b, -slope));
        let mean = l.iter().sum::<f64>() / 4.0;
        let line = |x: f64| mean + slope * step * (x - 1.5);
        let left: f64 = l.iter().enumerate().map(|(x, y)| (y - line(x as f64)).powi(2)).sum();
        let s = (left / 2.0).sqrt();
        let half = 4.302_652_729_911_275 * s / (5.0 * step * step).sqrt();
        let interval = fit.b_interval().unwrap();
        assert!(near(interval.high - fit.b, half) && near(fit.b - interval.low, half));
        let x = 50f64.ln() / step;
        let half = 4.302_652_729_911_275 * s * (1.0 + 0.25 + (x - 1.5).powi(2) / 5.0).sqrt();
        let interval = fit.prediction(50.0).unwrap();
        assert!(near(interval.low, (line(x) - half).exp()) && near(interval.high, (line(x) + half).exp()));
    }

    #[test]
    fn points_without_a_fit_are_reported() {
        for (points, expected) in [
            (&[(1.0, 0.5), (2.0, 0.0)][..], "no logarithm"),
            (&[(0.0, 0.5), (2.0, 0.1)], "no logarithm"),
            (&[(f64::NAN, 0.5), (2.0, 0.1)], "no logarithm"),
            (&[(2.0, 0.5)], "two sizes"),
            (&[(2.0, 0.5), (2.0, 0.4), (2.0, 0.3)], "two sizes"),
            (&[], "two sizes"),
        ] {
            let error = Fit::new(points).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
        let two = Fit::new(&[(1.0, 0.5), (2.0, 0.4)]).unwrap();
        assert_eq!((two.b_interval(), two.prediction(4.0), two.residual), (None, None, None));
        assert_eq!(Fit::new(&[(1.0, 0.5), (2.0, 0.5), (3.0, 0.5)]).unwrap().r2, None);
    }

    proptest! {
        /// A change of the unit of compute only changes `a`.
        #[test]
        fn the_unit_of_compute_does_not_matter(
            errors in proptest::collection::vec(0.01f64..1.0, 3..8), unit in 1e-3f64..1e3,
        ) {
            let points = |unit: f64| errors.iter().enumerate().map(|(at, error)| ((at + 1) as f64 * unit, *error)).collect::<Vec<_>>();
            let (one, other) = (Fit::new(&points(1.0)).unwrap(), Fit::new(&points(unit)).unwrap());
            prop_assert!((one.b - other.b).abs() < 1e-6);
            prop_assert!((one.error(20.0) / other.error(20.0 * unit) - 1.0).abs() < 1e-6);
        }
    }
}
