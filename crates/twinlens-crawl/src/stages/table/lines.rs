//! Reads CSV, TSV and JSONL files. A malformed row is one reject and takes bounded memory (an
//! unclosed quote, an endless line).

use std::fs::File;
use std::io::{self, BufRead, BufReader, Seek, SeekFrom};
use std::path::Path;

use csv_core::ReadRecordResult;
use twinlens_pipeline::RunError;

use super::rows::{CandidateNames, RowValues, infer_header, push_row};
use super::split::{Format, TableReader};
use crate::pairs::PairBatchBuilder;
use crate::stages::common::{arrow_error, file_name};
use crate::stages::split_reader::BatchSink;

/// Longest row, in bytes.
const MAX_ROW: usize = 1 << 20;
/// Maximum number of fields in a row.
const MAX_FIELDS: usize = 4096;
/// Rows per batch.
const BATCH: usize = 4096;

struct RowReader<R> {
    input: R,
    format: Format,
    csv: csv_core::Reader,
    /// Bytes read so far.
    offset: u64,
    /// The line of the next row, from 1.
    line: u64,
    text: Vec<u8>,
    ends: Vec<usize>,
}

/// The line of a row, and the used lengths of `text` and `ends`; `None` if the row is too long.
type Lengths = (u64, Option<(usize, usize)>);
/// Text of a row and the ends of its fields; `None` if the row is too long.
type RawRow<'a> = Option<(&'a [u8], &'a [usize])>;

impl<R: BufRead> RowReader<R> {
    fn new(input: R, format: Format, offset: u64, line: u64) -> Self {
        let delimiter = if format == Format::Tsv { b'\t' } else { b',' };
        let mut csv = csv_core::ReaderBuilder::new().delimiter(delimiter).build();
        csv.set_line(line);
        Self { input, format, csv, offset, line, text: vec![0; 4096], ends: vec![0; 64] }
    }

    /// The next row and its line; a line of JSONL is one field. Empty lines are skipped.
    fn next(&mut self) -> io::Result<Option<(u64, RawRow<'_>)>> {
        let row = if self.format == Format::Jsonl { self.next_line()? } else { self.next_record()? };
        Ok(row.map(|(line, raw)| (line, raw.map(|(text, ends)| (&self.text[..text], &self.ends[..ends])))))
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
                // The row is too long: the rest overwrites what was read.
                ReadRecordResult::OutputFull => (text, too_long) = (0, true),
                ReadRecordResult::OutputEndsFull => (ends, too_long) = (0, true),
                ReadRecordResult::Record => return Ok(Some((line, (!too_long).then_some((text, ends))))),
                ReadRecordResult::End => return Ok(None),
            }
        }
    }

    /// Skips empty lines before a record. The parser would count them as part of it.
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

    /// Reads the column names; none for JSONL.
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
        Ok(match infer_header(&names) {
            Some(names) => Header { names, is_row: true },
            None => Header { names, is_row: false },
        })
    }

    /// The line of the next row, or of the empty lines before it.
    fn next_line_number(&self) -> u64 {
        if self.format == Format::Jsonl { self.line } else { self.csv.line() }
    }
}

/// The names of the columns, and whether the first row is data.
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
fn open(path: &Path, format: Format) -> Result<(RowReader<BufReader<File>>, Vec<String>), RunError> {
    let io = |error| RunError::io(path, error);
    let file = File::open(path).map_err(io)?;
    let mut reader = RowReader::new(BufReader::with_capacity(64 << 10, file), format, 0, 1);
    let header = reader.header().map_err(io)?;
    if header.is_row {
        reader = reopen_at(reader, format, 0, 1).map_err(io)?;
    }
    Ok((reader, header.names))
}

/// Reopens the file of a reader at another position.
fn reopen_at(
    reader: RowReader<BufReader<File>>,
    format: Format,
    offset: u64,
    line: u64,
) -> io::Result<RowReader<BufReader<File>>> {
    let mut file = reader.input.into_inner();
    file.seek(SeekFrom::Start(offset))?;
    Ok(RowReader::new(BufReader::with_capacity(64 << 10, file), format, offset, line))
}

/// Counts the rows of a file, and returns the byte and line of every `every`th row.
pub(super) fn index_rows(
    path: &Path,
    format: Format,
    every: u64,
) -> Result<(u64, Vec<(u64, u64)>), RunError> {
    let io = |error| RunError::io(path, error);
    let (mut reader, _) = open(path, format)?;
    let (mut rows, mut positions) = (0, Vec::new());
    loop {
        let position = (reader.offset, reader.next_line_number());
        if reader.next().map_err(io)?.is_none() {
            return Ok((rows, positions));
        }
        if rows % every == 0 {
            positions.push(position);
        }
        rows += 1;
    }
}

/// Reads a split; returns whether all of it was consumed.
pub(super) fn read(table: &TableReader, send: BatchSink<'_>) -> Result<bool, RunError> {
    let (path, split, wanted) = (table.file.path(), &table.split, &table.rows);
    let io = |error| RunError::io(path, error);
    let (mut reader, header) = open(path, table.format)?;
    let columns = match table.format {
        Format::Jsonl => Vec::new(),
        _ => table.selection.resolve(&header).map_err(|why| table.error(why))?,
    };
    let keys = table.selection.names();
    let mut number = wanted.start;
    if let Some((offset, line)) = split.position {
        reader = reopen_at(reader, table.format, offset, line).map_err(io)?;
    }
    let mut rows = PairBatchBuilder::new(&table.stage, &table.selection.keep);
    while number < wanted.end {
        let Some((line, raw)) = reader.next().map_err(io)? else { break };
        number += 1;
        let values = match raw {
            None => Err(("row_too_long", format!("longer than {MAX_ROW} bytes or {MAX_FIELDS} fields"))),
            Some((text, _)) if table.format == Format::Jsonl => parse_object(text, &keys),
            Some((text, ends)) => parse_record(text, ends, header.len(), &columns),
        };
        push_row(&mut rows, values, &format!("{} row {}, line {line}", file_name(&split.file), number - 1));
        if rows.len() >= BATCH && !send(rows.finish().map_err(arrow_error)?) {
            return Ok(false);
        }
    }
    Ok(rows.is_empty() || send(rows.finish().map_err(arrow_error)?))
}

/// The selected values of a CSV record.
fn parse_record(
    text: &[u8],
    ends: &[usize],
    columns: usize,
    selection: &[Option<usize>],
) -> Result<RowValues, (&'static str, String)> {
    if ends.len() != columns {
        return Err(("malformed_row", format!("{} fields, but the header has {columns}", ends.len())));
    }
    let fields: Vec<&[u8]> = fields(text, ends).collect();
    let value = |column: usize| match std::str::from_utf8(fields[column]) {
        Ok(value) => Ok(Some(value.to_string())),
        Err(error) => Err(("not_utf8", format!("field {}: {error}", column + 1))),
    };
    selection.iter().map(|column| column.map_or(Ok(None), value)).collect()
}

/// The selected values of a JSON object.
fn parse_object(
    text: &[u8],
    keys: &[(CandidateNames<'_>, bool)],
) -> Result<RowValues, (&'static str, String)> {
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
