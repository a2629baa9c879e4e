//! Where datasets lie: a local folder, or a folder of an object store (`s3://bucket/run`).
//!
//! A [`Location`] is either; everything that a dataset does with files goes through it. Both keep
//! the same promises: a file appears whole or not at all, a recorded file is never changed, and the
//! log (the manifest) only grows.

pub mod local;
pub mod remote;
pub mod shard;

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use object_store::ObjectStore;
use url::Url;

pub use self::local::{UNFINISHED, hex, unfinished};
use self::remote::Remote;
use crate::error::DatasetError;

/// A folder or a file.
#[derive(Clone)]
pub struct Location(Place);

#[derive(Clone)]
enum Place {
    Local(PathBuf),
    Remote(Remote),
}

impl Location {
    /// What a user wrote: the URL of an object store, or a local path, which starts at `base` when
    /// it is relative. `scratch` is a local folder for copies of remote files and for files on
    /// their way to the store.
    ///
    /// # Errors
    /// A URL that cannot be read, of an unknown scheme, or of one whose feature was not built in.
    pub fn parse(written: &str, base: &Path, scratch: &Path) -> Result<Self, DatasetError> {
        match is_url(written) {
            true => Ok(Self(Place::Remote(Remote::parse(written, scratch)?))),
            false => Ok(Self::from(base.join(written))),
        }
    }

    /// A folder or file of an object store that is open already; `root` is its URL.
    pub fn remote(
        store: Arc<dyn ObjectStore>,
        root: Url,
        path: &str,
        scratch: &Path,
    ) -> Result<Self, DatasetError> {
        Ok(Self(Place::Remote(Remote::new(store, root, path, scratch)?)))
    }

    /// What lies in this folder under a name (or several, parted by `/`).
    pub fn join(&self, name: &str) -> Self {
        Self(match &self.0 {
            Place::Local(path) => Place::Local(path.join(name)),
            Place::Remote(remote) => Place::Remote(remote.join(name)),
        })
    }

    /// The name without the folders before it.
    pub fn name(&self) -> String {
        let written = self.shown();
        written.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
    }

    /// The path or URL as it is shown in messages.
    pub fn shown(&self) -> PathBuf {
        match &self.0 {
            Place::Local(path) => path.clone(),
            Place::Remote(remote) => remote.url().into(),
        }
    }

    /// The local path; `None` in an object store.
    pub fn as_local(&self) -> Option<&Path> {
        match &self.0 {
            Place::Local(path) => Some(path),
            Place::Remote(_) => None,
        }
    }

    /// The place in an object store; `None` for a local path.
    pub fn as_remote(&self) -> Option<&Remote> {
        match &self.0 {
            Place::Local(_) => None,
            Place::Remote(remote) => Some(remote),
        }
    }

    /// The local folder that belongs to this one: itself, or the one for copies of what the store
    /// holds, and for files on their way there.
    pub fn folder(&self) -> PathBuf {
        match &self.0 {
            Place::Local(path) => path.clone(),
            Place::Remote(remote) => remote.scratch(),
        }
    }

    /// Whether a file (not a folder) is there.
    pub fn exists(&self) -> Result<bool, DatasetError> {
        match &self.0 {
            Place::Local(path) => Ok(path.is_file()),
            Place::Remote(remote) => Ok(remote.length()?.is_some()),
        }
    }

    /// Length in bytes, and a mark that differs when the content does (a time, or the store's tag);
    /// `None` when there is no such file.
    pub fn stamp(&self) -> Result<Option<(u64, String)>, DatasetError> {
        match &self.0 {
            Place::Local(path) => local::stamp(path),
            Place::Remote(remote) => remote.stamp(),
        }
    }

    /// A whole small file; `None` when there is none.
    pub fn read(&self) -> Result<Option<Vec<u8>>, DatasetError> {
        match &self.0 {
            Place::Local(path) => local::read(path),
            Place::Remote(remote) => remote.read(),
        }
    }

    /// Writes a whole small file durably.
    pub fn write(&self, content: &[u8]) -> Result<(), DatasetError> {
        match &self.0 {
            Place::Local(path) => local::write(path, content),
            Place::Remote(remote) => remote.write(content),
        }
    }

    /// What is in this folder; nothing when it is not there.
    pub fn list(&self) -> Result<Listing, DatasetError> {
        match &self.0 {
            Place::Local(path) => local::list(path),
            Place::Remote(remote) => remote.list(),
        }
    }

    /// All files below this folder with their lengths in bytes, by name relative to it; the folder
    /// `except` is left out.
    pub fn files(&self, except: &str) -> Result<BTreeMap<String, u64>, DatasetError> {
        match &self.0 {
            Place::Local(path) => local::files(path, except),
            Place::Remote(remote) => remote.files(),
        }
    }

