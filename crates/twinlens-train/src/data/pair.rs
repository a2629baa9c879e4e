//! A pair, its columns, and the codes of rows that are rejected.

/// Reject codes by key. There are fewer of them than `MIN_CAPTION_KEY`.
pub(crate) const CODES: [&str; 7] = [
    "no_caption",
    "no_image",
    "malformed_json",
    "too_many_bytes",
    "damaged_archive",
    "truncated_archive",
    "unread_file",
];

/// The index of a reject code, used as its key.
pub(crate) fn code_key(code: &str) -> u64 {
    CODES.iter().position(|known| *known == code).unwrap_or(0) as u64
}

/// The columns of pairs. For tar files, `caption` is the member of the JSON.
#[derive(Clone, Debug)]
pub struct Columns {
    pub caption: String,
    /// A column of type `struct<bytes, path>` or binary.
    pub image: String,
    /// Whether the user set `caption`, so that a sample's JSON takes precedence over its text.
    pub caption_is_explicit: bool,
}

impl Default for Columns {
    fn default() -> Self {
        Self { caption: "caption".into(), image: "image".into(), caption_is_explicit: false }
    }
}

/// A pair with its encoded image.
#[derive(Debug, Default)]
pub(crate) struct EncodedPair {
    pub(crate) caption: String,
    /// Empty if missing.
    pub(crate) image: Vec<u8>,
}
