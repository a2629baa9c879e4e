//! Patterns of file names: `*` and `?` within a name, `**` for any directories, `{a,b}` and
//! `{000..123}` for names that must all exist.

use twinlens_dataset::storage::Location;

use crate::error::RunError;
use crate::hub::file_pattern;

/// Most names that braces may stand for.
const MAX_NAMES: usize = 1_000_000;

/// Whether a text has wildcards, for which the files must be listed.
pub(crate) fn has_wildcards(text: &str) -> bool {
    text.contains(['*', '?'])
}

/// The names that braces stand for: `{000..123}` is a range of numbers, with leading zeros as
/// written, `{a,b}` a list. Other braces are literal.
///
/// # Errors
/// A user error if they are more than a million, or a range runs backwards.
pub fn expand_braces(text: &str) -> Result<Vec<String>, RunError> {
    let mut names = vec![String::new()];
    let mut rest = text;
    while let Some((before, inside, after)) = first_brace(rest) {
        let items = alternatives(inside, text)?;
        if names.len().saturating_mul(items.len()) > MAX_NAMES {
            return Err(RunError::user(format!("`{text}` stands for more than {MAX_NAMES} files")));
        }
        let with =
            |name: &String| items.iter().map(|item| format!("{name}{before}{item}")).collect::<Vec<_>>();
        names = names.iter().flat_map(with).collect();
        rest = after;
    }
    names.iter_mut().for_each(|name| name.push_str(rest));
    Ok(names)
}

/// The text before the first braces that are not literal ones, in them, and after them.
fn first_brace(text: &str) -> Option<(&str, &str, &str)> {
    for (open, _) in text.match_indices('{') {
        let Some(length) = text[open..].find('}') else { break };
        let inside = &text[open + 1..open + length];
        if inside.contains(',') || range(inside).is_some() {
            return Some((&text[..open], inside, &text[open + length + 1..]));
        }
    }
    None
}

fn range(inside: &str) -> Option<(&str, &str)> {
    let is_number = |part: &str| (1..=18).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_digit());
    inside.split_once("..").filter(|(first, last)| is_number(first) && is_number(last))
}

fn alternatives(inside: &str, text: &str) -> Result<Vec<String>, RunError> {
    let Some((first, last)) = range(inside) else {
        return Ok(inside.split(',').map(String::from).collect());
    };
    let number = |part: &str| part.parse::<u64>().unwrap_or_default();
    let (from, to) = (number(first), number(last));
    if from > to || to - from >= MAX_NAMES as u64 {
        return Err(RunError::user(format!("`{text}`: the range {inside} runs backwards or is too long")));
    }
    let is_padded = [first, last].iter().any(|part| part.len() > 1 && part.starts_with('0'));
    let width = if is_padded { first.len().max(last.len()) } else { 0 };
    Ok((from..=to).map(|number| format!("{number:0width$}")).collect())
}

/// The files below a folder whose path matches a pattern with wildcards, sorted.
pub(crate) fn matching(folder: &Location, pattern: &str) -> Result<Vec<Location>, RunError> {
    let parts: Vec<&str> = pattern.split('/').filter(|part| !part.is_empty()).collect();
    let mut found = Vec::new();
    walk(folder, &parts, &mut found)?;
    found.sort_by_cached_key(|location| location.display_path());
    found.dedup_by_key(|location| location.display_path());
    Ok(found)
}

/// All files below a folder, without hidden ones, sorted.
pub(crate) fn all_below(folder: &Location) -> Result<Vec<Location>, RunError> {
    let mut found = matching(folder, "**/*")?;
    found.retain(|location| !is_hidden(&location.name()));
    Ok(found)
}

/// Names that are not data: of the system, or like `_SUCCESS` and `_metadata`.
fn is_hidden(name: &str) -> bool {
    name.starts_with(['.', '_'])
}

fn walk(folder: &Location, parts: &[&str], found: &mut Vec<Location>) -> Result<(), RunError> {
    let Some((first, rest)) = parts.split_first() else { return Ok(()) };
    if *first != "**" && !rest.is_empty() && !has_wildcards(first) {
        return walk(&folder.join(first), rest, found);
    }
    let listing = folder.list()?;
    if *first == "**" {
        // No directory, or any: but no hidden one.
        if rest.is_empty() {
            found.extend(listing.files.iter().map(|name| folder.join(name)));
        } else {
            walk(folder, rest, found)?;
        }
        for name in listing.folders.iter().filter(|name| !is_hidden(name)) {
            walk(&folder.join(name), parts, found)?;
        }
        return Ok(());
    }
    let pattern = file_pattern(first);
    if rest.is_empty() {
        let names = listing.files.iter().filter(|name| pattern.matches(name));
        found.extend(names.map(|name| folder.join(name)));
    } else {
        for name in listing.folders.iter().filter(|name| pattern.matches(name)) {
            walk(&folder.join(name), rest, found)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn braces_stand_for_names() {
        let cases: &[(&str, &[&str])] = &[
            ("a.csv", &["a.csv"]),
            ("{008..011}.tar", &["008.tar", "009.tar", "010.tar", "011.tar"]),
            ("{8..10}", &["8", "9", "10"]),
            ("{a,b}/{0..1}.x", &["a/0.x", "a/1.x", "b/0.x", "b/1.x"]),
            ("{a}/{}/{x..y}", &["{a}/{}/{x..y}"]),
            ("{a}{1..2}", &["{a}1", "{a}2"]),
        ];
        for (text, expected) in cases {
            assert_eq!(expand_braces(text).unwrap(), *expected);
        }
        for text in ["{5..1}", "{0..9999999}", "{0..9999}{0..9999}"] {
            assert!(expand_braces(text).is_err(), "{text}");
        }
    }

    #[test]
    fn patterns_reach_into_directories() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a/x.csv", "a/b/y.csv", "a/b/z.txt", ".git/q.csv", "a/_SUCCESS", "w.csv"] {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        let names = |found: Vec<Location>| -> Vec<String> {
            let name = |location: &Location| {
                location.display_path().strip_prefix(dir.path()).unwrap().display().to_string()
            };
            found.iter().map(name).collect()
        };
        let root = Location::from(dir.path());
        let cases: &[(&str, &[&str])] = &[
            ("*.csv", &["w.csv"]),
            ("**/*.csv", &["a/b/y.csv", "a/x.csv", "w.csv"]),
            ("a/**", &["a/_SUCCESS", "a/b/y.csv", "a/b/z.txt", "a/x.csv"]),
            ("*/b/?.csv", &["a/b/y.csv"]),
            ("**/b/*", &["a/b/y.csv", "a/b/z.txt"]),
            ("*/*.parquet", &[]),
        ];
        for (pattern, expected) in cases {
            assert_eq!(names(matching(&root, pattern).unwrap()), *expected, "{pattern}");
        }
        assert_eq!(names(all_below(&root).unwrap()), ["a/b/y.csv", "a/b/z.txt", "a/x.csv", "w.csv"]);
    }
}
