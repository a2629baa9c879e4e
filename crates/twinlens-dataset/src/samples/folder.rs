//! Samples of directories: images with text and JSON files of the same name, and with the rows of
//! metadata files, as Hugging Face's `imagefolder` has them.

use std::collections::HashMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::group::{Entry, Groups, MAX_TEXT, Refusal, Role, Sample, UNREAD, Unread, is_image, read_part};
use super::metadata::{MetadataFile, RowSpan};
use crate::error::DatasetError;

/// The files of a sample, and the rows of metadata files about its image.
#[derive(Debug)]
pub struct FolderEntry {
    /// The files.
    pub files: Entry<PathBuf>,
    /// The number of the metadata file, and the row in it.
    metadata: Vec<(usize, RowSpan)>,
}

/// The samples of a directory and its subdirectories.
#[derive(Debug)]
pub struct FolderSamples {
    /// The name of the directory.
    pub name: String,
    /// Samples, ordered by directory and name; the files of a directory before its subdirectories.
    pub entries: Vec<FolderEntry>,
    /// Files that are not part of a sample, and rows of metadata files without an image.
    pub unread: Vec<Unread>,
    metadata: Vec<MetadataFile>,
}

impl FolderSamples {
    /// Lists the files below a directory. Files with other roles than `roles` are unread.
    ///
    /// # Errors
    /// I/O errors with the path; a metadata file that cannot be used at all.
    pub fn list(folder: &Path, roles: &[Role]) -> Result<Self, DatasetError> {
        let mut groups = Groups::new();
        let mut metadata = Vec::new();
        walk(folder, &mut |path, name, refusal| {
            match refusal {
                Some(RUN_DIRECTORY) => {}
                Some(why) => groups.refuse(name, why),
                None if MetadataFile::is_metadata(path) => metadata.push(MetadataFile::open(path, name)?),
                None => groups.add(name, roles, |_| Ok(path.to_path_buf())),
            }
            Ok(())
        })?;
        let parent = folder.parent().unwrap_or(Path::new(""));
        let mut samples = Self {
            name: slashed(folder.strip_prefix(parent).unwrap_or(folder)),
            entries: Vec::with_capacity(groups.entries.len()),
            unread: groups.unread,
            metadata: Vec::new(),
        };
        let entry = |files| FolderEntry { files, metadata: Vec::new() };
        samples.entries.extend(groups.entries.into_iter().map(entry));
        samples.assign(metadata)?;
        Ok(samples)
    }

    /// Gives each row of the metadata files to the image that it names.
    fn assign(&mut self, metadata: Vec<MetadataFile>) -> Result<(), DatasetError> {
        if metadata.is_empty() {
            return Ok(());
        }
        let paths = self.entries.iter().enumerate().map(|(at, entry)| (entry.files.path.clone(), at));
        let images: HashMap<String, usize> = paths.filter(|(path, _)| !path.is_empty()).collect();
        for (number, file) in metadata.iter().enumerate() {
            file.rows(&mut |line, row| {
                let image = row.and_then(|(span, image)| match images.get(&image) {
                    Some(at) => Ok((*at, span)),
                    None => Err(("no_image", format!("there is no image `{image}`"))),
                });
                match image {
                    Ok((at, span)) => self.entries[at].metadata.push((number, span)),
                    Err(refusal) => {
                        self.unread.push(Unread { place: file.place(line), refusal });
                    }
                }
            })?;
        }
        self.metadata = metadata;
        Ok(())
    }

    /// Reads a sample. Its class is the name of the directory that holds it, if that is a
    /// subdirectory.
    ///
    /// # Errors
    /// I/O errors with the path.
    pub fn sample(&self, entry: &FolderEntry, max_image: u64) -> Result<Sample, DatasetError> {
        let files = &entry.files;
        let name = if files.path.is_empty() { &files.key } else { &files.path };
        let location = format!("{}/{name}", self.name);
        let read = |part: &Option<Result<PathBuf, _>>, limit| match part {
            Some(Ok(path)) => {
                let deleted = || Err(("no_image", "the file was deleted during the run".into()));
                Ok::<_, DatasetError>(Some(read_part(path, limit)?.unwrap_or_else(deleted)))
            }
            Some(Err(refusal)) => Ok(Some(Err(Refusal::clone(refusal)))),
            None => Ok(None),
        };
        // As Hugging Face's `imagefolder`.
        let class = name.rsplit('/').nth(1);
        let metadata = entry.metadata.iter().map(|(file, span)| self.metadata[*file].row(*span));
        Ok(Sample {
            path: location.clone(),
            location,
            image: read(&files.image, max_image)?,
            text: read(&files.text, MAX_TEXT)?,
            json: read(&files.json, MAX_TEXT)?,
            class: class.map(|class| Ok(class.as_bytes().to_vec())),
            metadata: metadata.collect::<Result<_, _>>()?,
        })
    }
}

