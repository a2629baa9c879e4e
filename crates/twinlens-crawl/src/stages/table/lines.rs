//! Rows of CSV, TSV and JSONL files, whatever is in them: a row that cannot be read is one reject,
//! and never takes memory without bound (a quote that is not closed, a line that does not end).

use std::fs::File;
use std::io::{self, BufRead, BufReader, Seek, SeekFrom};
use std::path::Path;

use csv_core::ReadRecordResult;
use twinlens_pipeline::RunError;

use super::super::files::engine;
use super::super::reading::Send;
use super::rows::{Names, Values, headerless, push};
use super::{Format, Reading, short};
use crate::pairs::Rows;

/// Longest row, in bytes.
const MAX_ROW: usize = 1 << 20;
/// Most fields of a row.
const MAX_FIELDS: usize = 4096;
/// Rows of a batch.
const BATCH: usize = 4096;

/// A file that is read row by row.
struct Reader<R> {
    input: R,
    format: Format,
    csv: csv_core::Reader,
    /// Bytes that are read.
    offset: u64,
    /// The line on which the next row begins, from 1.
    line: u64,
    text: Vec<u8>,
    ends: Vec<usize>,
}

/// The line of a row, and how much of the text and of the ends is its; `None` for one that is too
/// long.
type Lengths = (u64, Option<(usize, usize)>);
/// One row as it stands in the file. `None` for one that is too long.
type Raw<'a> = Option<(&'a [u8], &'a [usize])>;

impl<R: BufRead> Reader<R> {
    fn new(input: R, format: Format, offset: u64, line: u64) -> Self {
        let delimiter = if format == Format::Tsv { b'\t' } else { b',' };
        let mut csv = csv_core::ReaderBuilder::new().delimiter(delimiter).build();
        csv.set_line(line);
        Self { input, format, csv, offset, line, text: vec![0; 4096], ends: vec![0; 64] }
    }

    /// The next row: its line, and its text with the ends of its fields (JSONL: the line as one
    /// field). Empty lines are no rows.
    fn next(&mut self) -> io::Result<Option<(u64, Raw<'_>)>> {
        let found = if self.format == Format::Jsonl { self.next_line()? } else { self.next_record()? };
        Ok(found.map(|(line, raw)| (line, raw.map(|(text, ends)| (&self.text[..text], &self.ends[..ends])))))
    }

    fn next_record(&mut self) -> io::Result<Option<Lengths>> {
        let (mut text, mut ends, mut too_long) = (0, 0, false);
        self.skip_line_ends()?;
        let line = self.csv.line();
        loop {
            let input = self.input.fill_buf()?;
            let (result, read, written, ended) =
                self.csv.read_record(input, &mut self.text[text..], &mut self.ends[ends..]);
            self.input.consume(read);
            self.offset += read as u64;
            (text, ends) = (text + written, ends + ended);
            match result {
                ReadRecordResult::InputEmpty => {}
                ReadRecordResult::OutputFull if self.text.len() < MAX_ROW => {
                    self.text.resize(self.text.len() * 2, 0)
                }
                ReadRecordResult::OutputEndsFull if self.ends.len() < MAX_FIELDS => {
                    self.ends.resize(self.ends.len() * 2, 0)
                }
                // The rest of the row is read over what there is of it.
                ReadRecordResult::OutputFull => (text, too_long) = (0, true),
                ReadRecordResult::OutputEndsFull => (ends, too_long) = (0, true),
                ReadRecordResult::Record => return Ok(Some((line, (!too_long).then_some((text, ends))))),
                ReadRecordResult::End => return Ok(None),
            }
        }
    }

    /// Empty lines before a record; the parser would skip them too, but count them to the record.
    fn skip_line_ends(&mut self) -> io::Result<()> {
        while let Some(byte @ (b'\n' | b'\r')) = self.input.fill_buf()?.first() {
            self.csv.set_line(self.csv.line() + u64::from(*byte == b'\n'));
            self.input.consume(1);
            self.offset += 1;
        }
        Ok(())
    }

    fn next_line(&mut self) -> io::Result<Option<Lengths>> {
        loop {
            self.text.clear();
            let (mut too_long, mut ended, mut read) = (false, false, 0);
            while !ended {
                let input = self.input.fill_buf()?;
                if input.is_empty() {
                    break;
                }
                let end = input.iter().position(|byte| *byte == b'\n');
                let part = &input[..end.unwrap_or(input.len())];
                too_long |= self.text.len() + part.len() > MAX_ROW;
                if !too_long {
                    self.text.extend_from_slice(part);
                }
                let used = part.len() + usize::from(end.is_some());
                (ended, read) = (end.is_some(), read + used);
                self.input.consume(used);
            }
            if read == 0 {
                return Ok(None);
            }
            let line = self.line;
            (self.offset, self.line) = (self.offset + read as u64, self.line + 1);
            if too_long {
                return Ok(Some((line, None)));
            }
            if line == 1 && self.text.starts_with(b"\xef\xbb\xbf") {
                self.text.drain(..3);
            }
            if !self.text.trim_ascii().is_empty() {
                self.ends[0] = self.text.len();
                return Ok(Some((line, Some((self.text.len(), 1)))));
            }
        }
    }

    /// The names of the columns; none for JSONL. A file without a header goes on at its first row,
    /// which is read again.
    fn header(&mut self) -> io::Result<Header> {
        if self.format == Format::Jsonl {
            return Ok(Header::default());
        }
        let first = self.next()?.and_then(|(_, raw)| raw);
        let names: Vec<String> = first
            .map(|(text, ends)| {
                fields(text, ends).map(|field| String::from_utf8_lossy(field).trim().to_string()).collect()
            })
            .unwrap_or_default();
        Ok(match headerless(&names) {
            Some(names) => Header { names, is_row: true },
            None => Header { names, is_row: false },
        })
    }

