//! Catches panics of decoders, so that a bug in a decoder rejects one image and does not end the
//! run.

use std::any::Any;
use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe, catch_unwind};

use crate::error::ImageError;
use crate::sniff::Format;

thread_local! {
    /// Whether this thread is inside a decoder whose panics are caught.
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Stops caught decoder panics from being printed to stderr; their message is in the error. Sets
/// the process-wide panic hook, so only programs should call it, once, at startup. Other panics are
/// reported as before.
pub fn silence_decoder_panics() {
    let previous = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        if !GUARDED.get() {
            previous(info);
        }
    }));
}

/// Turns a panic into an error. The closure owns everything it changes, so it leaves no
/// half-changed state behind.
pub(crate) fn catch_decoder_panic<T>(
    format: Format,
    decoder: impl FnOnce() -> Result<T, ImageError>,
) -> Result<T, ImageError> {
    let outer = GUARDED.replace(true);
    let result = catch_unwind(AssertUnwindSafe(decoder));
    GUARDED.set(outer);
    result.unwrap_or_else(|panic| Err(ImageError::DecoderPanicked { format, message: message(&*panic) }))
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_decoder_panic_becomes_an_error_with_its_message() {
        let error =
            catch_decoder_panic::<()>(Format::Png, || panic!("index {} out of bounds", 7)).unwrap_err();
        assert_eq!(error.code(), "decoder_panicked");
        assert!(error.to_string().contains("index 7 out of bounds"), "{error}");
        assert!(!GUARDED.get(), "later panics are reported again");
        assert_eq!(catch_decoder_panic(Format::Png, || Ok(3)), Ok(3));
    }
}
