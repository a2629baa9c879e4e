//! Detects permuted labels: the class list is in another order than the label ids, or names are
//! swapped. This is the most common cause of a wrong accuracy.
//!
//! The model is then consistent, but under other names. Each class is assigned the name that the
//! model predicts for it most often (each name once), and held-out examples show whether the model
//! agrees with the labels under the new names.

use std::collections::HashMap;

use super::assignment::assign;
use crate::metrics::wilson;

/// The mean accuracy of the renamed classes must rise by this much ...
pub const GAIN: f64 = 0.25;
/// ... and by this factor, the 95 % intervals of both accuracies must not overlap ...
pub const RATIO: f64 = 3.0;
/// ... and the renamed classes must have this many examples.
pub const MIN_EXAMPLES: u64 = 20;
/// The check is skipped for more classes: its time is cubic at worst (for 2000 classes, 0.5 s as a
/// rule, and 10 s if every class is predicted for every other).
pub const MAX_CLASSES: usize = 2000;

/// Weight of keeping a name: breaks ties.
const KEEP: f64 = 1e-9;

/// A confusion matrix in two halves, between which the examples of each class alternate. Memory
/// grows with the distinct pairs of classes, not with the examples.
#[derive(Debug, Clone)]
pub struct Confusion {
    seen: Vec<u64>,
    /// `(label, predicted)` to a count.
    halves: [HashMap<(usize, usize), u64>; 2],
}

/// Labels that look permuted.
#[derive(Debug, Clone, PartialEq)]
pub struct LabelPermutation {
    /// `(class, class whose name fits it)`, for classes that are mostly correct under the new name
    /// on the other half; most examples first.
    pub renamed: Vec<(usize, usize)>,
    /// Mean accuracy of the renamed classes as labelled.
    pub labelled: f64,
    /// Their mean accuracy under the new names.
    pub relabelled: f64,
}

/// Outcomes of the renamed classes on the held-out half: sums of accuracies, and correct examples.
#[derive(Debug, Default)]
struct RenamedStats {
    classes: f64,
    examples: u64,
    labelled: (f64, u64),
    relabelled: (f64, u64),
}

impl Confusion {
    pub fn new(classes: usize) -> Self {
        Self { seen: vec![0; classes], halves: Default::default() }
    }

    pub fn is_checked(&self) -> bool {
        self.seen.len() <= MAX_CLASSES
    }

    pub fn add(&mut self, label: usize, predicted: usize) {
        if self.is_checked() {
            let half = (self.seen[label] % 2) as usize;
            *self.halves[half].entry((label, predicted)).or_default() += 1;
        }
        self.seen[label] += 1;
    }

    /// The permutation, if the labels look permuted by [`GAIN`], [`RATIO`] and [`MIN_EXAMPLES`].
    /// Names are fitted on each half and tested on the other. A model that always predicts the same
    /// class gains nothing from renaming.
    pub fn label_permutation(&self) -> Option<LabelPermutation> {
        if !self.is_checked() {
            return None;
        }
        let mut stats = RenamedStats::default();
        let mut renamed: HashMap<(usize, usize), u64> = HashMap::new();
        for (fit, test) in [(0, 1), (1, 0)] {
            self.test_names(&self.fit_names(fit), test, &mut stats, &mut renamed);
        }
        if stats.examples < MIN_EXAMPLES {
            return None;
        }
        let (labelled, relabelled) = (stats.labelled.0 / stats.classes, stats.relabelled.0 / stats.classes);
        let n = stats.examples as f64;
        let apart = wilson(stats.relabelled.1 as f64, n)?.low > wilson(stats.labelled.1 as f64, n)?.high;
        if !apart || relabelled < labelled + GAIN || relabelled < RATIO * labelled {
            return None;
        }
        let mut renamed: Vec<_> = renamed.into_iter().collect();
        renamed.sort_by_key(|(pair, correct)| (std::cmp::Reverse(*correct), *pair));
        let renamed = renamed.into_iter().map(|(pair, _)| pair).collect();
        Some(LabelPermutation { renamed, labelled, relabelled })
    }

