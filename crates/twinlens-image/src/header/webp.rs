//! The size and the end of a WebP file (RFC 9649), and its first frame.

mod lossless;

use super::walk::{Fault, Walk, le};
use crate::limits::MAX_CODE_GROUPS;

/// A RIFF file whose first chunk is `VP8 `, `VP8L` or `VP8X`.
pub(super) fn walk(bytes: &[u8]) -> Result<Walk, Fault> {
    let riff_end = le(bytes, 4, 4).ok_or(Fault::Truncated)? as usize + 8;
    let mut walk = Walk { complete: riff_end <= bytes.len(), ..Walk::new(0, 0, 16 + 3) };
    let mut frames = 0;
    let mut pixels = false;
    let mut at = 12;
    while let (Some(kind), Some(length)) = (bytes.get(at..at + 4), le(bytes, at + 4, 4)) {
        let data = at + 8;
        if walk.width == 0 {
            let (width, height) = size(bytes, kind, data)?;
            (walk.width, walk.height) = (width, height);
        }
        if matches!(kind, b"VP8L" | b"ALPH") || (kind == b"ANMF" && frames == 0) {
            walk.other_bytes += code_tables(length);
        }
        pixels |= matches!(kind, b"VP8 " | b"VP8L" | b"ANMF");
        frames += u32::from(kind == b"ANMF");
        at = data + length as usize + (length as usize & 1);
        if data + length as usize > bytes.len().min(riff_end) {
            walk.complete = false;
            break;
        }
        if kind == b"VP8 " {
            check_key_frame(&bytes[data..data + length as usize])?;
        }
        if at >= riff_end {
            break;
        }
    }
    if walk.width == 0 {
        return Err(Fault::Truncated);
    }
    walk.complete &= pixels;
    if frames > 0 {
        // The first frame, copied into a file of its own.
        walk.other_bytes += bytes.len() as u64;
    }
    walk.frames = frames.max(1);
    Ok(walk)
}

