//! Panics of decoders, caught: a bug of a decoder that some bytes uncover refuses one image, and is
//! no end of the run.

use std::any::Any;
use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe, catch_unwind};

use crate::{Format, ImageError};

thread_local! {
    /// Whether this thread is inside a decoder whose panics are caught.
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Keeps panics that this crate catches from being reported on stderr: their message stands in the
/// error. For programs, once, at their start: the panic hook belongs to the process. Other panics
/// are reported as before.
pub fn silence_decoder_panics() {
    let before = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        if !GUARDED.get() {
            before(info);
        }
    }));
}

/// A panic as an error. The closure owns all that it changes, so no half-changed state can be seen
/// after it.
pub(crate) fn guarded<T>(
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
    fn a_panicking_decoder_is_an_error_that_says_what_happened() {
        let error = guarded::<()>(Format::Png, || panic!("index {} out of bounds", 7)).unwrap_err();
        assert_eq!(error.code(), "decoder_panicked");
        assert!(error.to_string().contains("index 7 out of bounds"), "{error}");
        assert!(!GUARDED.get(), "later panics are reported again");
        assert_eq!(guarded(Format::Png, || Ok(3)), Ok(3));
    }
}
