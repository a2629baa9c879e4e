//! Words in the text of a query.

use std::ops::Range;

pub(super) fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The first occurrence of a name as a whole word.
pub(crate) fn find_word(text: &str, name: &str) -> Option<Range<usize>> {
    if name.is_empty() {
        return None;
    }
    let lower = text.to_ascii_lowercase();
    lower
        .match_indices(&name.to_ascii_lowercase())
        .map(|(at, found)| at..at + found.len())
        .find(|place| !text[..place.start].ends_with(is_word) && !text[place.end..].starts_with(is_word))
}
