//! EXIF as a JSON object, like img2dataset's `exif` column.

use std::collections::BTreeMap;

/// Longer values (maker notes, embedded previews) are truncated: the column is for search, not for
/// restoring files.
const MAX_VALUE_CHARS: usize = 200;
/// Further fields are dropped: a hostile directory can declare 65,535.
const MAX_FIELDS: usize = 200;

/// Converts a raw TIFF block to `{"Make": "...", "Orientation": "...", ...}` with sorted keys and
/// all values as text. `None` if it is damaged or contains no known tag of the primary image.
pub(crate) fn to_json(raw: &[u8]) -> Option<String> {
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
