//! The reserved columns by which a row stage rejects a row without dropping it.
//!
//! In a plan every row has `reject_stage`, `reject_code` and `reject_detail`, null until it is
//! rejected. At commit, rows with a `reject_code` go to the ledger and the others to the shards.

use std::sync::Arc;

use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::dataframe::DataFrame;
use datafusion::logical_expr::{Expr, cast, col, ident, lit, when};
use datafusion::scalar::ScalarValue;
use twinlens_dataset::contracts;
use twinlens_dataset::types::holds_image_bytes;

use crate::error::RunError;

/// The stage that rejected the row.
pub const STAGE: &str = "reject_stage";
/// The reason, from the stage's closed list of codes.
pub const CODE: &str = "reject_code";
/// Details: the HTTP status, the predicate, the duplicate that was kept.
pub const DETAIL: &str = "reject_detail";
/// All reserved columns, in order.
pub const RESERVED: [&str; 3] = [STAGE, CODE, DETAIL];

/// The fields of the reserved columns: nullable strings.
pub fn fields() -> [Field; 3] {
    RESERVED.map(|name| Field::new(name, DataType::Utf8, true))
}

/// Appends the reserved columns to a schema.
pub fn schema_with_reserved(schema: &Schema) -> SchemaRef {
    let mut all: Vec<Field> = schema.fields().iter().map(|field| field.as_ref().clone()).collect();
    all.extend(fields());
    Schema::new_with_metadata(all, schema.metadata().clone()).into()
}

/// Adds the reserved columns, all null, to rows without them.
pub fn with_reserved(frame: DataFrame) -> Result<DataFrame, RunError> {
    let mut frame = frame;
    for name in RESERVED {
        frame = frame.with_column(name, lit(ScalarValue::Utf8(None)))?;
    }
    Ok(frame)
}

/// Rejects, on behalf of `stage`, the rows that match `condition` and are not rejected yet.
/// `detail` may use columns.
pub fn reject_where(
    frame: DataFrame,
    stage: &str,
    condition: Expr,
    code: &str,
    detail: Expr,
) -> Result<DataFrame, RunError> {
    let is_rejected = col(CODE).is_null().and(condition.is_true());
    let set = |name: &str, value: Expr| {
        when(is_rejected.clone(), cast(value, DataType::Utf8)).otherwise(ident(name)).map_err(RunError::from)
    };
    // All three at once: after setting the code alone, the condition would be false for the others.
    let mut columns: Vec<Expr> = (frame.schema().fields().iter())
        .filter(|field| !RESERVED.contains(&field.name().as_str()))
        .map(|field| ident(field.name()))
        .collect();
    columns.push(set(STAGE, lit(stage))?.alias(STAGE));
    columns.push(set(CODE, lit(code))?.alias(CODE));
    columns.push(set(DETAIL, detail)?.alias(DETAIL));
    Ok(frame.select(columns)?)
}

/// The schema of a table's ledger: its columns without image bytes, and the reserved ones.
pub fn ledger_schema(table: &Schema) -> SchemaRef {
    let reserved = contracts::rejects();
    let columns = (table.fields().iter())
        .filter(|field| {
            !holds_image_bytes(field.data_type()) && reserved.field_with_name(field.name()).is_err()
        })
        .map(|field| Arc::new(field.as_ref().clone().with_nullable(true)));
    let fields: Vec<_> = columns.chain(reserved.fields().iter().cloned()).collect();
    Arc::new(Schema::new(fields))
}
