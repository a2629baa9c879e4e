//! The `webdataset` stage: reads images and texts from tar files, as img2dataset writes them.
//!
//! A split is an equal share of the samples in a file. Each split reads all tar headers, which is
//! fast, and then its own samples one by one.

use std::fs;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::dataframe::DataFrame;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::OnceCell;
use twinlens_dataset::samples::{Entry, Index, Role, Sample, TarSamples};
use twinlens_image::{Encode, Limits, Resize};
use twinlens_pipeline::stage::{Source, SourceSplit};
use twinlens_pipeline::{
    CheckContext, Fault, Input, InputTables, Located, RunContext, RunError, Stage, StageKind, Tables, Work,
};

use super::common::is_url;
use super::files::{self, FileOpener, InputFile};
use super::options;
use super::samples::{SampleOptions, SampleReader};
use super::split_reader::{self, BatchSink, SplitReader};
use crate::net::HttpOptions;

/// Reads tar files of images and texts.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WebDataset {
    /// Uncompressed tar files, relative to the pipeline file; the last path component may contain
    /// the wildcards `*` and `?`. Or http(s) URLs: each is downloaded, read, and deleted; changes
    /// on the server are not detected.
    files: Located<Vec<Located<String>>>,
    /// Name of the caption in the JSON. Default: the text file, or else a usual name in the JSON.
    #[serde(default)]
    caption: Option<String>,
    /// Values of the JSON to keep as string columns.
    #[serde(default)]
    keep: Vec<Located<String>>,
    /// Limits on the size of images.
    #[serde(default = "super::options::default_option::<Limits>")]
    limits: Located<Limits>,
    /// How to resize images. Default: not at all.
    #[serde(default = "super::samples::no_resize")]
    resize: Located<Resize>,
    /// How to encode images. Default: keep the original bytes.
    #[serde(default = "super::samples::original")]
    encode: Located<Encode>,
    /// Approximate bytes of a file per split.
    #[serde(default = "split_bytes")]
    split_bytes: u64,
    /// HTTP settings for `files` that are URLs.
    #[serde(default = "super::options::default_option::<HttpOptions>")]
    http: Located<HttpOptions>,
    /// Shared by the splits, with its byte budgets.
    #[serde(skip)]
    reader: OnceCell<Arc<SampleReader>>,
    #[serde(skip)]
    opener: FileOpener,
}

fn split_bytes() -> u64 {
    64 << 20
}

impl StageKind for WebDataset {
    const KIND: &'static str = "webdataset";
    const ABOUT: &'static str =
        "Reads images and captions from tar files (webdataset, img2dataset); damaged members are rejected.";
    const EXAMPLE: &'static str = r#"
[stages.images]
kind = "webdataset"
files = ["laion/*.tar"]
keep = ["similarity"]
"#;
    const VERSION: u32 = 1;
}

impl Stage for WebDataset {
    fn inputs(&self) -> Vec<Input> {
        Vec::new()
    }

    fn files(&self) -> Vec<Located<String>> {
        files::local_files(&self.files)
    }

    fn tables(&self, _: &CheckContext, _: &[InputTables]) -> Result<Tables, Vec<Fault>> {
        let mut faults = self.options().faults();
        faults.extend(options::http_faults(&self.http));
        faults.extend(files::files_faults(&self.files));
        for file in self.files.iter().filter(|file| file.ends_with(".gz") || file.ends_with(".tgz")) {
            let fault = Fault::at(file.span(), "compressed tar files are not supported");
            faults.push(fault.hint("decompress the file: images are already compressed"));
        }
        options::tables_or_faults(faults, || Tables::main(self.options().schema()))
    }

    fn work(&self) -> Work<'_> {
        Work::Source(self)
    }
}

#[async_trait]
impl Source for WebDataset {
    async fn splits(&self, cx: &RunContext) -> Result<Vec<SourceSplit>, RunError> {
        let mut splits = Vec::new();
        for whole in files::file_splits(cx, &self.files)? {
            // A URL is one split.
            let length = if is_url(&whole.file) {
                0
            } else {
                fs::metadata(&whole.file).map_err(|error| RunError::io(&whole.file, error))?.len()
            };
            let parts = length.div_ceil(self.split_bytes.max(1)).max(1);
            splits.extend((0..parts).map(|part| SourceSplit {
                label: format!("{} part {} of {parts}", whole.label, part + 1),
                start: part,
                end: parts,
                ..whole.clone()
            }));
        }
        Ok(splits)
    }

    async fn read(&self, cx: &RunContext, split: &SourceSplit) -> Result<DataFrame, RunError> {
        let reader = self
            .reader
            .get_or_init(|| async { Arc::new(self.options().reader(cx, Self::KIND)) })
            .await
            .clone();
        let file = self.opener.open(cx, &self.http, split).await?;
        split_reader::data_frame(cx, TarSplit { reader, file, part: split.start, parts: split.end.max(1) })
    }
}

impl WebDataset {
    fn options(&self) -> SampleOptions<'_> {
        SampleOptions {
            limits: &self.limits,
            resize: &self.resize,
            encode: &self.encode,
            keep: &self.keep,
            caption: self.caption.as_deref(),
        }
    }
}

/// Part `part` of `parts` of a file.
#[derive(Debug)]
struct TarSplit {
    reader: Arc<SampleReader>,
    file: InputFile,
    part: u64,
    parts: u64,
}

impl SplitReader for TarSplit {
    fn schema(&self) -> &SchemaRef {
        &self.reader.schema
    }

    fn read(&self, send: BatchSink<'_>) -> Result<(), RunError> {
        let (path, name) = (self.file.path(), &self.file.name);
        let mut file = TarSamples::open(path)?;
        let Index { entries, damage, .. } = file.index(self.reader.limits.max_bytes, Role::PAIR)?;
        let (part, parts, total) = (self.part, self.parts, entries.len() as u64);
        let boundary = |part: u64| (u128::from(total) * u128::from(part) / u128::from(parts)) as usize;
        let own = entries.into_iter().take(boundary(part + 1)).skip(boundary(part));
        // Damage outside samples is reported once.
        let damage = damage.into_iter().filter(|_| part == 0).map(|(at, refusal)| {
            let location = format!("{name} byte {at}");
            TarItem::Damage(Sample { location, image: Some(Err(refusal)), ..Sample::default() })
        });
        let is_complete = self.reader.read(
            own.map(TarItem::Entry).chain(damage),
            |item| match item {
                TarItem::Entry(entry) => entry.bytes(),
                TarItem::Damage(_) => 0,
            },
            |item| match item {
                TarItem::Entry(entry) => Ok(file.sample(name, entry)?),
                TarItem::Damage(sample) => Ok(sample),
            },
            send,
        )?;
        if is_complete {
            self.file.mark_read();
        }
        Ok(())
    }
}

enum TarItem {
    Entry(Entry),
    Damage(Sample),
}
