//! Source positions: the text of a pipeline file, followed by arguments of the command line, in one
//! range of byte offsets, and the mapping from the content of a string back to that text.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use toml::Spanned;
use toml::de::DeValue;

use crate::error::Fault;
use crate::secrets::Secrets;

/// The text of the file, then each argument after a line break.
pub(crate) struct Source {
    /// Where the values come from, for messages: the path of the file.
    name: String,
    text: String,
    file: usize,
    /// Where the lines of the file after the first begin.
    lines: Vec<usize>,
    arguments: Vec<Argument>,
}

/// An argument of the command line.
struct Argument {
    /// `--set`.
    option: String,
    range: Range<usize>,
}

/// A range of a [`Source`].
pub(crate) struct Part<'a> {
    /// The path of the file, or the option of the argument: `--set`.
    pub(crate) name: &'a str,
    /// The text of the file or of the argument.
    pub(crate) text: &'a str,
    /// The range in that text.
    pub(crate) range: Range<usize>,
    /// The index of the argument; `None` for the file.
    pub(crate) argument: Option<usize>,
}

impl Source {
    pub(crate) fn new(
        name: impl Into<String>,
        file: &str,
        arguments: impl IntoIterator<Item = (String, String)>,
    ) -> Self {
        let lines = file.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at + 1);
        let (lines, arguments_of_file) = (lines.collect(), Vec::new());
        let (text, length) = (file.into(), file.len());
        let mut source = Self { name: name.into(), text, file: length, lines, arguments: arguments_of_file };
        for (option, argument) in arguments {
            source.text.push('\n');
            let start = source.text.len();
            source.text.push_str(&argument);
            source.arguments.push(Argument { option, range: start..source.text.len() });
        }
        source
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn file(&self) -> &str {
        &self.text[..self.file]
    }

    /// The arguments, each with its offset.
    pub(crate) fn arguments(&self) -> impl Iterator<Item = (usize, &str)> {
        let ranges = self.arguments.iter().map(|argument| argument.range.clone());
        ranges.map(|range| (range.start, &self.text[range]))
    }

    /// The range of an argument.
    pub(crate) fn argument(&self, index: usize) -> Range<usize> {
        self.arguments[index].range.clone()
    }

    /// The part of the text that contains a range.
    pub(crate) fn part(&self, place: &Range<usize>) -> Part<'_> {
        let argument = self.arguments.iter().position(|argument| {
            place.start > self.file
                && argument.range.start <= place.start
                && place.start <= argument.range.end
        });
        let (name, text, start) = match argument.map(|index| &self.arguments[index]) {
            Some(Argument { option, range }) => (option, &self.text[range.clone()], range.start),
            None => (&self.name, self.file(), 0),
        };
        let floor = |at: usize| {
            (0..=at.saturating_sub(start).min(text.len())).rev().find(|at| text.is_char_boundary(*at))
        };
        let (from, to) = (floor(place.start).unwrap_or(0), floor(place.end).unwrap_or(0));
        Part { name, text, range: from..to.max(from), argument }
    }

    /// The line of a byte of the file, from 1.
    pub(crate) fn line(&self, at: usize) -> usize {
        self.lines.partition_point(|start| *start <= at) + 1
    }

    fn raw(&self, span: &Range<usize>) -> Option<&str> {
        self.text.get(span.clone())
    }
}

/// A piece of an expanded string: its range in the result and in the template.
#[derive(Debug, Clone)]
pub(crate) struct Piece {
    pub(crate) result: Range<usize>,
    pub(crate) template: Range<usize>,
    /// Whether the piece is literal text rather than the value of a variable.
    pub(crate) is_literal: bool,
}

/// Facts about the strings of a pipeline file, by their start offset.
#[derive(Default)]
pub(crate) struct Strings {
    /// Strings in which variables were expanded.
    pub(crate) expanded: BTreeMap<usize, Vec<Piece>>,
    /// Strings in which a variable could not be expanded: their other errors are follow-on errors.
    pub(crate) broken: BTreeSet<usize>,
    /// Strings without quotes: values of `--set`.
    pub(crate) unquoted: BTreeSet<usize>,
    /// The text of numbers and booleans from a variable or `--set`, which may be meant as strings.
    pub(crate) texts: BTreeMap<usize, String>,
    /// What no message may tell.
    pub(crate) secrets: Secrets,
}

impl Strings {
    /// The range of a fault in the text.
    pub(crate) fn place(&self, source: &Source, fault: &Fault) -> Range<usize> {
        let Some(within) = fault.within.clone() else { return fault.span.clone() };
        let template = match self.expanded.get(&fault.span.start) {
            Some(pieces) => to_template(pieces, &within),
            None => Some(within),
        };
        template.and_then(|within| self.content(source, &fault.span, within)).unwrap_or(fault.span.clone())
    }

    /// Maps a range of a string's content, before expansion, to the text.
    pub(crate) fn content(
        &self,
        source: &Source,
        span: &Range<usize>,
        within: Range<usize>,
    ) -> Option<Range<usize>> {
        let raw = source.raw(span)?;
        if self.unquoted.contains(&span.start) {
            return (within.end <= raw.len()).then(|| span.start + within.start..span.start + within.end);
        }
        let offsets = offsets(raw)?;
        Some(span.start + *offsets.get(within.start)?..span.start + *offsets.get(within.end)?)
    }
}

