//! Reads Parquet files.

use std::path::Path;

use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::errors::ParquetError;
use twinlens_dataset::DatasetError;
use twinlens_dataset::foreign::{self, ParquetBatches};
use twinlens_pipeline::RunError;

use super::rows::FileColumns;
use super::split::TableReader;
use crate::pairs::PairBatchBuilder;
use crate::stages::common::arrow_error;
use crate::stages::split_reader::BatchSink;

/// Rows per batch.
const BATCH: usize = 4096;

fn damaged(path: &Path, source: ParquetError) -> RunError {
    DatasetError::Parquet { path: path.into(), source }.into()
}

/// The number of rows of a file, whose pages are checked.
pub(super) fn rows(path: &Path) -> Result<u64, RunError> {
    let (file, metadata) = foreign::open_parquet(path)?;
    foreign::check_pages(path, &file, metadata.metadata())?;
    Ok(metadata.metadata().file_metadata().num_rows().unsigned_abs())
}

/// Reads a split; returns whether all of it was consumed.
pub(super) fn read(table: &TableReader, send: BatchSink<'_>) -> Result<bool, RunError> {
    let (path, rows) = (table.file.path(), &table.rows);
    let (file, metadata) = foreign::open_parquet(path)?;
    if table.split.rows.is_none() {
        // A download, whose rows were not counted.
        foreign::check_pages(path, &file, metadata.metadata())?;
    }
    let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(file, metadata);
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
        .map_err(|error| damaged(path, error))?;
    let (mut row, mut pairs) = (rows.start, PairBatchBuilder::new(&table.stage, &table.selection.keep));
    for batch in ParquetBatches::new(path, reader) {
        let batch = batch?;
        columns.push_batch(&mut pairs, &batch, &mut row);
        if !send(pairs.finish().map_err(arrow_error)?) {
            return Ok(false);
        }
    }
    Ok(true)
}
