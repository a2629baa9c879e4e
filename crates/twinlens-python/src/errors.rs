//! Errors as exceptions of `twinlens.errors`.

use pyo3::exceptions::PyKeyboardInterrupt;
use pyo3::prelude::*;
use twinlens::api::{Error, ErrorKind, Place};

/// The exception of an error.
pub(crate) fn exception(py: Python<'_>, error: &Error) -> PyErr {
    let class = match error.kind {
        ErrorKind::User => "Error",
        ErrorKind::Internal => "InternalError",
        ErrorKind::Rejects => "RejectsError",
        ErrorKind::Interrupted => return PyKeyboardInterrupt::new_err(error.message.clone()),
    };
    let place = |place: &Place| {
        let Place { file, line, column, message, hint } = place;
        (file.clone(), *line, *column, message.clone(), hint.clone())
    };
    let places: Vec<_> = error.places.iter().map(place).collect();
    let made = py
        .import("twinlens.errors")
        .and_then(|module| module.getattr(class))
        .and_then(|class| class.call1((error.message.as_str(), error.hint.as_deref(), places)));
    made.map_or_else(|failed| failed, PyErr::from_value)
}

/// Does work without the interpreter's lock; a panic in it becomes an exception by pyo3.
pub(crate) fn detached<T: Send>(
    py: Python<'_>,
    work: impl FnOnce() -> Result<T, Error> + Send,
) -> PyResult<T> {
    py.detach(work).map_err(|error| exception(py, &error))
}
