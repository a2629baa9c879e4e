//! A split of a table.

use std::fmt::{self, Display, Formatter};
use std::ops::Range;

use arrow::datatypes::SchemaRef;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use twinlens_pipeline::RunError;

use super::rows::ColumnSelection;
use crate::stages::common::file_name;
use crate::stages::files::InputFile;

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
    /// Tab-separated values with a header, or without one, as CC3M and CC12M.
    Tsv,
    /// One JSON object per line.
    Jsonl,
}

impl Format {
    pub(super) fn from_extension(file: &str) -> Option<Self> {
        match file_name(file).rsplit_once('.')?.1.to_ascii_lowercase().as_str() {
            "parquet" => Some(Self::Parquet),
            "arrow" | "feather" | "ipc" | "arrows" => Some(Self::Arrow),
            "csv" => Some(Self::Csv),
            "tsv" | "tab" => Some(Self::Tsv),
            "jsonl" | "ndjson" => Some(Self::Jsonl),
            _ => None,
        }
    }
}

/// Rows of a file.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TableSplit {
    /// A path or URL.
    pub(super) file: String,
    /// `None`: all, of a URL; their number is not known before its download.
    pub(super) rows: Option<Range<u64>>,
    /// Byte and line of the first row in a local text file.
    pub(super) position: Option<(u64, u64)>,
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

/// Reads a split.
#[derive(Debug)]
pub(super) struct TableReader {
    pub(super) schema: SchemaRef,
    pub(super) stage: String,
    pub(super) format: Format,
    pub(super) file: InputFile,
    pub(super) split: TableSplit,
    pub(super) rows: Range<u64>,
    pub(super) selection: ColumnSelection,
}

impl TableReader {
    /// A user error about the file.
    pub(super) fn error(&self, why: impl Display) -> RunError {
        RunError::user(format!("{}: {why}", self.split.file))
    }
}
