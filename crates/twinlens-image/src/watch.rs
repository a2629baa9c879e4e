//! Lets a program note which images it decodes, in case one of them kills it.

use std::sync::{Arc, PoisonError, RwLock};

use crate::error::ImageError;

/// Notes which images are being decoded.
pub trait DecodeWatch: Send + Sync {
    /// Called before an image is decoded; gives what [`DecodeWatch::end`] gets. `None` if the image
    /// has killed a process: it is not decoded again.
    fn begin(&self, bytes: &[u8]) -> Option<u32>;
    /// Called when it is decoded, or cannot be.
    fn end(&self, token: u32);
}

/// A process dies as a whole, so this is one of the few things that belong to it.
static WATCH: RwLock<Option<Arc<dyn DecodeWatch>>> = RwLock::new(None);

/// Sets who notes what this process decodes. Only programs should call it.
pub fn watch_decoders(watch: Option<Arc<dyn DecodeWatch>>) {
    *WATCH.write().unwrap_or_else(PoisonError::into_inner) = watch;
}

/// Decodes while the bytes are noted.
pub(crate) fn watched<T>(
    bytes: &[u8],
    decode: impl FnOnce() -> Result<T, ImageError>,
) -> Result<T, ImageError> {
    let watch = WATCH.read().unwrap_or_else(PoisonError::into_inner).clone();
    let Some(watch) = watch else { return decode() };
    let token = watch.begin(bytes).ok_or_else(|| {
        ImageError::KilledTheProcess("so did a second one, which did nothing else".to_owned())
    })?;
    let decoded = decode();
    watch.end(token);
    decoded
}
