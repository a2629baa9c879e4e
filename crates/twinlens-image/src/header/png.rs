//! The size and the end marker of a PNG file (PNG specification, section 5).

use super::walk::{Fault, Walk, be32};

/// Each chunk costs time, and a file could consist of empty ones. Real files have some thousands.
const MAX_CHUNKS: u32 = 100_000;
/// What the decoder allocates for a text beside its bytes, at most.
const TEXT_BYTES: u64 = 256;

/// Chunks of length, type, data, checksum; `IHDR` first, `IEND` last.
pub(super) fn walk(bytes: &[u8]) -> Result<Walk, Fault> {
    let kind = bytes.get(12..16).ok_or(Fault::Truncated)?;
    if kind != b"IHDR" {
        return Err(Fault::Damaged("the first chunk is not IHDR"));
    }
    let (width, height) =
        (be32(bytes, 16).ok_or(Fault::Truncated)?, be32(bytes, 20).ok_or(Fault::Truncated)?);
    let (depth, colour) = (*bytes.get(24).ok_or(Fault::Truncated)?, *bytes.get(25).ok_or(Fault::Truncated)?);
    // The decoded buffer (palettes expand to RGBA), the 8-bit copy, the composited RGB.
    let bytes_per_pixel = if depth == 16 { 8 + 4 + 3 } else { 4 + 4 + 3 } + u64::from(colour == 3);
    let mut walk = Walk { complete: false, ..Walk::new(width, height, bytes_per_pixel) };
    let (mut at, mut chunks) = (8, 0);
    while let (Some(length), Some(kind)) = (be32(bytes, at), bytes.get(at + 4..at + 8)) {
        let end = at + 12 + length as usize;
        if end > bytes.len() {
            break;
        }
        chunks += 1;
        if chunks > MAX_CHUNKS {
            return Err(Fault::Damaged("more than 100,000 chunks"));
        }
        match kind {
            // The decoder keeps texts.
            b"tEXt" | b"zTXt" | b"iTXt" => walk.other_bytes += u64::from(length) + TEXT_BYTES,
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
