//! Metadata files of image directories: `metadata.jsonl`, `metadata.csv` and `metadata.parquet`, a
//! row for each image, which `file_name` names relative to the file (Hugging Face `imagefolder`).
//!
//! Only the positions of rows are kept in memory. A row that is too long, or whose quotes never
//! close, is refused, and reading continues on the next line.

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use arrow::json::LineDelimitedWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::{Map, Value};
use tempfile::NamedTempFile;

use super::group::{MAX_TEXT, Refusal, TOO_MANY_BYTES};
use crate::error::DatasetError;
use crate::foreign::{ParquetBatches, check_pages, open_parquet};
use crate::sniff::FileKind;
use crate::unpack::{FREE_BYTES, MAX_RATIO};

/// The column that names the image.
const FILE_NAME: &str = "file_name";
/// Code: a line is not a JSON object.
const MALFORMED_JSON: &str = "malformed_json";
/// Code: a row does not fit the header.
const MALFORMED_ROW: &str = "malformed_row";

/// Rows of a Parquet file that are decoded at a time.
const BATCH: usize = 1024;

/// Offset and length of a row in bytes.
pub(super) type RowSpan = (u64, u64);
/// Receives a row: the number of its first line, its place and the image that it names.
type Visit<'a> = &'a mut dyn FnMut(u64, Result<(RowSpan, String), Refusal>);

/// An opened metadata file.
#[derive(Debug)]
pub(super) struct MetadataFile {
    path: PathBuf,
    /// Of a Parquet file, a copy as JSON lines, which can be read row by row.
    copy: Option<NamedTempFile>,
    /// Its name within the directory that is read.
    name: String,
    /// The columns of a CSV file; `None` for JSON lines.
    header: Option<Vec<String>>,
}

impl MetadataFile {
    /// Whether a file is a metadata file, by its name.
    pub(super) fn is_metadata(path: &Path) -> bool {
        let name = path.file_name().and_then(|name| name.to_str());
        matches!(name, Some("metadata.jsonl" | "metadata.csv" | "metadata.parquet"))
    }

    /// Opens a file; `name` is its name within the directory that is read.
    pub(super) fn open(path: &Path, name: &str) -> Result<Self, DatasetError> {
        let mut file = Self { path: path.into(), copy: None, name: name.into(), header: None };
        let is = |ending: &str| path.extension().is_some_and(|extension| extension == ending);
        let damaged = |why| DatasetError::DamagedInput { path: path.into(), why };
        if is("parquet") {
            file.copy = Some(parquet_as_json(path)?);
        }
        let mut rows = file.reader()?;
        if is("csv") {
            let row = rows.next(true)?.ok_or_else(|| damaged("it is empty".into()))?;
            let header = row.text.and_then(|text| fields(&text)).map_err(|(_, why)| damaged(why))?;
            if let Some(name) =
                header.iter().find(|name| header.iter().filter(|other| other == name).count() > 1)
            {
                return Err(damaged(format!("the column `{name}` occurs twice")));
            }
            if !header.iter().any(|name| name == FILE_NAME) {
                return Err(damaged(no_file_name(header.iter().map(String::as_str))));
            }
            file.header = Some(header);
        }
        Ok(file)
    }

    /// The place of the row that begins in a line.
    pub(super) fn place(&self, line: u64) -> String {
        match self.copy {
            Some(_) => format!("/{} row {}", self.name, line - 1),
            None => format!("/{} line {line}", self.name),
        }
    }

    /// The file with the text of the rows.
    fn text(&self) -> &Path {
        self.copy.as_ref().map_or(&self.path, |copy| copy.path())
    }

    fn reader(&self) -> Result<RowReader, DatasetError> {
        RowReader::open(self.text())
    }

    /// Visits all rows in order.
    pub(super) fn rows(&self, visit: Visit<'_>) -> Result<(), DatasetError> {
        let mut rows = self.reader()?;
        let is_csv = self.header.is_some();
        if is_csv {
            rows.next(true)?;
        }
        while let Some(row) = rows.next(is_csv)? {
            let named = row.text.and_then(|text| {
                let values = self.parse(&text)?;
                Ok((row.span, self.image(&values)?))
            });
            visit(row.line, named);
        }
        Ok(())
    }

