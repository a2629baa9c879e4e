//! Readers of the text formats that query lists are built from. A malformed line is an error with
//! file and line number: a source that was silently truncated would change every later step.

use std::collections::HashMap;
use std::path::Path;

use crate::error::{CurateError, Result};

/// Word counts: `word<TAB>count` or `word count`, one per line, UTF-8. Blank lines are skipped; the
/// counts of a repeated word are added.
///
/// # Errors
/// [`CurateError::Read`] or [`CurateError::Line`].
pub fn read_counts(path: &Path) -> Result<HashMap<String, u64>> {
    let mut counts: HashMap<String, u64> = HashMap::new();
    each_line(path, |line| {
        let (word, count) = split_count(line)?;
        if word.contains(char::is_whitespace) {
            return Err(format!("expected one word and its count, found {line:?}"));
        }
        let sum = counts.entry(word.to_string()).or_default();
        *sum = sum.checked_add(count).ok_or("the counts of this word exceed 2^64")?;
        Ok(())
    })?;
    Ok(counts)
}

/// Counts of word pairs: `first second<TAB>count` or `first second count`, one per line, UTF-8.
/// Blank lines are skipped.
///
/// # Errors
/// [`CurateError::Read`] or [`CurateError::Line`].
pub fn read_bigrams(path: &Path) -> Result<Vec<(String, String, u64)>> {
    let mut pairs = Vec::new();
    each_line(path, |line| {
        let (words, count) = split_count(line)?;
        let mut words = words.split_whitespace();
        match (words.next(), words.next(), words.next()) {
            (Some(first), Some(second), None) => pairs.push((first.to_string(), second.to_string(), count)),
            _ => return Err(format!("expected two words and their count, found {line:?}")),
        }
        Ok(())
    })?;
    Ok(pairs)
}

/// Titles, one per line, UTF-8; `_` stands for a space, as in Wikipedia's dumps. Blank lines are
/// skipped.
///
/// # Errors
/// [`CurateError::Read`] or [`CurateError::Line`].
pub fn read_titles(path: &Path) -> Result<Vec<String>> {
    let mut titles = Vec::new();
    each_line(path, |line| {
        titles.push(line.replace('_', " "));
        Ok(())
    })?;
    Ok(titles)
}

/// The first lemma of each synset in a folder of WordNet database files (`data.noun`, `data.verb`,
/// `data.adj`, `data.adv`; format: wndb(5WN)), with spaces for `_` and without the syntactic
/// markers of adjectives.
///
/// # Errors
/// [`CurateError::Read`] or [`CurateError::Line`].
pub fn read_wordnet(folder: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for part in ["noun", "verb", "adj", "adv"] {
        each_line(&folder.join(format!("data.{part}")), |line| {
            // The licence at the start of each file is indented by two spaces.
            if !line.starts_with("  ") {
                names.push(first_lemma(line)?);
            }
            Ok(())
        })?;
    }
    Ok(names)
}

/// A line begins with: offset (8 digits), file number, type (n v a s r), number of lemmas (2 hex
/// digits), lemma, ...
fn first_lemma(line: &str) -> std::result::Result<String, String> {
    let fields: Vec<&str> = line.split(' ').take(6).collect();
    let well_formed = matches!(fields[..], [offset, _, kind, words, lemma, _]
        if offset.len() == 8 && offset.bytes().all(|b| b.is_ascii_digit())
            && ["n", "v", "a", "s", "r"].contains(&kind)
            && u8::from_str_radix(words, 16).is_ok_and(|n| n > 0)
            && !lemma.is_empty());
    if !well_formed {
        let start: String = line.chars().take(60).collect();
        return Err(format!(
            "expected a synset (offset, file, type, lemma count, lemma, ...), found {start:?}"
        ));
    }
    let lemma = fields[4];
    let lemma = ["(a)", "(p)", "(ip)"].iter().find_map(|mark| lemma.strip_suffix(mark)).unwrap_or(lemma);
    Ok(lemma.replace('_', " "))
}

fn split_count(line: &str) -> std::result::Result<(&str, u64), String> {
    let line = line.trim();
    let (words, count) = line
        .rsplit_once('\t')
        .or_else(|| line.rsplit_once(char::is_whitespace))
        .ok_or_else(|| format!("expected words and a count, found {line:?}"))?;
    let count = count.trim();
    let count = count
        .parse()
        .map_err(|_| format!("expected a count (a whole number) at the end, found {count:?}"))?;
    Ok((words.trim(), count))
}

