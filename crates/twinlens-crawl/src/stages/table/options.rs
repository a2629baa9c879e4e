//! The options of the stage.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use arrow::datatypes::DataType;
use schemars::JsonSchema;
use serde::de::{Error, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use twinlens_dataset::samples::Refusal;
use twinlens_dataset::types;
use twinlens_pipeline::{Fault, Located, Ports};

use super::delimited::Dialect;
use super::format::Format;
use crate::net::HttpOptions;
use crate::stages::files::OnBadFile;

/// Hint for captions that are lists.
pub(super) const LIST_HINT: &str =
    "set `captions = \"each\"` (a row for each caption), `\"first\"`, or `\"random\"` (trainings draw one)";

/// Reads image URLs or paths, and captions, from Parquet, Arrow, CSV, TSV, JSON or text files,
/// compressed or not; malformed rows are rejected.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TableOptions {
    /// Files, relative to the pipeline file, or http(s) URLs: each is downloaded, read as one
    /// split, and deleted; changes on the server are not detected. Paths may contain the patterns
    /// `*`, `?`, `**` (directories), `{a,b}` and `{000..123}`, or name a directory.
    pub(super) files: Located<Vec<Located<String>>>,
    /// The file format. Default: by the file extension, without that of a compression.
    #[serde(default)]
    pub(super) format: Option<Format>,
    /// Names of the columns.
    #[serde(default)]
    pub(super) columns: Columns,
    /// What to do where the captions of a row are a list. Default: an error.
    #[serde(default)]
    pub(super) captions: Option<CaptionRule>,
    /// The directory that contains the images whose paths the rows have instead of URLs: relative
    /// paths start there, and none may lead out of it. Relative to the pipeline file. Default: the
    /// directory of each table file.
    #[serde(default)]
    pub(super) root: Option<Located<String>>,
    /// Whether captions keep characters that cannot be seen: zero-width spaces, soft hyphens, marks
    /// of the writing direction. By default they are dropped.
    #[serde(default)]
    pub(super) keep_invisible: bool,
    /// Extra columns to keep, with their types; or a table of new names and the columns' names.
    #[serde(default)]
    pub(super) keep: Keep,
    /// Types of kept columns. Default: the type in the file; of CSV and TSV, text; of JSON, that of
    /// the values in the first 1000 rows.
    #[serde(default)]
    pub(super) types: Located<BTreeMap<String, ColumnKind>>,
    /// The character between the fields of CSV and TSV.
    #[serde(default)]
    pub(super) delimiter: Option<Located<String>>,
    /// The character around fields that contain delimiters or line ends; "" for none. Default: `"`
    /// for CSV, none for TSV.
    #[serde(default)]
    pub(super) quote: Option<Located<String>>,
    /// The character before one that is meant literally, as in `\"`. Default: none.
    #[serde(default)]
    pub(super) escape: Option<Located<String>>,
    /// The encoding of text files, such as `latin1` or `gbk`. Default: UTF-8, or UTF-16 if the file
    /// has its byte order mark.
    #[serde(default)]
    pub(super) encoding: Option<Located<String>>,
    /// Whether CSV and TSV files begin with the names of the columns; or these names, for files
    /// without them. Default: yes, unless the first row contains a URL.
    #[serde(default)]
    pub(super) header: Option<Header>,
    /// What to do with a file that cannot be read: stop the run, or reject the file.
    #[serde(default)]
    pub(super) on_bad_file: OnBadFile,
    /// Rows per split.
    #[serde(default = "split_rows")]
    #[schemars(range(min = 1))]
    pub(super) split_rows: usize,
    /// HTTP settings for `files` that are URLs.
    #[serde(default = "crate::stages::options::default_option::<HttpOptions>")]
    pub(super) http: Located<HttpOptions>,
}

fn split_rows() -> usize {
    65_536
}

/// Names of the columns; `a.b` is the field `b` of the column `a`. By default the usual names are
/// tried: those of LAION, COYO, CC3M, CC12M, DataComp and img2dataset. Where a row has no value in
/// one of them, the next one counts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Columns {
    /// The URL of the image, or the path of its file.
    pub(super) url: Option<String>,
    /// The caption.
    pub(super) caption: Option<String>,
    /// The page that contains the image.
    pub(super) page_url: Option<String>,
    /// Where on the page the caption was.
    pub(super) text_source: Option<String>,
}

