//! From shards of pairs to a file of examples: decode, resize, tokenize; what cannot be trained on goes to the ledger.

use super::train_error;
use crate::examples::{Examples, ExamplesWriter, Record};
use datafusion::arrow::array::{Array, ArrayRef, AsArray, RecordBatch, StringArray};
use datafusion::arrow::compute::{cast, take_record_batch};
use datafusion::arrow::datatypes::{DataType, Field, Schema, UInt32Type};
use std::path::Path;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use twinlens_dataset::reader::ShardReader;
use twinlens_dataset::{Dataset, SplitWriter};
use twinlens_image::{Limits, Preprocess, decode};
use twinlens_model::Tokenizer;
use twinlens_pipeline::RunError;
use twinlens_pipeline::rejects::RESERVED;
use twinlens_pipeline::run::output::write_rejects;

/// The column of images, `struct<bytes, path>`.
pub const IMAGE: &str = "image";
/// A pair without a caption.
const NO_CAPTION: &str = "no_caption";
/// A pair without image bytes.
const NO_IMAGE: &str = "no_image";
/// Rows that are decoded at a time; encoded images are small beside decoded ones.
const ROWS: usize = 64;

/// What examples are made from and how.
pub struct Source {
    /// The pairs.
    pub dataset: Dataset,
    /// Their table.
    pub table: String,
    /// The column of captions.
    pub caption: String,
    /// The captions' tokenizer.
    pub tokenizer: Tokenizer,
    /// Sizes of an example.
    pub record: Record,
    /// The stage's name, for the ledger.
    pub stage: String,
    /// Fires when the run should stop.
    pub cancel: CancellationToken,
}

impl Source {
    /// Writes the examples to `path`, in the order of the shards, and the rejected rows to `split`.
    pub fn write(&self, path: &Path, split: &mut SplitWriter) -> Result<Examples, RunError> {
        let schema = self.dataset.schema(&self.table)?;
        let columns: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
        let mut writer = ExamplesWriter::create(path, self.record).map_err(train_error)?;
        for batch in ShardReader::new(&self.dataset, &self.table, &columns, ROWS) {
            if self.cancel.is_cancelled() {
                return Err(RunError::Interrupted);
            }
            let batch = batch?;
            let refused = self.write_batch(&batch, &mut writer)?;
            if !refused.is_empty() {
                write_rejects(split, &self.rejects(&batch, &refused)?)?;
            }
        }
        writer.finish().map_err(train_error)
    }

    /// Row, code and detail of each row that was refused.
    fn write_batch(
        &self,
        batch: &RecordBatch,
        writer: &mut ExamplesWriter,
    ) -> Result<Vec<(u32, &'static str, String)>, RunError> {
        let internal = |what: &str| RunError::Internal(format!("the pairs have no {what} column"));
        let captions = batch.column_by_name(&self.caption).ok_or_else(|| internal("caption"))?;
        let captions = cast(captions, &DataType::Utf8).map_err(engine)?;
        let images =
            batch.column_by_name(IMAGE).and_then(|c| c.as_struct_opt()).ok_or_else(|| internal("image"))?;
        let bytes = images.column_by_name("bytes").ok_or_else(|| internal("image.bytes"))?;
        let bytes = cast(bytes, &DataType::LargeBinary).map_err(engine)?;
        let (captions, bytes) = (captions.as_string::<i32>(), bytes.as_binary::<i64>());
        let preprocess = Preprocess::clip(self.record.side as u32);
        let mut refused = Vec::new();
        for row in 0..batch.num_rows() {
            let index = row as u32;
            if captions.is_null(row) || captions.value(row).trim().is_empty() {
                refused.push((index, NO_CAPTION, String::new()));
                continue;
            }
            if images.is_null(row) || bytes.is_null(row) || bytes.value(row).is_empty() {
                refused.push((index, NO_IMAGE, String::new()));
                continue;
            }
            let image = decode(bytes.value(row), &Limits::default());
            match image.and_then(|image| preprocess.pixels(&image.rgb)) {
                Ok(pixels) => {
                    let ids = self.tokenizer.encode(captions.value(row), self.record.context);
                    writer.push(&pixels, &ids).map_err(train_error)?;
                }
                Err(error) => refused.push((index, error.code(), error.to_string())),
            }
        }
        Ok(refused)
    }

    /// The refused rows, without pixels, with the reserved columns.
    fn rejects(
        &self,
        batch: &RecordBatch,
        refused: &[(u32, &'static str, String)],
    ) -> Result<RecordBatch, RunError> {
        let rows = datafusion::arrow::array::PrimitiveArray::<UInt32Type>::from_iter_values(
            refused.iter().map(|r| r.0),
        );
        let rows = take_record_batch(batch, &rows).map_err(engine)?;
        let mut fields: Vec<Field> = Vec::new();
        let mut columns: Vec<ArrayRef> = Vec::new();
        for (field, column) in rows.schema().fields().iter().zip(rows.columns()) {
            if field.name() != IMAGE && !RESERVED.contains(&field.name().as_str()) {
                fields.push(field.as_ref().clone());
                columns.push(column.clone());
            }
        }
        let reserved: [StringArray; 3] = [
            StringArray::from_iter_values(refused.iter().map(|_| &self.stage)),
            StringArray::from_iter_values(refused.iter().map(|r| r.1)),
            StringArray::from_iter_values(refused.iter().map(|r| &r.2)),
        ];
        for (name, column) in RESERVED.into_iter().zip(reserved) {
            fields.push(Field::new(name, DataType::Utf8, true));
            columns.push(Arc::new(column));
        }
        RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).map_err(engine)
    }
}

pub(super) fn engine(error: datafusion::arrow::error::ArrowError) -> RunError {
    RunError::Engine(error.into())
}
