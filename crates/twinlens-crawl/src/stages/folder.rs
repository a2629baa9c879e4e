//! The `folder` stage: images in directories, each with its caption in a file of the same name with
//! another extension.

use std::fmt::{self, Display, Formatter};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::dataframe::DataFrame;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::OnceCell;
use twinlens_dataset::samples::{list_images, read_sample};
use twinlens_image::{Encode, Limits, Resize};
use twinlens_pipeline::{Fault, Located, Ports, RunContext, RunError, Source, StageKind, Work};

use super::samples::{SampleOptions, SampleReader};
use super::split_reader::{self, BatchSink, SplitReader};

/// Reads images from directories, with the caption of each in a text or JSON file of the same name.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FolderOptions {
    /// The directories, relative to the pipeline file, including subdirectories. The caption of
    /// `a/b.jpg` is in `a/b.txt` or `a/b.json`. Changes are detected by the names, lengths and
    /// times of files; beyond 100,000 files, by names and the times of directories.
    folders: Located<Vec<Located<String>>>,
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
    /// Images per split.
    #[serde(default = "split_rows")]
    split_rows: usize,
}

/// `folder` as it runs.
pub struct Folder {
    folders: Vec<Located<String>>,
    samples: SampleOptions,
    split_rows: usize,
    images: OnceCell<Arc<ImageList>>,
}

fn split_rows() -> usize {
    1000
}

impl StageKind for Folder {
    type Options = FolderOptions;
    const NAME: &'static str = "folder";
    const VERSION: u32 = 1;
    const EXAMPLE: &'static str = r#"
[stages.images]
kind = "folder"
folders = ["photos"]
resize = { size = 256 }
"#;

    fn plan(options: FolderOptions, ports: &mut Ports<'_>) -> Option<Work> {
        let FolderOptions { folders, caption, keep, limits, resize, encode, split_rows } = options;
        let samples = SampleOptions { limits, resize, encode, keep, caption };
        samples.declare(ports);
        if folders.is_empty() {
            ports.fault(Fault::at(folders.span(), "`folders` is empty: there is nothing to read"));
        }
        for folder in folders.iter() {
            // Whole directories, so that a changed text file is noticed.
            ports.file(&Located::new(format!("{}/", folder.trim_end_matches('/')), folder.span()));
        }
        let (folders, split_rows) = (folders.value().clone(), split_rows.max(1));
        Some(Work::source(Folder { folders, samples, split_rows, images: OnceCell::new() }))
    }
}

/// Images of the list, by their numbers.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FolderSplit {
    start: usize,
    end: usize,
}

impl Display for FolderSplit {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "images {}..{}", self.start, self.end)
    }
}

/// Shared by all splits: the reader, and the path and name of each image in order.
#[derive(Debug)]
struct ImageList {
    reader: Arc<SampleReader>,
    images: Vec<(PathBuf, String)>,
}

#[async_trait]
impl Source for Folder {
    type Split = FolderSplit;

    async fn splits(&self, cx: &RunContext) -> Result<Vec<FolderSplit>, RunError> {
        let list = self.images.get_or_try_init(|| self.open(cx)).await?;
        let (rows, total) = (self.split_rows, list.images.len());
        let split = |start: usize| FolderSplit { start, end: total.min(start + rows) };
        Ok((0..total).step_by(rows).map(split).collect())
    }

    async fn read(&self, cx: &RunContext, split: &FolderSplit) -> Result<DataFrame, RunError> {
        let list = self.images.get_or_try_init(|| self.open(cx)).await?.clone();
        split_reader::data_frame(cx, FolderReader { list, split: split.clone() })
    }
}

impl Folder {
    async fn open(&self, cx: &RunContext) -> Result<Arc<ImageList>, RunError> {
        let folders: Vec<PathBuf> = self.folders.iter().map(|folder| cx.path(folder)).collect();
        let list = move || {
            let mut images = Vec::new();
            for folder in &folders {
                // Names start with the directory itself, so that they do not depend on where it is.
                let parent = folder.parent().unwrap_or(Path::new("")).to_path_buf();
                images.extend(list_images(folder)?.into_iter().map(|path| {
                    let name =
                        path.strip_prefix(&parent).unwrap_or(&path).to_string_lossy().replace('\\', "/");
                    (path, name)
                }));
            }
            Ok::<_, RunError>(images)
        };
        let images = twinlens_pipeline::blocking(list).await??;
        Ok(Arc::new(ImageList { reader: Arc::new(self.samples.reader(cx, Self::NAME)), images }))
    }
}

#[derive(Debug)]
struct FolderReader {
    list: Arc<ImageList>,
    split: FolderSplit,
}

impl SplitReader for FolderReader {
    fn schema(&self) -> &SchemaRef {
        &self.list.reader.schema
    }

    fn read(&self, send: BatchSink<'_>) -> Result<(), RunError> {
        let reader = &self.list.reader;
        let images = self.list.images.get(self.split.start..self.split.end).unwrap_or_default();
        let size = |path: &Path| fs::metadata(path).map_or(0, |metadata| metadata.len());
        let max_image = reader.limits.max_bytes;
        reader.read(
            images.iter(),
            |(path, _)| size(path).min(max_image),
            |(path, name)| Ok(read_sample(path, name, max_image)?),
            send,
        )?;
        Ok(())
    }
}
