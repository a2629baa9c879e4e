//! Reads size and structure from the encoded bytes, without decoding or allocating.
//!
//! The decoders report the size too, but some trust the header when they allocate, and none reports
//! a truncated JPEG (they fill it up with grey). So this module walks the container of each format
//! to its end marker.

use crate::error::ImageError;
use crate::limits::Limits;
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
    /// Offset of the end marker of a JPEG; bytes after it do not belong to the image.
    pub(crate) end: usize,
}

/// The result of walking a container: its header, and whether the end marker was reached.
struct Walk {
    width: u32,
    height: u32,
    frames: u32,
    bytes_per_pixel: u64,
    complete: bool,
    end: usize,
}

/// Reads the header and checks it against the limits, without decoding. At worst linear in the
/// length of the file.
///
/// To bound memory, reserve [`Header::decode_bytes`] before calling [`crate::decode`].
///
/// # Errors
/// In this order: `too_many_bytes`, `not_an_image`, `unsupported_format`, `bad_header`,
/// `too_many_pixels`, `too_small`, `aspect`, `too_many_frames`, `truncated`.
pub fn probe(bytes: &[u8], limits: &Limits) -> Result<Header, ImageError> {
    if bytes.len() as u64 > limits.max_bytes {
        return Err(ImageError::TooManyBytes { bytes: bytes.len() as u64, limit: limits.max_bytes });
    }
    let format = match sniff(bytes) {
        None if bytes.is_empty() => return Err(ImageError::NotAnImage("nothing: there are none")),
        None => return Err(ImageError::NotAnImage("no known format")),
        Some(format) if !format.is_image() => return Err(ImageError::NotAnImage(format.name())),
        Some(format) if !format.is_decodable() => {
            return Err(ImageError::UnsupportedFormat(format.name().to_owned()));
        }
        Some(format) => format,
    };
    let walk = match format {
        Format::Png => walk_png(bytes),
        Format::WebP => walk_webp(bytes),
        _ => walk_jpeg(bytes),
    };
    let walk = walk.map_err(|fault| match fault {
        Fault::Truncated => ImageError::Truncated(format),
        Fault::Damaged(reason) => ImageError::BadHeader { format, reason },
        Fault::Unsupported(what) => ImageError::UnsupportedFormat(what.to_owned()),
    })?;
    check(&walk, format, limits)?;
    let decode_bytes = u64::from(walk.width) * u64::from(walk.height) * walk.bytes_per_pixel;
    let Walk { width, height, frames, end, .. } = walk;
    Ok(Header { format, width, height, frames, decode_bytes, end })
}

