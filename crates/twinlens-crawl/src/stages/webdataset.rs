//! The `webdataset` stage: reads images and texts from tar files, as img2dataset writes them.
//!
//! A split is an equal share of the samples in a file. Each split reads all tar headers, which is
//! fast, and then its own samples one by one.

use std::fmt::{self, Display, Formatter};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::dataframe::DataFrame;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::OnceCell;
use twinlens_dataset::samples::{Entry, TarSamples, Unread};
use twinlens_dataset::unpack::unpack;
use twinlens_image::{Encode, Limits, Resize};
use twinlens_pipeline::{Located, Ports, RunContext, RunError, Source, StageKind, Work};

use super::common::file_name;
use super::files::{self, FileOpener, InputFile, ListedFile};
use super::options;
use super::samples::{Captions, SampleOptions, SampleReader, sample_options, unread_sample};
use super::split_reader::{self, BatchSink, SplitReader};
use crate::net::HttpOptions;

/// Reads images and captions from tar files (webdataset, img2dataset); damaged and unused members
/// are rejected.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WebDatasetOptions {
    /// Tar files, relative to the pipeline file; the last path component may contain the wildcards
    /// `*` and `?`. Or http(s) URLs: each is downloaded, read, and deleted; changes on the server
    /// are not detected. Files compressed by gzip, Zstandard, bzip2 or xz are decompressed on disk.
    files: Located<Vec<Located<String>>>,
    /// Name of the caption in the JSON. Default: the text file, or else a usual name in the JSON.
    #[serde(default)]
    caption: Option<String>,
    /// What to do with several captions of an image: lines of its text file, or a list in the JSON.
    /// By default they are an error.
    #[serde(default)]
    captions: Option<Captions>,
    /// Whether captions keep characters that cannot be seen: zero-width spaces, soft hyphens, marks
    /// of the writing direction. By default they are dropped.
    #[serde(default)]
    keep_invisible: bool,
    /// Adds the column `label`, the text of the `cls` file; an image with a label may lack a
    /// caption.
    #[serde(default)]
    label: bool,
    /// Extensions of files to leave out, such as `npy`. By default each file that is not part of a
    /// sample is a reject.
    #[serde(default)]
    ignore: Vec<String>,
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
    #[schemars(range(min = 1))]
    split_bytes: u64,
    /// HTTP settings for `files` that are URLs.
    #[serde(default = "super::options::default_option::<HttpOptions>")]
    http: Located<HttpOptions>,
}

/// `webdataset` as it runs.
pub struct WebDataset {
    files: Vec<Located<String>>,
    samples: SampleOptions,
    split_bytes: u64,
    opener: FileOpener,
    /// Shared by the splits, with its byte budgets.
    reader: OnceCell<Arc<SampleReader>>,
}

fn split_bytes() -> u64 {
    64 << 20
}

impl StageKind for WebDataset {
    type Options = WebDatasetOptions;
    const NAME: &'static str = "webdataset";
    const VERSION: u32 = 3;
    const EXAMPLE: &'static str = r#"
[stages.images]
kind = "webdataset"
files = ["laion/*.tar"]
keep = ["similarity"]
"#;

    fn plan(options: WebDatasetOptions, ports: &mut Ports<'_>) -> Option<Work> {
        let samples = sample_options!(options);
        let WebDatasetOptions { files, split_bytes, http, .. } = options;
        samples.declare(ports);
        options::check_http(ports, &http);
        files::declare(ports, &files);
        Some(Work::source(WebDataset {
            files: files.value().clone(),
            samples,
            split_bytes: split_bytes.max(1),
            opener: FileOpener::new(http.value().clone()),
            reader: OnceCell::new(),
        }))
    }
}

/// Part `part` of `parts` of a file.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TarSplit {
    /// Its name, as [`ListedFile::name`].
    file: String,
    part: u64,
    parts: u64,
}

impl Display for TarSplit {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{} part {} of {}", file_name(&self.file), self.part + 1, self.parts)
    }
}

/// The number of splits of a local file. A compressed one has to be decompressed for each: it is
/// one.
fn parts(path: &Path, split_bytes: u64) -> Result<u64, RunError> {
    let io = |error| RunError::io(path, error);
    let file = File::open(path).map_err(io)?;
    let length = file.metadata().map_err(io)?.len();
    let is_plain = unpack(file).map_err(io)?.layers.is_empty();
    Ok(if is_plain { length.div_ceil(split_bytes).max(1) } else { 1 })
}

#[async_trait]
impl Source for WebDataset {
    type Split = TarSplit;

    async fn splits(&self, cx: &RunContext) -> Result<Vec<TarSplit>, RunError> {
        let mut splits = Vec::new();
        for ListedFile { name, path } in files::list(cx, &self.files)? {
            let parts = path.map_or(Ok(1), |path| parts(&path, self.split_bytes))?;
            splits.extend((0..parts).map(|part| TarSplit { file: name.clone(), part, parts }));
        }
        Ok(splits)
    }

    async fn read(&self, cx: &RunContext, split: &TarSplit) -> Result<DataFrame, RunError> {
        let reader =
            self.reader.get_or_init(|| async { Arc::new(self.samples.reader(cx, Self::NAME)) }).await.clone();
        let file = self.opener.open(cx, &split.file).await?;
        let scratch = cx.files.scratch.clone();
        split_reader::data_frame(cx, TarReader { reader, file, scratch, split: split.clone() })
    }
}

#[derive(Debug)]
struct TarReader {
    reader: Arc<SampleReader>,
    file: InputFile,
    /// For a copy of a compressed file.
    scratch: PathBuf,
    split: TarSplit,
}

impl SplitReader for TarReader {
    fn schema(&self) -> &SchemaRef {
        &self.reader.schema
    }

    fn read(&self, send: BatchSink<'_>) -> Result<(), RunError> {
        self.read_samples(send).map_err(|error| self.file.name_source(error))
    }
}

impl TarReader {
    fn read_samples(&self, send: BatchSink<'_>) -> Result<(), RunError> {
        let (path, name) = (self.file.path(), &self.file.name);
        let mut file = TarSamples::open(path, Some(&self.scratch))?;
        let index = file.index(self.reader.limits.max_bytes, self.reader.roles())?;
        let entries = index.entries.into_iter().map(TarItem::Entry);
        let unread = index.unread.into_iter().filter(|unread| !self.reader.ignores(unread));
        let items: Vec<TarItem> = entries.chain(unread.map(TarItem::Unread)).collect();
        let (part, parts, total) = (self.split.part, self.split.parts, items.len());
        let boundary = |part: u64| (total as u128 * u128::from(part) / u128::from(parts)) as usize;
        let is_complete = self.reader.read(
            items.into_iter().take(boundary(part + 1)).skip(boundary(part)),
            |item| match item {
                TarItem::Entry(entry) => entry.bytes(),
                TarItem::Unread(_) => 0,
            },
            |item| match item {
                TarItem::Entry(entry) => Ok(file.sample(name, entry)?),
                TarItem::Unread(unread) => Ok(unread_sample(name, unread)),
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
    Unread(Unread),
}
