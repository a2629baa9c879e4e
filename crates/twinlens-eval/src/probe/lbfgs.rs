//! L-BFGS with a line search for the strong Wolfe conditions (J. Nocedal, S. Wright, Numerical
//! Optimization, 2nd edition, algorithms 7.4, 7.5, 3.5 and 3.6), in f64. Deterministic: the same
//! function gives the same bits.

/// A differentiable function of a vector.
pub(super) trait Objective {
    /// Returns the value at `x` and writes its gradient to `gradient`.
    ///
    /// # Errors
    /// The computation failed.
    fn value(&mut self, x: &[f64], gradient: &mut [f64]) -> Result<f64, Self::Error>;
    type Error;
}

/// The stopping criteria.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Stop {
    /// Maximum absolute component of the gradient.
    pub gradient: f64,
    /// Maximum number of steps.
    pub iterations: usize,
}

impl Default for Stop {
    /// The tolerance of scikit-learn's logistic regression, and the 1000 steps of the CLIP paper.
    fn default() -> Self {
        Self { gradient: 1e-4, iterations: 1000 }
    }
}

/// The result of a minimisation.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Minimum {
    /// The minimiser.
    pub x: Vec<f64>,
    pub value: f64,
    pub iterations: usize,
    /// Whether the gradient is within the tolerance.
    pub converged: bool,
}

/// Number of steps in the curvature history.
const MEMORY: usize = 10;
/// Minimum share of the decrease predicted by the slope (Armijo condition).
const DECREASE: f64 = 1e-4;
/// Relative rounding error of a value.
const ROUNDING: f64 = 1e-14;
/// Maximum remaining share of the slope (curvature condition).
const CURVATURE: f64 = 0.9;
/// Maximum evaluations per line search.
const TRIES: usize = 40;

struct Step {
    moved: Vec<f64>,
    turned: Vec<f64>,
    /// `moved . turned`.
    product: f64,
}

/// Minimises an objective, starting at `x`.
///
/// # Errors
/// The errors of the objective.
pub(super) fn minimize<O: Objective>(
    objective: &mut O,
    mut x: Vec<f64>,
    stop: Stop,
) -> Result<Minimum, O::Error> {
    let mut gradient = vec![0.0; x.len()];
    let mut value = objective.value(&x, &mut gradient)?;
    let mut memory: Vec<Step> = Vec::new();
    let mut iterations = 0;
    loop {
        if largest(&gradient) <= stop.gradient {
            return Ok(Minimum { x, value, iterations, converged: true });
        }
        if iterations == stop.iterations {
            break;
        }
        let direction = direction(&gradient, &memory);
        // The first step has no curvature history: move by at most 1.
        let first = if memory.is_empty() { (1.0 / dot(&gradient, &gradient).sqrt()).min(1.0) } else { 1.0 };
        let mut line = Line {
            objective: &mut *objective,
            x: &x,
            direction: &direction,
            value,
            slope: dot(&gradient, &direction),
        };
        let Some(point) = line.search(first)? else {
            // The remaining slope is within rounding errors, or the history misleads: retry along
            // the gradient.
            if memory.is_empty() {
                break;
            }
            memory.clear();
            continue;
        };
        let moved: Vec<f64> = direction.iter().map(|d| point.step * d).collect();
        let turned: Vec<f64> = point.gradient.iter().zip(&gradient).map(|(new, old)| new - old).collect();
        x.iter_mut().zip(&moved).for_each(|(x, d)| *x += d);
        (value, gradient) = (point.value, point.gradient);
        let product = dot(&moved, &turned);
        if product > f64::EPSILON * dot(&turned, &turned) {
            if memory.len() == MEMORY {
                memory.remove(0);
            }
            memory.push(Step { moved, turned, product });
        }
        iterations += 1;
    }
    Ok(Minimum { x, value, iterations, converged: false })
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn largest(values: &[f64]) -> f64 {
    values.iter().fold(0.0, |most, value| value.abs().max(most))
}

/// The two-loop recursion: minus the gradient times the approximate inverse Hessian of the history.
fn direction(gradient: &[f64], memory: &[Step]) -> Vec<f64> {
    let mut q: Vec<f64> = gradient.iter().map(|g| -g).collect();
    let mut weights = Vec::with_capacity(memory.len());
    for step in memory.iter().rev() {
        let weight = dot(&step.moved, &q) / step.product;
        q.iter_mut().zip(&step.turned).for_each(|(q, y)| *q -= weight * y);
        weights.push(weight);
    }
    if let Some(last) = memory.last() {
        let scale = last.product / dot(&last.turned, &last.turned);
        q.iter_mut().for_each(|q| *q *= scale);
    }
    for (step, weight) in memory.iter().zip(weights.iter().rev()) {
        let back = weight - dot(&step.turned, &q) / step.product;
        q.iter_mut().zip(&step.moved).for_each(|(q, s)| *q += back * s);
    }
    q
}

/// A point on a line.
struct Point {
    step: f64,
    value: f64,
    slope: f64,
    gradient: Vec<f64>,
}

/// The objective along a line from `x`.
struct Line<'a, O> {
    objective: &'a mut O,
    x: &'a [f64],
    direction: &'a [f64],
    value: f64,
    slope: f64,
}