/// Maps a range of an expanded string to its template.
fn to_template(pieces: &[Piece], within: &Range<usize>) -> Option<Range<usize>> {
    let first =
        pieces.iter().find(|piece| piece.result.start <= within.start && within.start < piece.result.end);
    let last = pieces.iter().rfind(|piece| piece.result.start < within.end.max(within.start + 1));
    let (first, last) = (first.or(last)?, last?);
    let start = if first.is_literal {
        first.template.start + (within.start - first.result.start)
    } else {
        first.template.start
    };
    let end = if last.is_literal {
        last.template.start + within.end.min(last.result.end).saturating_sub(last.result.start)
    } else {
        last.template.end
    };
    Some(start..end.max(start))
}

/// For each byte of the content of a TOML string, and for its end, the offset in the quoted text.
/// `None` if the text is not a string, or does not decode to the content that the parser gives.
fn offsets(raw: &str) -> Option<Vec<usize>> {
    let quote = raw.chars().next().filter(|quote| matches!(quote, '"' | '\''))?;
    let triple = raw.len() >= 6 && raw.starts_with([quote; 3].iter().collect::<String>().as_str());
    let edge = if triple { 3 } else { 1 };
    let body = raw.get(edge..raw.len().checked_sub(edge)?)?;
    let line_end = ["\r\n", "\n"].into_iter().find(|end| triple && body.starts_with(end));
    let skipped = line_end.map_or(0, str::len);
    let (mut content, mut places) = (String::new(), Vec::new());
    let mut at = skipped;
    while let Some(c) = body.get(at..)?.chars().next() {
        let (decoded, length) = match c {
            '\\' if quote == '"' => escape(&body[at..])?,
            c => (Some(c), c.len_utf8()),
        };
        if let Some(decoded) = decoded {
            content.push(decoded);
            // A literal character maps byte for byte, an escape to its backslash.
            let is_literal = decoded.len_utf8() == length && c != '\\';
            places.extend((0..decoded.len_utf8()).map(|byte| edge + at + if is_literal { byte } else { 0 }));
        }
        at += length;
    }
    places.push(edge + body.len());
    let parsed = DeValue::parse(raw).ok()?;
    (parsed.get_ref().as_str() == Some(content.as_str())).then_some(places)
}

/// The character of an escape (`None` for a skipped line break) and its length in bytes.
fn escape(text: &str) -> Option<(Option<char>, usize)> {
    let kind = text.chars().nth(1)?;
    let hex = |digits: usize| {
        let code = u32::from_str_radix(text.get(2..2 + digits)?, 16).ok()?;
        Some((Some(char::from_u32(code)?), 2 + digits))
    };
    let simple = |c: char| Some((Some(c), 2));
    match kind {
        'b' => simple('\u{8}'),
        't' => simple('\t'),
        'n' => simple('\n'),
        'f' => simple('\u{c}'),
        'r' => simple('\r'),
        'e' => simple('\u{1b}'),
        '"' | '\\' => simple(kind),
        'x' => hex(2),
        'u' => hex(4),
        'U' => hex(8),
        c if c.is_ascii_whitespace() => {
            let rest = text[1..].trim_start_matches([' ', '\t', '\r', '\n']);
            Some((None, text.len() - rest.len()))
        }
        _ => None,
    }
}

/// Shifts all spans of a value: those of an argument are beyond the end of the file.
pub(crate) fn shifted(value: Spanned<DeValue<'_>>, by: usize) -> Spanned<DeValue<'_>> {
    let span = value.span().start + by..value.span().end + by;
    let moved = match value.into_inner() {
        DeValue::Array(items) => DeValue::Array(items.into_iter().map(|item| shifted(item, by)).collect()),
        DeValue::Table(entries) => {
            let entries = entries.into_iter().map(|(key, value)| {
                let place = key.span().start + by..key.span().end + by;
                (Spanned::new(place, key.into_inner()), shifted(value, by))
            });
            DeValue::Table(entries.collect())
        }
        scalar => scalar,
    };
    Spanned::new(span, moved)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_content_of_all_kinds_of_strings_maps_to_the_text() {
        for raw in [
            "'width > wi and x'",
            "\"width > wi and x\"",
            r#""\"é\" = 'a' and\twi""#,
            r#""\u00e9\U0001F600\x41 wi""#,
            "'''\nselect\n  wi'''",
            "\"\"\"\r\nselect \\\n     'é', wi \"\"\"",
            "'''''é'' wi'''",
        ] {
            let parsed = DeValue::parse(raw).unwrap();
            let content = parsed.get_ref().as_str().unwrap();
            let at = content.find("wi").unwrap();
            let at = content[at + 2..].find("wi").map_or(at, |next| at + 2 + next);
            let places = offsets(raw).unwrap_or_else(|| panic!("{raw}"));
            assert_eq!(&raw[places[at]..places[at + 2]], "wi", "{raw}");
            assert_eq!(places.len(), content.len() + 1);
        }
        assert_eq!(offsets("12"), None);
        assert_eq!(offsets(""), None);
        assert_eq!(offsets("\""), None);
    }
}
