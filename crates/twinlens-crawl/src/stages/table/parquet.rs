//! Reads Parquet files.

use std::path::Path;

use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::errors::ParquetError;
use twinlens_dataset::DatasetError;
use twinlens_dataset::foreign::{self, ParquetBatches};
use twinlens_pipeline::RunError;

use super::open_split::OpenSplit;
use crate::stages::split_reader::BatchSink;

/// Rows per batch.
const BATCH: usize = 4096;

fn damaged(path: &Path, source: ParquetError) -> RunError {
    DatasetError::Parquet { path: path.into(), source }.into()
}

/// Reads a split; returns whether all of it was consumed.
pub(super) fn read(table: &OpenSplit, send: BatchSink<'_>) -> Result<bool, RunError> {
    let (path, rows) = (table.file.path(), &table.rows);
    let (file, metadata) = foreign::open_parquet(path)?;
    if table.split.rows.is_none() {
        // A download, whose rows were not counted.
        foreign::check_pages(path, &file, metadata.metadata())?;
    }
    let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(file, metadata);
    let total = builder.metadata().file_metadata().num_rows().unsigned_abs();
    let columns = table.file_columns(builder.schema())?;
    let mask = ProjectionMask::roots(builder.parquet_schema(), columns.indices());
    let reader = builder
        .with_projection(mask)
        .with_offset(rows.start as usize)
        .with_limit(rows.end.min(total).saturating_sub(rows.start) as usize)
        .with_batch_size(BATCH)
        .build()
        .map_err(|error| damaged(path, error))?;
    let (mut row, mut pusher) = (rows.start, table.pusher(columns.is_image_only()));
    for batch in ParquetBatches::new(path, reader) {
        let batch = batch?;
        let pairs = table.push_batch(&columns, &mut pusher, &batch, row)?;
        row += batch.num_rows() as u64;
        if !send(pairs) {
            return Ok(false);
        }
    }
    Ok(true)
}
