//! The `webdataset` stage: reads images and texts from tar files, as img2dataset writes them.
//!
//! A split is an equal share of the samples in a file. Each split reads all tar headers, which is
//! fast, and then its own samples one by one.

use std::fmt::{self, Display, Formatter};
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
use twinlens_pipeline::{Fault, Located, Ports, RunContext, RunError, Source, StageKind, Work};

use super::common::{file_name, is_url};
use super::files::{self, FileOpener, InputFile};
use super::options;
use super::samples::{SampleOptions, SampleReader};
use super::split_reader::{self, BatchSink, SplitReader};
use crate::net::HttpOptions;

/// Reads images and captions from tar files (webdataset, img2dataset); damaged members are
/// rejected.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WebDatasetOptions {
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
    const VERSION: u32 = 1;
    const EXAMPLE: &'static str = r#"
[stages.images]
kind = "webdataset"
files = ["laion/*.tar"]
keep = ["similarity"]
"#;

    fn plan(options: WebDatasetOptions, ports: &mut Ports<'_>) -> Option<Work> {
        let WebDatasetOptions { files, caption, keep, limits, resize, encode, split_bytes, http } = options;
        let samples = SampleOptions { limits, resize, encode, keep, caption };
        samples.declare(ports);
        options::check_http(ports, &http);
        files::declare(ports, &files);
        for file in files.iter().filter(|file| file.ends_with(".gz") || file.ends_with(".tgz")) {
            let fault = Fault::at(file.span(), "compressed tar files are not supported");
            ports.fault(fault.hint("decompress the file: images are already compressed"));
        }
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
    /// A path or URL.
    file: String,
    part: u64,
    parts: u64,
}

impl Display for TarSplit {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{} part {} of {}", file_name(&self.file), self.part + 1, self.parts)
    }
}

#[async_trait]
impl Source for WebDataset {
    type Split = TarSplit;

    async fn splits(&self, cx: &RunContext) -> Result<Vec<TarSplit>, RunError> {
        let mut splits = Vec::new();
        for file in files::list(cx, &self.files)? {
            let parts = if is_url(&file) {
                1
            } else {
                let length = fs::metadata(&file).map_err(|error| RunError::io(&file, error))?.len();
                length.div_ceil(self.split_bytes).max(1)
            };
            splits.extend((0..parts).map(|part| TarSplit { file: file.clone(), part, parts }));
        }
        Ok(splits)
    }

    async fn read(&self, cx: &RunContext, split: &TarSplit) -> Result<DataFrame, RunError> {
        let reader =
            self.reader.get_or_init(|| async { Arc::new(self.samples.reader(cx, Self::NAME)) }).await.clone();
        let file = self.opener.open(cx, &split.file).await?;
        split_reader::data_frame(cx, TarReader { reader, file, split: split.clone() })
    }
}

#[derive(Debug)]
struct TarReader {
    reader: Arc<SampleReader>,
    file: InputFile,
    split: TarSplit,
}

impl SplitReader for TarReader {
    fn schema(&self) -> &SchemaRef {
        &self.reader.schema
    }

    fn read(&self, send: BatchSink<'_>) -> Result<(), RunError> {
        let (path, name) = (self.file.path(), &self.file.name);
        let mut file = TarSamples::open(path)?;
        let Index { entries, damage, .. } = file.index(self.reader.limits.max_bytes, Role::PAIR)?;
        let (part, parts, total) = (self.split.part, self.split.parts, entries.len() as u64);
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
