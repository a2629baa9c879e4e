//! Suggestions for misspelled names: "did you mean ...?"

/// The known name nearest to `written`, if it is close enough to be a typo.
pub fn nearest<'a>(written: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let lower = written.to_lowercase();
    // A third of the letters may differ. Of a name of one or two letters, only the case may.
    let allowed = lower.chars().count() / 3;
    (known.into_iter())
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
    let all: Vec<String> = names.into_iter().map(|name| format!("`{name}`")).collect();
    match all.len() {
        0 => "none".into(),
        1..=12 => all.join(", "),
        more => format!("{} and {} more", all[..12].join(", "), more - 12),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
