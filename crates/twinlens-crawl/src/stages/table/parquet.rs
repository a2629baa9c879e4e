//! Reads Parquet files.

use std::fmt::Display;
use std::fs::File;
use std::path::Path;

use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use twinlens_pipeline::RunError;

use super::rows::FileColumns;
use super::split::TableReader;
use crate::pairs::PairBatchBuilder;
use crate::stages::common::arrow_error;
use crate::stages::split_reader::BatchSink;

/// Rows per batch.
const BATCH: usize = 4096;

fn open(path: &Path) -> Result<ParquetRecordBatchReaderBuilder<File>, RunError> {
    let file = File::open(path).map_err(|error| RunError::io(path, error))?;
    ParquetRecordBatchReaderBuilder::try_new(file).map_err(|error| damaged_file(path.display(), error))
}

pub(super) fn damaged_file(file: impl Display, error: impl Display) -> RunError {
    RunError::user_with_hint(format!("{file}: {error}"), "restore the file, or remove it from `files`")
}

pub(super) fn rows(path: &Path) -> Result<u64, RunError> {
    Ok(open(path)?.metadata().file_metadata().num_rows().unsigned_abs())
}

/// Reads a split; returns whether all of it was consumed.
pub(super) fn read(table: &TableReader, send: BatchSink<'_>) -> Result<bool, RunError> {
    let (split, rows) = (&table.split, &table.rows);
    let builder = open(table.file.path())?;
    let total = builder.metadata().file_metadata().num_rows().unsigned_abs();
    let columns = FileColumns::new(&table.file.name, &table.selection, builder.schema())
        .map_err(|why| table.error(why))?;
    let mask = ProjectionMask::roots(builder.parquet_schema(), columns.indices());
    let reader = builder
        .with_projection(mask)
        .with_offset(rows.start as usize)
        .with_limit((rows.end.min(total) - rows.start) as usize)
        .with_batch_size(BATCH)
        .build()
        .map_err(|error| damaged_file(&split.file, error))?;
    let (mut row, mut pairs) = (rows.start, PairBatchBuilder::new(&table.stage, &table.selection.keep));
    for batch in reader {
        let batch = batch.map_err(|error| damaged_file(&split.file, error))?;
        columns.push_batch(&mut pairs, &batch, &mut row);
        if !send(pairs.finish().map_err(arrow_error)?) {
            return Ok(false);
        }
    }
    Ok(true)
}
