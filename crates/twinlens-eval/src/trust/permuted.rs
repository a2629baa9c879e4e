//! Whether the labels look permuted: the class list is in another order than the label ids, or
//! names are swapped.
//!
//! The commonest way to a wrong accuracy leaves a mark: the model is consistent, but under other
//! names. The mark is found by giving each class the name that the model answers for it most (an
//! assignment: each name once), and by checking on examples that were not used for that whether the
//! model then agrees with the labels.

use std::collections::HashMap;

use super::assign;
use crate::metrics::wilson;

/// Over the classes that get another name, the mean share of right answers must rise by this much
/// ...
pub const GAIN: f64 = 0.25;
/// ... and to at least so many times what it was, and the 95 % intervals of both shares must lie
/// apart ...
pub const RATIO: f64 = 3.0;
/// ... and there must be so many examples of those classes.
pub const MIN_EXAMPLES: u64 = 20;
/// The most classes for which this is looked at: time grows with their third power, at worst (for
/// 2000, half a second, and ten seconds were each answered for each).
pub const MAX_CLASSES: usize = 2000;

/// How little is given for keeping a name: it decides where nothing else does.
const KEEP: f64 = 1e-9;

/// Which class was answered for which, in two halves: the examples of each class go to them in
/// turn. Memory grows with the different pairs of classes, not with the examples.
#[derive(Debug, Clone)]
pub struct Confusion {
    seen: Vec<u64>,
    /// `(label, predicted)` to a count.
    halves: [HashMap<(usize, usize), u64>; 2],
}

/// Labels that look permuted.
#[derive(Debug, Clone, PartialEq)]
pub struct Permuted {
    /// Class, and the class by whose name the model calls it: those that get another name from
    /// either half and are then right for the most part, most examples first.
    pub renamed: Vec<(usize, usize)>,
    /// Over the classes that get another name, the mean share of right answers as labelled.
    pub labelled: f64,
    /// The same with the other names.
    pub relabelled: f64,
}

/// What the classes that get another name show on the other half.
#[derive(Debug, Default)]
struct Shown {
    classes: f64,
    examples: u64,
    labelled: (f64, u64),
    relabelled: (f64, u64),
}

impl Confusion {
    /// Nothing answered yet, of `classes` classes.
    pub fn new(classes: usize) -> Self {
        Self { seen: vec![0; classes], halves: Default::default() }
    }

    /// Whether there are few enough classes to look.
    pub fn is_checked(&self) -> bool {
        self.seen.len() <= MAX_CLASSES
    }

    /// Counts an example.
    pub fn add(&mut self, label: usize, predicted: usize) {
        if self.is_checked() {
            let half = (self.seen[label] % 2) as usize;
            *self.halves[half].entry((label, predicted)).or_default() += 1;
        }
        self.seen[label] += 1;
    }

    /// Whether the labels look permuted. Each half gives names that are judged on the other, so
    /// that luck does not count as agreement; by [`GAIN`], [`RATIO`] and [`MIN_EXAMPLES`]. A model
    /// that gives one answer whatever it sees gains nothing by another name.
    pub fn permuted(&self) -> Option<Permuted> {
        if !self.is_checked() {
            return None;
        }
        let mut shown = Shown::default();
        let mut renamed: HashMap<(usize, usize), u64> = HashMap::new();
        for (fit, test) in [(0, 1), (1, 0)] {
            self.judge(&self.names(fit), test, &mut shown, &mut renamed);
        }
        if shown.examples < MIN_EXAMPLES {
            return None;
        }
        let (labelled, relabelled) = (shown.labelled.0 / shown.classes, shown.relabelled.0 / shown.classes);
        let n = shown.examples as f64;
        let apart = wilson(shown.relabelled.1 as f64, n)?.low > wilson(shown.labelled.1 as f64, n)?.high;
        if !apart || relabelled < labelled + GAIN || relabelled < RATIO * labelled {
            return None;
        }
        let mut renamed: Vec<_> = renamed.into_iter().collect();
        renamed.sort_by_key(|(pair, right)| (std::cmp::Reverse(*right), *pair));
        let renamed = renamed.into_iter().map(|(pair, _)| pair).collect();
        Some(Permuted { renamed, labelled, relabelled })
    }

