//! Rows of Parquet files.

use std::fs::File;
use std::path::Path;

use arrow::array::RecordBatch;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use twinlens_pipeline::RunError;

use super::Reading;
use super::rows::push_batch;
use crate::pairs::Rows;

/// Rows of a batch.
const BATCH: usize = 4096;

fn open(path: &Path) -> Result<ParquetRecordBatchReaderBuilder<File>, RunError> {
    let file = File::open(path).map_err(|error| RunError::io(path, error))?;
    ParquetRecordBatchReaderBuilder::try_new(file).map_err(|error| damaged(path, error))
}

pub(super) fn damaged(path: &Path, error: impl std::fmt::Display) -> RunError {
    RunError::user_with_hint(
        format!("{}: {error}", path.display()),
        "restore the file, or take it out of `files`",
    )
}

/// How many rows a file has.
pub(super) fn rows(path: &Path) -> Result<u64, RunError> {
    Ok(open(path)?.metadata().file_metadata().num_rows().unsigned_abs())
}

/// Reads a split; stops when `send` has nowhere to send to.
pub(super) fn read(reading: &Reading, send: &mut impl FnMut(RecordBatch) -> bool) -> Result<(), RunError> {
    let (path, split) = (&reading.path, &reading.split);
    let builder = open(path)?;
    let there: Vec<String> = builder.schema().fields().iter().map(|field| field.name().clone()).collect();
    let columns =
        reading.wanted.find(&there).map_err(|why| RunError::user(format!("{}: {why}", path.display())))?;
    let mask = ProjectionMask::roots(builder.parquet_schema(), columns.iter().flatten().copied());
    let names: Vec<Option<&str>> =
        columns.iter().map(|column| column.map(|column| there[column].as_str())).collect();
    let reader = builder
        .with_projection(mask)
        .with_offset(split.start as usize)
        .with_limit((split.end - split.start) as usize)
        .with_batch_size(BATCH)
        .build()
        .map_err(|error| damaged(path, error))?;
    let mut rows = Rows::new(&reading.stage, &reading.wanted.keep);
    let mut number = split.start;
    for batch in reader {
        let batch = batch.map_err(|error| damaged(path, error))?;
        push_batch(&mut rows, &batch, &names, &split.file, &mut number);
        if !send(rows.finish().map_err(|error| RunError::Engine(error.into()))?) {
            return Ok(());
        }
    }
    Ok(())
}