    /// Makes an empty folder of it. What is there is deleted, its log before all else, so that a
    /// kill in between leaves nothing that could be taken for a dataset.
    pub fn clear(&self, log: &str) -> Result<(), DatasetError> {
        self.remove(log)?;
        local::create_dir(&self.folder())
    }

    /// Deletes the folder, its log before all else.
    pub fn remove(&self, log: &str) -> Result<(), DatasetError> {
        if let Place::Remote(remote) = &self.0 {
            remote.remove(log)?;
        }
        let folder = self.folder();
        local::remove_file(&folder.join(log))?;
        if folder.exists() {
            local::sync_dir(&folder)?;
        }
        local::remove_dir(&folder)
    }

    /// Deletes one file.
    pub fn remove_file(&self) -> Result<(), DatasetError> {
        match &self.0 {
            Place::Local(path) => local::remove_file(path),
            Place::Remote(remote) => remote.remove_file(),
        }
    }

    /// Gives the file that was written under its unfinished name in [`Location::folder`] its final
    /// name, durably.
    pub fn publish(&self) -> Result<(), DatasetError> {
        match &self.0 {
            Place::Local(path) => local::publish(path),
            Place::Remote(remote) => remote.publish(),
        }
    }

    /// A local file with this content: itself, or a copy.
    pub fn local_copy(&self) -> Result<PathBuf, DatasetError> {
        match &self.0 {
            Place::Local(path) => Ok(path.clone()),
            Place::Remote(remote) => remote.local_copy(),
        }
    }

    /// The bytes of a log; `None` when it was never begun.
    pub fn read_log(&self) -> Result<Option<Vec<u8>>, DatasetError> {
        match &self.0 {
            Place::Local(path) => local::read(path),
            Place::Remote(remote) => remote.read_log(),
        }
    }

    /// Begins a log with its first line, durably.
    pub fn begin_log(&self, line: &[u8]) -> Result<(), DatasetError> {
        match &self.0 {
            Place::Local(path) => local::write(path, line),
            Place::Remote(remote) => remote.append_log(0, line),
        }
    }

    /// Adds a line after the `lines` that a log has, durably.
    pub fn append_log(&self, lines: usize, line: &[u8]) -> Result<(), DatasetError> {
        match &self.0 {
            Place::Local(path) => local::append(path, line),
            Place::Remote(remote) => remote.append_log(lines, line),
        }
    }

    /// Cuts what a kill left of a line at a log's end. An object store has no half lines.
    pub fn cut_log(&self, whole: u64) -> Result<(), DatasetError> {
        match &self.0 {
            Place::Local(path) => local::cut(path, whole),
            Place::Remote(_) => Ok(()),
        }
    }
}

/// The names of what a folder holds, sorted.
#[derive(Debug, Default)]
pub struct Listing {
    /// Folders.
    pub folders: Vec<String>,
    /// Files.
    pub files: Vec<String>,
}

/// Whether a user's text is a URL and no path.
pub fn is_url(written: &str) -> bool {
    written.split_once("://").is_some_and(|(scheme, _)| {
        !scheme.is_empty() && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'+')
    })
}

impl From<PathBuf> for Location {
    fn from(path: PathBuf) -> Self {
        Self(Place::Local(path))
    }
}

impl From<&Path> for Location {
    fn from(path: &Path) -> Self {
        Self(Place::Local(path.into()))
    }
}

impl From<&PathBuf> for Location {
    fn from(path: &PathBuf) -> Self {
        Self(Place::Local(path.clone()))
    }
}

impl From<&Location> for Location {
    fn from(location: &Location) -> Self {
        location.clone()
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.shown().display().fmt(f)
    }
}

impl fmt::Debug for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.shown().fmt(f)
    }
}

/// Deletes the files of a local folder that are not named, and nothing in the folder `except`.
pub(crate) fn keep_only(
    folder: &Location,
    except: &str,
    kept: &dyn Fn(&str) -> bool,
) -> Result<(), DatasetError> {
    for name in folder.files(except)?.into_keys() {
        if !kept(&name) {
            folder.join(&name).remove_file()?;
        }
    }
    // What was on its way to the store when the writer was killed.
    let scratch = folder.folder();
    if folder.as_remote().is_some() && scratch.exists() {
        for name in local::files(&scratch, except)?.into_keys() {
            fs::remove_file(scratch.join(&name))
                .map_err(|error| DatasetError::io(scratch.join(name), error))?;
        }
    }
    Ok(())
}