/// What becomes of captions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum CaptionRule {
    /// A row for each caption of a list.
    Each,
    /// The first caption of a list that is not blank.
    First,
    /// The first, and all of them in the list column `captions`, from which a training with
    /// `captions = "random"` draws.
    Random,
    /// No captions: a list of images.
    None,
}

/// Types of kept columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum ColumnKind {
    /// Text.
    String,
    /// True or false.
    Bool,
    /// 32-bit integers.
    Int32,
    /// 64-bit integers.
    Int64,
    /// 32-bit floats.
    Float32,
    /// 64-bit floats.
    Float64,
}

impl ColumnKind {
    pub(super) fn data_type(self) -> DataType {
        match self {
            Self::String => DataType::Utf8,
            Self::Bool => DataType::Boolean,
            Self::Int32 => DataType::Int32,
            Self::Int64 => DataType::Int64,
            Self::Float32 => DataType::Float32,
            Self::Float64 => DataType::Float64,
        }
    }

    /// The kind with this type.
    pub(super) fn of(kind: &DataType) -> Option<Self> {
        let all = [Self::String, Self::Bool, Self::Int32, Self::Int64, Self::Float32, Self::Float64];
        all.into_iter().find(|of| of.data_type() == *kind)
    }

    /// The text of a value of this type, as Arrow reads it; `None` if it is another's.
    pub(super) fn canonical(self, text: Cow<'_, str>) -> Option<Cow<'_, str>> {
        fn number<T: std::str::FromStr + ToString>(text: &str) -> Option<Cow<'static, str>> {
            text.parse::<T>().ok().map(|number| Cow::Owned(number.to_string()))
        }
        let trimmed = text.trim();
        // A whole number stays the same one: an id must not become another.
        let is_exact = |bits: u32| {
            let whole = trimmed.parse::<i128>().unwrap_or_default().unsigned_abs();
            whole.checked_shr(whole.trailing_zeros()).unwrap_or_default() < 1 << bits
        };
        match self {
            Self::String => Some(text),
            Self::Bool if trimmed.eq_ignore_ascii_case("true") => Some("true".into()),
            Self::Bool if trimmed.eq_ignore_ascii_case("false") => Some("false".into()),
            Self::Bool => None,
            Self::Int32 => number::<i32>(trimmed),
            Self::Int64 => number::<i64>(trimmed),
            Self::Float32 if is_exact(f32::MANTISSA_DIGITS) => number::<f32>(trimmed),
            Self::Float64 if is_exact(f64::MANTISSA_DIGITS) => number::<f64>(trimmed),
            Self::Float32 | Self::Float64 => None,
        }
    }

    /// The reject of a value of another type.
    pub(super) fn refuse(self, column: &str, value: &str) -> Refusal {
        let shown: String = value.chars().take(40).collect();
        let name = types::name(&self.data_type());
        ("wrong_type", format!("`{column}` is `{shown}`, not {name}: set `types`"))
    }
}

/// A column to keep.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct KeptColumn {
    /// Its name in the output.
    pub(super) name: String,
    /// Its name in the files.
    pub(super) source: String,
}

/// The option `keep`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(untagged)]
pub(super) enum Keep {
    /// Names.
    Names(Vec<Located<String>>),
    /// New names, with those in the files.
    Renamed(BTreeMap<String, Located<String>>),
}

impl Default for Keep {
    fn default() -> Self {
        Self::Names(Vec::new())
    }
}

impl Keep {
    /// The columns, each with the place of its name.
    pub(super) fn columns(&self) -> Vec<Located<KeptColumn>> {
        let column = |name: &String, source: &Located<String>| {
            let column = KeptColumn { name: name.clone(), source: source.value().clone() };
            Located::new(column, source.span())
        };
        match self {
            Self::Names(names) => names.iter().map(|name| column(name.value(), name)).collect(),
            Self::Renamed(names) => names.iter().map(|(name, source)| column(name, source)).collect(),
        }
    }
}

