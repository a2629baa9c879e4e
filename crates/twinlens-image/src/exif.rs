//! EXIF as a JSON object, like img2dataset's `exif` column.

use std::collections::BTreeMap;

/// Longer values (maker notes, embedded previews) are truncated: the column is for search, not for
/// restoring files.
const MAX_VALUE_CHARS: usize = 200;
/// Further fields are dropped: a hostile directory can declare 65,535.
const MAX_FIELDS: usize = 200;
/// Longer blocks are ignored, in bytes. JPEG holds at most 64 KB.
const MAX_BYTES: usize = 1 << 20;

/// Converts a raw TIFF block to `{"Make": "...", "Orientation": "...", ...}` with sorted keys and
/// all values as text. `None` if it is damaged or contains no known tag of the primary image.
pub(crate) fn to_json(raw: &[u8]) -> Option<String> {
    if !values_fit(raw)? {
        return None;
    }
    let mut reader = exif::Reader::new();
    reader.continue_on_error(true);
    let parsed = match reader.read_raw(raw.to_vec()) {
        Ok(parsed) => parsed,
        Err(exif::Error::PartialResult(partial)) => partial.into_inner().0,
        Err(_) => return None,
    };
    let fields: BTreeMap<String, String> = parsed
        .fields()
        .filter(|field| field.ifd_num == exif::In::PRIMARY && field.tag.description().is_some())
        .take(MAX_FIELDS)
        .map(|field| {
            let value = field.display_value().to_string();
            (field.tag.to_string(), value.trim().chars().take(MAX_VALUE_CHARS).collect())
        })
        .collect();
    if fields.is_empty() { None } else { serde_json::to_string(&fields).ok() }
}

/// Tags whose value is the offset of another directory: Exif, GPS, Interoperability.
const POINTERS: [u32; 3] = [0x8769, 0x8825, 0xa005];

/// Whether the entries and values of all directories are together no longer than the block. A
/// reader copies each value, so thousands of entries that share their bytes would take gigabytes.
/// `None` if the block does not begin like TIFF.
fn values_fit(raw: &[u8]) -> Option<bool> {
    if raw.len() > MAX_BYTES {
        return Some(false);
    }
    let little = match raw.get(..2)? {
        b"II" => true,
        b"MM" => false,
        _ => return None,
    };
    let number = |at: usize, count: usize| {
        let bytes = raw.get(at..at.checked_add(count)?)?.iter();
        let join = |value: u32, byte: &u8| value << 8 | u32::from(*byte);
        Some(if little { bytes.rev().fold(0, join) } else { bytes.fold(0, join) })
    };
    let (mut directories, mut total) = (vec![number(4, 4)? as usize], 0_u64);
    while let Some(at) = directories.pop() {
        let Some(count) = number(at, 2).filter(|_| at > 0) else { continue };
        // So that a circle of empty directories ends too.
        total += 6;
        for entry in (0..count as usize).map(|index| at + 2 + 12 * index) {
            let (Some(tag), Some(kind), Some(values)) =
                (number(entry, 2), number(entry + 2, 2), number(entry + 4, 4))
            else {
                break;
            };
            // Values of up to four bytes lie in their entry.
            let length = u64::from(values) * size_of_kind(kind);
            total += 12 + if length > 4 { length } else { 0 };
            if total > raw.len() as u64 {
                return Some(false);
            }
            if POINTERS.contains(&tag) {
                directories.extend(number(entry + 8, 4).map(|offset| offset as usize));
            }
        }
        directories.extend(number(at + 2 + 12 * count as usize, 4).map(|offset| offset as usize));
    }
    Some(true)
}

/// The length of a value in bytes (TIFF 6.0, page 15). A reader skips values of unknown kinds.
fn size_of_kind(kind: u32) -> u64 {
    match kind {
        1 | 2 | 6 | 7 => 1,
        3 | 8 => 2,
        4 | 9 | 11 => 4,
        5 | 10 | 12 => 8,
        _ => 0,
    }
}
