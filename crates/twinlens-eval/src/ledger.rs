//! Refused rows on their way to the ledger of rejects.

use std::sync::Arc;

use arrow::array::{Array, RecordBatch, RecordBatchOptions, StringArray, UInt32Array};
use arrow::datatypes::Schema;
use twinlens_dataset::SplitWriter;
use twinlens_dataset::shard::holds_image_bytes;
use twinlens_pipeline::rejects;
use twinlens_pipeline::run::output::write_rejects;

use crate::error::EvalError;

/// One row of a batch that is refused.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The row.
    pub row: u32,
    /// From a closed list.
    pub code: &'static str,
    /// The particulars, with the place.
    pub detail: String,
}

/// The columns of a batch without pixels.
pub fn plain(batch: &RecordBatch) -> Result<RecordBatch, EvalError> {
    let plain: Vec<usize> = (0..batch.num_columns())
        .filter(|column| !holds_image_bytes(batch.column(*column).data_type()))
        .collect();
    Ok(batch.project(&plain)?)
}

/// Some rows of a batch, which may have no columns.
pub fn take(batch: &RecordBatch, rows: &UInt32Array) -> Result<RecordBatch, EvalError> {
    let columns = batch.columns().iter().map(|column| arrow::compute::take(column, rows, None));
    let options = RecordBatchOptions::new().with_row_count(Some(rows.len()));
    let columns = columns.collect::<Result<Vec<_>, _>>()?;
    Ok(RecordBatch::try_new_with_options(batch.schema(), columns, &options)?)
}

/// Writes refused rows of a batch to the ledger of a split, in the name of `stage`, without their
/// pixels.
pub fn write(
    split: &mut SplitWriter,
    stage: &str,
    batch: &RecordBatch,
    refused: &[Entry],
) -> Result<(), EvalError> {
    if refused.is_empty() {
        return Ok(());
    }
    let rows = UInt32Array::from_iter_values(refused.iter().map(|entry| entry.row));
    let taken = take(&plain(batch)?, &rows)?;
    let reserved = [
        StringArray::from_iter_values(std::iter::repeat_n(stage, refused.len())),
        StringArray::from_iter_values(refused.iter().map(|entry| entry.code)),
        StringArray::from_iter_values(refused.iter().map(|entry| &entry.detail)),
    ];
    let mut fields: Vec<_> = taken.schema().fields().iter().map(|field| field.as_ref().clone()).collect();
    fields.extend(rejects::fields());
    let columns = taken.columns().iter().cloned().chain(reserved.map(|column| Arc::new(column) as _));
    let batch = RecordBatch::try_new(Schema::new(fields).into(), columns.collect())?;
    Ok(write_rejects(split, &batch)?)
}