    /// The name of a row's image within the directory that is read.
    fn image(&self, values: &Map<String, Value>) -> Result<String, Refusal> {
        let no_image = |why: String| ("no_image", why);
        let name = values.get(FILE_NAME).and_then(Value::as_str);
        let name = name.ok_or_else(|| no_image(format!("the row has no `{FILE_NAME}`")))?.replace('\\', "/");
        let name = name.trim_start_matches("./");
        if name.starts_with('/') || name.split('/').any(|part| part == "..") {
            return Err(no_image(format!("`{name}` is not below the directory of the metadata file")));
        }
        let folder = self.name.rsplit_once('/').map(|(folder, _)| format!("{folder}/"));
        Ok(folder.unwrap_or_default() + name)
    }

    /// Reads a row again.
    ///
    /// # Errors
    /// I/O errors with the path.
    pub(super) fn row(
        &self,
        (offset, length): RowSpan,
    ) -> Result<Result<Map<String, Value>, Refusal>, DatasetError> {
        let mut text = Vec::new();
        let read = File::open(self.text()).and_then(|mut file| {
            file.seek(SeekFrom::Start(offset))?;
            file.take(length).read_to_end(&mut text)
        });
        read.map_err(|error| DatasetError::io(self.text(), error))?;
        Ok(self.parse(&text))
    }

    fn parse(&self, text: &[u8]) -> Result<Map<String, Value>, Refusal> {
        let Some(header) = &self.header else {
            return serde_json::from_slice(text).map_err(|error| (MALFORMED_JSON, error.to_string()));
        };
        let fields = fields(text)?;
        if fields.len() != header.len() {
            let why = format!("{} fields, but the header has {}", fields.len(), header.len());
            return Err((MALFORMED_ROW, why));
        }
        let value = |text: String| if text.is_empty() { Value::Null } else { Value::String(text) };
        Ok(header.iter().cloned().zip(fields.into_iter().map(value)).collect())
    }
}

fn no_file_name<'c>(columns: impl Iterator<Item = &'c str>) -> String {
    let columns = columns.collect::<Vec<_>>().join(", ");
    format!("it has no column `{FILE_NAME}`; its columns are {columns}")
}

/// A copy of a Parquet file as JSON lines, which is deleted when it is dropped.
fn parquet_as_json(path: &Path) -> Result<NamedTempFile, DatasetError> {
    let refused = |why: String| DatasetError::DamagedInput { path: path.into(), why };
    let (file, metadata) = open_parquet(path)?;
    check_pages(path, &file, metadata.metadata())?;
    let schema = metadata.schema().clone();
    if schema.field_with_name(FILE_NAME).is_err() {
        return Err(refused(no_file_name(schema.fields().iter().map(|field| field.name().as_str()))));
    }
    if metadata.metadata().file_metadata().num_rows() == 0 {
        return Err(refused("it has no rows".into()));
    }
    let length = file.metadata().map_err(|error| DatasetError::io(path, error))?.len();
    let limit = length.saturating_mul(MAX_RATIO).saturating_add(FREE_BYTES);
    let reader = ParquetRecordBatchReaderBuilder::new_with_metadata(file, metadata).with_batch_size(BATCH);
    let reader = reader.build().map_err(|source| DatasetError::Parquet { path: path.into(), source })?;
    let copy = NamedTempFile::new().map_err(|error| DatasetError::io(std::env::temp_dir(), error))?;
    let mut writer = LineDelimitedWriter::new(BufWriter::new(copy.as_file()));
    for batch in ParquetBatches::new(path, reader) {
        writer.write(&batch?).map_err(|error| refused(error.to_string()))?;
        let written = copy.as_file().metadata().map_err(|error| DatasetError::io(copy.path(), error))?.len();
        if written > limit {
            return Err(refused(format!("its rows have more than {MAX_RATIO} times the bytes of the file")));
        }
    }
    writer.finish().map_err(|error| refused(error.to_string()))?;
    let mut rest = writer.into_inner();
    rest.flush().map_err(|error| DatasetError::io(copy.path(), error))?;
    drop(rest);
    Ok(copy)
}

