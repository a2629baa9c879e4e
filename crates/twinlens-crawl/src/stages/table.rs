//! The `table` stage: reads URLs and captions from Parquet, Arrow, CSV, TSV or JSONL files.

mod ipc;
mod lines;
mod parquet;
mod rows;
mod split;

use std::collections::HashMap;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::dataframe::DataFrame;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::OnceCell;
use twinlens_dataset::contracts;
use twinlens_pipeline::stage::{Source, SourceSplit};
use twinlens_pipeline::{
    CheckContext, Fault, Input, InputTables, Located, RunContext, RunError, Stage, StageKind, Tables, Work,
};

pub(super) use self::rows::{CAPTIONS as CAPTION_NAMES, URLS as URL_NAMES};
use self::rows::{ColumnSelection, Columns};
use self::split::{Format, TableSplit};
use super::common::{file_name, is_url};
use super::files::{self, FileOpener};
use super::options;
use super::split_reader::{self, BatchSink, SplitReader};
use crate::net::HttpOptions;
use crate::pairs;

/// Reject codes of rows.
pub const CODES: &[&str] =
    &["no_url", "no_caption", "malformed_row", "malformed_json", "not_utf8", "row_too_long"];

/// Reads image URLs and captions from tables.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Table {
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
    #[serde(skip)]
    positions: OnceCell<Arc<SplitPositions>>,
    #[serde(skip)]
    opener: FileOpener,
}

fn split_rows() -> usize {
    65_536
}

impl StageKind for Table {
    const KIND: &'static str = "table";
    const ABOUT: &'static str = "Reads image URLs and captions from Parquet, Arrow, CSV, TSV or JSONL files; malformed rows are rejected.";
    const EXAMPLE: &'static str = r#"
[stages.pairs]
kind = "table"
files = ["laion/part-*.parquet"]
columns = { url = "URL", caption = "TEXT" }
keep = ["similarity"]
"#;
    const VERSION: u32 = 1;
}

impl Stage for Table {
    fn inputs(&self) -> Vec<Input> {
        Vec::new()
    }

    fn files(&self) -> Vec<Located<String>> {
        files::local_files(&self.files)
    }

    fn tables(&self, _: &CheckContext, _: &[InputTables]) -> Result<Tables, Vec<Fault>> {
        let mut faults = files::files_faults(&self.files);
        faults.extend(options::http_faults(&self.http));
        for file in self.files.iter() {
            if self.format.is_none() && Format::from_extension(file).is_none() {
                let fault = Fault::at(
                    file.span(),
                    format!("the format of `{}` cannot be inferred from its extension", file.value()),
                );
                faults.push(fault.hint("set `format = \"csv\"` (or parquet, arrow, tsv, jsonl)"));
            }
        }
        faults.extend(options::keep_faults(&self.keep, &contracts::pair_texts()));
        options::tables_or_faults(faults, || Tables::main(pairs::schema(&self.kept_columns())))
    }

    fn work(&self) -> Work<'_> {
        Work::Source(self)
    }
}

/// Where splits of text files start: byte and line by file and first row.
type SplitPositions = HashMap<(String, u64), (u64, u64)>;

#[async_trait]
impl Source for Table {
    async fn splits(&self, cx: &RunContext) -> Result<Vec<SourceSplit>, RunError> {
        let rows = self.split_rows.max(1) as u64;
        let mut splits = Vec::new();
        let mut positions = SplitPositions::new();
        for whole in files::file_splits(cx, &self.files)? {
            cx.check_cancelled()?;
            // The rows of a URL are not known before its download.
            if is_url(&whole.file) {
                splits.push(whole);
                continue;
            }
            let (format, name) = (self.format_of(&whole.file)?, whole.file);
            let path = name.clone();
            let measure = move || match format {
                Format::Parquet => parquet::rows(path.as_ref()).map(|total| (total, Vec::new())),
                Format::Arrow => ipc::rows(path.as_ref()).map(|total| (total, Vec::new())),
                _ => lines::index_rows(path.as_ref(), format, rows),
            };
            let (total, starts) = twinlens_pipeline::blocking(measure).await??;
            let split = |start: u64| {
                let end = total.min(start + rows);
                let label = format!("{} rows {start}..{end}", file_name(&name));
                SourceSplit { label, file: name.clone(), start, end }
            };
            splits.extend((0..total.div_ceil(rows)).map(|number| split(number * rows)));
            let starts = starts.into_iter().enumerate();
            positions
                .extend(starts.map(|(number, position)| ((name.clone(), number as u64 * rows), position)));
        }
        // The files do not change within a run, so setting it again makes no difference.
        let _ignored = self.positions.set(Arc::new(positions));
        Ok(splits)
    }

    async fn read(&self, cx: &RunContext, split: &SourceSplit) -> Result<DataFrame, RunError> {
        let position = self
            .positions
            .get()
            .and_then(|positions| positions.get(&(split.file.clone(), split.start)))
            .copied();
        let selection = ColumnSelection { columns: self.columns.clone(), keep: self.kept_columns() };
        let reader = TableSplit {
            schema: twinlens_pipeline::rejects::schema_with_reserved(&pairs::schema(&selection.keep)),
            stage: cx.stage.clone(),
            format: self.format_of(&split.file)?,
            file: self.opener.open(cx, &self.http, split).await?,
            split: split.clone(),
            position,
            selection,
        };
        split_reader::data_frame(cx, reader)
    }
}

impl Table {
    fn kept_columns(&self) -> Vec<String> {
        self.keep.iter().map(|name| name.value().clone()).collect()
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

impl SplitReader for TableSplit {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn read(&self, send: BatchSink<'_>) -> Result<(), RunError> {
        let is_complete = match self.format {
            Format::Parquet => parquet::read(self, send)?,
            Format::Arrow => ipc::read(self, send)?,
            _ => lines::read(self, send)?,
        };
        if is_complete {
            self.file.mark_read();
        }
        Ok(())
    }
}
