//! Writes rows as a table, CSV, JSON lines or Parquet, batch by batch.

use std::io::Write;
use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, RecordBatch, StringBuilder};
use datafusion::arrow::csv;
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::arrow::error::ArrowError;
use datafusion::arrow::json::LineDelimitedWriter;
use datafusion::arrow::json::WriterBuilder;
use datafusion::arrow::json::writer::{EncoderOptions, LineDelimited, make_encoder};
use datafusion::error::DataFusionError;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;

use crate::cli::RowFormat;
use crate::errors::Failure;
use crate::table::TableWriter;

pub(crate) type Out = Box<dyn Write + Send>;

/// Parquet row groups are closed at this size, so that images do not pile up in memory.
const ROW_GROUP_BYTES: usize = 32 << 20;

/// Writes the rows of one query.
pub(crate) enum RowWriter {
    Table(TableWriter<Out>),
    /// The header is already written.
    Csv(Out),
    Json(Out),
    Parquet(Box<ArrowWriter<Out>>),
}

impl RowWriter {
    pub(crate) fn new(format: RowFormat, mut out: Out, schema: &SchemaRef) -> Result<Self, Failure> {
        Ok(match format {
            RowFormat::Table => Self::Table(TableWriter::new(out, schema)),
            RowFormat::Json => Self::Json(out),
            RowFormat::Csv => {
                let header = csv_text(&RecordBatch::new_empty(schema.clone()), true).map_err(arrow)?;
                out.write_all(&header)?;
                Self::Csv(out)
            }
            RowFormat::Parquet => {
                let properties = WriterProperties::builder()
                    .set_compression(Compression::ZSTD(ZstdLevel::default()))
                    .set_max_row_group_bytes(Some(ROW_GROUP_BYTES))
                    .build();
                Self::Parquet(Box::new(
                    ArrowWriter::try_new(out, schema.clone(), Some(properties)).map_err(parquet)?,
                ))
            }
        })
    }

    pub(crate) fn write(&mut self, batch: &RecordBatch) -> Result<(), Failure> {
        match self {
            Self::Table(table) => table.batch(batch)?,
            Self::Csv(out) => out.write_all(&csv_text(batch, false).map_err(arrow)?)?,
            Self::Json(out) => out.write_all(&json_text(batch).map_err(arrow)?)?,
            Self::Parquet(writer) => writer.write(batch).map_err(parquet)?,
        }
        Ok(())
    }

    pub(crate) fn finish(self) -> Result<(), Failure> {
        match self {
            Self::Table(table) => drop(table.finish()?),
            Self::Csv(mut out) | Self::Json(mut out) => out.flush()?,
            Self::Parquet(writer) => writer.into_inner().map_err(parquet)?.flush()?,
        }
        Ok(())
    }
}

fn arrow(error: ArrowError) -> Failure {
    DataFusionError::from(error).into()
}

/// Unwraps I/O errors, because a closed pipe is not a failure.
fn parquet(error: ParquetError) -> Failure {
    match error {
        ParquetError::External(inner) => match inner.downcast::<std::io::Error>() {
            Ok(io) => (*io).into(),
            Err(other) => DataFusionError::External(other).into(),
        },
        other => DataFusionError::from(other).into(),
    }
}

fn json_text(batch: &RecordBatch) -> Result<Vec<u8>, ArrowError> {
    let mut writer: LineDelimitedWriter<_> =
        WriterBuilder::new().with_explicit_nulls(true).build::<_, LineDelimited>(Vec::new());
    writer.write(batch)?;
    writer.finish()?;
    Ok(writer.into_inner())
}

fn csv_text(batch: &RecordBatch, header: bool) -> Result<Vec<u8>, ArrowError> {
    let batch = flatten(batch)?;
    let mut writer = csv::WriterBuilder::new().with_header(header).build(Vec::new());
    writer.write(&batch)?;
    Ok(writer.into_inner())
}

/// Converts lists and structs, which CSV cannot represent, to JSON.
fn flatten(batch: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    let mut fields = Vec::new();
    let mut columns: Vec<ArrayRef> = Vec::new();
    for (field, column) in batch.schema().fields().iter().zip(batch.columns()) {
        if field.data_type().is_nested() {
            fields.push(Arc::new(Field::new(field.name(), DataType::Utf8, true)));
            columns.push(as_json(field, column)?);
        } else {
            fields.push(field.clone());
            columns.push(column.clone());
        }
    }
    let options = datafusion::arrow::array::RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), columns, &options)
}

fn as_json(field: &Arc<Field>, column: &ArrayRef) -> Result<ArrayRef, ArrowError> {
    let options = EncoderOptions::default();
    let mut encoder = make_encoder(field, column, &options)?;
    let mut text = StringBuilder::new();
    let mut value = Vec::new();
    for row in 0..column.len() {
        if encoder.is_null(row) {
            text.append_null();
            continue;
        }
        value.clear();
        encoder.encode(row, &mut value);
        text.append_value(String::from_utf8_lossy(&value));
    }
    Ok(Arc::new(text.finish()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use datafusion::arrow::array::{Int32Array, ListArray, StringArray};
    use datafusion::arrow::datatypes::Int32Type;

    fn batch() -> RecordBatch {
        let ids = ListArray::from_iter_primitive::<Int32Type, _, _>([Some(vec![Some(1), None]), None]);
        RecordBatch::try_from_iter_with_nullable([
            ("caption", Arc::new(StringArray::from(vec![Some("a \"b\", c"), None])) as ArrayRef, true),
            ("n", Arc::new(Int32Array::from(vec![Some(1), Some(2)])) as ArrayRef, true),
            ("ids", Arc::new(ids) as ArrayRef, true),
        ])
        .unwrap()
    }

    #[test]
    fn nested_values_are_json_in_csv() {
        let header = String::from_utf8(csv_text(&batch().slice(0, 0), true).unwrap()).unwrap();
        let text = String::from_utf8(csv_text(&batch(), false).unwrap()).unwrap();
        assert_eq!(header, "caption,n,ids\n");
        assert_eq!(text, "\"a \"\"b\"\", c\",1,\"[1,null]\"\n,2,\n");
    }

    #[test]
    fn json_has_one_row_per_line_and_explicit_nulls() {
        let text = String::from_utf8(json_text(&batch()).unwrap()).unwrap();
        let rows: Vec<serde_json::Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(rows[0], serde_json::json!({"caption": "a \"b\", c", "n": 1, "ids": [1, null]}));
        assert_eq!(rows[1], serde_json::json!({"caption": null, "n": 2, "ids": null}));
    }
}