fn check(walk: &Walk, format: Format, limits: &Limits) -> Result<(), ImageError> {
    let (width, height) = (walk.width, walk.height);
    if width == 0 || height == 0 {
        return Err(ImageError::BadHeader { format, reason: "a side of zero pixels" });
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
    if !walk.complete {
        return Err(ImageError::Truncated(format));
    }
    Ok(())
}

/// Why the size could not be read.
enum Fault {
    /// The file ends before its size.
    Truncated,
    Damaged(&'static str),
    /// A variant of the format that the decoders do not support.
    Unsupported(&'static str),
}

fn be16(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 2).map(|b| u32::from(b[0]) << 8 | u32::from(b[1]))
}

fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(be16(bytes, at)? << 16 | be16(bytes, at + 2)?)
}

fn le(bytes: &[u8], at: usize, count: usize) -> Option<u32> {
    Some(bytes.get(at..at + count)?.iter().rev().fold(0, |value, byte| value << 8 | u32::from(*byte)))
}

/// PNG: chunks of length, type, data, checksum; `IHDR` first, `IEND` last (PNG specification,
/// section 5).
fn walk_png(bytes: &[u8]) -> Result<Walk, Fault> {
    let kind = bytes.get(12..16).ok_or(Fault::Truncated)?;
    if kind != b"IHDR" {
        return Err(Fault::Damaged("the first chunk is not IHDR"));
    }
    let (width, height) =
        (be32(bytes, 16).ok_or(Fault::Truncated)?, be32(bytes, 20).ok_or(Fault::Truncated)?);
    let (depth, colour) = (*bytes.get(24).ok_or(Fault::Truncated)?, *bytes.get(25).ok_or(Fault::Truncated)?);
    // The decoded buffer (palettes expand to RGBA), the 8-bit copy, the composited RGB.
    let bytes_per_pixel = if depth == 16 { 8 + 4 + 3 } else { 4 + 4 + 3 } + u64::from(colour == 3);
    let mut walk = Walk { width, height, frames: 1, bytes_per_pixel, complete: false, end: 0 };
    let mut at = 8;
    while let (Some(length), Some(kind)) = (be32(bytes, at), bytes.get(at + 4..at + 8)) {
        let end = at + 12 + length as usize;
        if end > bytes.len() {
            break;
        }
        match kind {
            b"acTL" => walk.frames = be32(bytes, at + 8).unwrap_or(1).max(1),
            b"IEND" => {
                walk.complete = true;
                break;
            }
            _ => {}
        }
        at = end;
    }
    Ok(walk)
}

/// JPEG: marker segments; the size is in the frame header `SOFn`, the end is `EOI` (ITU-T T.81,
/// annex B).
fn walk_jpeg(bytes: &[u8]) -> Result<Walk, Fault> {
    let mut size = None;
    let mut scanned = false;
    let mut complete = false;
    let (mut at, mut end) = (2, bytes.len());
    while let Some(next) = next_marker(bytes, at) {
        let marker = bytes[next - 1];
        at = next;
        if marker == 0xd9 {
            complete = scanned;
            end = at - 2;
            break;
        }
        let Some(length) = be16(bytes, at) else { break };
        if matches!(marker, 0xc0..=0xcf) && !matches!(marker, 0xc4 | 0xc8 | 0xcc) && size.is_none() {
            match marker {
                0xc0..=0xc2 => {}
                0xc9..=0xcb | 0xcd..=0xcf => return Err(Fault::Unsupported("arithmetic-coded JPEG")),
                _ => return Err(Fault::Unsupported("lossless or hierarchical JPEG")),
            }
            size = Some((
                be16(bytes, at + 5).ok_or(Fault::Truncated)?,
                be16(bytes, at + 3).ok_or(Fault::Truncated)?,
            ));
        }
        scanned |= marker == 0xda;
        at += (length as usize).max(2);
    }
    match size {
        // 16-bit coefficients of up to four components (progressive), the decoded buffer, RGB.
        Some((width, height)) => {
            Ok(Walk { width, height, frames: 1, bytes_per_pixel: 8 + 3 + 3, complete, end })
        }
        None if complete => Err(Fault::Damaged("no frame header")),
        None => Err(Fault::Truncated),
    }
}

/// The offset after the first marker at or after `at`: 0xFF and a byte that is neither stuffing
/// (0x00), fill (0xFF), nor a restart marker. This skips entropy-coded data after `SOS` and garbage
/// between segments.
fn next_marker(bytes: &[u8], at: usize) -> Option<usize> {
    let is_marker = |place: &usize| {
        bytes.get(place + 1).is_some_and(|next| !matches!(next, 0x00 | 0x01 | 0xd0..=0xd8 | 0xff))
    };
    memchr::memchr_iter(0xff, bytes.get(at..)?)
        .map(|offset| at + offset)
        .find(is_marker)
        .map(|place| place + 2)
}

/// WebP: a RIFF file whose first chunk is `VP8 `, `VP8L` or `VP8X` (RFC 9649).
fn walk_webp(bytes: &[u8]) -> Result<Walk, Fault> {
    let riff_end = le(bytes, 4, 4).ok_or(Fault::Truncated)? as usize + 8;
    let mut walk = Walk {
        width: 0,
        height: 0,
        frames: 1,
        bytes_per_pixel: 16 + 3,
        complete: riff_end <= bytes.len(),
        end: 0,
    };
    let mut frames = 0;
    let mut pixels = false;
    let mut at = 12;
    while let (Some(kind), Some(length)) = (bytes.get(at..at + 4), le(bytes, at + 4, 4)) {
        let data = at + 8;
        if walk.width == 0 {
            let (width, height) = webp_size(bytes, kind, data)?;
            (walk.width, walk.height) = (width, height);
        }
        pixels |= matches!(kind, b"VP8 " | b"VP8L" | b"ANMF");
        frames += u32::from(kind == b"ANMF");
        at = data + length as usize + (length as usize & 1);
        if data + length as usize > bytes.len().min(riff_end) {
            walk.complete = false;
            break;
        }
        if at >= riff_end {
            break;
        }
    }
    if walk.width == 0 {
        return Err(Fault::Truncated);
    }
    walk.complete &= pixels;
    walk.frames = frames.max(1);
    Ok(walk)
}

/// The size from the first chunk of a WebP file.
fn webp_size(bytes: &[u8], kind: &[u8], data: usize) -> Result<(u32, u32), Fault> {
    let read = |at, count| le(bytes, at, count).ok_or(Fault::Truncated);
    match kind {
        b"VP8X" => Ok((read(data + 4, 3)? + 1, read(data + 7, 3)? + 1)),
        b"VP8L" => {
            let packed = read(data + 1, 4)?;
            Ok(((packed & 0x3fff) + 1, (packed >> 14 & 0x3fff) + 1))
        }
        b"VP8 " => Ok((read(data + 6, 2)? & 0x3fff, read(data + 8, 2)? & 0x3fff)),
        _ => Err(Fault::Damaged("the first chunk is not VP8, VP8L or VP8X")),
    }
}
