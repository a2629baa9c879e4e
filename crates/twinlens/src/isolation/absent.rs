//! `--isolate` where processes cannot be limited.

use std::ffi::OsStr;

use crate::errors::Failure;

pub(crate) struct Isolation(());

impl Isolation {
    /// Begins, if it is asked for.
    ///
    /// # Errors
    /// If it is.
    pub(crate) fn begin(is_on: bool) -> Result<Option<Self>, Failure> {
        if is_on { Err(Failure::user("--isolate needs Linux or another Unix")) } else { Ok(None) }
    }
}

pub(crate) fn decoder_process(_: &OsStr) -> Option<u8> {
    None
}
