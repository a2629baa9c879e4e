//! What makes a number untrustworthy, found in the evaluation itself: rows of the table `warnings`.
//!
//! A warning never stops an evaluation and never changes a number. Codes are of a closed list
//! ([`CODES`]).

mod assignment;
mod permuted;

use std::collections::BTreeMap;

use crate::metrics::Interval;

pub use assignment::assign;
pub use permuted::{Confusion, GAIN, MAX_CLASSES, MIN_EXAMPLES, Permuted, RATIO};

/// Once other names are given to some classes, the model agrees with the labels: see [`Permuted`].
pub const LABELS_PERMUTED: &str = "labels_permuted";
/// There are more than [`MAX_CLASSES`] classes: whether the labels look permuted was not looked at.
pub const PERMUTATION_NOT_CHECKED: &str = "permutation_not_checked";
/// Names of several classes differ in case, white space and punctuation alone.
pub const DUPLICATE_NAME: &str = "duplicate_name";
/// The name of a class has neither a letter nor a digit.
pub const EMPTY_NAME: &str = "empty_name";
/// In these prompts classes have the same tokens: no model can tell them apart.
pub const SAME_TOKENS: &str = "same_tokens";
/// The whole interval of a metric lies below its chance.
pub const BELOW_CHANCE: &str = "below_chance";
/// Classes have no example: they can be answered, but never rightly.
pub const CLASS_WITHOUT_EXAMPLES: &str = "class_without_examples";

/// The data of a set name their classes otherwise than its declaration does.
pub const CLASS_NAMES_DIFFER: &str = "class_names_differ";
/// The data of a set are not there: it was skipped.
pub const SET_MISSING: &str = "set_missing";
/// A set cannot be evaluated as it is: it was skipped.
pub const SET_REFUSED: &str = "set_refused";

/// Examples of the set are among the images that were trained on.
pub const TRAINED_ON: &str = "trained_on";

/// Every code of a warning.
pub const CODES: [&str; 11] = [
    LABELS_PERMUTED,
    PERMUTATION_NOT_CHECKED,
    DUPLICATE_NAME,
    EMPTY_NAME,
    SAME_TOKENS,
    BELOW_CHANCE,
    CLASS_WITHOUT_EXAMPLES,
    CLASS_NAMES_DIFFER,
    SET_MISSING,
    SET_REFUSED,
    TRAINED_ON,
];

/// Names that a detail lists before it stops.
const LISTED: usize = 5;

/// One thing that makes a number untrustworthy.
#[derive(Debug, Clone, PartialEq)]
pub struct Warning {
    /// From [`CODES`].
    pub code: &'static str,
    /// The particulars, naming the classes.
    pub detail: String,
    /// The number that was looked at, for [`LABELS_PERMUTED`] and [`BELOW_CHANCE`] a share, else a
    /// count of classes.
    pub value: f64,
}

/// The name as people read it: lower case, letters and digits alone, one space for anything
/// between.
pub fn normalised(name: &str) -> String {
    let lower = name.to_lowercase();
    let words = lower.split(|letter: char| !letter.is_alphanumeric()).filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join(" ")
}

/// Warnings of class names that people would not tell apart, or that say nothing.
pub fn names(names: &[String]) -> Vec<Warning> {
    let mut same: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for name in names {
        same.entry(normalised(name)).or_default().push(name);
    }
    let empty = same.remove("").map(|empty| Warning {
        code: EMPTY_NAME,
        detail: format!("{} without a letter or digit", quoted(&empty)),
        value: empty.len() as f64,
    });
    let twice = same.values().filter(|names| names.len() > 1).map(|names| Warning {
        code: DUPLICATE_NAME,
        detail: format!("{} differ in case, spacing or punctuation alone", quoted(names)),
        value: names.len() as f64,
    });
    empty.into_iter().chain(twice).collect()
}

/// A warning of the classes that have no example; `examples` by class. Nothing where there are no
/// examples at all.
pub fn without_examples(names: &[String], examples: &[u64]) -> Option<Warning> {
    let missing: Vec<&str> =
        names.iter().zip(examples).filter(|(_, n)| **n == 0).map(|(name, _)| name.as_str()).collect();
    (!missing.is_empty() && missing.len() < names.len()).then(|| Warning {
        code: CLASS_WITHOUT_EXAMPLES,
        detail: format!("{} of {} classes have no example: {}", missing.len(), names.len(), quoted(&missing)),
        value: missing.len() as f64,
    })
}

