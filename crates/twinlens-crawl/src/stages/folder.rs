//! The `folder` stage: images in directories, each with its caption in a file of the same name with
//! another extension.

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
use twinlens_pipeline::stage::{Source, SourceSplit};
use twinlens_pipeline::{
    CheckContext, Fault, Input, InputTables, Located, RunContext, RunError, Stage, StageKind, Tables, Work,
};

use super::options;
use super::samples::{SampleOptions, SampleReader};
use super::split_reader::{self, BatchSink, SplitReader};

/// Reads directories of images with their captions.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Folder {
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
    #[serde(skip)]
    images: OnceCell<Arc<ImageList>>,
}

fn split_rows() -> usize {
    1000
}

impl StageKind for Folder {
    const KIND: &'static str = "folder";
    const ABOUT: &'static str =
        "Reads images from directories, with the caption of each in a text or JSON file of the same name.";
    const EXAMPLE: &'static str = r#"
[stages.images]
kind = "folder"
folders = ["photos"]
resize = { size = 256 }
"#;
    const VERSION: u32 = 1;
}

impl Stage for Folder {
    fn inputs(&self) -> Vec<Input> {
        Vec::new()
    }

    fn files(&self) -> Vec<Located<String>> {
        // Whole directories, so that a changed text file is noticed.
        let whole = |folder: &Located<String>| format!("{}/", folder.trim_end_matches('/'));
        self.folders.iter().map(|folder| Located::new(whole(folder), folder.span())).collect()
    }

    fn tables(&self, _: &CheckContext, _: &[InputTables]) -> Result<Tables, Vec<Fault>> {
        let mut faults = self.options().faults();
        if self.folders.is_empty() {
            faults.push(Fault::at(self.folders.span(), "`folders` is empty: there is nothing to read"));
        }
        options::tables_or_faults(faults, || Tables::main(self.options().schema()))
    }

    fn work(&self) -> Work<'_> {
        Work::Source(self)
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
    async fn splits(&self, cx: &RunContext) -> Result<Vec<SourceSplit>, RunError> {
        let list = self.images.get_or_try_init(|| self.open(cx)).await?;
        let (rows, total) = (self.split_rows.max(1), list.images.len());
        let split = |start: usize| SourceSplit {
            label: format!("images {start}..{}", total.min(start + rows)),
            file: String::new(),
            start: start as u64,
            end: total.min(start + rows) as u64,
        };
        Ok((0..total).step_by(rows).map(split).collect())
    }

    async fn read(&self, cx: &RunContext, split: &SourceSplit) -> Result<DataFrame, RunError> {
        let list = self.images.get_or_try_init(|| self.open(cx)).await?.clone();
        split_reader::data_frame(
            cx,
            FolderSplit { list, start: split.start as usize, end: split.end as usize },
        )
    }
}

impl Folder {
    fn options(&self) -> SampleOptions<'_> {
        SampleOptions {
            limits: &self.limits,
            resize: &self.resize,
            encode: &self.encode,
            keep: &self.keep,
            caption: self.caption.as_deref(),
        }
    }

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
        Ok(Arc::new(ImageList { reader: Arc::new(self.options().reader(cx, Self::KIND)), images }))
    }
}

#[derive(Debug)]
struct FolderSplit {
    list: Arc<ImageList>,
    start: usize,
    end: usize,
}

impl SplitReader for FolderSplit {
    fn schema(&self) -> &SchemaRef {
        &self.list.reader.schema
    }

    fn read(&self, send: BatchSink<'_>) -> Result<(), RunError> {
        let reader = &self.list.reader;
        let images = self.list.images.get(self.start..self.end).unwrap_or_default();
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