    /// The name that fits each class best on one half: the assignment with the largest sum of
    /// accuracies.
    fn fit_names(&self, half: usize) -> Vec<usize> {
        let mut examples = vec![0_u64; self.seen.len()];
        for ((label, _), count) in &self.halves[half] {
            examples[*label] += count;
        }
        // The name of a class without examples is not assigned to another class: it may be correct
        // as it is.
        let share = |(label, predicted): (usize, usize), count: u64| match self.seen[predicted] {
            0 => 0.0,
            _ => count as f64 / examples[label] as f64,
        };
        let (mut own, mut others) = (vec![0.0; self.seen.len()], vec![[0.0_f64; 2]; self.seen.len()]);
        for (pair @ (label, predicted), count) in &self.halves[half] {
            let share = share(*pair, *count);
            if label == predicted {
                own[*label] = share;
            } else {
                others[*label][0] = others[*label][0].max(share);
                others[*predicted][1] = others[*predicted][1].max(share);
            }
        }
        // A class keeps its name if no exchange can gain: the best shares that it and the class
        // taking its name could get do not exceed its own. This leaves few classes for a good
        // model.
        let open: Vec<usize> =
            (0..own.len()).filter(|class| own[*class] < others[*class][0] + others[*class][1]).collect();
        let index: HashMap<usize, usize> = open.iter().enumerate().map(|(at, class)| (*class, at)).collect();
        let mut weights = vec![0.0; open.len() * open.len()];
        for ((label, predicted), count) in &self.halves[half] {
            if let (Some(row), Some(column)) = (index.get(label), index.get(predicted)) {
                weights[row * open.len() + column] = share((*label, *predicted), *count);
            }
        }
        (0..open.len()).for_each(|at| weights[at * open.len() + at] += KEEP);
        let mut names: Vec<usize> = (0..own.len()).collect();
        for (row, column) in
            assign(open.len(), |row, column| weights[row * open.len() + column]).iter().enumerate()
        {
            names[open[row]] = open[*column];
        }
        names
    }

    /// Adds the outcomes of the renamed classes on the half that was not used for fitting.
    fn test_names(
        &self,
        names: &[usize],
        half: usize,
        stats: &mut RenamedStats,
        renamed: &mut HashMap<(usize, usize), u64>,
    ) {
        let counts = &self.halves[half];
        let mut examples = vec![0_u64; names.len()];
        for ((label, _), count) in counts {
            examples[*label] += count;
        }
        for (label, name) in
            names.iter().enumerate().filter(|(label, name)| label != *name && examples[*label] > 0)
        {
            let n = examples[label];
            let correct = |name: usize| counts.get(&(label, name)).copied().unwrap_or(0);
            let (before, after) = (correct(label), correct(*name));
            stats.classes += 1.0;
            stats.examples += n;
            stats.labelled.0 += before as f64 / n as f64;
            stats.labelled.1 += before;
            stats.relabelled.0 += after as f64 / n as f64;
            stats.relabelled.1 += after;
            if 2 * after > n {
                *renamed.entry((label, *name)).or_default() += after;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    /// Simulates a model that is correct with probability `accuracy` and else predicts any class,
    /// on `each` examples per class, with the class list permuted to `list`.
    fn detect(list: &[usize], each: usize, accuracy: f64) -> Option<LabelPermutation> {
        let mut rng = ChaCha8Rng::seed_from_u64(17);
        let mut confusion = Confusion::new(list.len());
        for example in 0..each * list.len() {
            let class = example % list.len();
            let predicted = if rng.random_bool(accuracy) { class } else { rng.random_range(0..list.len()) };
            confusion.add(list[class], predicted);
        }
        confusion.label_permutation()
    }

    #[test]
    fn a_permuted_list_is_found_and_a_correct_one_is_not() {
        let correct: Vec<usize> = (0..37).collect();
        let shifted: Vec<usize> = (0..37).map(|class| (class + 1) % 37).collect();
        let mut swapped = correct.clone();
        swapped.swap(3, 5);
        for (accuracy, each) in [(0.9, 20), (0.3, 40), (0.0, 40), (1.0, 1), (0.9, 2)] {
            assert_eq!(detect(&correct, each, accuracy), None, "{accuracy} {each}");
        }
        let found = detect(&shifted, 20, 0.85).unwrap();
        assert!(found.labelled < 0.02 && found.relabelled > 0.8, "{found:?}");
        assert_eq!(found.renamed.len(), 37);
        assert!(found.renamed.iter().all(|(label, name)| *label == (name + 1) % 37), "{found:?}");
        // Also found with a model of accuracy 0.35, and for two swapped names.
        assert!(detect(&shifted, 40, 0.35).is_some());
        assert_eq!(
            detect(&swapped, 20, 0.9).unwrap().renamed.iter().map(|(a, b)| a + b).collect::<Vec<_>>(),
            [8, 8]
        );
        // Too few examples to be sure.
        assert_eq!(detect(&[1, 0], 2, 1.0), None);
        assert_eq!(detect(&shifted, 1, 1.0), None);
    }

    #[test]
    fn a_constant_prediction_is_not_a_permutation() {
        // Balanced, imbalanced, and predicting a class without examples.
        for (examples, predicted) in [([40, 40, 40], 1), ([200, 10, 10], 2), ([60, 60, 0], 2)] {
            let mut confusion = Confusion::new(3);
            for (label, count) in examples.into_iter().enumerate() {
                (0..count).for_each(|_| confusion.add(label, predicted));
            }
            assert_eq!(confusion.label_permutation(), None, "{examples:?}");
        }
    }

    #[test]
    fn too_many_classes_are_not_checked() {
        let mut confusion = Confusion::new(MAX_CLASSES + 1);
        confusion.add(MAX_CLASSES, 0);
        assert!(!confusion.is_checked() && confusion.label_permutation().is_none());
    }
}
