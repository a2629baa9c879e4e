//! Rows of Arrow files: the file format (Feather 2 too), and the stream format, in which Hugging
//! Face `datasets` keeps its tables.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use arrow::ipc::reader::{FileReader, StreamReader};
use twinlens_pipeline::RunError;

use super::super::files::engine;
use super::super::reading::Send;
use super::Reading;
use super::parquet::damaged;
use super::rows::FileColumns;
use crate::pairs::Rows;

/// What the file format begins with.
const MAGIC: &[u8] = b"ARROW1";
/// Rows that are turned into pairs at a time: a batch of a file may hold any number.
const BATCH: usize = 4096;

/// Batches in either format.
enum Batches {
    File(FileReader<BufReader<File>>),
    Stream(StreamReader<BufReader<File>>),
}

impl Batches {
    fn open(path: &Path) -> Result<Self, RunError> {
        let io = |error| RunError::io(path, error);
        let mut file = BufReader::new(File::open(path).map_err(io)?);
        let mut magic = Vec::new();
        file.by_ref().take(MAGIC.len() as u64).read_to_end(&mut magic).map_err(io)?;
        file.seek(SeekFrom::Start(0)).map_err(io)?;
        let opened = match magic == MAGIC {
            true => FileReader::try_new(file, None).map(Self::File),
            false => StreamReader::try_new(file, None).map(Self::Stream),
        };
        opened.map_err(|error| damaged(path.display(), error))
    }

    fn schema(&self) -> SchemaRef {
        match self {
            Self::File(reader) => reader.schema(),
            Self::Stream(reader) => reader.schema(),
        }
    }
}

impl Iterator for Batches {
    type Item = Result<RecordBatch, ArrowError>;

    fn next(&mut self) -> Option<Self::Item> {
        match self {
            Self::File(reader) => reader.next(),
            Self::Stream(reader) => reader.next(),
        }
    }
}

/// How many rows a file has: its batches are read, as neither format says.
pub(super) fn rows(path: &Path) -> Result<u64, RunError> {
    let mut rows = 0;
    for batch in Batches::open(path)? {
        rows += batch.map_err(|error| damaged(path.display(), error))?.num_rows() as u64;
    }
    Ok(rows)
}

/// Reads a split; returns whether all of it was wanted.
pub(super) fn read(reading: &Reading, send: Send<'_>) -> Result<bool, RunError> {
    let (path, split) = (reading.file.path(), &reading.split);
    let batches = Batches::open(path)?;
    let columns = FileColumns::of(reading, &batches.schema())?;
    let mut rows = Rows::new(&reading.stage, &reading.wanted.keep);
    let mut first = 0;
    for batch in batches {
        let batch = batch.map_err(|error| damaged(&split.file, error))?;
        let end = first + batch.num_rows() as u64;
        let mut number = split.start.max(first);
        while number < split.end.min(end) {
            let length = (split.end.min(end) - number).min(BATCH as u64);
            let part = batch.slice((number - first) as usize, length as usize);
            columns.push(&mut rows, &part, &mut number);
            if !send(rows.finish().map_err(engine)?) {
                return Ok(false);
            }
        }
        first = end;
        if first >= split.end {
            break;
        }
    }
    Ok(true)
}
