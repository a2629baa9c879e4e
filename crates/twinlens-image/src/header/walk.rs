//! What walking a container gives, and readers of numbers.

use crate::error::ImageError;
use crate::sniff::Format;

/// The result of walking a container: its header, and whether the end marker was reached.
#[derive(Debug, Clone, Copy)]
pub(super) struct Walk {
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) frames: u32,
    pub(super) bytes_per_pixel: u64,
    /// Memory for decoding that does not grow with the pixels, in bytes.
    pub(super) other_bytes: u64,
    pub(super) complete: bool,
    /// Of a JPEG: its length, its scans, and the samples that these visit together.
    pub(super) length: usize,
    pub(super) scans: u32,
    pub(super) samples: u64,
    /// See [`super::Header`].
    pub(super) beside_black: Option<usize>,
    /// Of an AVIF: its values, each of more than 8 bits counted twice.
    pub(super) av1_values: u64,
    /// Of a TIFF: the bytes of its strips or tiles once they are decompressed.
    pub(super) unpacked: u64,
}

impl Walk {
    /// A complete still image.
    pub(super) fn new(width: u32, height: u32, bytes_per_pixel: u64) -> Self {
        Self {
            width,
            height,
            frames: 1,
            bytes_per_pixel,
            other_bytes: 0,
            complete: true,
            length: 0,
            scans: 1,
            samples: 0,
            beside_black: None,
            av1_values: 0,
            unpacked: 0,
        }
    }
}

/// Why the size could not be read.
#[derive(Debug)]
pub(crate) enum Fault {
    /// The file ends before its size.
    Truncated,
    Damaged(&'static str),
    /// A variant of the format that the decoders do not support.
    Unsupported(&'static str),
}

impl Fault {
    pub(crate) fn into_error(self, format: Format) -> ImageError {
        match self {
            Self::Truncated => ImageError::Truncated(format),
            Self::Damaged(reason) => ImageError::BadHeader { format, reason: reason.into() },
            Self::Unsupported(what) => ImageError::UnsupportedFormat(what.to_owned()),
        }
    }
}

pub(super) fn be16(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 2).map(|b| u32::from(b[0]) << 8 | u32::from(b[1]))
}

pub(super) fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(be16(bytes, at)? << 16 | be16(bytes, at + 2)?)
}

pub(super) fn le(bytes: &[u8], at: usize, count: usize) -> Option<u32> {
    Some(bytes.get(at..at + count)?.iter().rev().fold(0, |value, byte| value << 8 | u32::from(*byte)))
}
