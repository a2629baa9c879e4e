//! Errors as exceptions of `twinlens.errors`, and work outside of the interpreter's lock.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::task::Poll;
use std::time::Duration;

use pyo3::exceptions::PyKeyboardInterrupt;
use pyo3::prelude::*;
use tokio_util::sync::CancellationToken;
use twinlens::api::{Error, ErrorKind, Place};

/// How often Ctrl-C is looked for.
pub(crate) const TICK: Duration = Duration::from_millis(50);
/// Deep queries are planned by recursion.
pub(crate) const STACK_BYTES: usize = 16 << 20;

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

/// The error of a panic, which `except Exception` catches; pyo3's own exception is none.
pub(crate) fn panicked(payload: &(dyn Any + Send)) -> Error {
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    Error::internal(format!("a panic: {}", text.unwrap_or("without a message")))
}

/// Does work without the interpreter's lock.
pub(crate) fn detached<T: Send>(
    py: Python<'_>,
    work: impl FnOnce() -> Result<T, Error> + Send,
) -> PyResult<T> {
    let done = py.detach(|| catch_unwind(AssertUnwindSafe(work)));
    done.unwrap_or_else(|payload| Err(panicked(&*payload))).map_err(|error| exception(py, &error))
}

/// Does work in a thread of its own, while this one looks for Ctrl-C, which cancels it and returns
/// at once.
pub(crate) fn interruptible<T: Send + 'static>(
    py: Python<'_>,
    work: impl FnOnce(&CancellationToken) -> Result<T, Error> + Send + 'static,
) -> PyResult<T> {
    let cancel = CancellationToken::new();
    let (send, done) = channel();
    let token = cancel.clone();
    let work = move || {
        let result = catch_unwind(AssertUnwindSafe(|| work(&token)));
        // Nobody waits for it if Ctrl-C was pressed.
        let _ = send.send(result.unwrap_or_else(|payload| Err(panicked(&*payload))));
    };
    std::thread::Builder::new().name("work".into()).stack_size(STACK_BYTES).spawn(work)?;
    let received = wait(py, move |timeout| match done.recv_timeout(timeout) {
        Ok(result) => Poll::Ready(result),
        Err(RecvTimeoutError::Timeout) => Poll::Pending,
        Err(RecvTimeoutError::Disconnected) => Poll::Ready(Err(Error::internal("a thread ended"))),
    });
    if received.is_err() {
        cancel.cancel();
    }
    received?.map_err(|error| exception(py, &error))
}

/// Polls without the interpreter's lock, and looks for Ctrl-C in between.
pub(crate) fn wait<T: Send>(py: Python<'_>, mut poll: impl FnMut(Duration) -> Poll<T> + Send) -> PyResult<T> {
    loop {
        match py.detach(|| poll(TICK)) {
            Poll::Ready(value) => return Ok(value),
            Poll::Pending => py.check_signals()?,
        }
    }
}
