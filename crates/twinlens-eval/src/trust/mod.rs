//! Warnings about results that should not be trusted: rows of the table `warnings`.
//!
//! A warning never stops an evaluation and never changes a number. Its code is one of [`CODES`].

mod assignment;
mod permuted;

use std::collections::BTreeMap;

use crate::metrics::Interval;

pub use assignment::assign;
pub use permuted::{Confusion, GAIN, LabelPermutation, MAX_CLASSES, MIN_EXAMPLES, RATIO};

/// The model agrees with the labels once some class names are exchanged: see [`LabelPermutation`].
pub const LABELS_PERMUTED: &str = "labels_permuted";
/// The check for permuted labels was skipped: there are more than [`MAX_CLASSES`] classes.
pub const PERMUTATION_NOT_CHECKED: &str = "permutation_not_checked";
/// Class names differ only in case, white space or punctuation.
pub const DUPLICATE_NAME: &str = "duplicate_name";
/// A class name has neither a letter nor a digit.
pub const EMPTY_NAME: &str = "empty_name";
/// Classes have the same tokens in these prompts: no model can distinguish them.
pub const SAME_TOKENS: &str = "same_tokens";
/// The whole interval of a metric lies below its chance level.
pub const BELOW_CHANCE: &str = "below_chance";
/// Classes have no examples: predicting them is always wrong.
pub const CLASS_WITHOUT_EXAMPLES: &str = "class_without_examples";

/// The data of a set name its classes differently from its declaration.
pub const CLASS_NAMES_DIFFER: &str = "class_names_differ";
/// The directory of a set has files that are not part of it.
pub const UNREAD_FILES: &str = "unread_files";
/// A set was skipped because its data are missing.
pub const SET_MISSING: &str = "set_missing";
/// A set was skipped because it cannot be evaluated as it is.
pub const SET_REFUSED: &str = "set_refused";

/// Examples of the set are among the training images.
pub const TRAINED_ON: &str = "trained_on";

pub const CODES: [&str; 12] = [
    LABELS_PERMUTED,
    PERMUTATION_NOT_CHECKED,
    DUPLICATE_NAME,
    EMPTY_NAME,
    SAME_TOKENS,
    BELOW_CHANCE,
    CLASS_WITHOUT_EXAMPLES,
    CLASS_NAMES_DIFFER,
    UNREAD_FILES,
    SET_MISSING,
    SET_REFUSED,
    TRAINED_ON,
];

/// Names that a detail lists in full.
const MAX_LISTED: usize = 5;

#[derive(Debug, Clone, PartialEq)]
pub struct Warning {
    pub code: &'static str,
    /// Names the classes.
    pub detail: String,
    /// The measured number: a share for [`LABELS_PERMUTED`], [`BELOW_CHANCE`] and [`TRAINED_ON`],
    /// a count of files for [`UNREAD_FILES`], else a count of classes.
    pub value: f64,
}

/// Lower case, with each run of other characters than letters and digits replaced by one space.
pub fn normalised(name: &str) -> String {
    let lower = name.to_lowercase();
    let words = lower.split(|letter: char| !letter.is_alphanumeric()).filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join(" ")
}

/// Warns of class names that look alike, or that are empty.
pub fn names(names: &[String]) -> Vec<Warning> {
    let mut same: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for name in names {
        same.entry(normalised(name)).or_default().push(name);
    }
    let empty = same.remove("").map(|empty| Warning {
        code: EMPTY_NAME,
        detail: format!("class names without a letter or digit: {}", quoted(&empty)),
        value: empty.len() as f64,
    });
    let duplicates = same.values().filter(|names| names.len() > 1).map(|names| Warning {
        code: DUPLICATE_NAME,
        detail: format!("{} differ only in case, spacing or punctuation", quoted(names)),
        value: names.len() as f64,
    });
    empty.into_iter().chain(duplicates).collect()
}

/// Warns of files that are not read.
pub fn unread(files: &[String]) -> Option<Warning> {
    let names: Vec<&str> = files.iter().map(String::as_str).collect();
    (!files.is_empty()).then(|| Warning {
        code: UNREAD_FILES,
        detail: match names.len() {
            1 => format!("a file is not read: {}", quoted(&names)),
            more => format!("{more} files are not read: {}", quoted(&names)),
        },
        value: files.len() as f64,
    })
}

