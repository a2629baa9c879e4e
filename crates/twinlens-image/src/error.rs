//! Why an image was refused: one enum, and a stable machine code for each kind.

use crate::Format;

/// Every code that [`ImageError::code`] can return, in the order in which the checks are made.
pub const CODES: &[&str] = &[
    "not_an_image",
    "unsupported_format",
    "too_many_bytes",
    "bad_header",
    "too_many_pixels",
    "too_small",
    "aspect",
    "too_many_frames",
    "truncated",
    "decode_failed",
    "decoder_panicked",
    "resize_failed",
    "encode_failed",
    "bad_options",
];

/// A refused image. Everything but [`ImageError::BadOptions`] is the fault of the input bytes.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ImageError {
    /// The bytes begin like no image format (an HTML error page, JSON, nothing at all).
    #[error("not an image: the bytes look like {0}")]
    NotAnImage(&'static str),
    /// An image, but of a format that is not decoded here; or a feature of a format that the
    /// decoder lacks.
    #[error("{0}: only jpeg, png and webp are decoded")]
    UnsupportedFormat(String),
    /// The encoded file is longer than [`crate::Limits::max_bytes`].
    #[error("{bytes} bytes are more than the limit of {limit}")]
    TooManyBytes {
        /// Length of the file, in bytes.
        bytes: u64,
        /// The limit, in bytes.
        limit: u64,
    },
    /// The header of a known format makes no sense (a missing size, a size of zero).
    #[error("damaged {format} header: {reason}")]
    BadHeader {
        /// The format that the first bytes announce.
        format: Format,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The header declares more pixels than [`crate::Limits::max_pixels`]: a decompression bomb, or
    /// a poster.
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
    /// An animation of more frames than [`crate::Limits::max_frames`].
    #[error("{frames} frames are more than the limit of {limit}")]
    TooManyFrames {
        /// Number of frames.
        frames: u32,
        /// The limit.
        limit: u32,
    },
    /// The file ends before its end marker.
    #[error("truncated {0}: the file ends before its end marker")]
    Truncated(Format),
    /// The decoder found the data damaged.
    #[error("the {format} data cannot be decoded: {reason}")]
    DecodeFailed {
        /// The format that the first bytes announce.
        format: Format,
        /// The decoder's words.
        reason: String,
    },
    /// The decoder panicked: a bug of the decoder that these bytes uncover. The row is refused;
    /// please report it.
    #[error("the {format} decoder panicked on this image: {message}")]
    DecoderPanicked {
        /// The format that the first bytes announce.
        format: Format,
        /// What the panic said.
        message: String,
    },
    /// The size asked for cannot be made from this image.
    #[error("cannot resize: {0}")]
    ResizeFailed(String),
    /// The pixels cannot be stored in the format asked for (JPEG and WebP bound the side length).
    #[error("cannot encode as {format}: {reason}")]
    EncodeFailed {
        /// The output format.
        format: Format,
        /// The encoder's words.
        reason: String,
    },
    /// An option has a value outside its range: the fault of the caller's configuration.
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
            Self::Truncated(_) => "truncated",
            Self::DecodeFailed { .. } => "decode_failed",
            Self::DecoderPanicked { .. } => "decoder_panicked",
            Self::ResizeFailed(_) => "resize_failed",
            Self::EncodeFailed { .. } => "encode_failed",
            Self::BadOptions(_) => "bad_options",
        }
    }
}
