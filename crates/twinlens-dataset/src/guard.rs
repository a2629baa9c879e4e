//! Catches panics of the libraries that read files of others, so that a bug in one is an error that
//! names the file.

use std::cell::Cell;
use std::fmt::Display;
use std::panic::{self, AssertUnwindSafe, catch_unwind};

use crate::error::DatasetError;

thread_local! {
    /// Whether this thread is inside a reader whose panics are caught.
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Stops caught panics from being printed to stderr; their message is in the error. Sets the
/// process-wide panic hook, so only programs should call it, once, at startup. Other panics are
/// reported as before.
pub fn silence_caught_panics() {
    let previous = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        if !GUARDED.get() {
            previous(info);
        }
    }));
}

/// Reads (a part of) a file; a panic becomes an error. Whatever `read` changes must not be used
/// after an error.
///
/// # Errors
/// Those of `read`, and the panic.
pub fn catch_panic<T, E: From<DatasetError>>(
    file: impl Display,
    read: impl FnOnce() -> Result<T, E>,
) -> Result<T, E> {
    let outer = GUARDED.replace(true);
    let result = catch_unwind(AssertUnwindSafe(read));
    GUARDED.set(outer);
    result.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<&str>().copied();
        let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
        let why = format!("its reader failed: {}", text.unwrap_or("no message"));
        Err(DatasetError::DamagedInput { path: file.to_string().into(), why }.into())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_an_error_with_its_file() {
        let error = catch_panic::<(), DatasetError>("a.parquet", || panic!("index {}", 7)).unwrap_err();
        assert_eq!(error.to_string(), "a.parquet: damaged: its reader failed: index 7");
        assert!(!GUARDED.get(), "later panics are reported again");
        assert_eq!(catch_panic::<_, DatasetError>("a.parquet", || Ok(3)).unwrap(), 3);
    }
}
