//! The rows of queries, as Arrow streams and as Python objects.

use std::sync::{Mutex, PoisonError};
use std::task::Poll;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyCapsule, PyDict};
use twinlens::api::{self, RowStream, Scan, TableInfo};
use twinlens::datafusion::arrow::array::RecordBatch;
use twinlens::datafusion::arrow::datatypes::SchemaRef;
use twinlens::dataset::types;

use crate::array::Array;
use crate::arrow_c::{ArrowSchema, ArrowStream};
use crate::errors::{detached, exception, wait};
use crate::own::Own;
use crate::values::value;

const WHAT: &str = "a query";

/// Rows that are read once, batch by batch.
#[pyclass(module = "twinlens._twinlens")]
pub(crate) struct Rows {
    schema: SchemaRef,
    stream: Own<Mutex<Option<RowStream>>>,
}

impl Rows {
    fn new(stream: RowStream) -> Self {
        Self { schema: stream.schema(), stream: Own::new(Mutex::new(Some(stream))) }
    }

    fn take(&self) -> PyResult<RowStream> {
        let taken = self.stream.get(WHAT)?.lock().unwrap_or_else(PoisonError::into_inner).take();
        taken.ok_or_else(|| PyValueError::new_err("these rows have been read; run the query again"))
    }

    /// The next batch that has rows; `None` at the end.
    fn next_batch(&self, py: Python<'_>) -> PyResult<Option<RecordBatch>> {
        let stream = self.stream.get(WHAT)?;
        loop {
            let next = wait(py, |timeout| {
                let mut stream = stream.lock().unwrap_or_else(PoisonError::into_inner);
                stream.as_mut().map_or(Poll::Ready(None), |stream| stream.poll(timeout))
            })?;
            let next = next.transpose().map_err(|error| exception(py, &error))?;
            if next.as_ref().is_none_or(|batch| batch.num_rows() > 0) {
                return Ok(next);
            }
        }
    }
}

#[pymethods]
impl Rows {
    /// Names and types of the columns.
    #[getter]
    fn columns(&self) -> Vec<(String, String)> {
        let fields = self.schema.fields().iter();
        fields.map(|field| (field.name().clone(), types::name(field.data_type()))).collect()
    }

    /// The Arrow PyCapsule interface. A schema that is asked for is ignored, as the interface
    /// allows.
    #[pyo3(signature = (requested_schema=None))]
    fn __arrow_c_stream__<'py>(
        &self,
        py: Python<'py>,
        requested_schema: Option<Py<PyAny>>,
    ) -> PyResult<Bound<'py, PyCapsule>> {
        drop(requested_schema);
        PyCapsule::new_with_value(py, ArrowStream::new(self.take()?), c"arrow_array_stream")
    }

    fn __arrow_c_schema__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyCapsule>> {
        let schema = ArrowSchema::of_schema(&self.schema).map_err(PyValueError::new_err)?;
        PyCapsule::new_with_value(py, schema, c"arrow_schema")
    }

    /// The rows of the next batch as dicts; `None` at the end.
    fn next_dicts<'py>(&self, py: Python<'py>) -> PyResult<Option<Vec<Bound<'py, PyDict>>>> {
        let Some(batch) = self.next_batch(py)? else { return Ok(None) };
        let names: Vec<&str> = self.schema.fields().iter().map(|field| field.name().as_str()).collect();
        let row = |row: usize| {
            let dict = PyDict::new(py);
            for (name, column) in names.iter().zip(batch.columns()) {
                dict.set_item(name, value(py, column, row)?)?;
            }
            Ok(dict)
        };
        (0..batch.num_rows()).map(row).collect::<PyResult<_>>().map(Some)
    }

    /// A column of numbers, or of vectors of one width, as an array.
    fn array(&self, py: Python<'_>, column: &str) -> PyResult<Array> {
        let index = self.schema.index_of(column).map_err(|error| PyValueError::new_err(error.to_string()))?;
        let kind = self.schema.field(index).data_type().clone();
        let mut columns = Vec::new();
        while let Some(batch) = self.next_batch(py)? {
            columns.push(batch.column(index).clone());
        }
        py.detach(|| Array::from_columns(&columns, &kind))
            .map_err(|why| PyValueError::new_err(format!("column `{column}`: {why}")))
    }
}

/// Runs a query.
#[pyfunction]
pub(crate) fn sql(py: Python<'_>, dir: String, query: String, with: Vec<(String, String)>) -> PyResult<Rows> {
    detached(py, || api::sql(&twinlens::registry(), &dir, &query, &with)).map(Rows::new)
}

/// Reads a table.
#[pyfunction]
pub(crate) fn scan(
    py: Python<'_>,
    dir: String,
    table: String,
    columns: Option<Vec<String>>,
    predicate: Option<String>,
    limit: Option<usize>,
) -> PyResult<Rows> {
    let scan = Scan { table, columns, predicate, limit };
    detached(py, || api::scan(&twinlens::registry(), &dir, &scan)).map(Rows::new)
}

/// Names and row counts of the tables of a run; a view has no count.
#[pyfunction]
pub(crate) fn tables(py: Python<'_>, dir: String) -> PyResult<Vec<(String, Option<u64>)>> {
    let tables = detached(py, || api::tables(&twinlens::registry(), &dir))?;
    Ok(tables.into_iter().map(|TableInfo { name, rows }| (name, rows)).collect())
}
