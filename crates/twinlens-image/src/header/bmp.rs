//! The variants of BMP whose pixels are those of Pillow. The size is read by the decoder.

use super::walk::{Fault, le};

/// Masks of red, green and blue in 16 bits: 5, 5, 5 and 5, 6, 5.
const MASKS_555: [u32; 3] = [0x7c00, 0x3e0, 0x1f];
const MASKS_565: [u32; 3] = [0xf800, 0x7e0, 0x1f];

/// Where the bits of a device-independent bitmap are described, after the length of its header.
const DEPTH: usize = 14;
const COMPRESSION: usize = 16;
const MASKS: usize = 40;

/// Rejects channels whose widening to 8 bits no test holds to Pillow's. `dib` begins with the
/// length of its header.
pub(super) fn check(dib: &[u8]) -> Result<(), Fault> {
    if le(dib, 0, 4).ok_or(Fault::Truncated)? < 40 {
        return Ok(());
    }
    let depth = le(dib, DEPTH, 2).ok_or(Fault::Truncated)?;
    // 3 and 6: masks, without and with alpha.
    if !matches!(le(dib, COMPRESSION, 4).ok_or(Fault::Truncated)?, 3 | 6) {
        return Ok(());
    }
    let mut masks = [0; 3];
    for (index, mask) in masks.iter_mut().enumerate() {
        *mask = le(dib, MASKS + 4 * index, 4).ok_or(Fault::Truncated)?;
    }
    let whole_bytes = masks.iter().all(|mask| [0xff, 0xff00, 0xff_0000, 0xff00_0000].contains(mask));
    match depth {
        16 if masks == MASKS_555 || masks == MASKS_565 => Ok(()),
        32 if whole_bytes => Ok(()),
        _ => Err(Fault::Unsupported("BMP with channels that are not bytes")),
    }
}

/// The bits of green, if the pixels have 16 bits.
pub(crate) fn green_bits(file: &[u8]) -> Option<u32> {
    let dib = file.get(14..)?;
    if le(dib, 0, 4)? < 40 || le(dib, DEPTH, 2)? != 16 {
        return None;
    }
    let masked = le(dib, COMPRESSION, 4)? != 0;
    Some(if masked && le(dib, MASKS, 4)? == MASKS_565[0] { 6 } else { 5 })
}
