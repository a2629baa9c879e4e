//! The `webdataset` stage: images and texts out of tar files, as img2dataset writes them.
//!
//! A split is an even share of the samples of a file. Each reads the heads of the file, which is
//! quick, and then the bytes of its own samples, one sample at a time.

use std::fs::{self, File};
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::dataframe::DataFrame;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::OnceCell;
use twinlens_dataset::samples::{self, Entry, Span};
use twinlens_image::{Encode, Limits, Resize};
use twinlens_pipeline::stage::{Source, SourceSplit};
use twinlens_pipeline::{
    CheckContext, Fault, Input, InputTables, Located, RunContext, RunError, Stage, StageKind, Tables, Work,
};

use super::checks;
use super::files::{self, Files, Readable};
use super::reading::{self, Reading, Send};
use super::samples::{Options, Part, Reader, Sample};
use crate::net::HttpOptions;

/// Tar files of images and texts.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WebDataset {
    /// The tar files, not compressed, relative to the pipeline file; `*` and `?` in the last part
    /// are patterns. Or URLs (http, https): each is copied, read, and taken away; that one changed
    /// is not noticed.
    files: Located<Vec<Located<String>>>,
    /// The member of the JSON that is the caption; else the text, else the usual names in the JSON.
    #[serde(default)]
    caption: Option<String>,
    /// Members of the JSON to keep, as strings.
    #[serde(default)]
    keep: Vec<Located<String>>,
    /// How large an image may be.
    #[serde(default = "super::nowhere::<Limits>")]
    limits: Located<Limits>,
    /// How images are resized; they are not if nothing is said.
    #[serde(default = "super::samples::no_resize")]
    resize: Located<Resize>,
    /// How images are stored; if nothing is said, as they are.
    #[serde(default = "super::samples::original")]
    encode: Located<Encode>,
    /// Bytes of a file for each split, about.
    #[serde(default = "split_bytes")]
    split_bytes: u64,
    /// How the network is used, where `files` are URLs.
    #[serde(default = "super::nowhere::<HttpOptions>")]
    http: Located<HttpOptions>,
    /// The splits share its budgets.
    #[serde(skip)]
    reader: OnceCell<Arc<Reader>>,
    #[serde(skip)]
    open: Files,
}

fn split_bytes() -> u64 {
    64 << 20
}

impl StageKind for WebDataset {
    const KIND: &'static str = "webdataset";
    const ABOUT: &'static str = "Reads images and captions out of tar files (webdataset, img2dataset); members that are damaged are rejects.";
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
        files::watched(&self.files)
    }

    fn tables(&self, _: &CheckContext, _: &[InputTables]) -> Result<Tables, Vec<Fault>> {
        let mut faults = self.options().faults();
        faults.extend(checks::http(&self.http));
        faults.extend(files::faults(&self.files));
        for file in self.files.iter().filter(|file| file.ends_with(".gz") || file.ends_with(".tgz")) {
            let fault = Fault::at(file.span(), "a compressed tar file cannot be read in parts");
            faults.push(fault.hint("decompress it: images are compressed already"));
        }
        checks::tables(faults, || Tables::main(self.options().schema()))
    }

    fn work(&self) -> Work<'_> {
        Work::Source(self)
    }
}

#[async_trait]
impl Source for WebDataset {
    async fn splits(&self, cx: &RunContext) -> Result<Vec<SourceSplit>, RunError> {
        let mut splits = Vec::new();
        for whole in files::splits(cx, &self.files)? {
            // What is on a web server is copied whole, and read at once.
            let length = match files::is_web(&whole.file) {
                true => 0,
                false => fs::metadata(&whole.file).map_err(|error| RunError::io(&whole.file, error))?.len(),
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
        let file = self.open.open(cx, &self.http, split).await?;
        reading::frame(cx, Shard { reader, file, part: split.start, parts: split.end.max(1) })
    }
}

impl WebDataset {
    fn options(&self) -> Options<'_> {
        Options {
            limits: &self.limits,
            resize: &self.resize,
            encode: &self.encode,
            keep: &self.keep,
            caption: self.caption.as_deref(),
        }
    }
}

/// One split, as it is read: part `start` of `end` parts of a file.
#[derive(Debug)]
struct Shard {
    reader: Arc<Reader>,
    file: Readable,
    part: u64,
    parts: u64,
}

impl Reading for Shard {
    fn schema(&self) -> &SchemaRef {
        &self.reader.schema
    }

    fn read(&self, send: Send<'_>) -> Result<(), RunError> {
        let (path, name) = (self.file.path(), &self.file.name);
        let io = |error| RunError::io(path, error);
        let file = File::open(path).map_err(io)?;
        let length = file.metadata().map_err(io)?.len();
        let mut file = BufReader::new(file);
        let samples::Index { entries, damage, .. } =
            samples::index(&mut file, length, self.reader.limits.max_bytes).map_err(io)?;
        let (part, parts, total) = (self.part, self.parts, entries.len() as u64);
        let share = |part: u64| (u128::from(total) * u128::from(part) / u128::from(parts)) as usize;
        let own = entries.into_iter().take(share(part + 1)).skip(share(part));
        // What belongs to no sample is told once.
        let damage = damage.into_iter().filter(|_| part == 0).map(|(at, refusal)| {
            let place = format!("{name} byte {at}");
            Found::Damage(Sample { place, image: Some(Err(refusal)), ..Sample::default() })
        });
        let mut file = file.into_inner();
        let mut bytes_of = |span: Option<Span>| -> Result<Part, RunError> {
            Ok(match span {
                None => None,
                Some(Err(refusal)) => Some(Err(refusal)),
                Some(Ok((at, size))) => {
                    let mut bytes = vec![0; size as usize];
                    file.seek(SeekFrom::Start(at)).and_then(|_| file.read_exact(&mut bytes)).map_err(io)?;
                    Some(Ok(bytes))
                }
            })
        };
        let all = self.reader.read(
            own.map(Found::Entry).chain(damage),
            |found| match found {
                Found::Entry(entry) => {
                    let size = |span: &Option<Span>| {
                        span.as_ref().and_then(|span| span.as_ref().ok()).map_or(0, |span| span.1)
                    };
                    size(&entry.image) + size(&entry.text) + size(&entry.json)
                }
                Found::Damage(_) => 0,
            },
            |found| match found {
                Found::Entry(entry) => Ok(Sample {
                    place: format!("{name}/{}", entry.key),
                    path: entry.path,
                    image: bytes_of(entry.image)?,
                    text: bytes_of(entry.text)?,
                    json: bytes_of(entry.json)?,
                }),
                Found::Damage(sample) => Ok(sample),
            },
            send,
        )?;
        if all {
            self.file.served();
        }
        Ok(())
    }
}

/// A sample to read, or a damaged place.
enum Found {
    Entry(Entry),
    Damage(Sample),
}
