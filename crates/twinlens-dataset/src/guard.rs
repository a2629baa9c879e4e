//! Catches panics of the libraries that read files of others, so that a bug in one is an error that
//! names the file.

use std::cell::Cell;
use std::fmt::Display;
use std::panic::{self, AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::task::Poll;

use futures::stream::{Stream, poll_fn};

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

/// As [`catch_panic`], for each item of a stream, which ends after a panic.
pub(crate) fn catch_panics_of<T, E: From<DatasetError>>(
    file: PathBuf,
    stream: impl Stream<Item = Result<T, E>>,
) -> impl Stream<Item = Result<T, E>> {
    let (mut stream, mut has_panicked) = (Box::pin(stream), false);
    poll_fn(move |cx| {
        if has_panicked {
            return Poll::Ready(None);
        }
        catch_panic(file.display(), || Ok(stream.as_mut().poll_next(cx))).unwrap_or_else(|error| {
            has_panicked = true;
            Poll::Ready(Some(Err(error)))
        })
    })
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;

    use super::*;

    #[test]
    fn a_panic_becomes_an_error_with_its_file() {
        let error = catch_panic::<(), DatasetError>("a.parquet", || panic!("index {}", 7)).unwrap_err();
        assert_eq!(error.to_string(), "a.parquet: damaged: its reader failed: index 7");
        assert!(!GUARDED.get(), "later panics are reported again");
        assert_eq!(catch_panic::<_, DatasetError>("a.parquet", || Ok(3)).unwrap(), 3);
        let items = futures::stream::iter([1, 2, 3])
            .map(|item| if item < 2 { Ok(item) } else { panic!("at {item}") });
        let items: Vec<Result<i32, DatasetError>> =
            futures::executor::block_on(catch_panics_of("a.parquet".into(), items).collect());
        let shown: Vec<String> = items.iter().map(|item| format!("{item:?}")).collect();
        assert_eq!(shown.len(), 2, "{shown:?}");
        assert!(shown[1].contains("at 2"), "{shown:?}");
    }
}
