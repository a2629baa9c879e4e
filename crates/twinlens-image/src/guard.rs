//! Catches panics of decoders, so that a bug in a decoder rejects one image and does not end the
//! run.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::panic::{self, AssertUnwindSafe, PanicHookInfo, catch_unwind};
use std::sync::{Once, mpsc};
use std::thread;

use crate::error::ImageError;
use crate::sniff::Format;

/// Takes the message of a panic.
type Waiting = Box<dyn FnOnce(String)>;

thread_local! {
    /// Whether this thread is inside a decoder whose panics are caught.
    static GUARDED: Cell<bool> = const { Cell::new(false) };
    /// On a thread of [`isolate_decoder`]: who waits for it.
    static WAITING: RefCell<Option<Waiting>> = const { RefCell::new(None) };
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

/// Like [`catch_decoder_panic`], for a decoder behind a C interface: there a panic does not unwind,
/// but ends the process. So the decoder runs on a thread of its own, and a panic stops that thread
/// for ever. The process never gets back what the thread holds, so this is for decoders that are
/// not known to panic.
pub(crate) fn isolate_decoder<T: Send + 'static>(
    format: Format,
    decoder: impl FnOnce() -> Result<T, ImageError> + Send + 'static,
) -> Result<T, ImageError> {
    static HOOK: Once = Once::new();
    HOOK.call_once(stop_isolated_threads_that_panic);
    let (sender, receiver) = mpsc::channel();
    let work = move || {
        let waiting = sender.clone();
        WAITING.set(Some(Box::new(move |message| drop(waiting.send(Err(message))))));
        let result = decoder();
        WAITING.take();
        // Nobody waits for more than one answer.
        drop(sender.send(Ok(result)));
    };
    let thread = thread::Builder::new().name("decoder".to_owned()).stack_size(STACK_BYTES).spawn(work);
    let failed = |reason: String| ImageError::DecodeFailed { format, reason };
    thread.map_err(|error| failed(format!("no thread for the decoder: {error}")))?;
    match receiver.recv() {
        Ok(Ok(result)) => result,
        Ok(Err(message)) => Err(ImageError::DecoderPanicked { format, message }),
        Err(_) => Err(failed("the decoder gave no answer".to_owned())),
    }
}

/// Address space; what is not used is not memory.
const STACK_BYTES: usize = 8 << 20;

/// The hook runs before a panic begins to unwind, and on the thread that panics. A thread that has
/// stopped in it keeps other hooks from being set.
fn stop_isolated_threads_that_panic() {
    let previous = panic::take_hook();
    panic::set_hook(Box::new(move |info: &PanicHookInfo<'_>| {
        let Ok(Some(waiting)) = WAITING.try_with(RefCell::take) else { return previous(info) };
        waiting(message(info.payload()));
        loop {
            thread::park();
        }
    }));
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

    extern "C" fn panics_in_c(at: usize) -> bool {
        let digits = [1, 2, 3];
        digits[at] == 1
    }

    /// In a process of its own: the harness takes the hook back when it ends, and would wait for
    /// the thread that stopped in it.
    #[test]
    fn a_panic_that_cannot_unwind_becomes_an_error_and_the_process_lives() {
        if std::env::var_os("TWINLENS_PANIC_IN_C").is_none() {
            let name = "guard::tests::a_panic_that_cannot_unwind_becomes_an_error_and_the_process_lives";
            let mut child = std::process::Command::new(std::env::current_exe().unwrap());
            let output = child.args(["--exact", name]).env("TWINLENS_PANIC_IN_C", "1").output().unwrap();
            assert_eq!(output.status.code(), Some(7), "{output:?}");
            return;
        }
        let decode = |at| isolate_decoder(Format::Avif, move || Ok(panics_in_c(at)));
        let (before, panicked, after) = (decode(0), decode(3), decode(1));
        let told = panicked.is_err_and(|error| {
            error.code() == "decoder_panicked" && error.to_string().contains("index is 3")
        });
        std::process::exit(if told && (before, after) == (Ok(true), Ok(false)) { 7 } else { 1 });
    }
}
