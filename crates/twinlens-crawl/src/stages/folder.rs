//! The `folder` stage: images of folders, each with its text in a file of the same name but for the
//! ending.

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

use super::checks;
use super::reading::{self, Reading, Send};
use super::samples::{IMAGES, MAX_TEXT, Options, Part, Reader, Sample};

/// Folders of images with their texts.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Folder {
    /// The folders, relative to the pipeline file; their subfolders are read too. The text of
    /// `a/b.jpg` is `a/b.txt`, or stands in `a/b.json`. That anything below them changed is noticed
    /// by names, lengths and times; beyond 100,000 files, by names and the times of folders alone.
    folders: Located<Vec<Located<String>>>,
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
    /// Images of a split.
    #[serde(default = "split_rows")]
    split_rows: usize,
    #[serde(skip)]
    opened: OnceCell<Arc<Opened>>,
}

fn split_rows() -> usize {
    1000
}

impl StageKind for Folder {
    const KIND: &'static str = "folder";
    const ABOUT: &'static str =
        "Reads images of folders, with the caption of each in a text or JSON file of the same name.";
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
        // Whole folders, so that a text that changed is noticed.
        let whole = |folder: &Located<String>| format!("{}/", folder.trim_end_matches('/'));
        self.folders.iter().map(|folder| Located::new(whole(folder), folder.span())).collect()
    }

    fn tables(&self, _: &CheckContext, _: &[InputTables]) -> Result<Tables, Vec<Fault>> {
        let mut faults = self.options().faults();
        if self.folders.is_empty() {
            faults.push(Fault::at(self.folders.span(), "`folders` is empty: there is nothing to read"));
        }
        checks::tables(faults, || Tables::main(self.options().schema()))
    }

    fn work(&self) -> Work<'_> {
        Work::Source(self)
    }
}

/// What all splits share: the images in their order, each with the folder that its name is told
/// from.
#[derive(Debug)]
struct Opened {
    reader: Arc<Reader>,
    images: Vec<(PathBuf, String)>,
}

#[async_trait]
impl Source for Folder {
    async fn splits(&self, cx: &RunContext) -> Result<Vec<SourceSplit>, RunError> {
        let opened = self.opened.get_or_try_init(|| self.open(cx)).await?;
        let (rows, total) = (self.split_rows.max(1), opened.images.len());
        let split = |start: usize| SourceSplit {
            label: format!("images {start}..{}", total.min(start + rows)),
            file: String::new(),
            start: start as u64,
            end: total.min(start + rows) as u64,
        };
        Ok((0..total).step_by(rows).map(split).collect())
    }

    async fn read(&self, cx: &RunContext, split: &SourceSplit) -> Result<DataFrame, RunError> {
        let opened = self.opened.get_or_try_init(|| self.open(cx)).await?.clone();
        reading::frame(cx, Images { opened, start: split.start as usize, end: split.end as usize })
    }
}

impl Folder {
    fn options(&self) -> Options<'_> {
        Options {
            limits: &self.limits,
            resize: &self.resize,
            encode: &self.encode,
            keep: &self.keep,
            caption: self.caption.as_deref(),
        }
    }

    async fn open(&self, cx: &RunContext) -> Result<Arc<Opened>, RunError> {
        let folders: Vec<PathBuf> = self.folders.iter().map(|folder| cx.path(folder)).collect();
        let list = move || {
            let mut images = Vec::new();
            for folder in &folders {
                // Named from the folder that holds it, so that a run elsewhere gives the same
                // names.
                let parent = folder.parent().unwrap_or(Path::new("")).to_path_buf();
                list(folder, &parent, &mut images)?;
            }
            Ok::<_, RunError>(images)
        };
        let images = super::files::blocking(list).await??;
        Ok(Arc::new(Opened { reader: Arc::new(self.options().reader(cx, Self::KIND)), images }))
    }
}

/// Adds the images of a folder and of its subfolders, in the order of their names. Links to folders
/// are not followed: they may lead back.
fn list(folder: &Path, parent: &Path, images: &mut Vec<(PathBuf, String)>) -> Result<(), RunError> {
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

/// One split: some of the images.
#[derive(Debug)]
struct Images {
    opened: Arc<Opened>,
    start: usize,
    end: usize,
}

impl Reading for Images {
    fn schema(&self) -> &SchemaRef {
        &self.opened.reader.schema
    }

    fn read(&self, send: Send<'_>) -> Result<(), RunError> {
        let reader = &self.opened.reader;
        let images = self.opened.images.get(self.start..self.end).unwrap_or_default();
        let size = |path: &Path| fs::metadata(path).map_or(0, |metadata| metadata.len());
        let max_image = reader.limits.max_bytes;
        reader.read(
            images.iter(),
            |(path, _)| size(path).min(max_image),
            |(path, name)| {
                Ok(Sample {
                    place: name.clone(),
                    path: name.clone(),
                    image: Some(part(path, max_image)?.unwrap_or_else(|| {
                        Err(("no_image", "it was taken away while the folder was read".into()))
                    })),
                    text: part(&path.with_extension("txt"), MAX_TEXT)?,
                    json: part(&path.with_extension("json"), MAX_TEXT)?,
                })
            },
            send,
        )?;
        Ok(())
    }
}

/// The bytes of a file, if there is one.
fn part(path: &Path, limit: u64) -> Result<Part, RunError> {
    let io = |error| RunError::io(path, error);
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io(error)),
    };
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).map_err(io)?;
    Ok(Some(match bytes.len() as u64 > limit {
        true => Err(("too_many_bytes", format!("longer than {limit} bytes"))),
        false => Ok(bytes),
    }))
}
