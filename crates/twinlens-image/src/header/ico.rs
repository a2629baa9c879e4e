//! The image of an ICO file that is decoded: the largest, as Pillow does.

use super::walk::{Fault, Walk, le};
use super::{bmp, png};

/// One image of an ICO or CUR file.
#[derive(Clone, Copy)]
pub(crate) struct Entry<'a> {
    /// A PNG file, or a bitmap without a file header whose height counts its mask too.
    pub(crate) data: &'a [u8],
    /// The bits of a pixel, by the directory.
    pub(crate) depth: u32,
}

impl Entry<'_> {
    pub(crate) fn is_png(&self) -> bool {
        self.data.starts_with(b"\x89PNG\r\n\x1a\n")
    }
}

/// The largest image; of equal ones that of the fewest bits, which Pillow sorts to the front; of
/// these the first.
pub(crate) fn largest(bytes: &[u8]) -> Option<Entry<'_>> {
    let count = le(bytes, 4, 2)? as usize;
    let entries = (0..count).map_while(|index| bytes.get(6 + 16 * index..22 + 16 * index));
    let key = |entry: &&[u8]| {
        let side = |value: u8| if value == 0 { 256 } else { u32::from(value) };
        let colours = u32::from(entry[2]);
        let depth = match (le(entry, 6, 2).unwrap_or(0), colours) {
            (0, 0) => 256,
            (0, colours) => colours.next_power_of_two().trailing_zeros(),
            (depth, _) => depth,
        };
        (u32::MAX - side(entry[0]) * side(entry[1]), depth)
    };
    let entry = entries.min_by_key(key)?;
    let (length, start) = (le(entry, 8, 4)? as usize, le(entry, 12, 4)? as usize);
    let data = bytes.get(start..start.checked_add(length)?)?;
    Some(Entry { data, depth: le(entry, 6, 2)? })
}

pub(super) fn walk(bytes: &[u8]) -> Result<Walk, Fault> {
    let entry = largest(bytes).ok_or(Fault::Truncated)?;
    if entry.is_png() {
        return png::walk(entry.data);
    }
    let number = |at, count| le(entry.data, at, count).ok_or(Fault::Truncated);
    let (length, width, height) = (number(0, 4)?, number(4, 4)?, number(8, 4)? / 2);
    let (depth, compression) = (number(14, 2)?, number(16, 4)?);
    if length < 40 || !matches!(depth, 1 | 4 | 8 | 24 | 32) || compression != 0 {
        return Err(Fault::Unsupported("ICO with a bitmap of this variant"));
    }
    bmp::check(entry.data)?;
    // The decoder's buffer, the decoded one with alpha, RGB; a copy of the bitmap.
    let walk = Walk::new(width, height, 3 + 4 + 3 + 1);
    Ok(Walk { other_bytes: entry.data.len() as u64, ..walk })
}
