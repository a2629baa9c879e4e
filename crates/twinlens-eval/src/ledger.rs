//! Writes rejected rows to the reject ledger.

use std::sync::Arc;

use arrow::array::{Array, AsArray, RecordBatch, RecordBatchOptions, StringArray, UInt32Array};
use arrow::datatypes::Schema;
use twinlens_dataset::reader::ShardReader;
use twinlens_dataset::types::holds_image_bytes;
use twinlens_dataset::{Dataset, REJECTS, SplitWriter};
use twinlens_pipeline::RunError;
use twinlens_pipeline::rejects;
use twinlens_pipeline::run::output::write_rejects;

use crate::error::EvalError;

/// A rejected row of a batch.
#[derive(Debug, Clone)]
pub(crate) struct RejectedRow {
    pub row: u32,
    pub code: &'static str,
    /// Includes the location.
    pub detail: String,
}

/// Code and detail of the first row that was rejected when a dataset was made, if any was.
pub(crate) fn first_reject(dataset: &Dataset) -> Result<Option<String>, RunError> {
    if dataset.rows(REJECTS) == 0 {
        return Ok(None);
    }
    let columns = [rejects::CODE, rejects::DETAIL];
    let Some(batch) = ShardReader::new(dataset, REJECTS, &columns, 1).next().transpose()? else {
        return Ok(None);
    };
    let texts = batch.columns().iter().filter_map(|column| column.as_string_opt::<i32>());
    let texts: Vec<&str> = texts.filter(|texts| !texts.is_empty()).map(|texts| texts.value(0)).collect();
    Ok(Some(texts.join(": ")))
}

/// The columns of a batch that hold no pixels.
pub(crate) fn without_pixels(batch: &RecordBatch) -> Result<RecordBatch, EvalError> {
    let kept: Vec<usize> = (0..batch.num_columns())
        .filter(|column| !holds_image_bytes(batch.column(*column).data_type()))
        .collect();
    Ok(batch.project(&kept)?)
}

/// Takes rows of a batch, which may have no columns.
pub(crate) fn take(batch: &RecordBatch, rows: &UInt32Array) -> Result<RecordBatch, EvalError> {
    let columns = batch.columns().iter().map(|column| arrow::compute::take(column, rows, None));
    let options = RecordBatchOptions::new().with_row_count(Some(rows.len()));
    let columns = columns.collect::<Result<Vec<_>, _>>()?;
    Ok(RecordBatch::try_new_with_options(batch.schema(), columns, &options)?)
}

/// Writes rejected rows of a batch to the ledger of a split, without their pixels.
pub(crate) fn write(
    split: &mut SplitWriter,
    stage: &str,
    batch: &RecordBatch,
    rejected: &[RejectedRow],
) -> Result<(), EvalError> {
    if rejected.is_empty() {
        return Ok(());
    }
    let rows = UInt32Array::from_iter_values(rejected.iter().map(|entry| entry.row));
    let taken = take(&without_pixels(batch)?, &rows)?;
    let reserved = [
        StringArray::from_iter_values(std::iter::repeat_n(stage, rejected.len())),
        StringArray::from_iter_values(rejected.iter().map(|entry| entry.code)),
        StringArray::from_iter_values(rejected.iter().map(|entry| &entry.detail)),
    ];
    let mut fields: Vec<_> = taken.schema().fields().iter().map(|field| field.as_ref().clone()).collect();
    fields.extend(rejects::fields());
    let columns = taken.columns().iter().cloned().chain(reserved.map(|column| Arc::new(column) as _));
    let batch = RecordBatch::try_new(Schema::new(fields).into(), columns.collect())?;
    Ok(write_rejects(split, &batch)?)
}
