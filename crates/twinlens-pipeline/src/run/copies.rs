//! Copies of rows with the number of their group, from which splits by group are made
//! ([`grouped`](super::grouped)).

use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, AsArray, UInt32Array};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::dataframe::DataFrame;
use datafusion::logical_expr::{ColumnarValue, Volatility, create_udf, ident};
use twinlens_dataset::{Dataset, MAIN};

use crate::context::RunContext;
use crate::error::RunError;
use crate::passes::{GROUP, SplitRows, group_of};
use crate::ports::SplitBy;
use crate::run::step::Step;

/// A column of plans: the position of a row.
const POSITION: &str = "__twinlens_position";

/// The columns of the copies.
pub(super) fn with_group(schema: &Schema) -> SchemaRef {
    let group = Arc::new(Field::new(GROUP, DataType::UInt32, true));
    Arc::new(Schema::new(schema.fields().iter().cloned().chain([group]).collect::<Vec<_>>()))
}

/// The copies of a split of the first pass.
pub(super) fn copies(
    step: &Step,
    rows: SplitRows<'_>,
    by: &SplitBy,
    groups: u64,
) -> Result<DataFrame, RunError> {
    let frame = rows.numbered(&step.cx.session, None, POSITION)?;
    let column = frame.schema().field_with_unqualified_name(&by.column)?.data_type().clone();
    let of = by.group;
    let group = move |arguments: &[ColumnarValue]| {
        let arrays = ColumnarValue::values_to_arrays(arguments)?;
        let texts = cast(&arrays[0], &DataType::Utf8)?;
        let texts = texts.as_string::<i32>();
        let numbers = (0..texts.len()).map(|row| {
            // A null reads as the empty text.
            let text = if texts.is_valid(row) { texts.value(row) } else { "" };
            group_of(of(text).as_bytes(), groups)
        });
        let numbers: ArrayRef = Arc::new(UInt32Array::from_iter_values(numbers));
        Ok(ColumnarValue::Array(numbers))
    };
    let group =
        create_udf("group_of", vec![column], DataType::UInt32, Volatility::Immutable, Arc::new(group));
    let frame = frame.with_column(GROUP, group.call(vec![ident(&by.column)]))?;
    let frame = frame.sort(vec![ident(GROUP).sort(true, true), ident(POSITION).sort(true, true)])?;
    Ok(frame.drop_columns(&[POSITION])?)
}

/// The rows of a split.
pub(super) fn rows(cx: &RunContext, copies: &Dataset, ranges: &[(u64, u64)]) -> Result<DataFrame, RunError> {
    Ok(copies.ranges(&cx.session, MAIN, ranges)?.drop_columns(&[GROUP])?)
}
