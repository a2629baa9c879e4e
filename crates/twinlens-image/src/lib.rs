//! Decodes, resizes, crops, hashes and encodes images from untrusted bytes.
//!
//! Synchronous and without I/O: functions take `&[u8]` and return owned values, so callers choose
//! their own threads.
//!
//! Guarantees:
//! * the header is checked against [`Limits`] **before** anything is decoded or allocated;
//! * no input panics: a panic inside a decoder becomes [`ImageError::DecoderPanicked`];
//! * every rejection has a [code](ImageError::code) from a closed list;
//! * the same bytes and options give the same output bytes on every machine.
//!
//! # Conversion to RGB
//!
//! | input | rule |
//! |---|---|
//! | alpha | composited onto white, on 8-bit values, rounded to nearest |
//! | 16 bits per channel | scaled to 8 bits, rounded to nearest |
//! | palette, 1, 2, 4 bits | expanded; a transparent palette entry counts as alpha |
//! | grey | copied to the three channels |
//! | CMYK, YCCK (JPEG) | converted by the decoder's arithmetic; the colour profile is ignored |
//! | ICC profile | converted to sRGB after compositing; see below for profiles that are ignored |
//! | gAMA, cHRM, no profile | the values are read as sRGB |
//! | EXIF orientation | applied; widths and heights are always those of the upright image |
//! | animation | the first frame (PNG: the default image), if there are at most [`Limits::max_frames`] |
//! | cut off before its end marker | rejected as `truncated`; most decoders would fill up with grey |
//! | damaged in between | rejected as `decode_failed` if the format reveals it |
//! | GIF, BMP, TIFF, AVIF, HEIF, JPEG XL, SVG, ... | rejected as `unsupported_format` |
//! | arithmetic, lossless and 12-bit JPEG | rejected as `unsupported_format` or `decode_failed` |
//! | progressive JPEG with more than 100 scans | rejected as `decode_failed` |
//!
//! An ICC profile that is damaged, longer than 4 MB or for another colour space is ignored. Of
//! damage in between, PNG reveals nearly all by checksums, JPEG some by invalid codes, lossy WebP
//! almost nothing.
//!
//! JPEG is decoded by `zune-jpeg`, or with the feature `turbojpeg` by libjpeg-turbo, which can
//! decode directly to a half, a quarter or an eighth of the size when the target is smaller;
//! [`JPEG_DECODER`] says which.

#![warn(missing_docs)]

mod augment;
mod bicubic;
mod colour;
mod decode;
mod encode;
mod error;
mod exif;
mod guard;
mod hash;
mod header;
mod jpeg;
mod limits;
mod preprocess;
mod process;
mod raw;
mod resize;
mod rgb;
mod sniff;
#[cfg(feature = "turbojpeg")]
mod turbo;

pub use augment::Augment;
pub use bicubic::{resize_bicubic, resize_bicubic_reference};
pub use decode::{DecodedImage, decode, decode_reduced};
pub use encode::{Encode, Encoding, encode};
pub use error::{CODES, ImageError};
pub use guard::silence_decoder_panics;
pub use hash::{phash, sha256_hex};
pub use header::{Header, probe};
pub use jpeg::JPEG_DECODER;
pub use limits::Limits;
pub use preprocess::{CLIP_MEAN, CLIP_STD, Preprocess, SquareCrop};
pub use process::{ProcessedImage, process};
pub use resize::{Resize, ResizeMode};
pub use rgb::Rgb;
pub use sniff::{Format, sniff};