/// A path with `/` between its parts on every system.
fn slashed(path: &Path) -> String {
    path.to_string_lossy().replace('\\', "/")
}

/// Receives each file: its path, its name within the directory, and why it is not read.
type Visit<'a> = &'a mut dyn FnMut(&Path, &str, Option<&'static str>) -> Result<(), DatasetError>;

/// Why the files of a run directory are not read: runs go to `runs/` of the working directory,
/// which may be the one that they read.
pub const RUN_DIRECTORY: &str = "a run directory";

/// Whether a directory is the run directory of a pipeline.
pub fn is_run_directory(folder: &Path) -> bool {
    // Of this length if the pipeline's name is long.
    const LONGEST: u64 = 1 << 16;
    let mut text = Vec::new();
    let read =
        fs::File::open(folder.join("run.json")).and_then(|file| file.take(LONGEST).read_to_end(&mut text));
    let identity = read.ok().and_then(|_| serde_json::from_slice::<Map<String, Value>>(&text).ok());
    identity.is_some_and(|identity| {
        let of_ours = ["format", "pipeline", "crc32"];
        identity.get("pipeline").is_some_and(Value::is_string)
            && identity.get("format").is_some_and(Value::is_u64)
            && identity.keys().all(|key| of_ours.contains(&key.as_str()))
    })
}

/// Visits all files below a directory, ordered by name, the files of a directory before its
/// subdirectories. Links to directories are not followed: they may form cycles. Of run directories
/// only the name is visited.
fn walk(folder: &Path, visit: Visit<'_>) -> Result<(), DatasetError> {
    let mut open = vec![folder.to_path_buf()];
    while let Some(within) = open.pop() {
        let io = |error| DatasetError::io(&within, error);
        let mut entries = fs::read_dir(&within).map_err(io)?.collect::<Result<Vec<_>, _>>().map_err(io)?;
        entries.sort_by_key(fs::DirEntry::file_name);
        let mut folders = Vec::new();
        for entry in entries {
            let path = entry.path();
            let name = slashed(path.strip_prefix(folder).unwrap_or(&path));
            let kind = entry.file_type().map_err(io)?;
            let is_hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
            let target = if kind.is_symlink() {
                fs::metadata(&path).ok().map(|target| target.file_type())
            } else {
                Some(kind)
            };
            match target {
                None => visit(&path, &name, Some("a link to nothing"))?,
                Some(_) if kind.is_dir() && is_hidden => visit(&path, &name, Some("a hidden directory"))?,
                Some(_) if kind.is_dir() && is_run_directory(&path) => {
                    visit(&path, &name, Some(RUN_DIRECTORY))?
                }
                Some(_) if kind.is_dir() => folders.push(path),
                Some(target) if target.is_dir() => {
                    visit(&path, &name, Some("links to directories are not followed"))?;
                }
                Some(target) if target.is_file() => visit(&path, &name, None)?,
                Some(_) => visit(&path, &name, Some("not a regular file"))?,
            }
        }
        open.extend(folders.into_iter().rev());
    }
    Ok(())
}

/// The images below a directory, ordered by name, the files of a directory before its
/// subdirectories; and the other files, each with its name within the directory.
///
/// # Errors
/// I/O errors with the path.
pub fn list_images_and_others(folder: &Path) -> Result<(Vec<PathBuf>, Vec<Unread>), DatasetError> {
    let (mut images, mut others) = (Vec::new(), Vec::new());
    walk(folder, &mut |path, name, refusal| {
        if refusal.is_none() && is_image(path) {
            images.push(path.to_path_buf());
        } else {
            let refusal = (UNREAD, refusal.unwrap_or("not an image").to_string());
            others.push(Unread { place: name.into(), refusal });
        }
        Ok(())
    })?;
    Ok((images, others))
}
