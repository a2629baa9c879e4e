//! Fits batches to the schema of a table, without inventing or losing a value.
//!
//! Columns are matched by name. The same type in another encoding (offsets, views, dictionaries,
//! widths of numbers) is cast; a value that the cast cannot hold is an error, and so is a column
//! that is missing or of another type. Only a ledger may lack columns: it has those of all rows
//! that can end in it.

use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions, new_null_array};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::error::ArrowError;

use crate::contracts;
use crate::error::DatasetError;
use crate::types;

/// The rows of a batch with exactly the columns of `schema`. Other columns are left out.
///
/// # Errors
/// A column is missing, is of another type, or has a value that its type cannot hold.
pub fn conform(table: &str, batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch, DatasetError> {
    fit(batch, schema, |field| Err(ArrowError::SchemaError(format!("there is no column `{}`", field.name()))))
        .map_err(|source| DatasetError::Schema { table: table.into(), source })
}

/// The rows of a batch with the columns of a ledger: those that the rows do not have are null.
pub(crate) fn conform_ledger(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch, DatasetError> {
    fit(batch, schema, |field| Ok(new_null_array(field.data_type(), batch.num_rows())))
        .map_err(|source| DatasetError::Schema { table: crate::protocol::REJECTS.into(), source })
}

/// Refuses a batch that has columns beside those of the table it is written to, and beside the
/// reserved ones.
pub(crate) fn refuse_unknown(table: &str, batch: &RecordBatch, schema: &Schema) -> Result<(), DatasetError> {
    let reserved = contracts::rejects();
    let known = |name: &str| schema.index_of(name).is_ok() || reserved.index_of(name).is_ok();
    let batch = batch.schema_ref();
    let Some(unknown) = batch.fields().iter().find(|field| !known(field.name())) else { return Ok(()) };
    let why = format!("the column `{}` would be dropped: the table does not declare it", unknown.name());
    Err(DatasetError::Schema { table: table.into(), source: ArrowError::SchemaError(why) })
}

fn fit(
    batch: &RecordBatch,
    schema: &SchemaRef,
    missing: impl Fn(&Field) -> Result<ArrayRef, ArrowError>,
) -> Result<RecordBatch, ArrowError> {
    if batch.schema_ref() == schema {
        return Ok(batch.clone());
    }
    let column = |field: &Field| match batch.column_by_name(field.name()) {
        Some(column) => cast_column(column, field),
        None => missing(field),
    };
    let columns = schema.fields().iter().map(|field| column(field)).collect::<Result<Vec<_>, _>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(schema.clone(), columns, &options)
}

fn cast_column(column: &ArrayRef, field: &Field) -> Result<ArrayRef, ArrowError> {
    let (from, to) = (column.data_type(), field.data_type());
    if from == to {
        return Ok(column.clone());
    }
    let name = field.name();
    if !is_same(from, to) {
        let (from, to) = (types::name(from), types::name(to));
        return Err(ArrowError::SchemaError(format!("the column `{name}` is of type {from}, not {to}")));
    }
    let strict = CastOptions { safe: false, ..CastOptions::default() };
    cast_with_options(column, to, &strict)
        .map_err(|error| ArrowError::CastError(format!("the column `{name}`: {error}")))
}

/// Whether every value of one type that another can hold means the same in it.
fn is_same(from: &DataType, to: &DataType) -> bool {
    use DataType::*;
    match (from, to) {
        (from, to) if from == to => true,
        (Null, _) => true,
        (Dictionary(_, values), to) => is_same(values, to),
        (Utf8 | LargeUtf8 | Utf8View, Utf8 | LargeUtf8 | Utf8View) => true,
        (Binary | LargeBinary | BinaryView, Binary | LargeBinary | BinaryView) => true,
        (from, to) if from.is_integer() && to.is_integer() => true,
        (from, to) if from.is_numeric() && to.is_floating() => true,
        (Timestamp(..), Timestamp(..)) | (Duration(_), Duration(_)) => true,
        (Time32(_) | Time64(_), Time32(_) | Time64(_)) => true,
        (
            List(from) | LargeList(from) | ListView(from) | LargeListView(from) | FixedSizeList(from, _),
            List(to) | LargeList(to) | ListView(to) | LargeListView(to) | FixedSizeList(to, _),
        ) => is_same(from.data_type(), to.data_type()),
        (Struct(from), Struct(to)) => {
            let pairs = || from.iter().zip(to);
            from.len() == to.len()
                && pairs()
                    .all(|(from, to)| from.name() == to.name() && is_same(from.data_type(), to.data_type()))
        }
        (Map(from, _), Map(to, _)) => is_same(from.data_type(), to.data_type()),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{Array, AsArray, Float64Array, Int64Array, LargeStringArray, StringArray};
    use arrow::datatypes::Int32Type;

    use super::*;

    fn one(name: &str, column: impl Array + 'static) -> RecordBatch {
        RecordBatch::try_from_iter([(name, Arc::new(column) as ArrayRef)]).unwrap()
    }

    fn table(fields: &[(&str, DataType)]) -> SchemaRef {
        let field = |(name, kind): &(&str, DataType)| Field::new(*name, kind.clone(), true);
        Arc::new(Schema::new(fields.iter().map(field).collect::<Vec<_>>()))
    }

    #[test]
    fn nothing_becomes_null_or_text() {
        let integers = || one("n", Int64Array::from(vec![1, 1 << 40]));
        for (batch, to, expected) in [
            (integers(), DataType::Int32, "the column `n`: "),
            (integers(), DataType::Utf8, "the column `n` is of type int64, not string"),
            (one("n", StringArray::from(vec!["1"])), DataType::Int32, "is of type string, not int32"),
            (one("n", Float64Array::from(vec![0.5])), DataType::Int32, "is of type float64, not int32"),
            (one("m", Int64Array::from(vec![1])), DataType::Int64, "there is no column `n`"),
        ] {
            let error = conform("t", &batch, &table(&[("n", to)])).unwrap_err().to_string();
            assert!(error.starts_with("table `t`: ") && error.contains(expected), "{error}");
        }
    }

    #[test]
    fn encodings_and_widths_are_cast() {
        let small = conform("t", &one("n", Int64Array::from(vec![7])), &table(&[("n", DataType::Int32)]));
        assert_eq!(small.unwrap()["n"].as_primitive::<Int32Type>().value(0), 7);
        let text = one("s", LargeStringArray::from(vec!["a"]));
        let text = conform("t", &text, &table(&[("s", DataType::Utf8)])).unwrap();
        assert_eq!(text["s"].as_string::<i32>().value(0), "a");
        let hub = contracts::file_schema(&table(&[("image", contracts::image())]));
        assert!(is_same(hub.field(0).data_type(), &contracts::image()));
    }

    #[test]
    fn a_table_gets_no_other_columns_and_a_ledger_may_lack_some() {
        let batch = one("n", Int64Array::from(vec![1]));
        let fields = [("uid", DataType::Utf8)];
        assert!(refuse_unknown("data", &batch, &table(&fields)).is_err());
        assert!(
            refuse_unknown("data", &one("reject_code", Int64Array::from(vec![1])), &table(&fields)).is_ok()
        );
        let ledger = conform_ledger(&batch, &table(&[("uid", DataType::Utf8), ("n", DataType::Int64)]));
        assert_eq!(ledger.unwrap()["uid"].null_count(), 1);
    }
}