impl<'de> Deserialize<'de> for Keep {
    // By hand: an untagged enum would lose the places of the names.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct KeepVisitor;
        impl<'de> Visitor<'de> for KeepVisitor {
            type Value = Keep;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of columns, or a table { new = \"old\" }")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut names: A) -> Result<Keep, A::Error> {
                let mut all = Vec::new();
                while let Some(name) = names.next_element()? {
                    all.push(name);
                }
                Ok(Keep::Names(all))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut names: A) -> Result<Keep, A::Error> {
                let mut all = BTreeMap::new();
                while let Some((name, source)) = names.next_entry()? {
                    all.insert(name, source);
                }
                Ok(Keep::Renamed(all))
            }
        }
        deserializer.deserialize_any(KeepVisitor)
    }
}

/// The option `header`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(untagged)]
pub(super) enum Header {
    /// Whether there is one.
    Present(bool),
    /// The names of the columns of files without one.
    Names(Vec<String>),
}

impl<'de> Deserialize<'de> for Header {
    // By hand: an untagged enum would report every mistake as "did not match any variant".
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct HeaderVisitor(PhantomData<Header>);
        impl<'de> Visitor<'de> for HeaderVisitor {
            type Value = Header;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("true, false, or a list of names")
            }
            fn visit_bool<E: Error>(self, present: bool) -> Result<Header, E> {
                Ok(Header::Present(present))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut names: A) -> Result<Header, A::Error> {
                let mut all = Vec::new();
                while let Some(name) = names.next_element()? {
                    all.push(name);
                }
                Ok(Header::Names(all))
            }
        }
        deserializer.deserialize_any(HeaderVisitor(PhantomData))
    }
}

/// How to read text files.
#[derive(Debug, Clone, Default)]
pub(super) struct TextOptions {
    delimiter: Option<u8>,
    /// `Some(None)`: no quotes.
    quote: Option<Option<u8>>,
    escape: Option<u8>,
    pub(super) encoding: Option<&'static encoding_rs::Encoding>,
    pub(super) header: Option<Header>,
}

impl TextOptions {
    /// Checks the options.
    pub(super) fn new(options: &TableOptions, ports: &mut Ports<'_>) -> Self {
        let mut character = |name: &str, written: &Option<Located<String>>| {
            let written = written.as_ref()?;
            let bytes = written.as_bytes();
            if let [byte] = bytes
                && byte.is_ascii()
                && !matches!(byte, b'\n' | b'\r')
            {
                return Some(Some(*byte));
            }
            if !bytes.is_empty() || name != "quote" {
                let message = format!("`{name}` must be one ASCII character, and no line end");
                ports.fault(Fault::at(written.span(), message));
            }
            Some(None)
        };
        let delimiter = character("delimiter", &options.delimiter).flatten();
        let quote = character("quote", &options.quote);
        let escape = character("escape", &options.escape).flatten();
        let mut used: Vec<u8> = [delimiter, quote.flatten(), escape].into_iter().flatten().collect();
        used.sort_unstable();
        if used.windows(2).any(|pair| pair[0] == pair[1]) {
            let place = options.escape.as_ref().or(options.quote.as_ref()).or(options.delimiter.as_ref());
            let message = "`delimiter`, `quote` and `escape` must differ";
            let fault = Fault::at(place.map(Located::span).unwrap_or_default(), message);
            ports.fault(fault.hint("a doubled quote is always read as a quote: leave `escape` out"));
        }
        let encoding = options.encoding.as_ref().and_then(|label| {
            let encoding = encoding_rs::Encoding::for_label(label.as_bytes());
            if encoding.is_none() {
                let fault = Fault::at(label.span(), format!("unknown encoding `{}`", label.value()));
                ports.fault(fault.hint("write a name of the web standard: `latin1`, `gbk`, `shift_jis`"));
            }
            encoding.filter(|encoding| *encoding != encoding_rs::UTF_8)
        });
        Self { delimiter, quote, escape, encoding, header: options.header.clone() }
    }

    /// The dialect of a format.
    pub(super) fn dialect(&self, format: Format) -> Dialect {
        let is_tsv = format == Format::Tsv;
        let (delimiter, quote) = if is_tsv { (b'\t', None) } else { (b',', Some(b'"')) };
        Dialect {
            delimiter: self.delimiter.unwrap_or(delimiter),
            quote: self.quote.unwrap_or(quote),
            escape: self.escape,
        }
    }
}
