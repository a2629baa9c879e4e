//! Cuts a text file into records. What does not fit is refused line by line, and reading resumes
//! behind it: every line is part of a record or of a refusal. Memory is bounded by [`MAX_ROW`].

use std::io::{self, Read};

use memchr::{memchr, memchr_iter};
use twinlens_dataset::samples::Refusal;

use super::delimited::{Dialect, Record, RecordEnd};
use super::json_scanner::{ElementEnd, ElementScanner};
use super::window::Window;

/// Longest record, in bytes.
pub(super) const MAX_ROW: usize = 1 << 20;
/// Maximum number of fields in a record.
const MAX_FIELDS: usize = 4096;

/// How records are laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    /// Delimited fields; `columns` of them, if known.
    Delimited { dialect: Dialect, columns: Option<usize> },
    /// One record per line.
    Lines,
    /// The elements of a JSON array, from behind its `[`.
    Array,
}

pub(super) enum Item<'a> {
    Fields(&'a Record),
    /// A line, or the text of a JSON value.
    Text(&'a [u8]),
    /// Lines that are not a record.
    Refused {
        lines: u64,
        refusal: Refusal,
    },
}

impl Item<'_> {
    /// The rows that it counts as.
    pub(super) fn rows(&self) -> u64 {
        match self {
            Self::Refused { lines, .. } => *lines,
            _ => 1,
        }
    }
}

/// Byte and line of a record.
pub(super) type Position = (u64, u64);

pub(super) struct Records<R> {
    window: Window<R>,
    layout: Layout,
    /// Line of the next record, from 1.
    line: u64,
    /// Bytes of the last item, which is still borrowed from the window.
    pending: usize,
    record: Record,
    /// Whether the `]` of an array was read.
    array_has_ended: bool,
}

impl<R: Read> Records<R> {
    pub(super) fn new(input: R, layout: Layout, (offset, line): Position) -> Self {
        let (window, record) = (Window::new(input, offset), Record::default());
        Self { window, layout, line, pending: 0, record, array_has_ended: false }
    }

    /// The place of the next record, or of the empty lines before it: reading can begin here.
    pub(super) fn position(&self) -> Position {
        (self.window.offset() + self.pending as u64, self.line)
    }

    /// The next item and its first line. Empty lines are skipped.
    pub(super) fn next(&mut self) -> io::Result<Option<(u64, Item<'_>)>> {
        self.window.advance(std::mem::take(&mut self.pending));
        match self.layout {
            Layout::Delimited { dialect, columns } => self.next_record(dialect, columns),
            Layout::Lines => self.next_line(),
            Layout::Array => self.next_element(),
        }
    }

    fn next_record(
        &mut self,
        dialect: Dialect,
        columns: Option<usize>,
    ) -> io::Result<Option<(u64, Item<'_>)>> {
        self.skip(|byte| matches!(byte, b'\n' | b'\r'))?;
        if !self.window.has_more()? {
            return Ok(None);
        }
        // With so many fields it does not fit, wherever it ends.
        let max_fields = columns.map_or(MAX_FIELDS, |columns| (2 * columns + 16).min(MAX_FIELDS));
        loop {
            let rest = self.window.rest();
            let bytes = &rest[..rest.len().min(MAX_ROW)];
            let is_end = self.window.is_end() && bytes.len() == rest.len();
            match dialect.parse(bytes, is_end, max_fields, &mut self.record) {
                RecordEnd::At(length) => return Ok(Some(self.finish_record(length, columns))),
                RecordEnd::Beyond { .. } if !is_end && bytes.len() < MAX_ROW => self.window.fill()?,
                RecordEnd::Beyond { in_quotes } => {
                    let within = if is_end { "the file" } else { "1 MiB" };
                    let why = format!("a quoted field begins here that does not end within {within}");
                    return self.refuse_line(in_quotes.then_some(("unclosed_quote", why))).map(Some);
                }
                RecordEnd::TooManyFields => {
                    let why = match columns {
                        Some(columns) => format!("over {max_fields} fields, but the header has {columns}"),
                        None => format!("over {MAX_FIELDS} fields"),
                    };
                    return self.refuse_line(Some(("malformed_row", why))).map(Some);
                }
            }
        }
    }

    /// The record of `length` bytes that was parsed.
    fn finish_record(&mut self, length: usize, columns: Option<usize>) -> (u64, Item<'_>) {
        let line = self.line;
        let bytes = &self.window.rest()[..length];
        let first_line = memchr(b'\n', bytes).map_or(length, |end| end + 1);
        // The last line may lack its end.
        let lines = memchr_iter(b'\n', bytes).count() as u64 + u64::from(!bytes.ends_with(b"\n"));
        let fields = self.record.len();
        let Some(columns) = columns.filter(|columns| *columns != fields) else {
            self.take(length, lines);
            return (line, Item::Fields(&self.record));
        };
        let refused = |lines, why| Item::Refused { lines, refusal: ("malformed_row", why) };
        let why = format!("{fields} fields, but the header has {columns}");
        // A quote that opened a field by mistake took the next lines along: they are read again.
        if lines > 1 && self.record.has_stray_quote {
            self.take(first_line, 1);
            return (line, refused(1, format!("{why}; a stray quote joins it to the next lines")));
        }
        self.take(length, lines);
        (line, refused(lines, why))
    }