/// The fields of a CSV record.
fn fields(text: &[u8]) -> Result<Vec<String>, Refusal> {
    let malformed = |why: String| (MALFORMED_ROW, why);
    let mut reader = csv::ReaderBuilder::new().has_headers(false).from_reader(text);
    let mut record = csv::StringRecord::new();
    reader.read_record(&mut record).map_err(|error| malformed(error.to_string()))?;
    Ok(record.iter().map(String::from).collect())
}

/// A row as it is in the file.
struct Row {
    /// Number of its first line, from 1.
    line: u64,
    span: RowSpan,
    text: Result<Vec<u8>, Refusal>,
}

/// Reads lines, or CSV records of several lines, of bounded length.
struct RowReader {
    path: PathBuf,
    input: BufReader<File>,
    offset: u64,
    line: u64,
}

impl RowReader {
    fn open(path: &Path) -> Result<Self, DatasetError> {
        let io = |error| DatasetError::io(path, error);
        let mut file = File::open(path).map_err(io)?;
        let offset = match FileKind::of_file(&mut file).map_err(io)?.0 {
            FileKind::Text => 0,
            FileKind::Utf8Bom => 3,
            kind => return Err(DatasetError::WrongKind { path: path.into(), kind, expected: "UTF-8 text" }),
        };
        file.seek(SeekFrom::Start(offset)).map_err(io)?;
        Ok(Self { path: path.into(), input: BufReader::new(file), offset, line: 0 })
    }

    /// The next row that is not blank. A record (`is_csv`) continues over lines while a quote is
    /// open.
    fn next(&mut self, is_csv: bool) -> Result<Option<Row>, DatasetError> {
        loop {
            let (start, line) = (self.offset, self.line + 1);
            let Some(mut text) = self.line()? else { return Ok(None) };
            let after_line = (self.offset, self.line);
            let mut is_open = is_csv && has_odd_quotes(&text);
            while is_open {
                match self.line()? {
                    Some(more) if text.len() + more.len() <= MAX_TEXT as usize => {
                        is_open ^= has_odd_quotes(&more);
                        text.extend(more);
                    }
                    _ => {
                        (self.offset, self.line) = after_line;
                        let sought = self.input.seek(SeekFrom::Start(self.offset));
                        sought.map_err(|error| DatasetError::io(&self.path, error))?;
                        let refusal = (MALFORMED_ROW, "a quoted field is not closed".to_string());
                        return Ok(Some(Row { line, span: (start, 0), text: Err(refusal) }));
                    }
                }
            }
            if text.trim_ascii().is_empty() {
                continue;
            }
            let length = self.offset - start;
            let is_too_long = text.len() as u64 > MAX_TEXT;
            let too_long =
                || (TOO_MANY_BYTES, format!("{length} bytes are more than the limit of {MAX_TEXT}"));
            let text = if is_too_long { Err(too_long()) } else { Ok(text) };
            return Ok(Some(Row { line, span: (start, length), text }));
        }
    }

    /// The next line with its end; of one that is too long, a byte more than the limit.
    fn line(&mut self) -> Result<Option<Vec<u8>>, DatasetError> {
        let io = |error| DatasetError::io(&self.path, error);
        let mut text = Vec::new();
        let limit = MAX_TEXT + 1;
        let read = self.input.by_ref().take(limit).read_until(b'\n', &mut text).map_err(io)?;
        if read == 0 {
            return Ok(None);
        }
        self.offset += read as u64;
        self.line += 1;
        if read as u64 == limit && text.last() != Some(&b'\n') {
            self.offset += self.input.skip_until(b'\n').map_err(io)? as u64;
        }
        Ok(Some(text))
    }
}

/// Whether a line opens a quoted field, or closes one. (A doubled quote does neither.)
fn has_odd_quotes(text: &[u8]) -> bool {
    text.iter().filter(|byte| **byte == b'"').count() % 2 == 1
}