/// A warning of a metric whose whole interval lies below its chance: labels that mean something
/// else, or a model that has learned the opposite.
pub fn below_chance(metric: &str, value: f64, interval: Interval, chance: f64) -> Option<Warning> {
    (interval.high < chance).then(|| Warning {
        code: BELOW_CHANCE,
        detail: format!(
            "{} is {:.2} % [{:.2}, {:.2}], below the {:.2} % of guessing",
            metric,
            100.0 * value,
            100.0 * interval.low,
            100.0 * interval.high,
            100.0 * chance
        ),
        value,
    })
}

/// A warning of classes that a prompt set does not tell apart: the first two, and how many have
/// such a twin before them.
pub fn same_tokens(names: &[String], twins: Option<(usize, usize, usize)>) -> Option<Warning> {
    let (a, b, count) = twins?;
    Some(Warning {
        code: SAME_TOKENS,
        detail: format!(
            "{count} classes have the tokens of one before them and cannot be told apart (first: `{}` and `{}`)",
            names[a], names[b]
        ),
        value: count as f64,
    })
}

/// A warning of labels that look permuted, or of too many classes to look. See [`Permuted`].
pub fn permuted(confusion: &Confusion, names: &[String]) -> Option<Warning> {
    if !confusion.is_checked() {
        return Some(Warning {
            code: PERMUTATION_NOT_CHECKED,
            detail: format!("{} classes are too many to see whether the labels look permuted", names.len()),
            value: names.len() as f64,
        });
    }
    let found = confusion.permuted()?;
    let pair = |(label, name): &(usize, usize)| format!("`{}` by `{}`", names[*label], names[*name]);
    let mut pairs: Vec<String> = found.renamed.iter().take(LISTED).map(pair).collect();
    if found.renamed.len() > LISTED {
        pairs.push(format!("{} more", found.renamed.len() - LISTED));
    }
    Some(Warning {
        code: LABELS_PERMUTED,
        detail: format!(
            "the labels look permuted: some classes are right in {:.1} % of their examples, and in {:.1} % when they are called by \
             other classes' names ({}). Is the list of classes in the order of the label ids?",
            100.0 * found.labelled,
            100.0 * found.relabelled,
            pairs.join(", ")
        ),
        value: found.relabelled,
    })
}

fn quoted(names: &[&str]) -> String {
    let first = names.iter().take(LISTED).map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(LISTED) {
        0 => first,
        more => format!("{first} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(list: &[&str]) -> Vec<String> {
        list.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn names_that_people_would_not_tell_apart() {
        let found =
            names(&strings(&["Sea_Lion", "sea lion", "sea-lion ", "lion", "?", "Äpfel", "äpfel!", "7"]));
        let codes: Vec<(&str, f64)> = found.iter().map(|warning| (warning.code, warning.value)).collect();
        assert_eq!(codes, [(EMPTY_NAME, 1.0), (DUPLICATE_NAME, 3.0), (DUPLICATE_NAME, 2.0)]);
        assert!(found[1].detail.contains("`Sea_Lion`, `sea lion`, `sea-lion `"), "{found:?}");
        assert_eq!(names(&strings(&["cat", "cats", "c a t"])), []);
    }

    #[test]
    fn classes_without_examples_are_counted_and_named() {
        let names = strings(&["a", "b", "c"]);
        let found = without_examples(&names, &[3, 0, 0]).unwrap();
        assert_eq!((found.code, found.value), (CLASS_WITHOUT_EXAMPLES, 2.0));
        assert!(found.detail.contains("2 of 3") && found.detail.contains("`b`, `c`"), "{found:?}");
        assert_eq!((without_examples(&names, &[1, 2, 3]), without_examples(&names, &[0; 3])), (None, None));
        let many: Vec<String> = (0..9).map(|name| name.to_string()).collect();
        assert!(
            without_examples(&many, &[1, 0, 0, 0, 0, 0, 0, 0, 0]).unwrap().detail.ends_with("`5` and 3 more")
        );
    }

    #[test]
    fn below_chance_is_the_whole_interval() {
        let warned = |high: f64| below_chance("top1", 0.02, Interval { low: 0.01, high }, 0.1);
        assert_eq!(warned(0.11), None);
        let found = warned(0.05).unwrap();
        assert_eq!((found.code, found.value), (BELOW_CHANCE, 0.02));
        assert_eq!(found.detail, "top1 is 2.00 % [1.00, 5.00], below the 10.00 % of guessing");
    }
}
