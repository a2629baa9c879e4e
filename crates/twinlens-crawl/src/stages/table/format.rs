//! Formats of files, and splits of them.

use std::fmt::{self, Display, Formatter};
use std::ops::Range;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use twinlens_dataset::sniff::FileKind;

use super::records::Position;
use crate::stages::common::file_name;

/// File formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Format {
    /// Apache Parquet.
    Parquet,
    /// Apache Arrow IPC file or stream; Feather 2.
    Arrow,
    /// Comma-separated values with a header. There is no header if the first row contains a URL.
    Csv,
    /// Tab-separated values with a header, or without one, as CC3M and CC12M. Quotes are part of
    /// the text.
    Tsv,
    /// One JSON object per line.
    Jsonl,
    /// A JSON array of objects, or one object per line.
    Json,
    /// One URL per line.
    Txt,
}

/// Extensions of compressed files.
const COMPRESSED: [&str; 7] = ["gz", "gzip", "zst", "zstd", "bz2", "bzip2", "xz"];

impl Format {
    /// The format that a name has by its extension, without that of a compression.
    pub(super) fn from_extension(file: &str) -> Option<Self> {
        let name = file_name(file).to_ascii_lowercase();
        let (stem, mut extension) = name.rsplit_once('.')?;
        if COMPRESSED.contains(&extension) {
            (_, extension) = stem.rsplit_once('.')?;
        }
        match extension {
            "parquet" | "pq" => Some(Self::Parquet),
            "arrow" | "feather" | "ipc" | "arrows" => Some(Self::Arrow),
            "csv" => Some(Self::Csv),
            "tsv" | "tab" => Some(Self::Tsv),
            "jsonl" | "ndjson" => Some(Self::Jsonl),
            "json" => Some(Self::Json),
            "txt" | "urls" => Some(Self::Txt),
            _ => None,
        }
    }

    pub(super) fn is_text(self) -> bool {
        !matches!(self, Self::Parquet | Self::Arrow)
    }

    /// Whether a file of this kind can be read as this format.
    pub(super) fn fits(self, kind: FileKind) -> bool {
        match self {
            Self::Parquet => kind == FileKind::Parquet,
            Self::Arrow => matches!(kind, FileKind::ArrowFile | FileKind::ArrowStream),
            _ => kind.is_text(),
        }
    }
}

impl Display for Format {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Parquet => "Parquet",
            Self::Arrow => "Arrow",
            Self::Csv => "CSV",
            Self::Tsv => "TSV",
            Self::Jsonl => "JSON lines",
            Self::Json => "JSON",
            Self::Txt => "a text file",
        })
    }
}

/// Rows of a file.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct TableSplit {
    /// A path or URL.
    pub(super) file: String,
    /// `None`: all of them, of a file that can only be read from its start: a URL, a compressed
    /// text.
    pub(super) rows: Option<Range<u64>>,
    /// Byte and line of the first row in a local text file.
    pub(super) position: Option<Position>,
    /// Why the file is rejected as a whole.
    #[serde(default)]
    pub(super) refused: Option<String>,
}

impl Display for TableSplit {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let name = file_name(&self.file);
        match &self.rows {
            None => f.write_str(name),
            Some(rows) => write!(f, "{name} rows {}..{}", rows.start, rows.end),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_extension_tells_the_format() {
        let cases = [
            ("a/b.csv", Some(Format::Csv)),
            ("b.CSV.GZ", Some(Format::Csv)),
            ("http://a/b.jsonl.zst?x=1.csv", Some(Format::Jsonl)),
            ("b.parquet", Some(Format::Parquet)),
            ("urls.txt", Some(Format::Txt)),
            ("csv", None),
            ("b.gz", None),
            ("b.csv.bak", None),
        ];
        for (name, expected) in cases {
            assert_eq!(Format::from_extension(name), expected, "{name}");
        }
    }
}
