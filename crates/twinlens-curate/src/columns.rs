//! Checks of input columns.

use std::ops::Range;

use datafusion::arrow::datatypes::{DataType, Field, Schema};
use twinlens_pipeline::Fault;
use twinlens_pipeline::suggest::{did_you_mean, list_names};

/// The column `name`, or a fault that suggests similar names.
pub(crate) fn column<'a>(schema: &'a Schema, name: &str, span: Range<usize>) -> Result<&'a Field, Fault> {
    schema.field_with_name(name).map_err(|_| {
        let names = || schema.fields().iter().map(|field| field.name().as_str());
        let fault = Fault::at(span, format!("unknown column `{name}`"));
        let fault = fault.label(format!("the columns are {}", list_names(names())));
        did_you_mean(name, names()).into_iter().fold(fault, Fault::hint)
    })
}

/// Checks that the column `name` exists and that its type `fits`.
pub(crate) fn require(
    schema: &Schema,
    name: &str,
    expected: &str,
    fits: impl Fn(&DataType) -> bool,
    span: Range<usize>,
) -> Result<(), Fault> {
    let field = column(schema, name, span.clone())?;
    if fits(field.data_type()) {
        return Ok(());
    }
    let fault = Fault::at(span, format!("the column `{name}` is of type {}", field.data_type()));
    Err(fault.label(format!("expected {expected}")))
}

pub(crate) fn is_text(kind: &DataType) -> bool {
    matches!(kind, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)
}

pub(crate) fn is_int_list(kind: &DataType) -> bool {
    matches!(kind, DataType::List(item) | DataType::LargeList(item) if item.data_type() == &DataType::Int32)
}

/// Whether rows can be sorted by a column of this type.
pub(crate) fn is_sortable(kind: &DataType) -> bool {
    kind.is_primitive() || is_text(kind) || kind == &DataType::Boolean
}
