//! The reserved columns by which a row stage refuses a row without dropping it.
//!
//! While plans run, every row carries `reject_stage`, `reject_code` and `reject_detail`, null as
//! long as it is good. At the commit, rows whose `reject_code` is set go to the ledger and the
//! others to the shards.

use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::dataframe::DataFrame;
use datafusion::logical_expr::{Expr, cast, col, ident, lit, when};
use datafusion::scalar::ScalarValue;

use crate::error::RunError;

/// The stage that refused the row.
pub const STAGE: &str = "reject_stage";
/// Why, from the stage's closed list of codes.
pub const CODE: &str = "reject_code";
/// The particulars: the URL's answer, the predicate, the twin that was kept.
pub const DETAIL: &str = "reject_detail";
/// All reserved columns, in order.
pub const RESERVED: [&str; 3] = [STAGE, CODE, DETAIL];

/// The fields of the reserved columns: nullable strings.
pub fn fields() -> [Field; 3] {
    RESERVED.map(|name| Field::new(name, DataType::Utf8, true))
}

/// `schema` with the reserved columns at its end.
pub fn schema_with_reserved(schema: &Schema) -> SchemaRef {
    let mut all: Vec<Field> = schema.fields().iter().map(|field| field.as_ref().clone()).collect();
    all.extend(fields());
    Schema::new_with_metadata(all, schema.metadata().clone()).into()
}

/// Adds the reserved columns, null, to rows that have none yet.
pub fn with_reserved(frame: DataFrame) -> Result<DataFrame, RunError> {
    let mut frame = frame;
    for name in RESERVED {
        frame = frame.with_column(name, lit(ScalarValue::Utf8(None)))?;
    }
    Ok(frame)
}

/// Rejects, in the name of `stage`, the rows for which `refused` is true and which no stage refused
/// before. `detail` may name columns.
pub fn reject_where(
    frame: DataFrame,
    stage: &str,
    refused: Expr,
    code: &str,
    detail: Expr,
) -> Result<DataFrame, RunError> {
    let hit = col(CODE).is_null().and(refused.is_true());
    let set = |name: &str, value: Expr| {
        when(hit.clone(), cast(value, DataType::Utf8)).otherwise(ident(name)).map_err(RunError::from)
    };
    // All three at once: a `with_column` of the code alone would turn `hit` false for the two after
    // it.
    let mut columns: Vec<Expr> = (frame.schema().fields().iter())
        .filter(|field| !RESERVED.contains(&field.name().as_str()))
        .map(|field| ident(field.name()))
        .collect();
    columns.push(set(STAGE, lit(stage))?.alias(STAGE));
    columns.push(set(CODE, lit(code))?.alias(CODE));
    columns.push(set(DETAIL, detail)?.alias(DETAIL));
    Ok(frame.select(columns)?)
}
