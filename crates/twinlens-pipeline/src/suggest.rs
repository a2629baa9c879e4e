//! Suggestions for misspelled names: "did you mean ...?"

use std::cell::Cell;

/// How many faults about unknown names list the known ones. Among very many unknown names, to
/// compare each with very many known ones would take minutes; a report does not show more.
pub(crate) const MAX_SUGGESTIONS: usize = 50;

/// Suggestions for the first [`MAX_SUGGESTIONS`] unknown names of a file.
#[derive(Debug)]
pub(crate) struct Suggestions(Cell<usize>);

impl Default for Suggestions {
    fn default() -> Self {
        Self(Cell::new(MAX_SUGGESTIONS))
    }
}

impl Suggestions {
    /// Whether to look for another suggestion.
    pub(crate) fn next(&self) -> bool {
        let left = self.0.get();
        self.0.set(left.saturating_sub(1));
        left > 0
    }
}

/// The known name nearest to `written`, if it is close enough to be a typo.
pub fn nearest<'a>(written: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let lower = written.to_lowercase();
    // A third of the letters may differ. Of a name of one or two letters, only the case may.
    let length = lower.chars().count();
    let allowed = length / 3;
    (known.into_iter())
        .filter(|name| name.chars().count().abs_diff(length) <= allowed.max(1))
        .map(|name| (strsim::damerau_levenshtein(&lower, &name.to_lowercase()), name))
        .filter(|(distance, name)| *distance <= allowed.max(usize::from(name.len() > 3)))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

/// The hint for an unknown name: the nearest known one.
pub fn did_you_mean<'a>(written: &str, known: impl IntoIterator<Item = &'a str>) -> Option<String> {
    nearest(written, known).map(|name| format!("did you mean `{name}`?"))
}

/// Lists names in backquotes, at most twelve: `a`, `b`, `c`.
pub fn list_names<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let mut names = names.into_iter();
    let shown: Vec<String> = names.by_ref().take(12).map(|name| format!("`{name}`")).collect();
    match (shown.is_empty(), names.count()) {
        (true, _) => "none".into(),
        (false, 0) => shown.join(", "),
        (false, more) => format!("{} and {more} more", shown.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_of_many_unknown_names_get_suggestions() {
        let suggestions = Suggestions::default();
        let unknown = |count: usize| (0..count).filter(|_| suggestions.next()).count();
        // However many there are.
        assert_eq!(unknown(4000) + unknown(8000), MAX_SUGGESTIONS);
    }

    #[test]
    fn a_list_shows_twelve_names() {
        let names: Vec<String> = (0..14).map(|at| format!("n{at}")).collect();
        let list = |count: usize| list_names(names[..count].iter().map(String::as_str));
        assert_eq!((list(0).as_str(), list(2).as_str()), ("none", "`n0`, `n1`"));
        assert!(list(12).ends_with("`n11`") && list(14).ends_with("`n11` and 2 more"));
    }

    #[test]
    fn typos_are_corrected_and_other_words_are_not() {
        let known = ["where", "input", "kind", "id"];
        for (written, expected) in [
            ("wher", Some("where")),
            ("hwere", Some("where")),
            ("INPUT", Some("input")),
            ("inptu", Some("input")),
            ("predicate", None),
            ("di", None),
            ("x", None),
            ("", None),
        ] {
            assert_eq!(nearest(written, known), expected, "{written}");
        }
    }
}