impl<O: Objective> Line<'_, O> {
    fn at(&mut self, step: f64) -> Result<Point, O::Error> {
        let x: Vec<f64> = self.x.iter().zip(self.direction).map(|(x, d)| x + step * d).collect();
        let mut gradient = vec![0.0; x.len()];
        let value = self.objective.value(&x, &mut gradient)?;
        let slope = dot(&gradient, self.direction);
        Ok(Point { step, value, slope, gradient })
    }

    /// Whether the value decreases enough; judged by the slopes if the decrease is within rounding
    /// errors (W. Hager, H. Zhang, A new conjugate gradient method with guaranteed descent and an
    /// efficient line search, 2005, equation 4.1).
    fn decreases(&self, point: &Point) -> bool {
        let hidden = point.value <= self.value + ROUNDING * self.value.abs();
        point.value <= self.value + DECREASE * point.step * self.slope
            || (hidden && point.slope <= (2.0 * DECREASE - 1.0) * self.slope)
    }

    /// A point with a lower value and a flatter slope; `None` if none is found.
    fn search(&mut self, first: f64) -> Result<Option<Point>, O::Error> {
        if self.slope >= 0.0 {
            return Ok(None);
        }
        let (mut before, mut step) = (None::<Point>, first);
        for _ in 0..TRIES {
            let point = self.at(step)?;
            let worse = before.as_ref().is_some_and(|before| point.value >= before.value);
            if !point.value.is_finite() || !self.decreases(&point) || worse {
                return self.zoom(before, point);
            }
            if point.slope.abs() <= -CURVATURE * self.slope {
                return Ok(Some(point));
            }
            if point.slope >= 0.0 {
                // `low` is the better end, not necessarily the smaller step.
                return self.zoom(Some(point), before.unwrap_or(self.start()));
            }
            step *= 2.0;
            before = Some(point);
        }
        Ok(before)
    }

    fn start(&self) -> Point {
        Point { step: 0.0, value: self.value, slope: self.slope, gradient: Vec::new() }
    }

    /// Narrows an interval whose better end is `low` (the start, if there is none).
    fn zoom(&mut self, low: Option<Point>, mut high: Point) -> Result<Option<Point>, O::Error> {
        let mut low = low.unwrap_or_else(|| self.start());
        for _ in 0..TRIES {
            let point = self.at(between(&low, &high))?;
            if !point.value.is_finite() || !self.decreases(&point) || point.value >= low.value {
                high = point;
            } else {
                if point.slope.abs() <= -CURVATURE * self.slope {
                    return Ok(Some(point));
                }
                if point.slope * (high.step - low.step) >= 0.0 {
                    high = std::mem::replace(&mut low, point);
                } else {
                    low = point;
                }
            }
            if (high.step - low.step).abs() <= f64::EPSILON * low.step.abs().max(1e-300) {
                break;
            }
        }
        // Not a strong Wolfe point, but lower than the start.
        Ok((low.step > 0.0 && low.value < self.value).then_some(low))
    }
}

