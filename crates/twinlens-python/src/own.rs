//! Values with threads, and forks of the process.

use std::mem::forget;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

/// A value of the process that made it. A forked process has none of the threads that it uses: a
/// call would wait for ever, and dropping it would wait too, or delete the other process's files.
pub(crate) struct Own<T> {
    /// `None` only while it is dropped.
    value: Option<T>,
    process: u32,
}

impl<T> Own<T> {
    pub(crate) fn new(value: T) -> Self {
        Self { value: Some(value), process: std::process::id() }
    }

    /// The value; `what` names it in the error.
    ///
    /// # Errors
    /// This is another process.
    pub(crate) fn get(&self, what: &str) -> PyResult<&T> {
        let own = self.value.as_ref().filter(|_| self.process == std::process::id());
        own.ok_or_else(|| {
            PyValueError::new_err(format!(
                "{what} does not work in a forked process; open it there, or start the process with `spawn`"
            ))
        })
    }
}

impl<T> Drop for Own<T> {
    fn drop(&mut self) {
        let value = self.value.take();
        if self.process != std::process::id() {
            forget(value);
        }
    }
}
