//! Rows of Parquet files.

use std::fmt::Display;
use std::fs::File;
use std::path::Path;

use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use twinlens_pipeline::RunError;

use super::super::files::engine;
use super::super::reading::Send;
use super::Reading;
use super::rows::FileColumns;
use crate::pairs::Rows;

/// Rows of a batch.
const BATCH: usize = 4096;

fn open(path: &Path) -> Result<ParquetRecordBatchReaderBuilder<File>, RunError> {
    let file = File::open(path).map_err(|error| RunError::io(path, error))?;
    ParquetRecordBatchReaderBuilder::try_new(file).map_err(|error| damaged(path.display(), error))
}

pub(super) fn damaged(file: impl Display, error: impl Display) -> RunError {
    RunError::user_with_hint(format!("{file}: {error}"), "restore the file, or take it out of `files`")
}

/// How many rows a file has.
pub(super) fn rows(path: &Path) -> Result<u64, RunError> {
    Ok(open(path)?.metadata().file_metadata().num_rows().unsigned_abs())
}

/// Reads a split; returns whether all of it was wanted.
pub(super) fn read(reading: &Reading, send: Send<'_>) -> Result<bool, RunError> {
    let (path, split) = (reading.file.path(), &reading.split);
    let builder = open(path)?;
    let rows = builder.metadata().file_metadata().num_rows().unsigned_abs();
    let columns = FileColumns::of(reading, builder.schema())?;
    let mask = ProjectionMask::roots(builder.parquet_schema(), columns.places());
    let reader = builder
        .with_projection(mask)
        .with_offset(split.start as usize)
        .with_limit((split.end.min(rows) - split.start) as usize)
        .with_batch_size(BATCH)
        .build()
        .map_err(|error| damaged(&split.file, error))?;
    let mut rows = Rows::new(&reading.stage, &reading.wanted.keep);
    let mut number = split.start;
    for batch in reader {
        let batch = batch.map_err(|error| damaged(&split.file, error))?;
        columns.push(&mut rows, &batch, &mut number);
        if !send(rows.finish().map_err(engine)?) {
            return Ok(false);
        }
    }
    Ok(true)
}
