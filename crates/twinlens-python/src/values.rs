//! Values of Arrow arrays as Python objects.

use pyo3::IntoPyObjectExt;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList};
use twinlens::datafusion::arrow::array::{Array, ArrayRef, AsArray};
use twinlens::datafusion::arrow::compute::cast;
use twinlens::datafusion::arrow::datatypes::{DataType, Float64Type, Int64Type, UInt64Type};
use twinlens::datafusion::arrow::error::ArrowError;
use twinlens::datafusion::arrow::util::display::{ArrayFormatter, FormatOptions};

use crate::errors::exception;

/// The value of a row. Times and decimals are text.
pub(crate) fn value<'py>(py: Python<'py>, column: &ArrayRef, row: usize) -> PyResult<Bound<'py, PyAny>> {
    if column.is_null(row) || column.data_type() == &DataType::Null {
        return Ok(py.None().into_bound(py));
    }
    let list = |items: ArrayRef| {
        let items = (0..items.len()).map(|item| value(py, &items, item)).collect::<PyResult<Vec<_>>>()?;
        PyList::new(py, items)?.into_bound_py_any(py)
    };
    match column.data_type() {
        DataType::Boolean => column.as_boolean().value(row).into_bound_py_any(py),
        kind if kind.is_unsigned_integer() => {
            let one = one(py, column, row, &DataType::UInt64)?;
            one.as_primitive::<UInt64Type>().value(0).into_bound_py_any(py)
        }
        kind if kind.is_integer() => {
            let one = one(py, column, row, &DataType::Int64)?;
            one.as_primitive::<Int64Type>().value(0).into_bound_py_any(py)
        }
        kind if kind.is_floating() => {
            let one = one(py, column, row, &DataType::Float64)?;
            one.as_primitive::<Float64Type>().value(0).into_bound_py_any(py)
        }
        DataType::Utf8 => column.as_string::<i32>().value(row).into_bound_py_any(py),
        DataType::LargeUtf8 => column.as_string::<i64>().value(row).into_bound_py_any(py),
        DataType::Utf8View => column.as_string_view().value(row).into_bound_py_any(py),
        DataType::Binary => PyBytes::new(py, column.as_binary::<i32>().value(row)).into_bound_py_any(py),
        DataType::LargeBinary => PyBytes::new(py, column.as_binary::<i64>().value(row)).into_bound_py_any(py),
        DataType::BinaryView => PyBytes::new(py, column.as_binary_view().value(row)).into_bound_py_any(py),
        DataType::FixedSizeBinary(_) => {
            PyBytes::new(py, column.as_fixed_size_binary().value(row)).into_bound_py_any(py)
        }
        DataType::List(_) => list(column.as_list::<i32>().value(row)),
        DataType::LargeList(_) => list(column.as_list::<i64>().value(row)),
        DataType::FixedSizeList(..) => list(column.as_fixed_size_list().value(row)),
        DataType::Struct(fields) => {
            let dict = PyDict::new(py);
            for (field, column) in fields.iter().zip(column.as_struct().columns()) {
                dict.set_item(field.name(), value(py, column, row)?)?;
            }
            dict.into_bound_py_any(py)
        }
        DataType::Dictionary(_, values) => value(py, &one(py, column, row, values)?, 0),
        _ => {
            let options = FormatOptions::default();
            let format = ArrayFormatter::try_new(column, &options).map_err(|error| failed(py, &error))?;
            format.value(row).to_string().into_bound_py_any(py)
        }
    }
}

/// The value of one row in another type.
fn one(py: Python<'_>, column: &ArrayRef, row: usize, kind: &DataType) -> PyResult<ArrayRef> {
    cast(&column.slice(row, 1), kind).map_err(|error| failed(py, &error))
}

fn failed(py: Python<'_>, error: &ArrowError) -> PyErr {
    exception(py, &twinlens::api::Error::user(error.to_string()))
}
