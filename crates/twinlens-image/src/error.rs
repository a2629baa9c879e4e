//! Reasons to reject an image, each with a stable machine-readable code.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::sniff::Format;

/// Every code that [`ImageError::code`] can return, in the order of the checks.
pub const CODES: &[&str] = &[
    "not_an_image",
    "unsupported_format",
    "too_many_bytes",
    "bad_header",
    "too_many_pixels",
    "too_small",
    "aspect",
    "too_many_frames",
    "too_many_scans",
    "too_costly",
    "truncated",
    "decode_failed",
    "decoder_panicked",
    "killed_the_process",
    "resize_failed",
    "encode_failed",
    "bad_options",
];

/// Why an image was rejected. Except for [`ImageError::BadOptions`], the input bytes are at fault.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, thiserror::Error)]
pub enum ImageError {
    /// The bytes start like no image format (an HTML error page, JSON, an empty body).
    #[error("not an image: the bytes look like {0}")]
    NotAnImage(Cow<'static, str>),
    /// An image in a format, or using a feature of a format, that is not supported.
    #[error("{0} is not decoded")]
    UnsupportedFormat(String),
    /// The encoded file is longer than [`crate::Limits::max_bytes`].
    #[error("{bytes} bytes are more than the limit of {limit}")]
    TooManyBytes {
        /// Length of the file, in bytes.
        bytes: u64,
        /// The limit, in bytes.
        limit: u64,
    },
    /// The header of a known format is invalid (a missing size, a size of zero).
    #[error("damaged {format} header: {reason}")]
    BadHeader {
        /// The format by the first bytes.
        format: Format,
        /// What is wrong with the header.
        reason: Cow<'static, str>,
    },
    /// The header declares more pixels than [`crate::Limits::max_pixels`] (a decompression bomb, a
    /// poster).
    #[error("{width} x {height} pixels are more than the limit of {limit}")]
    TooManyPixels {
        /// Declared width, in pixels.
        width: u32,
        /// Declared height, in pixels.
        height: u32,
        /// The limit, in pixels.
        limit: u64,
    },
    /// A side is shorter than [`crate::Limits::min_side`] (tracking pixels, spacers).
    #[error("{width} x {height}: the shorter side is below the minimum of {limit} pixels")]
    TooSmall {
        /// Declared width, in pixels.
        width: u32,
        /// Declared height, in pixels.
        height: u32,
        /// The limit, in pixels.
        limit: u32,
    },
    /// Longer side / shorter side is above [`crate::Limits::max_aspect`].
    #[error("{width} x {height}: the aspect ratio is above the limit of {limit}")]
    Aspect {
        /// Declared width, in pixels.
        width: u32,
        /// Declared height, in pixels.
        height: u32,
        /// The limit.
        limit: f64,
    },
    /// An animation with more frames than [`crate::Limits::max_frames`].
    #[error("{frames} frames are more than the limit of {limit}")]
    TooManyFrames {
        /// Number of frames.
        frames: u32,
        /// The limit.
        limit: u32,
    },
    /// A JPEG with more passes over its pixels than are worth their time.
    #[error("{scans} scans of {width} x {height} pixels take too long to decode")]
    TooManyScans {
        /// Declared width, in pixels.
        width: u32,
        /// Declared height, in pixels.
        height: u32,
        /// Number of scans.
        scans: u32,
    },
    /// It may take longer to decode than an image is worth.
    #[error("{width} x {height} pixels may take too long to decode: {amount} {unit}, the limit is {limit}")]
    TooCostly {
        /// Declared width, in pixels.
        width: u32,
        /// Declared height, in pixels.
        height: u32,
        /// What takes the time.
        amount: u64,
        /// What that is.
        unit: String,
        /// The limit, in the same unit.
        limit: u64,
    },
    /// The file ends before its end marker.
    #[error("truncated {0}: the file ends before its end marker")]
    Truncated(Format),
    /// The decoder reported damaged data.
    #[error("the {format} data cannot be decoded: {reason}")]
    DecodeFailed {
        /// The format by the first bytes.
        format: Format,
        /// The decoder's message.
        reason: String,
    },
    /// The decoder panicked: a bug in the decoder that these bytes trigger. Please report it.
    #[error("the {format} decoder panicked on this image: {message}")]
    DecoderPanicked {
        /// The format by the first bytes.
        format: Format,
        /// The panic message.
        message: String,
    },
    /// A process died while it decoded these bytes, and it did nothing else.
    #[error("a process that decoded this image died of it: {0}")]
    KilledTheProcess(String),
    /// The image cannot be resized or cropped as requested.
    #[error("cannot resize: {0}")]
    ResizeFailed(String),
    /// The pixels cannot be stored in the requested format (JPEG and WebP limit the side length).
    #[error("cannot encode as {format}: {reason}")]
    EncodeFailed {
        /// The output format.
        format: Format,
        /// The encoder's message.
        reason: String,
    },
    /// An option is out of range: a mistake in the caller's configuration.
    #[error("bad image options: {0}")]
    BadOptions(String),
}

impl ImageError {
    /// The stable machine code of this error, one of [`CODES`].
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotAnImage(_) => "not_an_image",
            Self::UnsupportedFormat(_) => "unsupported_format",
            Self::TooManyBytes { .. } => "too_many_bytes",
            Self::BadHeader { .. } => "bad_header",
            Self::TooManyPixels { .. } => "too_many_pixels",
            Self::TooSmall { .. } => "too_small",
            Self::Aspect { .. } => "aspect",
            Self::TooManyFrames { .. } => "too_many_frames",
            Self::TooManyScans { .. } => "too_many_scans",
            Self::TooCostly { .. } => "too_costly",
            Self::Truncated(_) => "truncated",
            Self::DecodeFailed { .. } => "decode_failed",
            Self::DecoderPanicked { .. } => "decoder_panicked",
            Self::KilledTheProcess(_) => "killed_the_process",
            Self::ResizeFailed(_) => "resize_failed",
            Self::EncodeFailed { .. } => "encode_failed",
            Self::BadOptions(_) => "bad_options",
        }
    }
}
