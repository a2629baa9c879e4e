//! EXIF as a JSON object, in the manner of img2dataset's `exif` column.

use std::collections::BTreeMap;

/// Longer values (maker notes, embedded previews) are cut here: the column is for search, not for
/// restoring files.
const MAX_VALUE_CHARS: usize = 200;
/// Fields beyond this many are left out: a hostile directory can declare 65,535.
const MAX_FIELDS: usize = 200;

/// `{"Make": "...", "Orientation": "...", ...}` with keys sorted and every value as text, from a
/// raw TIFF block; `None` when it holds no known tag of the primary image or is damaged (metadata
/// never refuses an image).
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
