//! The `folder` stage: images in directories, each with its caption in a file of the same name with
//! another extension, or in a metadata file.

use std::fmt::{self, Display, Formatter};
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::dataframe::DataFrame;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::OnceCell;
use twinlens_dataset::samples::{FolderEntry, FolderSamples, Role, Unread};
use twinlens_image::{Encode, Limits, Resize};
use twinlens_pipeline::{Fault, Located, Ports, RunContext, RunError, Source, StageKind, Work};

use super::samples::{Captions, SampleOptions, SampleReader, sample_options, unread_sample};
use super::split_reader::{self, BatchSink, SplitReader};

/// Reads images from directories, with the caption of each in a text or JSON file of the same name,
/// or in `metadata.jsonl`, `metadata.csv` or `metadata.parquet`.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FolderOptions {
    /// The directories, relative to the pipeline file, including subdirectories. The caption of
    /// `a/b.jpg` is in `a/b.txt` (or `.text`, `.caption`), in `a/b.json`, or in the row of a
    /// `metadata.jsonl`, `metadata.csv` or `metadata.parquet` whose `file_name` names the image,
    /// relative to that file (Hugging Face `imagefolder`). Changes are detected by the names,
    /// lengths and times of files; beyond 100,000 files, by names and the times of directories.
    folders: Located<Vec<Located<String>>>,
    /// Name of the caption in the JSON or metadata. Default: the text file, or else a
    /// usual name.
    #[serde(default)]
    caption: Option<String>,
    /// What to do with several captions of an image: lines of its text file, a list in the JSON,
    /// or rows of metadata. By default they are an error.
    #[serde(default)]
    captions: Option<Captions>,
    /// Whether captions keep characters that cannot be seen: zero-width spaces, soft hyphens, marks
    /// of the writing direction. By default they are dropped.
    #[serde(default)]
    keep_invisible: bool,
    /// Adds the column `label`, the name of the image's directory; an image with a label may lack a
    /// caption. Images of the outermost directory have none.
    #[serde(default)]
    label: bool,
    /// Extensions of files to leave out, such as `npy`. By default each file that is not part of a
    /// sample is a reject.
    #[serde(default)]
    ignore: Vec<String>,
    /// Values of the JSON or metadata to keep as string columns.
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
    /// Images per split.
    #[serde(default = "split_rows")]
    #[schemars(range(min = 1))]
    split_rows: usize,
}

/// `folder` as it runs.
pub struct Folder {
    folders: Vec<Located<String>>,
    samples: SampleOptions,
    split_rows: usize,
    list: OnceCell<Arc<FileList>>,
}

fn split_rows() -> usize {
    1000
}

impl StageKind for Folder {
    type Options = FolderOptions;
    const NAME: &'static str = "folder";
    const VERSION: u32 = 3;
    const EXAMPLE: &'static str = r#"
[stages.images]
kind = "folder"
folders = ["photos"]
resize = { size = 256 }
"#;

    fn plan(options: FolderOptions, ports: &mut Ports<'_>) -> Option<Work> {
        let samples = sample_options!(options);
        let FolderOptions { folders, split_rows, .. } = options;
        samples.declare(ports);
        if folders.is_empty() {
            ports.fault(Fault::at(folders.span(), "`folders` is empty: there is nothing to read"));
        }
        for folder in folders.iter() {
            // Whole directories, so that a changed text file is noticed.
            ports.file(&Located::new(format!("{}/", folder.trim_end_matches('/')), folder.span()));
        }
        let (folders, split_rows) = (folders.value().clone(), split_rows.max(1));
        Some(Work::source(Folder { folders, samples, split_rows, list: OnceCell::new() }))
    }
}

/// Items of the list, by their numbers.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FolderSplit {
    start: usize,
    end: usize,
}

impl Display for FolderSplit {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "files {}..{}", self.start, self.end)
    }
}

/// Shared by all splits.
#[derive(Debug)]
struct FileList {
    reader: Arc<SampleReader>,
    folders: Vec<FolderSamples>,
    /// All samples, then all other files, each with the number of its directory.
    items: Vec<(usize, Item)>,
}

#[derive(Debug)]
enum Item {
    Entry(Box<FolderEntry>),
    Unread(Unread),
}

#[async_trait]
impl Source for Folder {
    type Split = FolderSplit;

    async fn splits(&self, cx: &RunContext) -> Result<Vec<FolderSplit>, RunError> {
        let list = self.list.get_or_try_init(|| self.open(cx)).await?;
        let (rows, total) = (self.split_rows, list.items.len());
        let split = |start: usize| FolderSplit { start, end: total.min(start + rows) };
        Ok((0..total).step_by(rows).map(split).collect())
    }

    async fn read(&self, cx: &RunContext, split: &FolderSplit) -> Result<DataFrame, RunError> {
        let list = self.list.get_or_try_init(|| self.open(cx)).await?.clone();
        split_reader::data_frame(cx, FolderReader { list, split: split.clone() })
    }
}

impl Folder {
    async fn open(&self, cx: &RunContext) -> Result<Arc<FileList>, RunError> {
        let folders: Vec<PathBuf> = self.folders.iter().map(|folder| cx.path(folder)).collect();
        let reader = Arc::new(self.samples.reader(cx, Self::NAME));
        let list = move || {
            let (mut opened, mut items, mut unread) = (Vec::new(), Vec::new(), Vec::new());
            for (number, folder) in folders.iter().enumerate() {
                let mut samples = FolderSamples::list(folder, Role::PAIR)?;
                let entries = std::mem::take(&mut samples.entries);
                items.extend(entries.into_iter().map(|entry| (number, Item::Entry(Box::new(entry)))));
                let others = std::mem::take(&mut samples.unread).into_iter();
                let others = others.filter(|unread| !reader.ignores(unread));
                unread.extend(others.map(|other| (number, Item::Unread(other))));
                opened.push(samples);
            }
            items.extend(unread);
            Ok::<_, RunError>(FileList { reader, folders: opened, items })
        };
        Ok(Arc::new(twinlens_pipeline::blocking(list).await??))
    }
}

#[derive(Debug)]
struct FolderReader {
    list: Arc<FileList>,
    split: FolderSplit,
}

impl SplitReader for FolderReader {
    fn schema(&self) -> &SchemaRef {
        &self.list.reader.schema
    }

    fn read(&self, send: BatchSink<'_>) -> Result<(), RunError> {
        let FileList { reader, folders, items } = &*self.list;
        let max_image = reader.limits.max_bytes;
        let size = |entry: &FolderEntry| match &entry.files.image {
            Some(Ok(path)) => fs::metadata(path).map_or(0, |metadata| metadata.len()),
            _ => 0,
        };
        reader.read(
            items.get(self.split.start..self.split.end).unwrap_or_default().iter(),
            |(_, item)| match item {
                Item::Entry(entry) => size(entry).min(max_image),
                Item::Unread(_) => 0,
            },
            |(number, item)| {
                let folder = &folders[*number];
                Ok(match item {
                    Item::Entry(entry) => folder.sample(entry, max_image)?,
                    Item::Unread(unread) => unread_sample(&folder.name, unread.clone()),
                })
            },
            send,
        )?;
        Ok(())
    }
}
