//! The `folder` stage: images in directories, each with its caption in a file of the same name with
//! another extension.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::dataframe::DataFrame;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::OnceCell;
use twinlens_image::{Encode, Limits, Resize};
use twinlens_pipeline::stage::{Source, SourceSplit};
use twinlens_pipeline::{
    CheckContext, Fault, Input, InputTables, Located, RunContext, RunError, Stage, StageKind, Tables, Work,
};

use super::options;
use super::samples::{IMAGES, MAX_TEXT, Sample, SampleOptions, SamplePart, SampleReader};
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
                list_images(folder, &parent, &mut images)?;
            }
            Ok::<_, RunError>(images)
        };
        let images = twinlens_pipeline::blocking(list).await??;
        Ok(Arc::new(ImageList { reader: Arc::new(self.options().reader(cx, Self::KIND)), images }))
    }
}

/// Adds the images of a directory and its subdirectories, ordered by name. Symbolic links to
/// directories are not followed: they may form cycles.
fn list_images(folder: &Path, parent: &Path, images: &mut Vec<(PathBuf, String)>) -> Result<(), RunError> {
    let mut open = vec![folder.to_path_buf()];
    while let Some(folder) = open.pop() {
        let io = |error| RunError::io(&folder, error);
        let mut entries = fs::read_dir(&folder).map_err(io)?.collect::<Result<Vec<_>, _>>().map_err(io)?;
        entries.sort_by_key(fs::DirEntry::file_name);
        let mut folders = Vec::new();
        for entry in entries {
            let path = entry.path();
            if entry.file_type().map_err(io)?.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(is_image) {
                let name = path.strip_prefix(parent).unwrap_or(&path).to_string_lossy().replace('\\', "/");
                images.push((path, name));
            }
        }
        open.extend(folders.into_iter().rev());
    }
    Ok(())
}

fn is_image(ending: &std::ffi::OsStr) -> bool {
    ending.to_str().is_some_and(|ending| IMAGES.contains(&ending.to_ascii_lowercase().as_str()))
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
            |(path, name)| {
                Ok(Sample {
                    location: name.clone(),
                    path: name.clone(),
                    image: Some(
                        read_part(path, max_image)?.unwrap_or_else(|| {
                            Err(("no_image", "the file was deleted during the run".into()))
                        }),
                    ),
                    text: read_part(&path.with_extension("txt"), MAX_TEXT)?,
                    json: read_part(&path.with_extension("json"), MAX_TEXT)?,
                })
            },
            send,
        )?;
        Ok(())
    }
}

/// The bytes of a file, if it exists.
fn read_part(path: &Path, limit: u64) -> Result<SamplePart, RunError> {
    let io = |error| RunError::io(path, error);
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io(error)),
    };
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).map_err(io)?;
    let is_too_long = bytes.len() as u64 > limit;
    let too_long = || ("too_many_bytes", format!("longer than {limit} bytes"));
    Ok(Some(if is_too_long { Err(too_long()) } else { Ok(bytes) }))
}
