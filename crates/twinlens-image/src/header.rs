//! Reads size and structure from the encoded bytes, without decoding or allocating (but for the
//! groups of codes of a large lossless WebP, once its size is known to be within the limits).
//!
//! The decoders report the size too, but some trust the header when they allocate, and some report
//! no truncation (they fill up with grey). So the containers of the formats that the web uses are
//! walked to their end marker.

pub(crate) mod avif;
pub(crate) mod bmp;
pub(crate) mod gif;
pub(crate) mod ico;
pub(crate) mod jpeg;
pub(crate) mod other;
mod png;
pub(crate) mod tiff;
mod walk;
pub(crate) mod webp;

use self::walk::Walk;
use crate::error::ImageError;
use crate::guard::catch_decoder_panic;
use crate::limits::{Limits, MAX_AV1_VALUES, MAX_CODE_GROUPS, MAX_SAMPLES, MAX_SCANS, MAX_UNPACKED};
use crate::sniff::{Format, sniff};

/// The declared properties of an encoded image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The format by magic bytes.
    pub format: Format,
    /// Declared width, in pixels, as stored (before EXIF orientation).
    pub width: u32,
    /// Declared height, in pixels, as stored (before EXIF orientation).
    pub height: u32,
    /// Frames of an animation; 1 for a still image.
    pub frames: u32,
    /// Upper estimate of the peak memory for decoding to RGB, in bytes, not counting the encoded
    /// bytes.
    pub decode_bytes: u64,
    /// Length of a JPEG with its end marker; bytes after it do not belong to the image.
    pub(crate) length: usize,
    /// Whether a JPEG has one scan.
    pub(crate) single_scan: bool,
    /// Of a CMYK JPEG with subsampled components, the one that can be decoded between the first one
    /// and black: the second or the third, counted from 0.
    pub(crate) beside_black: Option<usize>,
}

/// Reads the header and checks it against the limits, without decoding. At worst linear in the
/// length of the file.
///
/// To bound memory, reserve [`Header::decode_bytes`] before calling [`crate::decode`].
///
/// # Errors
/// In this order: `too_many_bytes`, `not_an_image`, `unsupported_format`, `bad_header`,
/// `too_many_pixels`, `too_small`, `aspect`, `too_many_frames`, `too_many_scans`, `too_costly`,
/// `truncated`; of a lossless WebP `too_costly` comes last.
pub fn probe(bytes: &[u8], limits: &Limits) -> Result<Header, ImageError> {
    if bytes.len() as u64 > limits.max_bytes {
        return Err(ImageError::TooManyBytes { bytes: bytes.len() as u64, limit: limits.max_bytes });
    }
    let format = match sniff(bytes) {
        None if bytes.is_empty() => return Err(ImageError::NotAnImage("nothing: there are none".into())),
        None => return Err(ImageError::NotAnImage("no known format".into())),
        Some(format) if !format.is_image() => return Err(ImageError::NotAnImage(format.name().into())),
        Some(format) if !format.is_decodable() => {
            return Err(ImageError::UnsupportedFormat(format.name().to_owned()));
        }
        Some(format) => format,
    };
    let walk = match format {
        Format::Jpeg => jpeg::walk(bytes),
        Format::Png => png::walk(bytes),
        Format::WebP => webp::walk(bytes),
        Format::Gif => gif::walk(bytes),
        Format::Ico => ico::walk(bytes),
        Format::Tiff => tiff::walk(bytes),
        Format::Avif => avif::walk(bytes),
        _ => catch_decoder_panic(format, || Ok(other::walk(bytes, format)))?,
    };
    let walk = walk.map_err(|fault| fault.into_error(format))?;
    check(&walk, format, limits)?;
    if format == Format::WebP {
        check_code_groups(&walk, webp::code_groups(bytes))?;
    }
    let pixels = u64::from(walk.width) * u64::from(walk.height);
    let decode_bytes = pixels * walk.bytes_per_pixel + walk.other_bytes;
    let Walk { width, height, frames, length, scans, beside_black, .. } = walk;
    let single_scan = scans == 1;
    Ok(Header { format, width, height, frames, decode_bytes, length, single_scan, beside_black })
}

fn check(walk: &Walk, format: Format, limits: &Limits) -> Result<(), ImageError> {
    let (width, height) = (walk.width, walk.height);
    if width == 0 || height == 0 {
        return Err(ImageError::BadHeader { format, reason: "a side of zero pixels".into() });
    }
    if u64::from(width) * u64::from(height) > limits.max_pixels {
        return Err(ImageError::TooManyPixels { width, height, limit: limits.max_pixels });
    }
    let (short, long) = (width.min(height), width.max(height));
    if short < limits.min_side {
        return Err(ImageError::TooSmall { width, height, limit: limits.min_side });
    }
    if f64::from(long) > limits.max_aspect * f64::from(short) {
        return Err(ImageError::Aspect { width, height, limit: limits.max_aspect });
    }
    if walk.frames > limits.max_frames {
        return Err(ImageError::TooManyFrames { frames: walk.frames, limit: limits.max_frames });
    }
    if walk.scans > MAX_SCANS || walk.samples > MAX_SAMPLES {
        return Err(ImageError::TooManyScans { width, height, scans: walk.scans });
    }
    let million = |amount: u64| amount.div_ceil(1_000_000);
    for (amount, unit, limit) in [
        (million(walk.av1_values), "million values of AV1", million(MAX_AV1_VALUES)),
        (million(walk.unpacked), "million bytes of strips or tiles", million(MAX_UNPACKED)),
    ] {
        if amount > limit {
            return Err(ImageError::TooCostly { width, height, amount, unit: unit.to_owned(), limit });
        }
    }
    if !walk.complete {
        return Err(ImageError::Truncated(format));
    }
    Ok(())
}

fn check_code_groups(walk: &Walk, groups: u64) -> Result<(), ImageError> {
    let (width, height, limit) = (walk.width, walk.height, MAX_CODE_GROUPS);
    if groups <= limit {
        return Ok(());
    }
    Err(ImageError::TooCostly { width, height, amount: groups, unit: "groups of codes".to_owned(), limit })
}

/// Whether a JPEG has scans, but no end marker.
pub(crate) fn lacks_end(jpeg: &[u8]) -> bool {
    jpeg::walk(jpeg).is_ok_and(|walk| walk.scans > 0 && !walk.complete)
}
