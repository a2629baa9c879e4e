//! A pair, its columns, and the codes of rows that are rejected.

use datafusion::arrow::datatypes::{DataType, Field, Schema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The code of a row without a caption.
pub(crate) const NO_CAPTION: &str = "no_caption";
/// The code of a row without an image.
pub(crate) const NO_IMAGE: &str = "no_image";
/// The code of a caption that is neither text nor, with the option `captions`, a list of texts.
pub(crate) const CAPTION_TYPE: &str = "caption_type";
/// The code of a caption that is not UTF-8.
pub(crate) const NOT_UTF8: &str = "not_utf8";

/// Reject codes by key, each with its meaning. There are fewer of them than `MIN_CAPTION_KEY`.
pub(crate) const CODES: [(&str, &str); 9] = [
    (NO_CAPTION, "the caption is null or blank"),
    (NO_IMAGE, "there is no image"),
    ("malformed_json", "its JSON cannot be parsed"),
    ("too_many_bytes", "it is larger than the limit"),
    ("damaged_archive", ""),
    ("truncated_archive", ""),
    ("unread_file", ""),
    (CAPTION_TYPE, "the caption is neither text nor, with the option `captions`, a list of texts"),
    (NOT_UTF8, "the caption is not UTF-8"),
];

/// The index of a reject code, used as its key.
pub(crate) fn code_key(code: &str) -> u64 {
    CODES.iter().position(|(known, _)| *known == code).unwrap_or(0) as u64
}

/// Which caption of a list is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Captions {
    /// The first that is not blank.
    First,
    /// One at random each time that a pair is used.
    Random,
}

/// Whether a column holds captions: text or, if `captions` says which of a list is used, lists of
/// text.
pub(crate) fn holds_captions(kind: &DataType, captions: Option<Captions>) -> bool {
    match kind {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => true,
        DataType::Dictionary(_, values) => holds_captions(values, None),
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => {
            captions.is_some() && holds_captions(item.data_type(), None)
        }
        _ => false,
    }
}

/// The columns of pairs. For tar files, `caption` is the member of the JSON.
#[derive(Clone, Debug)]
pub struct Columns {
    pub caption: String,
    /// A column of type `struct<bytes, path>` or binary.
    pub image: String,
    /// Which caption of a list is used; `None` if captions are not lists.
    pub captions: Option<Captions>,
    /// Whether the user set `caption`, so that a sample's JSON takes precedence over its text.
    pub caption_is_explicit: bool,
}

/// Where sources keep all captions of an image, of which `caption` is the first.
const ALL_CAPTIONS: &str = "captions";

impl Columns {
    /// The column of captions in a table: that of all captions, if one is drawn at random and the
    /// user named no other.
    pub(crate) fn caption_in(&self, schema: &Schema) -> &str {
        let is_list = |field: &Field| {
            let holds = |captions| holds_captions(field.data_type(), captions);
            !holds(None) && holds(Some(Captions::Random))
        };
        let draws = self.captions == Some(Captions::Random) && !self.caption_is_explicit;
        let has_lists = schema.field_with_name(ALL_CAPTIONS).is_ok_and(is_list);
        if draws && has_lists { ALL_CAPTIONS } else { &self.caption }
    }

    /// The captions that may be used, of all that a row has: those that are not blank.
    pub(crate) fn usable(&self, captions: impl Iterator<Item = impl Into<String>>) -> Vec<String> {
        let filled = captions.map(Into::into).filter(|text: &String| !text.trim().is_empty());
        match self.captions {
            Some(Captions::Random) => filled.collect(),
            _ => filled.take(1).collect(),
        }
    }
}

impl Default for Columns {
    fn default() -> Self {
        let (caption, image) = ("caption".into(), "image".into());
        Self { caption, image, captions: None, caption_is_explicit: false }
    }
}

/// A pair with its encoded image.
#[derive(Debug, Default)]
pub(crate) struct EncodedPair {
    /// Those that may be used.
    pub(crate) captions: Vec<String>,
    /// Empty if missing.
    pub(crate) image: Vec<u8>,
}
