//! Checks of columns.

use datafusion::arrow::datatypes::{DataType, Schema};
use std::ops::Range;
use twinlens_pipeline::Fault;
use twinlens_pipeline::suggest::{did_you_mean, list_names};

/// The type of column `name`, or a fault at `span` that lists the columns.
pub(super) fn column<'a>(schema: &'a Schema, name: &str, span: Range<usize>) -> Result<&'a DataType, Fault> {
    let names = || schema.fields().iter().map(|field| field.name().as_str());
    schema.field_with_name(name).map(|field| field.data_type()).map_err(|_| {
        let fault = Fault::at(span, format!("there is no column `{name}`"));
        let fault = fault.label(format!("the columns are {}", list_names(names())));
        did_you_mean(name, names()).into_iter().fold(fault, Fault::hint)
    })
}

/// A fault unless `name` is a column of text.
pub(super) fn text_column(schema: &Schema, name: &str, span: Range<usize>) -> Result<(), Fault> {
    match column(schema, name, span.clone())? {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => Ok(()),
        other => {
            Err(Fault::at(span, format!("the column `{name}` is of type {other}")).label("expected text"))
        }
    }
}
