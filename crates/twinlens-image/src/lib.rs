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
//! There are two rules, [`ImageModes`]: `white` (what is stored, and what a model sees that was
//! trained here) and `open_clip` (what published models saw).
//!
//! | input | `white` | `open_clip` |
//! |---|---|---|
//! | alpha, transparent palette entries | composited onto white, on 8-bit values, rounded to nearest | dropped |
//! | 16 bits per channel | scaled to 8 bits, rounded to nearest | the upper 8 bits |
//! | 16-bit grey | scaled to 8 bits, rounded to nearest | clipped at 255 |
//! | palette, 1, 2, 4 bits | expanded | expanded |
//! | grey | copied to the three channels | the same |
//! | CMYK, YCCK (JPEG) | by Pillow's arithmetic; the colour profile is ignored | the same |
//! | ICC profile | converted to sRGB after compositing; see below for profiles that are ignored | ignored |
//! | gAMA, cHRM, no profile | the values are read as sRGB | the same |
//! | EXIF orientation | applied; widths and heights are those of the upright image | ignored |
//! | CMYK (TIFF) | as in JPEG | the same |
//! | alpha that is multiplied into the colours (TIFF) | divided out as Pillow does, then composited | dropped |
//! | orientation of TIFF | applied | applied: Pillow does so too |
//! | animation | the first frame (PNG: the default image), if there are at most [`Limits::max_frames`] | the same |
//! | screen of an animation beside its first frame | white | black; GIF: the transparent colour, or the first one |
//! | 5 and 6 bits per channel (BMP) | scaled to 8 bits, rounded to nearest | rounded down |
//! | 16-bit grey where white is zero (TIFF) | inverted | not inverted, but clipped at 255 |
//! | 10 and 12 bits (AVIF) | as libavif makes 8 of them | the same |
//! | limited range, any matrix (AVIF) | as libavif and libyuv | the same |
//! | primaries and transfer of AVIF without a profile | the values are read as sRGB | the same |
//! | orientation of AVIF (`irot`, `imir`) | applied; that of EXIF means nothing | ignored |
//! | several images (ICO) | the largest | the same |
//! | several pages (TIFF) | the first | the same |
//!
//! An ICC profile that is damaged, longer than 4 MB or for another colour space is ignored.
//!
//! # What is rejected
//!
//! | input | code |
//! |---|---|
//! | cut off before its end marker (GIF, AVIF sequence: in its first frame) | `truncated` |
//! | damaged in between | `decode_failed`, if the format reveals it |
//! | HEIF, JPEG XL, SVG, ... | `unsupported_format` |
//! | AVIF of several layers or frames in an item, or with a clean aperture | `unsupported_format` |
//! | AVIF with alpha of another size; YCgCo of limited range or lossless, ICtCp | `unsupported_format` |
//! | AVIF of constant luminance; a sequence that begins with another image | `unsupported_format` |
//! | TIFF of compressed signed or floating-point samples in big-endian order | `unsupported_format` |
//! | TIFF of YCbCr (unless JPEG), Lab; rare compressions; BigTIFF | `unsupported_format` |
//! | PNM of a largest value that is neither a divisor of 255 nor 65535 | `unsupported_format` |
//! | BMP with channels of odd widths | `unsupported_format` |
//! | JPEG: arithmetic, lossless, 12-bit; scans of some components | `unsupported_format` |
//! | JPEG of more than 100 scans, or whose scans visit more than a billion samples | `too_many_scans` |
//! | AVIF of more than 48 million values, those of more than 8 bits counted twice | `too_costly` |
//! | TIFF of more than 320 million bytes of decompressed strips or tiles | `too_costly` |
//! | lossless WebP of more than 32,768 groups of codes | `too_costly` |
//! | PNG of more than 100,000 chunks, JPEG of more than 1,000 tables of codes | `bad_header` |
//!
//! Of damage in between, PNG reveals nearly all by checksums, JPEG some by invalid codes, lossy
//! WebP almost nothing.
//!
//! With the default limits, an image that is not rejected costs at most two seconds of a core and
//! the memory of [`Header::decode_bytes`] and 64 MiB: a test holds bombs of every format to it.
//!
//! Every value is that of Pillow, for the rule `open_clip`: tests compare the structures that an
//! image of each format may have.
//!
//! JPEG is decoded by `libjpeg-turbo-rs` to the values of libjpeg-turbo and so of Pillow, if need
//! be directly to a half, a quarter or an eighth of the size ([`decode_reduced`]).

#![warn(missing_docs)]

mod augment;
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
mod modes;
mod preprocess;
mod process;
mod raw;
mod remote;
mod repair;
mod resample;
mod resize;
mod rgb;
mod sniff;
mod watch;

pub use augment::Augment;
pub use decode::{DecodedImage, decode, decode_as, decode_reduced};
pub use encode::{Encode, Encoding, encode};
pub use error::{CODES, ImageError};
pub use guard::silence_decoder_panics;
pub use hash::{phash, sha256_hex};
pub use header::{Header, probe};
pub use jpeg::JPEG_DECODER;
pub use limits::Limits;
pub use modes::ImageModes;
pub use preprocess::{CLIP_MEAN, CLIP_STD, CropOrigin, Preprocess, ResizeRule, SquareCrop};
pub use process::{ProcessedImage, process};
pub use remote::{DecodeRequest, RemoteDecoder, decode_remotely, write_answer};
pub use repair::{Repaired, repair};
pub use resample::{Filter, resize, resize_reference};
pub use resize::{Resize, ResizeMode};
pub use rgb::Rgb;
pub use sniff::{Format, sniff};
pub use watch::{DecodeWatch, watch_decoders};