    /// The line on which the next row begins, or the empty lines before it.
    fn next_begins(&self) -> u64 {
        if self.format == Format::Jsonl { self.line } else { self.csv.line() }
    }
}

/// The names of the columns, and whether the row that they were told by is itself one of the file.
#[derive(Debug, Default)]
struct Header {
    names: Vec<String>,
    is_row: bool,
}

fn fields<'a>(text: &'a [u8], ends: &'a [usize]) -> impl Iterator<Item = &'a [u8]> {
    let starts = std::iter::once(0).chain(ends.iter().copied());
    starts.zip(ends).map(|(start, end)| text.get(start..*end).unwrap_or_default())
}

/// Opens a file at its first row.
fn open(path: &Path, format: Format) -> Result<(Reader<BufReader<File>>, Vec<String>), RunError> {
    let io = |error| RunError::io(path, error);
    let file = File::open(path).map_err(io)?;
    let mut reader = Reader::new(BufReader::with_capacity(64 << 10, file), format, 0, 1);
    let header = reader.header().map_err(io)?;
    if header.is_row {
        reader = at(reader, format, 0, 1).map_err(io)?;
    }
    Ok((reader, header.names))
}

/// A reader of the same file that goes on elsewhere.
fn at(
    reader: Reader<BufReader<File>>,
    format: Format,
    offset: u64,
    line: u64,
) -> io::Result<Reader<BufReader<File>>> {
    let mut file = reader.input.into_inner();
    file.seek(SeekFrom::Start(offset))?;
    Ok(Reader::new(BufReader::with_capacity(64 << 10, file), format, offset, line))
}

/// How many rows a file has, and where every `every`th of them begins: byte and line.
pub(super) fn places(path: &Path, format: Format, every: u64) -> Result<(u64, Vec<(u64, u64)>), RunError> {
    let io = |error| RunError::io(path, error);
    let (mut reader, _) = open(path, format)?;
    let (mut rows, mut places) = (0, Vec::new());
    loop {
        let place = (reader.offset, reader.next_begins());
        if reader.next().map_err(io)?.is_none() {
            return Ok((rows, places));
        }
        if rows % every == 0 {
            places.push(place);
        }
        rows += 1;
    }
}

/// Reads a split; returns whether all of it was wanted.
pub(super) fn read(reading: &Reading, send: Send<'_>) -> Result<bool, RunError> {
    let (path, split) = (reading.file.path(), &reading.split);
    let io = |error| RunError::io(path, error);
    let (mut reader, header) = open(path, reading.format)?;
    let columns = match reading.format {
        Format::Jsonl => Vec::new(),
        _ => reading.wanted.find(&header).map_err(|why| reading.fault(why))?,
    };
    let keys = reading.wanted.names();
    let mut number = split.start;
    match reading.place {
        Some((offset, line)) => {
            reader = at(reader, reading.format, offset, line).map_err(io)?;
        }
        // Where the beginnings were not measured, the rows before are read and forgotten.
        None => number = 0,
    }
    let mut rows = Rows::new(&reading.stage, &reading.wanted.keep);
    while number < split.end {
        let Some((line, raw)) = reader.next().map_err(io)? else { break };
        number += 1;
        if number <= split.start {
            continue;
        }
        let values = match raw {
            None => Err(("row_too_long", format!("longer than {MAX_ROW} bytes or {MAX_FIELDS} fields"))),
            Some((text, _)) if reading.format == Format::Jsonl => object(text, &keys),
            Some((text, ends)) => record(text, ends, header.len(), &columns),
        };
        push(&mut rows, values, &format!("{} row {}, line {line}", short(&split.file), number - 1));
        if rows.len() >= BATCH && !send(rows.finish().map_err(engine)?) {
            return Ok(false);
        }
    }
    Ok(rows.is_empty() || send(rows.finish().map_err(engine)?))
}

/// The wanted values of a CSV record.
fn record(
    text: &[u8],
    ends: &[usize],
    columns: usize,
    wanted: &[Option<usize>],
) -> Result<Values, (&'static str, String)> {
    if ends.len() != columns {
        return Err(("malformed_row", format!("{} fields, but the header has {columns}", ends.len())));
    }
    let fields: Vec<&[u8]> = fields(text, ends).collect();
    let value = |column: usize| match std::str::from_utf8(fields[column]) {
        Ok(value) => Ok(Some(value.to_string())),
        Err(error) => Err(("not_utf8", format!("field {}: {error}", column + 1))),
    };
    wanted.iter().map(|column| column.map_or(Ok(None), value)).collect()
}

/// The wanted values of a JSON object.
fn object(text: &[u8], keys: &[(Names<'_>, bool)]) -> Result<Values, (&'static str, String)> {
    use serde_json::Value;
    let object: serde_json::Map<String, Value> = match serde_json::from_slice(text) {
        Ok(object) => object,
        Err(_) if std::str::from_utf8(text).is_err() => {
            return Err(("not_utf8", "the line is not UTF-8".into()));
        }
        Err(error) => return Err(("malformed_json", error.to_string())),
    };
    let text = |value: &Value| match value {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    };
    Ok(keys.iter().map(|(names, _)| names.iter().find_map(|name| object.get(*name)).and_then(text)).collect())
}