/// A step between two points: the minimum of the cubic through their values and slopes, kept away
/// from the ends.
fn between(low: &Point, high: &Point) -> f64 {
    let (width, middle) = (high.step - low.step, (low.step + high.step) / 2.0);
    let bend = low.slope + high.slope - 3.0 * (low.value - high.value) / (low.step - high.step);
    let root = bend * bend - low.slope * high.slope;
    if !(root.is_finite() && root >= 0.0) {
        return middle;
    }
    let root = width.signum() * root.sqrt();
    let step = high.step - width * (high.slope + root - bend) / (high.slope - low.slope + 2.0 * root);
    let (near, far) = (low.step + 0.1 * width, low.step + 0.9 * width);
    if step.is_finite() { step.clamp(near.min(far), near.max(far)) } else { middle }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    struct Of<F>(F, usize);

    impl<F: FnMut(&[f64], &mut [f64]) -> f64> Objective for Of<F> {
        type Error = Infallible;
        fn value(&mut self, x: &[f64], gradient: &mut [f64]) -> Result<f64, Infallible> {
            self.1 += 1;
            Ok((self.0)(x, gradient))
        }
    }

    fn run(f: impl FnMut(&[f64], &mut [f64]) -> f64, x: &[f64]) -> (Minimum, usize) {
        let mut of = Of(f, 0);
        let Ok(minimum) = minimize(&mut of, x.to_vec(), Stop { gradient: 1e-9, iterations: 500 });
        (minimum, of.1)
    }

    #[test]
    fn known_minima_are_found() {
        // Rosenbrock's valley.
        let valley = |x: &[f64], g: &mut [f64]| {
            g.fill(0.0);
            let mut value = 0.0;
            for i in 0..x.len() - 1 {
                let (a, b) = (x[i + 1] - x[i] * x[i], 1.0 - x[i]);
                value += 100.0 * a * a + b * b;
                g[i] += -400.0 * x[i] * a - 2.0 * b;
                g[i + 1] += 200.0 * a;
            }
            value
        };
        let (minimum, evaluations) = run(valley, &[-1.2, 1.0]);
        assert!(minimum.converged && minimum.x.iter().all(|x| (x - 1.0).abs() < 1e-6), "{minimum:?}");
        assert!(evaluations < 100, "{evaluations}");
        // Scales that differ by a factor of a million.
        let bowl = |x: &[f64], g: &mut [f64]| {
            let scale = |i: usize| 10f64.powi(i as i32 - 3);
            (0..x.len()).for_each(|i| g[i] = 2.0 * scale(i) * (x[i] - i as f64));
            x.iter().enumerate().map(|(i, x)| scale(i) * (x - i as f64).powi(2)).sum()
        };
        let (minimum, _) = run(bowl, &[100.0; 7]);
        assert!(minimum.converged && minimum.value < 1e-12, "{minimum:?}");
    }

    #[test]
    fn a_search_ends_if_there_is_no_decrease() {
        let flat = |_: &[f64], g: &mut [f64]| {
            g.fill(0.0);
            1.0
        };
        assert_eq!(run(flat, &[5.0]).0, Minimum { x: vec![5.0], value: 1.0, iterations: 0, converged: true });
        // A wrong gradient.
        let lie = |x: &[f64], g: &mut [f64]| {
            g[0] = -1.0;
            x[0] * x[0]
        };
        assert!(!run(lie, &[0.0]).0.converged);
        // Unbounded below, until the numbers overflow.
        let (fall, evaluations) = run(
            |x, g| {
                g[0] = -1.0;
                -x[0]
            },
            &[0.0],
        );
        assert!(!fall.converged && fall.x[0] > 1e3 && evaluations < 40_000);
    }
}
