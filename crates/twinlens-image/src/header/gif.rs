//! The size, the frames and the end of the first frame of a GIF file (GIF89a, appendix A).

use super::walk::{Fault, Walk, le};

/// Blocks after the screen descriptor: extensions (`!`), images (`,`) and the trailer (`;`). Only
/// the first image is decoded, so a file that ends later is complete. A first frame that does not
/// fit enlarges the screen, as in Pillow and browsers.
pub(super) fn walk(bytes: &[u8]) -> Result<Walk, Fault> {
    let size = |at| le(bytes, at, 2).ok_or(Fault::Truncated);
    // The RGBA frame twice (its rows are sorted), the canvas, RGB.
    let mut walk = Walk { complete: false, ..Walk::new(size(6)?, size(8)?, 4 + 4 + 4 + 3) };
    // A copy without the flag of interlacing, or with a larger screen.
    walk.other_bytes = bytes.len() as u64;
    let mut frames = 0;
    let mut at = 13 + palette(bytes.get(10));
    loop {
        let end = match bytes.get(at) {
            Some(b'!') => skip(bytes, at + 2),
            Some(b',') => skip(bytes, at + 11 + palette(bytes.get(at + 9))),
            _ => None,
        };
        let Some(end) = end else { break };
        if bytes[at] == b',' && frames == 0 {
            walk.width = walk.width.max(size(at + 1)? + size(at + 5)?);
            walk.height = walk.height.max(size(at + 3)? + size(at + 7)?);
        }
        frames += u32::from(bytes[at] == b',');
        at = end;
    }
    walk.complete = frames > 0;
    walk.frames = frames.max(1);
    Ok(walk)
}

/// The flag of an image descriptor.
pub(crate) const INTERLACED: u8 = 0x40;

/// The first frame of a GIF file.
pub(crate) struct Frame {
    /// Its place on the screen, in pixels.
    pub(crate) left: u32,
    pub(crate) top: u32,
    pub(crate) width: u32,
    pub(crate) height: u32,
    /// The offset of the byte with its flags, and whether its rows are stored in four passes.
    pub(crate) flags: usize,
    pub(crate) interlaced: bool,
    /// The colour of its transparent index, or of index 0 if it has none.
    pub(crate) background: [u8; 3],
}

/// The first frame, if there is one.
pub(crate) fn first_frame(bytes: &[u8]) -> Option<Frame> {
    let (mut at, mut transparent) = (13 + palette(bytes.get(10)), 0);
    while *bytes.get(at)? == b'!' {
        // The graphic control extension.
        if bytes.get(at + 1..at + 3)? == [0xf9, 4] && bytes.get(at + 3)? & 1 == 1 {
            transparent = usize::from(*bytes.get(at + 6)?);
        }
        at = skip(bytes, at + 2)?;
    }
    let number = |offset| le(bytes, at + offset, 2);
    let (table, length) = match (palette(bytes.get(at + 9)), palette(bytes.get(10))) {
        (0, global) => (13, global),
        (local, _) => (at + 10, local),
    };
    let colour = bytes.get(table + 3 * transparent..table + 3 * transparent + 3);
    let colour = colour.filter(|_| 3 * transparent < length).and_then(|colour| colour.try_into().ok());
    Some(Frame {
        left: number(1)?,
        top: number(3)?,
        width: number(5)?,
        height: number(7)?,
        flags: at + 9,
        interlaced: bytes.get(at + 9)? & INTERLACED != 0,
        background: colour.unwrap_or_default(),
    })
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
