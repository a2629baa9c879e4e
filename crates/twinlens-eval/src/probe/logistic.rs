//! Multinomial logistic regression with an L2 penalty: a linear probe.
//!
//! Minimises the sum over the examples of `-log softmax(W x + b)[label]`, plus `l2 / 2` times the
//! squared norm of `W` (not of `b`), in f64. A test compares it with scikit-learn's
//! `LogisticRegression(C = 1 / l2)`.

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;

use super::lbfgs::{Minimum, Objective, Stop, minimize};
use crate::error::EvalError;

/// Rows per block. Fixed, so that sums do not depend on memory.
const ROWS: usize = 4096;

/// Labelled embeddings.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Examples {
    /// `[labels, width]`.
    pub values: Vec<f32>,
    pub width: usize,
    /// Class ids.
    pub labels: Vec<usize>,
}

impl Examples {
    pub(super) fn len(&self) -> usize {
        self.labels.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    pub(super) fn vector(&self, example: usize) -> &[f32] {
        &self.values[example * self.width..(example + 1) * self.width]
    }

    /// The examples at some indices.
    pub(super) fn of(&self, examples: &[usize]) -> Self {
        Self {
            values: examples.iter().flat_map(|example| self.vector(*example)).copied().collect(),
            width: self.width,
            labels: examples.iter().map(|example| self.labels[*example]).collect(),
        }
    }
}

/// A linear classifier.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Linear {
    /// `[classes, width + 1]`: the weights of each class, then its intercept.
    pub weights: Vec<f64>,
    width: usize,
    classes: usize,
    /// Whether the optimisation converged.
    pub converged: bool,
}

impl Linear {
    /// Fits a classifier, starting at `from` if given.
    ///
    /// # Errors
    /// A failed tensor operation.
    pub(super) fn fit(
        examples: &Examples,
        classes: usize,
        l2: f64,
        from: Option<&Linear>,
        stop: Stop,
    ) -> Result<Self, EvalError> {
        let size = classes * (examples.width + 1);
        let start = from
            .filter(|from| from.weights.len() == size)
            .map_or_else(|| vec![0.0; size], |from| from.weights.clone());
        let mut loss = Loss { examples, classes, l2 };
        let Minimum { x, converged, .. } = minimize(&mut loss, start, stop)?;
        Ok(Self { weights: x, width: examples.width, classes, converged })
    }

    /// The logits `[n, classes]` of vectors `[n, width]`.
    ///
    /// # Errors
    /// A failed tensor operation.
    pub(super) fn logits(&self, values: &[f32]) -> Result<Vec<f64>, EvalError> {
        let (weights, intercepts) = parts(&self.weights, self.classes, self.width)?;
        let mut all = Vec::with_capacity(values.len() / self.width.max(1) * self.classes);
        for piece in values.chunks(ROWS * self.width) {
            all.extend(logits(&tensor(piece, self.width)?, &weights, &intercepts)?);
        }
        Ok(all)
    }

    /// The share of examples whose class has the highest logit.
    ///
    /// # Errors
    /// A failed tensor operation.
    pub(super) fn accuracy(&self, examples: &Examples) -> Result<f64, EvalError> {
        let logits = self.logits(&examples.values)?;
        let best = |row: &[f64]| {
            (1..row.len()).fold(0, |best, class| if row[class] > row[best] { class } else { best })
        };
        let right = logits
            .chunks_exact(self.classes)
            .zip(&examples.labels)
            .filter(|(row, label)| best(row) == **label);
        Ok(right.count() as f64 / examples.len().max(1) as f64)
    }
}

/// The weights `[width, classes]` as a tensor, and the intercepts.
fn parts(weights: &[f64], classes: usize, width: usize) -> Result<(Tensor, Vec<f64>), EvalError> {
    let rows = weights.chunks_exact(width + 1);
    let intercepts = rows.clone().map(|row| row[width]).collect();
    let weights: Vec<f64> = rows.flat_map(|row| &row[..width]).copied().collect();
    Ok((Tensor::from_vec(weights, (classes, width), &Device::Cpu)?.t()?, intercepts))
}

fn tensor(values: &[f32], width: usize) -> Result<Tensor, EvalError> {
    Ok(Tensor::from_slice(values, (values.len() / width, width), &Device::Cpu)?.to_dtype(DType::F64)?)
}

fn logits(x: &Tensor, weights: &Tensor, intercepts: &[f64]) -> Result<Vec<f64>, EvalError> {
    let mut logits = x.matmul(weights)?.flatten_all()?.to_vec1::<f64>()?;
    for row in logits.chunks_exact_mut(intercepts.len()) {
        row.iter_mut().zip(intercepts).for_each(|(logit, intercept)| *logit += intercept);
    }
    Ok(logits)
}

/// The mean loss as a function of the weights: the objective of L-BFGS.
struct Loss<'a> {
    examples: &'a Examples,
    classes: usize,
    l2: f64,
}

