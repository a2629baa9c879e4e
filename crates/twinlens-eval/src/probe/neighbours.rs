//! k-nearest-neighbour classification.

use candle_core::{Device, Tensor};

use super::logistic::Examples;
use crate::error::EvalError;
use crate::metrics::top_k;

/// Temperature of the votes (Z. Wu et al. 2018; also used in DINO's evaluation).
const TEMPERATURE: f64 = 0.07;

/// A classifier in which the `k` nearest training examples vote with weight `exp(cosine / 0.07)`.
#[derive(Debug)]
pub(super) struct Neighbours {
    /// `[width, n]`, of unit length.
    vectors: Tensor,
    labels: Vec<usize>,
    width: usize,
    classes: usize,
    k: usize,
}

impl Neighbours {
    /// # Errors
    /// A failed tensor operation.
    pub(super) fn new(examples: &Examples, classes: usize, k: usize) -> Result<Self, EvalError> {
        let (n, width) = (examples.len(), examples.width);
        let vectors = Tensor::from_vec(normalised(&examples.values, width), (n, width), &Device::Cpu)?;
        let (vectors, labels) = (vectors.t()?.contiguous()?, examples.labels.clone());
        Ok(Self { vectors, labels, width, classes, k: k.min(n) })
    }

    /// The votes `[n, classes]` on vectors `[n, width]`: sums of the weights relative to the
    /// largest weight.
    ///
    /// # Errors
    /// A failed tensor operation.
    pub(super) fn votes(&self, values: &[f32]) -> Result<Vec<f64>, EvalError> {
        let mut all = Vec::with_capacity(values.len() / self.width.max(1) * self.classes);
        // Keeps the block of cosines within 64 MB.
        let rows = ((16 << 20) / self.labels.len().max(1)).clamp(1, 4096);
        for piece in values.chunks(rows * self.width) {
            let piece = normalised(piece, self.width);
            let piece = Tensor::from_slice(&piece, (piece.len() / self.width, self.width), &Device::Cpu)?;
            for cosines in piece.matmul(&self.vectors)?.to_vec2::<f32>()? {
                let nearest = top_k(&cosines, self.k);
                let top = nearest.first().map_or(0.0, |first| f64::from(cosines[*first]));
                let mut votes = vec![0.0; self.classes];
                for example in nearest {
                    votes[self.labels[example]] += ((f64::from(cosines[example]) - top) / TEMPERATURE).exp();
                }
                all.extend(votes);
            }
        }
        Ok(all)
    }
}

fn normalised(values: &[f32], width: usize) -> Vec<f32> {
    let mut values = values.to_vec();
    for vector in values.chunks_exact_mut(width) {
        let length = vector.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
        if length > 0.0 {
            vector.iter_mut().for_each(|value| *value = (f64::from(*value) / length) as f32);
        }
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_examples_vote_by_their_cosine() {
        let angle = |degrees: f32| [degrees.to_radians().cos(), degrees.to_radians().sin()];
        let degrees = [0.0, 10.0, 60.0, 65.0, 70.0];
        let values: Vec<f32> = degrees.iter().flat_map(|degrees| angle(*degrees).map(|x| x * 3.0)).collect();
        let examples = Examples { values, width: 2, labels: vec![0, 0, 1, 1, 2] };
        let query = angle(5.0);
        let votes = |k: usize| Neighbours::new(&examples, 3, k).unwrap().votes(&query).unwrap();
        assert_eq!(votes(1), [1.0, 0.0, 0.0]);
        let (own, five) = (votes(9), |from: f32| f64::from((from - 5.0).to_radians().cos()));
        let weight = |from: f32| ((five(from) - five(0.0)) / TEMPERATURE).exp();
        for (own, expected) in
            own.iter().zip([weight(0.0) + weight(10.0), weight(60.0) + weight(65.0), weight(70.0)])
        {
            assert!((own - expected).abs() < 1e-4, "{own} {expected}");
        }
    }
}
