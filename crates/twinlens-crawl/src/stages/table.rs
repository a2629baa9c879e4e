//! The `table` stage: lists of URLs and captions in Parquet, Arrow, CSV, TSV or JSONL files.

mod ipc;
mod lines;
mod parquet;
mod rows;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::streaming::StreamingTable;
use datafusion::dataframe::DataFrame;
use datafusion::execution::TaskContext;
use datafusion::physical_plan::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchReceiverStreamBuilder;
use datafusion::physical_plan::streaming::PartitionStream;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::OnceCell;
use twinlens_dataset::contracts;
use twinlens_pipeline::stage::{Source, SourceSplit};
use twinlens_pipeline::{
    CheckContext, Fault, Input, InputTables, Located, RunContext, RunError, Stage, StageKind, Tables, Work,
};

use self::rows::Wanted;
pub(super) use self::rows::{CAPTIONS as CAPTION_NAMES, URLS as URL_NAMES};
use super::files::{blocking, short};
use crate::pairs;

/// The codes of rows that cannot be read.
pub const CODES: &[&str] =
    &["no_url", "no_caption", "malformed_row", "malformed_json", "not_utf8", "row_too_long"];

/// How the rows of a file are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Apache Parquet.
    Parquet,
    /// Apache Arrow IPC, as a file or as a stream; Feather 2.
    Arrow,
    /// Values parted by commas, with a header (or without one, where the first row holds a URL).
    Csv,
    /// Values parted by tabs, with a header (or without one, as CC3M and CC12M).
    Tsv,
    /// One JSON object a line.
    Jsonl,
}

impl Format {
    fn of(path: &Path) -> Option<Self> {
        match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
            "parquet" => Some(Self::Parquet),
            "arrow" | "feather" | "ipc" | "arrows" => Some(Self::Arrow),
            "csv" => Some(Self::Csv),
            "tsv" | "tab" => Some(Self::Tsv),
            "jsonl" | "ndjson" => Some(Self::Jsonl),
            _ => None,
        }
    }
}

/// Which columns hold what. Without a name, the usual ones are looked for: those of LAION, COYO, CC3M, CC12M, DataComp and img2dataset.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Columns {
    /// The image's URL.
    pub url: Option<String>,
    /// The text.
    pub caption: Option<String>,
    /// The page on which the image was found.
    pub page_url: Option<String>,
    /// Where on the page the text stood.
    pub text_source: Option<String>,
}

/// Lists of URLs and captions.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Table {
    /// The files, relative to the pipeline file; `*` and `?` in the last part are patterns.
    files: Located<Vec<Located<String>>>,
    /// How the rows are written; else told by the file's ending.
    #[serde(default)]
    format: Option<Format>,
    /// Which columns hold what.
    #[serde(default)]
    columns: Columns,
    /// Further columns to keep, as strings.
    #[serde(default)]
    keep: Vec<Located<String>>,
    /// Rows of a split.
    #[serde(default = "split_rows")]
    split_rows: usize,
    #[serde(skip)]
    places: OnceCell<Arc<Places>>,
}

fn split_rows() -> usize {
    65_536
}

impl StageKind for Table {
    const KIND: &'static str = "table";
    const ABOUT: &'static str = "Reads image URLs and captions from Parquet, Arrow, CSV, TSV or JSONL files; rows that cannot be read are rejects.";
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
        self.files.value().clone()
    }

    fn tables(&self, _: &CheckContext, _: &[InputTables]) -> Result<Tables, Vec<Fault>> {
        let mut faults = Vec::new();
        if self.files.is_empty() {
            faults.push(Fault::at(self.files.span(), "`files` is empty: there is nothing to read"));
        }
        for file in self.files.iter() {
            if self.format.is_none() && Format::of(Path::new(file.value())).is_none() {
                let fault = Fault::at(
                    file.span(),
                    format!("the ending of `{}` does not tell its format", file.value()),
                );
                faults.push(fault.hint("say `format = \"csv\"` (or parquet, arrow, tsv, jsonl)"));
            }
        }
        let texts = contracts::pair_texts();
        let mut kept: Vec<&str> = Vec::new();
        for name in &self.keep {
            if texts.field_with_name(name).is_ok()
                || twinlens_pipeline::rejects::RESERVED.contains(&name.as_str())
                || kept.contains(&name.as_str())
            {
                faults.push(Fault::at(
                    name.span(),
                    format!("the table has a column `{}` already", name.value()),
                ));
            }
            kept.push(name);
        }
        match faults.is_empty() {
            true => Ok(Tables::main(pairs::schema(&self.kept()))),
            false => Err(faults),
        }
    }

    fn work(&self) -> Work<'_> {
        Work::Source(self)
    }
}

