//! The `table` stage: lists of URLs and captions in Parquet, Arrow, CSV, TSV or JSONL files.

mod ipc;
mod lines;
mod parquet;
mod rows;

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

use self::rows::Wanted;
pub(super) use self::rows::{CAPTIONS as CAPTION_NAMES, URLS as URL_NAMES};
use super::checks;
use super::files::{self, Files, Readable, blocking, short};
use super::reading::{self, Send};
use crate::net::HttpOptions;
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
    fn of(file: &str) -> Option<Self> {
        match short(file).rsplit_once('.')?.1.to_ascii_lowercase().as_str() {
            "parquet" => Some(Self::Parquet),
            "arrow" | "feather" | "ipc" | "arrows" => Some(Self::Arrow),
            "csv" => Some(Self::Csv),
            "tsv" | "tab" => Some(Self::Tsv),
            "jsonl" | "ndjson" => Some(Self::Jsonl),
            _ => None,
        }
    }
}

/// Which columns hold what. Without a name, the usual ones are looked for: those of LAION, COYO,
/// CC3M, CC12M, DataComp and img2dataset.
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
    /// The files, relative to the pipeline file; `*` and `?` in the last part are patterns. Or URLs
    /// (http, https): each is copied, read as one split, and taken away; that one changed is not
    /// noticed.
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
    /// How the network is used, where `files` are URLs.
    #[serde(default = "super::nowhere::<HttpOptions>")]
    http: Located<HttpOptions>,
    #[serde(skip)]
    places: OnceCell<Arc<Places>>,
    #[serde(skip)]
    open: Files,
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
        files::watched(&self.files)
    }

    fn tables(&self, _: &CheckContext, _: &[InputTables]) -> Result<Tables, Vec<Fault>> {
        let mut faults = files::faults(&self.files);
        faults.extend(checks::http(&self.http));
        for file in self.files.iter() {
            if self.format.is_none() && Format::of(file).is_none() {
                let fault = Fault::at(
                    file.span(),
                    format!("the ending of `{}` does not tell its format", file.value()),
                );
                faults.push(fault.hint("say `format = \"csv\"` (or parquet, arrow, tsv, jsonl)"));
            }
        }
        faults.extend(checks::kept(&self.keep, &contracts::pair_texts()));
        checks::tables(faults, || Tables::main(pairs::schema(&self.kept())))
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
        for whole in files::splits(cx, &self.files)? {
            cx.check_cancelled()?;
            // How many rows it has is known when it is here.
            if files::is_web(&whole.file) {
                splits.push(whole);
                continue;
            }
            let (format, name) = (self.format_of(&whole.file)?, whole.file);
            let path = name.clone();
            let measure = move || match format {
                Format::Parquet => parquet::rows(path.as_ref()).map(|total| (total, Vec::new())),
                Format::Arrow => ipc::rows(path.as_ref()).map(|total| (total, Vec::new())),
                _ => lines::places(path.as_ref(), format, rows),
            };
            let (total, begins) = blocking(measure).await??;
            let split = |start: u64| {
                let end = total.min(start + rows);
                let label = format!("{} rows {start}..{end}", short(&name));
                SourceSplit { label, file: name.clone(), start, end }
            };
            splits.extend((0..total.div_ceil(rows)).map(|number| split(number * rows)));
            let begins = begins.into_iter().enumerate();
            places.extend(begins.map(|(number, place)| ((name.clone(), number as u64 * rows), place)));
        }
        // Set once: the files do not change within a run.
        let _again = self.places.set(Arc::new(places));
        Ok(splits)
    }

    async fn read(&self, cx: &RunContext, split: &SourceSplit) -> Result<DataFrame, RunError> {
        let place =
            self.places.get().and_then(|places| places.get(&(split.file.clone(), split.start))).copied();
        let wanted = Wanted { columns: self.columns.clone(), keep: self.kept() };
        let reading = Reading {
            schema: twinlens_pipeline::rejects::schema_with_reserved(&pairs::schema(&wanted.keep)),
            stage: cx.stage.clone(),
            format: self.format_of(&split.file)?,
            file: self.open.open(cx, &self.http, split).await?,
            split: split.clone(),
            place,
            wanted,
        };
        reading::frame(cx, reading)
    }
}

impl Table {
    fn kept(&self) -> Vec<String> {
        self.keep.iter().map(|name| name.value().clone()).collect()
    }

    fn format_of(&self, file: &str) -> Result<Format, RunError> {
        self.format.or_else(|| Format::of(file)).ok_or_else(|| {
            RunError::user_with_hint(
                format!("the ending of {file} does not tell its format"),
                "say `format = \"csv\"`",
            )
        })
    }
}

/// One split, as it is read.
#[derive(Debug)]
struct Reading {
    schema: SchemaRef,
    stage: String,
    format: Format,
    file: Readable,
    split: SourceSplit,
    place: Option<(u64, u64)>,
    wanted: Wanted,
}

impl reading::Reading for Reading {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn read(&self, send: Send<'_>) -> Result<(), RunError> {
        let all = match self.format {
            Format::Parquet => parquet::read(self, send)?,
            Format::Arrow => ipc::read(self, send)?,
            _ => lines::read(self, send)?,
        };
        if all {
            self.file.served();
        }
        Ok(())
    }
}

impl Reading {
    /// The user's fault with the file, which is named as the user wrote it.
    fn fault(&self, why: impl std::fmt::Display) -> RunError {
        RunError::user(format!("{}: {why}", self.split.file))
    }
}