/// Warns of classes without examples, unless there are no examples at all; `examples` per class.
pub fn without_examples(names: &[String], examples: &[u64]) -> Option<Warning> {
    let missing: Vec<&str> =
        names.iter().zip(examples).filter(|(_, n)| **n == 0).map(|(name, _)| name.as_str()).collect();
    (!missing.is_empty() && missing.len() < names.len()).then(|| Warning {
        code: CLASS_WITHOUT_EXAMPLES,
        detail: format!(
            "{} of {} classes have no examples: {}",
            missing.len(),
            names.len(),
            quoted(&missing)
        ),
        value: missing.len() as f64,
    })
}

/// Warns of a metric whose whole interval lies below its chance level: the labels may mean
/// something else.
pub fn below_chance(metric: &str, value: f64, interval: Interval, chance: f64) -> Option<Warning> {
    (interval.high < chance).then(|| Warning {
        code: BELOW_CHANCE,
        detail: format!(
            "{} is {:.2} % [{:.2}, {:.2}], below the chance level of {:.2} %",
            metric,
            100.0 * value,
            100.0 * interval.low,
            100.0 * interval.high,
            100.0 * chance
        ),
        value,
    })
}

/// Warns of classes with equal tokens: `duplicates` are the first two, and the number of classes
/// that equal an earlier one.
pub fn same_tokens(names: &[String], duplicates: Option<(usize, usize, usize)>) -> Option<Warning> {
    let (a, b, count) = duplicates?;
    Some(Warning {
        code: SAME_TOKENS,
        detail: format!(
            "{count} classes have the same tokens as an earlier class and cannot be distinguished (first: `{}` and `{}`)",
            names[a], names[b]
        ),
        value: count as f64,
    })
}

/// Warns of labels that look permuted, or of too many classes to check. See [`LabelPermutation`].
pub fn permuted(confusion: &Confusion, names: &[String]) -> Option<Warning> {
    if !confusion.is_checked() {
        return Some(Warning {
            code: PERMUTATION_NOT_CHECKED,
            detail: format!("{} classes are too many to check whether the labels are permuted", names.len()),
            value: names.len() as f64,
        });
    }
    let found = confusion.label_permutation()?;
    let pair = |(label, name): &(usize, usize)| format!("`{}` as `{}`", names[*label], names[*name]);
    let mut pairs: Vec<String> = found.renamed.iter().take(MAX_LISTED).map(pair).collect();
    if found.renamed.len() > MAX_LISTED {
        pairs.push(format!("{} more", found.renamed.len() - MAX_LISTED));
    }
    Some(Warning {
        code: LABELS_PERMUTED,
        detail: format!(
            "the labels look permuted: some classes have an accuracy of {:.1} %, and of {:.1} % under the names of other classes ({}). \
             Is the list of classes in the order of the label ids?",
            100.0 * found.labelled,
            100.0 * found.relabelled,
            pairs.join(", ")
        ),
        value: found.relabelled,
    })
}

fn quoted(names: &[&str]) -> String {
    let first = names.iter().take(MAX_LISTED).map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(MAX_LISTED) {
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
    fn class_names_that_look_alike() {
        let found =
            names(&strings(&["Sea_Lion", "sea lion", "sea-lion ", "lion", "?", "Äpfel", "äpfel!", "7"]));
        let codes: Vec<(&str, f64)> = found.iter().map(|warning| (warning.code, warning.value)).collect();
        assert_eq!(codes, [(EMPTY_NAME, 1.0), (DUPLICATE_NAME, 3.0), (DUPLICATE_NAME, 2.0)]);
        assert!(found[1].detail.contains("`Sea_Lion`, `sea lion`, `sea-lion `"), "{found:?}");
        assert_eq!(names(&strings(&["cat", "cats", "c a t"])), []);
    }

    #[test]
    fn classes_without_examples_are_counted_and_listed() {
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
    fn below_chance_needs_the_whole_interval() {
        let warned = |high: f64| below_chance("top1", 0.02, Interval { low: 0.01, high }, 0.1);
        assert_eq!(warned(0.11), None);
        let found = warned(0.05).unwrap();
        assert_eq!((found.code, found.value), (BELOW_CHANCE, 0.02));
        assert_eq!(found.detail, "top1 is 2.00 % [1.00, 5.00], below the chance level of 10.00 %");
    }
}
