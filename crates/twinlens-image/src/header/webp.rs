//! The size and the end of a WebP file (RFC 9649).

use super::walk::{Fault, Walk, le};

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