impl Objective for Loss<'_> {
    type Error = EvalError;

    fn value(&mut self, x: &[f64], gradient: &mut [f64]) -> Result<f64, EvalError> {
        let (width, classes) = (self.examples.width, self.classes);
        let n = self.examples.len().max(1) as f64;
        let (weights, intercepts) = parts(x, classes, width)?;
        gradient.fill(0.0);
        let mut value = 0.0;
        for (values, labels) in
            self.examples.values.chunks(ROWS * width).zip(self.examples.labels.chunks(ROWS))
        {
            let x = tensor(values, width)?;
            let mut errors = logits(&x, &weights, &intercepts)?;
            let losses: Vec<f64> = errors
                .par_chunks_exact_mut(classes)
                .zip(labels)
                .map(|(row, label)| soften(row, *label))
                .collect();
            value += losses.iter().sum::<f64>();
            for row in errors.chunks_exact(classes) {
                row.iter()
                    .enumerate()
                    .for_each(|(class, error)| gradient[class * (width + 1) + width] += error);
            }
            let errors = Tensor::from_vec(errors, (labels.len(), classes), &Device::Cpu)?;
            let product = errors.t()?.matmul(&x)?.flatten_all()?.to_vec1::<f64>()?;
            for (sum, part) in gradient.chunks_exact_mut(width + 1).zip(product.chunks_exact(width)) {
                sum.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
            }
        }
        for (gradient, weights) in gradient.chunks_exact_mut(width + 1).zip(x.chunks_exact(width + 1)) {
            for (gradient, weight) in gradient.iter_mut().zip(&weights[..width]) {
                *gradient += self.l2 * weight;
                value += self.l2 / 2.0 * weight * weight;
            }
        }
        // Per example, as in scikit-learn, so that its tolerance applies.
        gradient.iter_mut().for_each(|gradient| *gradient /= n);
        Ok(value / n)
    }
}

/// Replaces logits by the errors of their probabilities; returns the loss.
fn soften(row: &mut [f64], label: usize) -> f64 {
    let top = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let own = row[label];
    row.iter_mut().for_each(|logit| *logit = (*logit - top).exp());
    let sum: f64 = row.iter().sum();
    row.iter_mut().for_each(|part| *part /= sum);
    row[label] -= 1.0;
    top + sum.ln() - own
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn the_gradient_matches_finite_differences() {
        let values: Vec<f32> = (0..30).map(|i| ((i * 37 % 11) as f32 - 5.0) / 3.0).collect();
        let examples = Examples { values, width: 3, labels: (0..10).map(|i| i % 4).collect() };
        let mut loss = Loss { examples: &examples, classes: 4, l2: 0.7 };
        let x: Vec<f64> = (0..16).map(|i| (i as f64 * 0.61).sin()).collect();
        let (mut gradient, mut unused) = (vec![0.0; 16], vec![0.0; 16]);
        loss.value(&x, &mut gradient).unwrap();
        for i in 0..16 {
            let mut at = |step: f64| {
                let mut moved = x.clone();
                moved[i] += step;
                loss.value(&moved, &mut unused).unwrap()
            };
            let slope = (at(1e-6) - at(-1e-6)) / 2e-6;
            assert!((slope - gradient[i]).abs() < 1e-8, "{i}: {slope} {}", gradient[i]);
        }
    }

    /// The file was made by `tests/probe/logistic.py` with scikit-learn.
    #[test]
    fn classifiers_match_scikit_learn() {
        let text = include_str!("../../tests/probe/logistic.json");
        let json: Value = serde_json::from_str(text).unwrap();
        let floats = |value: &Value| -> Vec<f64> { serde_json::from_value(value.clone()).unwrap() };
        let values: Vec<f32> = floats(&json["values"]).iter().map(|value| *value as f32).collect();
        let labels: Vec<usize> = serde_json::from_value(json["labels"].clone()).unwrap();
        let width = json["width"].as_u64().unwrap() as usize;
        let examples = Examples { values, width, labels };
        let classes = 1 + examples.labels.iter().max().unwrap();
        let stop = Stop { gradient: 1e-10, iterations: 10_000 };
        for fit in json["fits"].as_array().unwrap() {
            let l2 = fit["l2"].as_f64().unwrap();
            let linear = Linear::fit(&examples, classes, l2, None, stop).unwrap();
            assert!(linear.converged, "l2 {l2}");
            let expected = floats(&fit["probabilities"]);
            let mut logits = linear.logits(&examples.values).unwrap();
            for (row, expected) in logits.chunks_exact_mut(classes).zip(expected.chunks_exact(classes)) {
                soften(row, 0);
                row[0] += 1.0;
                let near = row.iter().zip(expected).all(|(own, theirs)| (own - theirs).abs() < 1e-6);
                assert!(near, "l2 {l2}: {row:?} {expected:?}");
            }
            let (own, theirs) = (linear.weights.chunks_exact(width + 1), floats(&fit["weights"]));
            for (own, theirs) in own.zip(theirs.chunks_exact(width)) {
                let near = own
                    .iter()
                    .zip(theirs)
                    .all(|(own, theirs)| (own - theirs).abs() < 1e-4 * (1.0 + theirs.abs()));
                assert!(near, "l2 {l2}: {own:?} {theirs:?}");
            }
            assert!((linear.accuracy(&examples).unwrap() - fit["accuracy"].as_f64().unwrap()).abs() < 1e-12);
        }
    }
}
