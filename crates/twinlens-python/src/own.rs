//! Values with threads, and forks of the process.

use std::mem::forget;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

/// What is wrong with a value there.
pub(crate) const FORKED: &str =
    "does not work in a forked process; open it there, or start the process with `spawn`";

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
        let own = self.value.as_ref().filter(|_| self.is_own());
        own.ok_or_else(|| PyValueError::new_err(format!("{what} {FORKED}")))
    }

    /// The value, unless this is another process.
    pub(crate) fn get_mut(&mut self) -> Option<&mut T> {
        let is_own = self.is_own();
        self.value.as_mut().filter(|_| is_own)
    }

    fn is_own(&self) -> bool {
        self.process == std::process::id()
    }
}

impl<T> Drop for Own<T> {
    fn drop(&mut self) {
        let value = self.value.take();
        if !self.is_own() {
            forget(value);
        }
    }
}
