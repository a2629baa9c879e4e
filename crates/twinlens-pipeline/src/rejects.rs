//! The reserved columns by which a row stage rejects a row without dropping it.
//!
//! In a plan every row has `reject_stage`, `reject_code` and `reject_detail`, null until it is
//! rejected. At commit, rows with a `reject_code` go to the ledger and the others to the shards.
//!
//! No row brings such a column along ([`is_reserved`]): an input that has one is refused by name
//! before anything runs. Only a query may give its result these names, since none of its rows are
//! rejects.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::dataframe::DataFrame;
use datafusion::logical_expr::{Expr, cast, col, ident, lit, when};
use datafusion::scalar::ScalarValue;
use twinlens_dataset::contracts;
use twinlens_dataset::types::holds_image_bytes;

use crate::error::{Fault, RunError};

/// The stage that rejected the row.
pub const STAGE: &str = "reject_stage";
/// The reason, from the stage's closed list of codes.
pub const CODE: &str = "reject_code";
/// Details: the HTTP status, the predicate, the duplicate that was kept.
pub const DETAIL: &str = "reject_detail";
/// All reserved columns, in order.
pub const RESERVED: [&str; 3] = [STAGE, CODE, DETAIL];

/// The column of a ledger that counts attempts.
pub(crate) const ATTEMPTS: &str = "attempts";
/// Columns that live within the plan of a stage have names that begin so.
pub const INTERNAL: &str = "__twinlens_";

/// Whether a column of that name means something to the runner, so that rows of a user cannot have
/// it.
pub fn is_reserved(name: &str) -> bool {
    RESERVED.contains(&name) || name == ATTEMPTS || name.starts_with(INTERNAL)
}

/// The fault of an input or option at `span` with a reserved column.
pub(crate) fn reserved_fault(span: Range<usize>, owner: &str, name: &str) -> Fault {
    let why = if name.starts_with(INTERNAL) {
        format!("names that begin with `{INTERNAL}` are those of the program")
    } else {
        "that is a column of the ledger of rejects".into()
    };
    Fault::at(span, format!("{owner} has a column `{name}`, which is a reserved name"))
        .label(why)
        .hint(format!("give it another name, in a `sql` stage: `select {name} as other_name, ...`"))
}

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
/// `detail` may use columns. Where it is null, the ledger has the code instead.
pub fn reject_where(
    frame: DataFrame,
    stage: &str,
    condition: Expr,
    code: &str,
    detail: Expr,
) -> Result<DataFrame, RunError> {
    reject_with(frame, stage, when(condition.is_true(), lit(code)).end()?, detail)
}

/// Rejects, on behalf of `stage`, the rows that are not rejected yet and for which `code` is not
/// null. One plan for any number of codes: a stage with many of them chooses by `case`.
pub fn reject_with(frame: DataFrame, stage: &str, code: Expr, detail: Expr) -> Result<DataFrame, RunError> {
    let is_rejected = col(CODE).is_null().and(code.clone().is_not_null());
    let set = |name: &str, value: Expr| {
        when(is_rejected.clone(), cast(value, DataType::Utf8)).otherwise(ident(name)).map_err(RunError::from)
    };
    // All three at once: after setting the code alone, the condition would be false for the others.
    let mut columns: Vec<Expr> = (frame.schema().fields().iter())
        .filter(|field| !RESERVED.contains(&field.name().as_str()))
        .map(|field| ident(field.name()))
        .collect();
    columns.push(set(STAGE, lit(stage))?.alias(STAGE));
    columns.push(set(CODE, code)?.alias(CODE));
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

/// The most common codes of rejects, for messages: `no_url 4, no_caption 2`.
pub fn top_codes<'a>(codes: impl IntoIterator<Item = (&'a str, u64)>) -> String {
    const SHOWN: usize = 3;
    let mut sums: BTreeMap<&str, u64> = BTreeMap::new();
    for (code, rows) in codes {
        *sums.entry(code).or_default() += rows;
    }
    let mut sums: Vec<_> = sums.into_iter().collect();
    sums.sort_by_key(|(code, rows)| (Reverse(*rows), *code));
    let shown = sums.iter().take(SHOWN).map(|(code, rows)| format!("{code} {rows}"));
    let shown = shown.collect::<Vec<_>>().join(", ");
    if sums.len() > SHOWN { format!("{shown}, and {} more codes", sums.len() - SHOWN) } else { shown }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_common_codes_come_first() {
        let codes = [("a", 1), ("b", 2), ("a", 3), ("c", 1), ("d", 1), ("e", 1)];
        assert_eq!(top_codes(codes), "a 4, b 2, c 1, and 2 more codes");
        assert_eq!(top_codes([("no_url", 6)]), "no_url 6");
    }
}