    /// Refuses the line at the start of the window; reading resumes with the next one.
    fn refuse_line(&mut self, refusal: Option<Refusal>) -> io::Result<(u64, Item<'static>)> {
        let line = self.line;
        let too_long = || ("row_too_long", format!("longer than {MAX_ROW} bytes"));
        let rest = self.window.rest();
        let refusal = match memchr(b'\n', &rest[..rest.len().min(MAX_ROW)]) {
            Some(end) => {
                self.window.advance(end + 1);
                refusal.unwrap_or_else(too_long)
            }
            None => {
                let is_short = self.window.rest().len() < MAX_ROW;
                self.window.skip_line()?;
                refusal.filter(|_| is_short).unwrap_or_else(too_long)
            }
        };
        self.line += 1;
        Ok((line, Item::Refused { lines: 1, refusal }))
    }

    fn next_line(&mut self) -> io::Result<Option<(u64, Item<'_>)>> {
        loop {
            if !self.window.has_more()? {
                return Ok(None);
            }
            let rest = self.window.rest();
            let end = memchr(b'\n', &rest[..rest.len().min(MAX_ROW)]);
            if end.is_none() && rest.len() >= MAX_ROW {
                return self.refuse_line(None).map(Some);
            }
            if end.is_none() && !self.window.is_end() {
                self.window.fill()?;
                continue;
            }
            let length = end.unwrap_or(rest.len());
            let line = self.line;
            self.take(length + usize::from(end.is_some()), 1);
            if self.window.rest()[..length].trim_ascii().is_empty() {
                self.window.advance(std::mem::take(&mut self.pending));
                continue;
            }
            return Ok(Some((line, Item::Text(self.window.rest()[..length].trim_ascii_end()))));
        }
    }

    fn next_element(&mut self) -> io::Result<Option<(u64, Item<'_>)>> {
        self.skip(|byte| byte.is_ascii_whitespace() || *byte == b',')?;
        let line = self.line;
        let malformed = |why: &str| Item::Refused { lines: 1, refusal: ("malformed_json", why.to_string()) };
        if !self.window.has_more()? {
            let is_cut = !std::mem::replace(&mut self.array_has_ended, true);
            return Ok(is_cut.then(|| (line, malformed("the file ends before the array does"))));
        }
        if self.array_has_ended {
            while self.window.has_more()? {
                self.window.advance(self.window.rest().len());
            }
            return Ok(Some((line, malformed("something follows the end of the array"))));
        }
        if self.window.rest()[0] == b']' {
            self.window.advance(1);
            self.array_has_ended = true;
            return self.next_element();
        }
        let (mut scanner, mut too_long) = (ElementScanner::default(), false);
        loop {
            match scanner.scan(self.window.rest()) {
                ElementEnd::At(length) => {
                    let lines = memchr_iter(b'\n', &self.window.rest()[..length]).count() as u64;
                    self.take(length, lines);
                    let text = &self.window.rest()[..length];
                    let refusal = ("row_too_long", format!("longer than {MAX_ROW} bytes"));
                    let refused = Item::Refused { lines: 1, refusal };
                    too_long |= length > MAX_ROW;
                    return Ok(Some((line, if too_long { refused } else { Item::Text(text) })));
                }
                ElementEnd::Beyond if self.window.is_end() => {
                    self.window.advance(self.window.rest().len());
                    self.array_has_ended = true;
                    return Ok(Some((line, malformed("the file ends within this value"))));
                }
                ElementEnd::Beyond => {
                    let length = self.window.rest().len();
                    if too_long || length >= MAX_ROW {
                        too_long = true;
                        self.line += memchr_iter(b'\n', self.window.rest()).count() as u64;
                        self.window.advance(length);
                        scanner.rewind();
                    }
                    self.window.fill()?;
                }
            }
        }
    }

    /// Takes bytes that stay borrowed until the next call.
    fn take(&mut self, bytes: usize, lines: u64) {
        self.pending = bytes;
        self.line += lines;
    }

    /// Skips bytes, and counts their lines.
    fn skip(&mut self, is_skipped: impl Fn(&u8) -> bool) -> io::Result<()> {
        while self.window.has_more()? {
            let rest = self.window.rest();
            let length = rest.iter().position(|byte| !is_skipped(byte)).unwrap_or(rest.len());
            self.line += memchr_iter(b'\n', &rest[..length]).count() as u64;
            let is_done = length < rest.len();
            self.window.advance(length);
            if is_done {
                break;
            }
        }
        Ok(())
    }
}
