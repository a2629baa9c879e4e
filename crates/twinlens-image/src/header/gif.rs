//! The size, the frames and the end of the first frame of a GIF file (GIF89a, appendix A).

use super::walk::{Fault, Walk, le};

/// Blocks after the screen descriptor: extensions (`!`), images (`,`) and the trailer (`;`). Only
/// the first image is decoded, so a file that ends later is complete.
pub(super) fn walk(bytes: &[u8]) -> Result<Walk, Fault> {
    let size = |at| le(bytes, at, 2).ok_or(Fault::Truncated);
    // The RGBA frame, the canvas, RGB.
    let mut walk = Walk { complete: false, ..Walk::new(size(6)?, size(8)?, 4 + 4 + 3) };
    let mut frames = 0;
    let mut at = 13 + palette(bytes.get(10));
    loop {
        let end = match bytes.get(at) {
            Some(b'!') => skip(bytes, at + 2),
            Some(b',') => skip(bytes, at + 11 + palette(bytes.get(at + 9))),
            _ => None,
        };
        let Some(end) = end else { break };
        frames += u32::from(bytes[at] == b',');
        at = end;
    }
    walk.complete = frames > 0;
    walk.frames = frames.max(1);
    Ok(walk)
}

/// The length of the colour table that the packed field declares.
fn palette(packed: Option<&u8>) -> usize {
    packed.map_or(0, |packed| if packed & 0x80 == 0 { 0 } else { 3 << ((packed & 7) + 1) })
}

/// The offset after the data sub-blocks that begin at `at`, which end with an empty one.
fn skip(bytes: &[u8], mut at: usize) -> Option<usize> {
    loop {
        let length = usize::from(*bytes.get(at)?);
        at += 1 + length;
        if length == 0 {
            return Some(at);
        }
    }
}
