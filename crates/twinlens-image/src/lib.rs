//! Bytes to pixels, safely: sniff, limits, decode, orient, resize, crop, hash, encode.
//!
//! A plain synchronous library with no I/O: everything goes from `&[u8]` to owned values, so that
//! callers choose their own threads. Input is taken to be hostile.
//!
//! What holds everywhere:
//! * the header is read and held against [`Limits`] **before** anything is decoded or allocated by
//!   its say-so;
//! * no input panics: a panic inside a decoder comes back as [`ImageError::DecoderPanicked`];
//! * every refusal has a [code](ImageError::code) from a closed list;
//! * the same bytes and options give the same result bytes, whatever the machine.
//!
//! # How odd pixels become RGB
//!
//! | input | rule |
//! |---|---|
//! | alpha | composited onto white, on 8-bit values, rounded to nearest |
//! | 16 bits a channel | scaled to 8 bits, rounded to nearest |
//! | palette, 1, 2, 4 bits | expanded; a transparent palette entry is alpha |
//! | grey | the three channels are equal |
//! | CMYK, YCCK (JPEG) | converted by the decoder's plain arithmetic, whatever its colour profile says |
//! | ICC profile | converted to sRGB, after compositing; a profile that is damaged, longer than 4 MB or of another colour space is ignored |
//! | gAMA, cHRM, no profile | the values are taken as sRGB |
//! | EXIF orientation | applied; widths and heights are always those of the upright image |
//! | animation | the first frame (PNG: the default image), if there are at most [`Limits::max_frames`] |
//! | cut off before its end marker | refused as `truncated`, although most decoders would fill up with grey |
//! | damaged in between | refused as `decode_failed` as far as the format shows it: PNG has checksums, JPEG has codes that cannot be, lossy WebP shows next to nothing |
//! | GIF, BMP, TIFF, AVIF, HEIF, JPEG XL, SVG, ... | refused as `unsupported_format` |
//! | arithmetic, lossless and 12-bit JPEG | refused as `unsupported_format` or `decode_failed` |
//! | progressive JPEG of more than 100 scans | refused as `decode_failed` |
//!
//! JPEG is decoded by `zune-jpeg`, or with the feature `turbojpeg` by libjpeg-turbo, which makes
//! images at a half, a quarter or an eighth of their size directly where the target is no larger;
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
mod resize;
mod rgb;
mod sniff;
#[cfg(feature = "turbojpeg")]
mod turbo;

pub use augment::Augment;
pub use bicubic::{resize_bicubic, resize_bicubic_reference};
pub use decode::{Decoded, decode, decode_reduced};
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