/// The size from the first chunk of a WebP file.
fn size(bytes: &[u8], kind: &[u8], data: usize) -> Result<(u32, u32), Fault> {
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

/// Groups of five codes that a lossless image of a length in bytes may have, at most, if their
/// tables have 1,024 entries: a code that long takes at least 88 bits.
fn most_groups(length: u32) -> u64 {
    (u64::from(length) * 8 / 88 / 5).min(1 << 16)
}

/// Memory for the codes of a lossless image of a length in bytes, at most. Beyond
/// [`MAX_CODE_GROUPS`] it is refused ([`code_groups`]).
fn code_tables(length: u32) -> u64 {
    most_groups(length).min(MAX_CODE_GROUPS) * 5 * (4 * 1024 + 256)
}

/// The groups of codes of the image that is decoded, if they may be more than [`MAX_CODE_GROUPS`]:
/// all images that choose among codes are decoded for that. The size of the image has been checked.
pub(super) fn code_groups(bytes: &[u8]) -> u64 {
    let mut canvas = (0, 0);
    let mut most = 0;
    let mut at = 12;
    while let (Some(kind), Some(length)) = (bytes.get(at..at + 4), le(bytes, at + 4, 4)) {
        let Some(data) = bytes.get(at + 8..at + 8 + length as usize) else { break };
        at += 8 + length as usize + (length as usize & 1);
        let number = |offset| le(data, offset, 3).map_or(0, |number| number + 1);
        match kind {
            b"VP8X" => canvas = (number(4), number(7)),
            b"ANMF" => {
                let chunks = data.get(16..).unwrap_or_default();
                return most.max(code_groups_of_frame(chunks, (number(6), number(9))));
            }
            _ => most = most.max(code_groups_of_chunk(kind, data, canvas)),
        }
    }
    most
}

fn code_groups_of_frame(chunks: &[u8], size: (u32, u32)) -> u64 {
    let (mut most, mut at) = (0, 0);
    while let (Some(kind), Some(length)) = (chunks.get(at..at + 4), le(chunks, at + 4, 4)) {
        let Some(data) = chunks.get(at + 8..at + 8 + length as usize) else { break };
        most = most.max(code_groups_of_chunk(kind, data, size));
        at += 8 + length as usize + (length as usize & 1);
    }
    most
}

/// `size` is that of the canvas or frame, which an alpha channel does not repeat.
fn code_groups_of_chunk(kind: &[u8], data: &[u8], (width, height): (u32, u32)) -> u64 {
    let bound = most_groups(data.len() as u32);
    if bound <= MAX_CODE_GROUPS {
        return 0;
    }
    let groups = match (kind, data) {
        (b"ALPH", [head, rest @ ..]) if head & 3 == 1 => lossless::code_groups(rest, width, height),
        (b"VP8L", _) => {
            let packed = le(data, 1, 4).unwrap_or(0);
            let size = ((packed & 0x3fff) + 1, (packed >> 14 & 0x3fff) + 1);
            lossless::code_groups(data.get(5..).unwrap_or_default(), size.0, size.1)
        }
        _ => Some(0),
    };
    // Of damaged data, what they may have: the decoder may find no fault in them.
    groups.unwrap_or(bound)
}

/// Rejects what libwebp rejects in the head of a lossy image (RFC 6386, section 9.1) and the
/// decoder ignores.
fn check_key_frame(data: &[u8]) -> Result<(), Fault> {
    // Too short for a head: the decoder says so.
    let Some(tag) = le(data, 0, 3) else { return Ok(()) };
    let (profile, shown, first_partition) = (tag >> 1 & 7, tag >> 4 & 1 == 1, tag >> 5);
    if profile > 3 {
        return Err(Fault::Damaged("a VP8 frame of an unknown profile"));
    }
    if !shown {
        return Err(Fault::Damaged("a VP8 frame that is not shown"));
    }
    if first_partition as usize >= data.len() {
        return Err(Fault::Damaged("a VP8 partition that is longer than its frame"));
    }
    Ok(())
}

/// The first frame of an animation.
pub(crate) struct Frame {
    /// The place of its upper left corner on the canvas, in pixels.
    pub(crate) left: u32,
    pub(crate) top: u32,
    pub(crate) width: u32,
    pub(crate) height: u32,
    /// The frame alone, as a WebP file of its own.
    pub(crate) file: Vec<u8>,
}

/// The first frame, if the file is an animation whose frame lies within its canvas.
pub(crate) fn first_frame(bytes: &[u8]) -> Option<Frame> {
    let canvas = (le(bytes, 24, 3)? + 1, le(bytes, 27, 3)? + 1);
    if bytes.get(12..16)? != b"VP8X" || bytes.get(20)? & 2 == 0 {
        return None;
    }
    let mut at = 12;
    while bytes.get(at..at + 4)? != b"ANMF" {
        let length = le(bytes, at + 4, 4)? as usize;
        at += 8 + length + (length & 1);
    }
    let (data, end) = (at + 8, at + 8 + le(bytes, at + 4, 4)? as usize);
    let number = |offset| le(bytes, data + offset, 3);
    let (left, top) = (2 * number(0)?, 2 * number(3)?);
    let (width, height) = (number(6)? + 1, number(9)? + 1);
    if left + width > canvas.0 || top + height > canvas.1 {
        return None;
    }
    let chunks = bytes.get(data + 16..end)?;
    // A lossy image with alpha is two chunks, and needs a head that says so.
    let mut body = b"WEBP".to_vec();
    if chunks.starts_with(b"ALPH") {
        body.extend_from_slice(b"VP8X\x0a\0\0\0\x10\0\0\0");
        body.extend_from_slice(&(width - 1).to_le_bytes()[..3]);
        body.extend_from_slice(&(height - 1).to_le_bytes()[..3]);
    }
    body.extend_from_slice(chunks);
    let file = [b"RIFF", u32::try_from(body.len()).ok()?.to_le_bytes().as_slice(), &body].concat();
    Some(Frame { left, top, width, height, file })
}