/// Calls `take` for every line that is not blank; its error message gets the file and line number.
fn each_line(path: &Path, mut take: impl FnMut(&str) -> std::result::Result<(), String>) -> Result<()> {
    let bytes =
        std::fs::read(path).map_err(|source| CurateError::Read { path: path.to_path_buf(), source })?;
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
    for (index, line) in bytes.split(|b| *b == b'\n').enumerate() {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        std::str::from_utf8(line)
            .map_err(|e| {
                format!("not UTF-8 at byte {} of the line; convert the file to UTF-8", e.valid_up_to())
            })
            .and_then(|line| if line.trim().is_empty() { Ok(()) } else { take(line) })
            .map_err(|message| CurateError::Line {
                path: path.to_path_buf(),
                line: index as u64 + 1,
                message,
            })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt::Debug;

    fn file(content: &[u8]) -> (tempfile::TempDir, std::path::PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("source.txt");
        std::fs::write(&path, content).unwrap();
        (folder, path)
    }

    #[test]
    fn formats_are_read() {
        let (_folder, path) = file(b"\xef\xbb\xbfthe 5\r\n\ncaf\xc3\xa9\t7\nthe\t1");
        assert_eq!(read_counts(&path).unwrap(), HashMap::from([("the".into(), 6), ("café".into(), 7)]));
        let (_folder, path) = file(b"new york 12\nlos angeles\t3\n");
        assert_eq!(
            read_bigrams(&path).unwrap(),
            [("new".into(), "york".into(), 12), ("los".into(), "angeles".into(), 3)]
        );
        let (_folder, path) = file(b"Alan_Turing\nA Bronx Tale\n");
        assert_eq!(read_titles(&path).unwrap(), ["Alan Turing", "A Bronx Tale"]);
    }

    #[test]
    fn wordnet_gives_first_lemmas() {
        let folder = tempfile::tempdir().unwrap();
        let head = "  1 This software and database is being provided to you  \n";
        for (part, line) in [
            (
                "noun",
                "02084071 05 n 03 domestic_dog 0 dog 0 Canis_familiaris 0 001 @ 02083346 n 0000 | a pet\n",
            ),
            ("verb", "00001740 29 v 01 breathe 0 000 | draw air\n"),
            ("adj", "00014490 00 s 01 galore(ip) 0 000 | in great numbers\n"),
            ("adv", "00001740 02 r 01 a_cappella 0 000 | without music\n"),
        ] {
            std::fs::write(folder.path().join(format!("data.{part}")), format!("{head}{line}")).unwrap();
        }
        assert_eq!(read_wordnet(folder.path()).unwrap(), ["domestic dog", "breathe", "galore", "a cappella"]);
        std::fs::write(folder.path().join("data.verb"), format!("{head}oops\n")).unwrap();
        let error = read_wordnet(folder.path()).unwrap_err().to_string();
        assert!(error.contains("data.verb:2: expected a synset") && error.contains("oops"), "{error}");
        std::fs::remove_file(folder.path().join("data.noun")).unwrap();
        assert!(read_wordnet(folder.path()).unwrap_err().to_string().contains("data.noun"));
    }

    #[test]
    fn malformed_lines_are_errors_with_line_numbers() {
        fn message<T: Debug>(content: &[u8], read: impl Fn(&Path) -> Result<T>) -> String {
            read(&file(content).1).unwrap_err().to_string()
        }
        for (message, part) in [
            (message(b"the 5\nof\n", read_counts), ":2: expected words and a count, found \"of\""),
            (
                message(b"the five\n", read_counts),
                ":1: expected a count (a whole number) at the end, found \"five\"",
            ),
            (message(b"the -5\n", read_counts), ":1: expected a count"),
            (message(b"new york 5\n", read_counts), ":1: expected one word and its count"),
            (
                message(b"a 1\nb 18446744073709551615\nb 1\n", read_counts),
                ":3: the counts of this word exceed",
            ),
            (message(b"\n\nyork 5\n", read_bigrams), ":3: expected two words and their count"),
            (message(b"ok\n\xff\xfe\n", read_titles), ":2: not UTF-8"),
        ] {
            assert!(message.contains("source.txt") && message.contains(part), "{message} should say {part}");
        }
        assert!(read_titles(Path::new("/no/such.file")).unwrap_err().to_string().contains("/no/such.file"));
    }
}
