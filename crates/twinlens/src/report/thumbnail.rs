//! Small pictures for the page.

use twinlens_image::{Encode, Encoding, Limits, Resize, ResizeMode, process};

/// Pixels of the longer side.
const SIDE: u32 = 144;

/// A small JPEG of an image; `None` if it cannot be decoded.
pub(crate) fn thumbnail(bytes: &[u8]) -> Option<Vec<u8>> {
    let resize = Resize { size: SIDE, mode: ResizeMode::Longest, only_if_bigger: true };
    let encode = Encode { format: Encoding::Jpeg, quality: Some(85) };
    process(bytes, &Limits::default(), &resize, &encode).ok().map(|thumbnail| thumbnail.bytes)
}
