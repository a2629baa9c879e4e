//! Query lists in files that are not tables: one query a line, or JSON as MetaCLIP publishes it.

use std::collections::HashSet;
use std::fmt;
use std::io::Read;
use std::path::Path;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

use twinlens_dataset::unpack;

use crate::error::{CurateError, Result};

/// Most bytes of a list, decompressed.
const MAX_BYTES: u64 = 1 << 30;

/// How a file holds queries, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    /// `.txt`: one a line.
    Lines,
    /// `.json`: an array of texts, or an object of counts.
    Json,
}

fn format_of(name: &str) -> Option<Format> {
    let name =
        [".gz", ".zst", ".bz2", ".xz"].iter().find_map(|ending| name.strip_suffix(ending)).unwrap_or(name);
    match name.rsplit_once('.')?.1 {
        "txt" => Some(Format::Lines),
        "json" => Some(Format::Json),
        _ => None,
    }
}

/// Whether a file of that name is read as a list of queries, and not as a table.
#[must_use]
pub fn is_list_file(name: &str) -> bool {
    format_of(name).is_some()
}

/// The queries of a list file, with their ids: in a text file the number of the line, in JSON the
/// place in the array or object, both from 0. Blank lines have no query.
///
/// # Errors
/// The file cannot be read, is not what its name says, or holds no query.
pub fn read_list_file(path: &Path) -> Result<Vec<(i32, String)>> {
    let refuse = |why: String| CurateError::QueryList { path: path.into(), why };
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let format =
        format_of(&name).ok_or_else(|| refuse("its name ends neither in .txt nor in .json".into()))?;
    let mut bytes = Vec::new();
    let read = unpack::open(path)?.take(MAX_BYTES + 1).read_to_end(&mut bytes);
    read.map_err(|source| CurateError::Read { path: path.into(), source })?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(refuse(format!("it has more than {MAX_BYTES} bytes: it is not a list of queries")));
    }
    let text = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
    let queries = match format {
        Format::Lines => lines(text),
        Format::Json => json(text),
    };
    let queries = queries.map_err(refuse)?;
    if queries.is_empty() {
        return Err(refuse("it holds no query".into()));
    }
    Ok(queries)
}

type Queries = std::result::Result<Vec<(i32, String)>, String>;

fn lines(text: &[u8]) -> Queries {
    if matches!(text.trim_ascii_start().first(), Some(b'[' | b'{')) && json(text).is_ok() {
        return Err("it holds JSON: give it a name that ends in .json".into());
    }
    let mut queries = Vec::new();
    for (number, line) in text.split(|byte| *byte == b'\n').enumerate() {
        let place = || format!("line {}", number + 1);
        let line = std::str::from_utf8(line).map_err(|_| format!("{} is not UTF-8", place()))?.trim();
        if line.contains('\0') {
            return Err(format!("{} has a zero byte: it is not a text file", place()));
        }
        if !line.is_empty() {
            queries.push((id(number)?, line.into()));
        }
    }
    Ok(queries)
}

fn json(text: &[u8]) -> Queries {
    let Texts(texts) = serde_json::from_slice(text)
        .map_err(|error| format!("expected a JSON array of texts, or an object of counts: {error}"))?;
    texts.into_iter().enumerate().map(|(place, text)| Ok((id(place)?, text))).collect()
}

fn id(place: usize) -> std::result::Result<i32, String> {
    i32::try_from(place).map_err(|_| "it has more than 2,147,483,647 queries".into())
}

/// The texts of a JSON list, in the order of the file.
struct Texts(Vec<String>);

impl<'de> Deserialize<'de> for Texts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_any(TextsVisitor)
    }
}

struct TextsVisitor;

impl<'de> Visitor<'de> for TextsVisitor {
    type Value = Texts;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of texts, or an object of counts")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> std::result::Result<Texts, A::Error> {
        let mut texts = Vec::new();
        while let Some(text) = items.next_element::<String>()? {
            texts.push(text);
        }
        Ok(Texts(texts))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> std::result::Result<Texts, A::Error> {
        let (mut texts, mut seen) = (Vec::new(), HashSet::new());
        // Counts are checked, so that a file of another sort is not taken for a list.
        while let Some((text, _)) = entries.next_entry::<String, f64>()? {
            if !seen.insert(text.clone()) {
                return Err(A::Error::custom(format!("the query {text:?} is given twice")));
            }
            texts.push(text);
        }
        Ok(Texts(texts))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &str, bytes: &[u8]) -> Result<Vec<(i32, String)>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        read_list_file(&path)
    }

    #[test]
    fn lists_are_read() {
        let gzip = {
            use std::io::Write;
            let mut to = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            to.write_all(b"dog\ncat").unwrap();
            to.finish().unwrap()
        };
        for (name, bytes, expected) in [
            ("a.txt", b"red bicycle\r\n\n dog \n".as_slice(), vec![(0, "red bicycle"), (2, "dog")]),
            ("b.txt", b"\xef\xbb\xbf[sic]".as_slice(), vec![(0, "[sic]")]),
            ("c.json", br#"["dog", "cat", "dog"]"#.as_slice(), vec![(0, "dog"), (1, "cat"), (2, "dog")]),
            ("d.json", br#"{"zebra": 3, "cat": 0}"#.as_slice(), vec![(0, "zebra"), (1, "cat")]),
            ("e.txt.gz", &gzip, vec![(0, "dog"), (1, "cat")]),
        ] {
            let expected: Vec<_> = expected.into_iter().map(|(id, text)| (id, text.to_string())).collect();
            assert_eq!(read(name, bytes).unwrap(), expected, "{name}");
        }
    }

    #[test]
    fn files_of_another_sort_are_refused_with_their_place() {
        for (name, bytes, expected) in [
            ("a.txt", br#"["dog"]"#.as_slice(), "a.txt: it holds JSON"),
            ("a.txt", b"dog\n\xff\xfe".as_slice(), "a.txt: line 2 is not UTF-8"),
            ("a.txt", b"PAR1\0\0".as_slice(), "a.txt: line 1 has a zero byte"),
            ("a.txt", b" \n\n".as_slice(), "a.txt: it holds no query"),
            ("a.json", b"[]".as_slice(), "a.json: it holds no query"),
            ("a.json", br#"["dog", 3]"#.as_slice(), "invalid type: integer `3`, expected a string at line 1"),
            ("a.json", br#"["dog"]["cat"]"#.as_slice(), "trailing characters at line 1 column 8"),
            ("a.json", br#"{"dog": "many"}"#.as_slice(), "invalid type: string \"many\", expected f64"),
            ("a.json", br#"{"dog": 1, "dog": 2}"#.as_slice(), "the query \"dog\" is given twice"),
            ("a.json", b"dog".as_slice(), "expected a JSON array of texts, or an object of counts"),
        ] {
            let error = read(name, bytes).unwrap_err().to_string();
            assert!(error.contains(expected), "{name}: {error}");
        }
    }
}
