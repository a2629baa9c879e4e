//! The `table` stage: reads URLs and captions from Parquet, Arrow, CSV, TSV or JSONL files.

mod ipc;
mod lines;
mod parquet;
mod rows;
mod split;

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::dataframe::DataFrame;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use twinlens_dataset::contracts::{self, ROW_ORDER};
use twinlens_pipeline::{Fault, Located, Ports, RunContext, RunError, SortKey, Source, StageKind, Work};

pub(super) use self::rows::{CAPTIONS as CAPTION_NAMES, URLS as URL_NAMES};
use self::rows::{ColumnSelection, Columns};
use self::split::{Format, TableReader, TableSplit};
use super::common::is_url;
use super::files::{self, FileOpener};
use super::options;
use super::split_reader::{self, BatchSink, SplitReader};
use crate::net::HttpOptions;
use crate::pairs;

/// Reject codes of rows.
pub const CODES: &[&str] =
    &["no_url", "no_caption", "malformed_row", "malformed_json", "not_utf8", "row_too_long"];

/// Reads image URLs and captions from Parquet, Arrow, CSV, TSV or JSONL files; malformed rows are
/// rejected.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TableOptions {
    /// Files, relative to the pipeline file; the last path component may contain the wildcards `*`
    /// and `?`. Or http(s) URLs: each is downloaded, read as one split, and deleted; changes on the
    /// server are not detected.
    files: Located<Vec<Located<String>>>,
    /// The file format. Default: by the file extension.
    #[serde(default)]
    format: Option<Format>,
    /// Names of the columns.
    #[serde(default)]
    columns: Columns,
    /// Extra columns to keep, as strings.
    #[serde(default)]
    keep: Vec<Located<String>>,
    /// Rows per split.
    #[serde(default = "split_rows")]
    split_rows: usize,
    /// HTTP settings for `files` that are URLs.
    #[serde(default = "super::options::default_option::<HttpOptions>")]
    http: Located<HttpOptions>,
}

/// `table` as it runs.
pub struct Table {
    files: Vec<Located<String>>,
    format: Option<Format>,
    selection: ColumnSelection,
    split_rows: u64,
    opener: FileOpener,
}

fn split_rows() -> usize {
    65_536
}

impl StageKind for Table {
    type Options = TableOptions;
    const NAME: &'static str = "table";
    const VERSION: u32 = 1;
    const EXAMPLE: &'static str = r#"
[stages.pairs]
kind = "table"
files = ["laion/part-*.parquet"]
columns = { url = "URL", caption = "TEXT" }
keep = ["similarity"]
"#;

    fn plan(options: TableOptions, ports: &mut Ports<'_>) -> Option<Work> {
        files::declare(ports, &options.files);
        options::check_http(ports, &options.http);
        for file in options.files.iter() {
            if options.format.is_none() && Format::from_extension(file).is_none() {
                let fault = Fault::at(
                    file.span(),
                    format!("the format of `{}` cannot be inferred from its extension", file.value()),
                );
                ports.fault(fault.hint("set `format = \"csv\"` (or parquet, arrow, tsv, jsonl)"));
            }
        }
        options::check_keep(ports, &options.keep, &contracts::pair_texts());
        let keep = options::names(&options.keep);
        ports.output(pairs::schema(&keep), SortKey::columns(ROW_ORDER));
        Some(Work::source(Table {
            files: options.files.value().clone(),
            format: options.format,
            selection: ColumnSelection { columns: options.columns, keep },
            split_rows: options.split_rows.max(1) as u64,
            opener: FileOpener::new(options.http.value().clone()),
        }))
    }
}

#[async_trait]
impl Source for Table {
    type Split = TableSplit;

    async fn splits(&self, cx: &RunContext) -> Result<Vec<TableSplit>, RunError> {
        let mut splits = Vec::new();
        for file in files::list(cx, &self.files)? {
            cx.check_cancelled()?;
            if is_url(&file) {
                splits.push(TableSplit { file, rows: None, position: None });
            } else {
                splits.extend(self.splits_of(file).await?);
            }
        }
        Ok(splits)
    }

    async fn read(&self, cx: &RunContext, split: &TableSplit) -> Result<DataFrame, RunError> {
        let reader = TableReader {
            schema: twinlens_pipeline::rejects::schema_with_reserved(&pairs::schema(&self.selection.keep)),
            stage: cx.stage.clone(),
            format: self.format_of(&split.file)?,
            file: self.opener.open(cx, &split.file).await?,
            rows: split.rows.clone().unwrap_or(0..u64::MAX),
            split: split.clone(),
            selection: self.selection.clone(),
        };
        split_reader::data_frame(cx, reader)
    }
}

impl Table {
    /// The splits of a local file.
    async fn splits_of(&self, file: String) -> Result<Vec<TableSplit>, RunError> {
        let (format, rows, path) = (self.format_of(&file)?, self.split_rows, file.clone());
        let measure = move || match format {
            Format::Parquet => parquet::rows(path.as_ref()).map(|total| (total, Vec::new())),
            Format::Arrow => ipc::rows(path.as_ref()).map(|total| (total, Vec::new())),
            _ => lines::index_rows(path.as_ref(), format, rows),
        };
        let (total, positions) = twinlens_pipeline::blocking(measure).await??;
        let split = |number: u64| TableSplit {
            file: file.clone(),
            rows: Some(number * rows..total.min((number + 1) * rows)),
            position: positions.get(number as usize).copied(),
        };
        Ok((0..total.div_ceil(rows)).map(split).collect())
    }

    fn format_of(&self, file: &str) -> Result<Format, RunError> {
        self.format.or_else(|| Format::from_extension(file)).ok_or_else(|| {
            RunError::user_with_hint(
                format!("the format of {file} cannot be inferred from its extension"),
                "set `format = \"csv\"`",
            )
        })
    }
}

impl SplitReader for TableReader {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn read(&self, send: BatchSink<'_>) -> Result<(), RunError> {
        let is_complete = match self.format {
            Format::Parquet => parquet::read(self, send),
            Format::Arrow => ipc::read(self, send),
            _ => lines::read(self, send),
        };
        if is_complete.map_err(|error| self.file.name_source(error))? {
            self.file.mark_read();
        }
        Ok(())
    }
}
