//! Bytes to pixels, safely: sniff, limits, decode, orient, resize, crop, hash, encode.
//!
//! A plain synchronous library with no I/O: everything goes from `&[u8]` to owned values, so that callers choose
//! their own threads. Input is taken to be hostile.
//!
//! What holds everywhere:
//! * the header is read and held against [`Limits`] **before** anything is decoded or allocated by its say-so;
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
//! | CMYK, YCCK (JPEG) | converted by the decoder's plain arithmetic, without a colour profile |
//! | colour profile, gamma | ignored: the values are taken as sRGB, as img2dataset and CLIP do |
//! | EXIF orientation | applied; widths and heights are always those of the upright image |
//! | animation | the first frame (PNG: the default image), if there are at most [`Limits::max_frames`] |
//! | cut off before its end marker | refused as `truncated` |

mod bicubic;
mod decode;
mod encode;
mod error;
mod exif;
mod hash;
mod header;
mod limits;
mod preprocess;
mod process;
mod resize;
mod rgb;
mod sniff;

pub use bicubic::{resize_bicubic, resize_bicubic_plain};
pub use decode::{Decoded, decode};
pub use encode::{Encode, Encoding, encode};
pub use error::{CODES, ImageError};
pub use hash::{phash, sha256_hex};
pub use header::{Header, probe};
pub use limits::Limits;
pub use preprocess::{CLIP_MEAN, CLIP_STD, Preprocess, SquareCrop};
pub use process::{Processed, process};
pub use resize::{Resize, ResizeMode};
pub use rgb::Rgb;
pub use sniff::{Format, sniff};