/// Where in a text file a split begins: its first row, the byte, and the line.
type Places = HashMap<(String, u64), (u64, u64)>;

#[async_trait]
impl Source for Table {
    async fn splits(&self, cx: &RunContext) -> Result<Vec<SourceSplit>, RunError> {
        let rows = self.split_rows.max(1) as u64;
        let mut splits = Vec::new();
        let mut places = Places::new();
        for path in self.paths(cx)? {
            cx.check_cancelled()?;
            let (format, name) = (self.format_of(&path)?, path.display().to_string());
            let measure = move || match format {
                Format::Parquet => parquet::rows(&path).map(|total| (total, Vec::new())),
                Format::Arrow => ipc::rows(&path).map(|total| (total, Vec::new())),
                _ => lines::places(&path, format, rows),
            };
            let (total, begins) = blocking(measure).await??;
            let split = |start: u64| {
                let end = total.min(start + rows);
                SourceSplit {
                    label: format!("{} rows {start}..{end}", short(&name)),
                    file: name.clone(),
                    start,
                    end,
                }
            };
            splits.extend((0..total.div_ceil(rows)).map(|number| split(number * rows)));
            places.extend(
                begins
                    .into_iter()
                    .enumerate()
                    .map(|(number, place)| ((name.clone(), number as u64 * rows), place)),
            );
        }
        // Set once: the files do not change within a run.
        let _again = self.places.set(Arc::new(places));
        Ok(splits)
    }

    async fn read(&self, cx: &RunContext, split: &SourceSplit) -> Result<DataFrame, RunError> {
        let path = PathBuf::from(&split.file);
        let place =
            self.places.get().and_then(|places| places.get(&(split.file.clone(), split.start))).copied();
        let wanted = Wanted { columns: self.columns.clone(), keep: self.kept() };
        let reading = Reading {
            schema: twinlens_pipeline::rejects::schema_with_reserved(&pairs::schema(&wanted.keep)),
            stage: cx.stage.clone(),
            format: self.format_of(&path)?,
            path,
            split: split.clone(),
            place,
            wanted,
        };
        let schema = reading.schema.clone();
        Ok(cx.session.read_table(Arc::new(StreamingTable::try_new(schema, vec![Arc::new(reading)])?))?)
    }
}

impl Table {
    fn kept(&self) -> Vec<String> {
        self.keep.iter().map(|name| name.value().clone()).collect()
    }

    fn paths(&self, cx: &RunContext) -> Result<Vec<PathBuf>, RunError> {
        let mut paths = Vec::new();
        for file in self.files.iter() {
            paths.extend(cx.local_files(file)?);
        }
        Ok(paths)
    }

    fn format_of(&self, path: &Path) -> Result<Format, RunError> {
        self.format.or_else(|| Format::of(path)).ok_or_else(|| {
            RunError::user_with_hint(
                format!("the ending of {} does not tell its format", path.display()),
                "say `format = \"csv\"`",
            )
        })
    }
}

/// One split, as it is read.
#[derive(Debug, Clone)]
struct Reading {
    schema: SchemaRef,
    stage: String,
    format: Format,
    path: PathBuf,
    split: SourceSplit,
    place: Option<(u64, u64)>,
    wanted: Wanted,
}

impl PartitionStream for Reading {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, _: Arc<TaskContext>) -> SendableRecordBatchStream {
        let mut builder = RecordBatchReceiverStreamBuilder::new(self.schema.clone(), 2);
        let (batches, reading) = (builder.tx(), self.clone());
        builder.spawn_blocking(move || {
            // A receiver that is gone has no use for what is left.
            let mut send = |batch: RecordBatch| batches.blocking_send(Ok(batch)).is_ok();
            match reading.format {
                Format::Parquet => parquet::read(&reading, &mut send)?,
                Format::Arrow => ipc::read(&reading, &mut send)?,
                _ => lines::read(&reading, &mut send)?,
            }
            Ok(())
        });
        builder.build()
    }
}