    /// The name that a half gives to each class: the assignment with the largest sum of the
    /// classes' shares.
    fn names(&self, half: usize) -> Vec<usize> {
        let mut examples = vec![0_u64; self.seen.len()];
        for ((label, _), count) in &self.halves[half] {
            examples[*label] += count;
        }
        // A class without examples is no name for another: nothing says that it is not the right
        // one.
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
        // A class keeps its name where no exchange could gain: the best that it and the class that
        // took its name could get is no more than what it has. Of a good model that leaves few to
        // assign.
        let open: Vec<usize> =
            (0..own.len()).filter(|class| own[*class] < others[*class][0] + others[*class][1]).collect();
        let place: HashMap<usize, usize> = open.iter().enumerate().map(|(at, class)| (*class, at)).collect();
        let mut weights = vec![0.0; open.len() * open.len()];
        for ((label, predicted), count) in &self.halves[half] {
            if let (Some(row), Some(column)) = (place.get(label), place.get(predicted)) {
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

    /// Adds what the classes with another name show on a half that did not give it.
    fn judge(
        &self,
        names: &[usize],
        half: usize,
        shown: &mut Shown,
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
            let right = |name: usize| counts.get(&(label, name)).copied().unwrap_or(0);
            let (before, after) = (right(label), right(*name));
            shown.classes += 1.0;
            shown.examples += n;
            shown.labelled.0 += before as f64 / n as f64;
            shown.labelled.1 += before;
            shown.relabelled.0 += after as f64 / n as f64;
            shown.relabelled.1 += after;
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

    /// What a model that is right with probability `right`, and else answers anything, says of
    /// `each` examples of every class, when the list of classes is read as `list`.
    fn answers(list: &[usize], each: usize, right: f64) -> Option<Permuted> {
        let mut rng = ChaCha8Rng::seed_from_u64(17);
        let mut confusion = Confusion::new(list.len());
        for example in 0..each * list.len() {
            let class = example % list.len();
            let predicted = if rng.random_bool(right) { class } else { rng.random_range(0..list.len()) };
            confusion.add(list[class], predicted);
        }
        confusion.permuted()
    }

    #[test]
    fn a_permuted_list_is_found_and_an_honest_one_is_not() {
        let honest: Vec<usize> = (0..37).collect();
        let shifted: Vec<usize> = (0..37).map(|class| (class + 1) % 37).collect();
        let mut swapped = honest.clone();
        swapped.swap(3, 5);
        for (right, each) in [(0.9, 20), (0.3, 40), (0.0, 40), (1.0, 1), (0.9, 2)] {
            assert_eq!(answers(&honest, each, right), None, "{right} {each}");
        }
        let found = answers(&shifted, 20, 0.85).unwrap();
        assert!(found.labelled < 0.02 && found.relabelled > 0.8, "{found:?}");
        assert_eq!(found.renamed.len(), 37);
        assert!(found.renamed.iter().all(|(label, name)| *label == (name + 1) % 37), "{found:?}");
        // A model that is right in a third of the cases shows it, too; and two names that changed
        // places.
        assert!(answers(&shifted, 40, 0.35).is_some());
        assert_eq!(
            answers(&swapped, 20, 0.9).unwrap().renamed.iter().map(|(a, b)| a + b).collect::<Vec<_>>(),
            [8, 8]
        );
        // Too few examples to be sure.
        assert_eq!(answers(&[1, 0], 2, 1.0), None);
        assert_eq!(answers(&shifted, 1, 1.0), None);
    }

    #[test]
    fn a_model_with_one_answer_is_not_taken_for_a_permutation() {
        // Balanced, of very different frequencies, and an answer that has no examples.
        for (examples, answer) in [([40, 40, 40], 1), ([200, 10, 10], 2), ([60, 60, 0], 2)] {
            let mut confusion = Confusion::new(3);
            for (label, count) in examples.into_iter().enumerate() {
                (0..count).for_each(|_| confusion.add(label, answer));
            }
            assert_eq!(confusion.permuted(), None, "{examples:?}");
        }
    }

    #[test]
    fn too_many_classes_are_not_looked_at() {
        let mut confusion = Confusion::new(MAX_CLASSES + 1);
        confusion.add(MAX_CLASSES, 0);
        assert!(!confusion.is_checked() && confusion.permuted().is_none());
    }
}
