//! Reads Arrow files (including Feather 2) and streams, which Hugging Face `datasets` writes.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use arrow::ipc::reader::{FileReader, StreamReader};
use twinlens_pipeline::RunError;

use super::parquet::damaged_file;
use super::rows::FileColumns;
use super::split::TableReader;
use crate::pairs::PairBatchBuilder;
use crate::stages::common::arrow_error;
use crate::stages::split_reader::BatchSink;

/// Magic bytes of the file format.
const MAGIC: &[u8] = b"ARROW1";
/// Rows that are turned into pairs at a time: a batch in a file may have any length.
const BATCH: usize = 4096;

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
        let opened = if magic == MAGIC {
            FileReader::try_new(file, None).map(Self::File)
        } else {
            StreamReader::try_new(file, None).map(Self::Stream)
        };
        opened.map_err(|error| damaged_file(path.display(), error))
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

/// Counts the rows of a file by reading its batches, as neither format has the number.
pub(super) fn rows(path: &Path) -> Result<u64, RunError> {
    let mut rows = 0;
    for batch in Batches::open(path)? {
        rows += batch.map_err(|error| damaged_file(path.display(), error))?.num_rows() as u64;
    }
    Ok(rows)
}

/// Reads a split; returns whether all of it was consumed.
pub(super) fn read(table: &TableReader, send: BatchSink<'_>) -> Result<bool, RunError> {
    let (split, rows) = (&table.split, &table.rows);
    let batches = Batches::open(table.file.path())?;
    let columns = FileColumns::new(&table.file.name, &table.selection, &batches.schema())
        .map_err(|why| table.error(why))?;
    let mut pairs = PairBatchBuilder::new(&table.stage, &table.selection.keep);
    let mut first = 0;
    for batch in batches {
        let batch = batch.map_err(|error| damaged_file(&split.file, error))?;
        let end = first + batch.num_rows() as u64;
        let mut row = rows.start.max(first);
        while row < rows.end.min(end) {
            let length = (rows.end.min(end) - row).min(BATCH as u64);
            let part = batch.slice((row - first) as usize, length as usize);
            columns.push_batch(&mut pairs, &part, &mut row);
            if !send(pairs.finish().map_err(arrow_error)?) {
                return Ok(false);
            }
        }
        first = end;
        if first >= rows.end {
            break;
        }
    }
    Ok(true)
}
