//! The Arrow C data and stream interfaces: how rows leave this library without a copy.
//!
//! arrow's own feature for this (`ffi`) would be on in builds of the workspace and off in those of
//! single crates, so that the query engine is compiled twice; only this direction is needed. The
//! structs and their rules are those of the Arrow specification, "The Arrow C data interface":
//! whoever has a struct calls its `release` once, and a struct is moved by copying it and setting
//! `release` of the original to null. The Python tests read every type that is passed with pyarrow.

#![allow(unsafe_code, reason = "the interface consists of raw pointers")]

mod array;
mod schema;

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::{null, null_mut};

use twinlens::api::RowStream;
use twinlens::datafusion::arrow::array::{Array, RecordBatch, StructArray};

use crate::own::{FORKED, Own};

pub(crate) use array::ArrowArray;
pub(crate) use schema::ArrowSchema;

/// The codes that a stream's functions return.
const EINVAL: c_int = 22;
const EIO: c_int = 5;

/// `struct ArrowArrayStream`.
#[repr(C)]
pub(crate) struct ArrowStream {
    get_schema: Option<unsafe extern "C" fn(*mut Self, *mut ArrowSchema) -> c_int>,
    get_next: Option<unsafe extern "C" fn(*mut Self, *mut ArrowArray) -> c_int>,
    get_last_error: Option<unsafe extern "C" fn(*mut Self) -> *const c_char>,
    release: Option<unsafe extern "C" fn(*mut Self)>,
    private_data: *mut c_void,
}

// SAFETY: `private_data` is a `Private`, which is `Send`, and only this struct points to it.
unsafe impl Send for ArrowStream {}

struct Private {
    rows: Own<RowStream>,
    error: Option<CString>,
}

impl ArrowStream {
    pub(crate) fn new(rows: RowStream) -> Self {
        let private = Box::new(Private { rows: Own::new(rows), error: None });
        Self {
            get_schema: Some(get_schema),
            get_next: Some(get_next),
            get_last_error: Some(get_last_error),
            release: Some(release),
            private_data: Box::into_raw(private).cast(),
        }
    }
}

impl Drop for ArrowStream {
    fn drop(&mut self) {
        if let Some(release) = self.release {
            // SAFETY: it was not released, or `release` would be null.
            unsafe { release(self) };
        }
    }
}

/// Does the work of a function of a stream: its code, and the error that `get_last_error` gives.
fn answer(private: &mut Private, work: impl FnOnce(&mut RowStream) -> Result<(), String>) -> c_int {
    let rows = private.rows.get_mut();
    let done = catch_unwind(AssertUnwindSafe(|| match rows {
        Some(rows) => work(rows),
        None => Err(format!("a query {FORKED}")),
    }));
    let (code, message) = match done {
        Ok(Ok(())) => return 0,
        Ok(Err(message)) => (EINVAL, message),
        Err(_) => (EIO, "a query panicked (this is a bug in twinlens)".into()),
    };
    private.error = CString::new(message.replace('\0', " ")).ok();
    code
}

unsafe extern "C" fn get_schema(stream: *mut ArrowStream, out: *mut ArrowSchema) -> c_int {
    // SAFETY: the caller passes a stream that was not released, and memory for a schema.
    unsafe {
        let private = &mut *(*stream).private_data.cast::<Private>();
        answer(private, |rows| {
            out.write(ArrowSchema::of_schema(&rows.schema())?);
            Ok(())
        })
    }
}

unsafe extern "C" fn get_next(stream: *mut ArrowStream, out: *mut ArrowArray) -> c_int {
    // SAFETY: the caller passes a stream that was not released, and memory for an array.
    unsafe {
        let private = &mut *(*stream).private_data.cast::<Private>();
        answer(private, |rows| {
            // The end of a stream is a released array.
            let array = match rows.next() {
                None => ArrowArray::released(),
                Some(batch) => of_batch(batch.map_err(|error| error.to_string())?),
            };
            out.write(array);
            Ok(())
        })
    }
}

fn of_batch(batch: RecordBatch) -> ArrowArray {
    ArrowArray::of(StructArray::from(batch).to_data())
}

unsafe extern "C" fn get_last_error(stream: *mut ArrowStream) -> *const c_char {
    // SAFETY: the caller passes a stream that was not released; the text lives until the next call.
    unsafe {
        let private = &*(*stream).private_data.cast::<Private>();
        private.error.as_deref().map_or(null(), CStr::as_ptr)
    }
}

unsafe extern "C" fn release(stream: *mut ArrowStream) {
    // SAFETY: it is called once, since it sets itself to null.
    unsafe {
        drop(Box::from_raw((*stream).private_data.cast::<Private>()));
        (*stream).private_data = null_mut();
        (*stream).release = None;
    }
}
