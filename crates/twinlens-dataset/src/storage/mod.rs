//! Storage of datasets: a local folder, or a folder of an object store (`s3://bucket/run`).
//!
//! A [`Location`] is either; datasets access files only through it. Both guarantee that a file
//! appears whole or not at all, that a recorded file is never changed, and that the log (the
//! manifest) only grows.

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
    /// Parses the URL of an object store or a local path; a relative path starts at `base`. `scratch`
    /// is a local folder for copies of remote files and for files before their upload.
    ///
    /// # Errors
    /// A malformed URL, or one with a scheme that is unknown or not built in.
    pub fn parse(written: &str, base: &Path, scratch: &Path) -> Result<Self, DatasetError> {
        if is_url(written) {
            Ok(Self(Place::Remote(Remote::parse(written, scratch)?)))
        } else {
            Ok(Self::from(base.join(written)))
        }
    }

    /// A folder or file of an open object store; `root` is the URL of the store.
    pub fn remote(
        store: Arc<dyn ObjectStore>,
        root: Url,
        path: &str,
        scratch: &Path,
    ) -> Result<Self, DatasetError> {
        Ok(Self(Place::Remote(Remote::new(store, root, path, scratch)?)))
    }

    /// Appends a name, or several separated by `/`.
    pub fn join(&self, name: &str) -> Self {
        Self(match &self.0 {
            Place::Local(path) => Place::Local(path.join(name)),
            Place::Remote(remote) => Place::Remote(remote.join(name)),
        })
    }

    /// The last part of the name.
    pub fn name(&self) -> String {
        let path = self.display_path();
        path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
    }

    /// The path or URL, for messages.
    pub fn display_path(&self) -> PathBuf {
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

    /// The local path, or for an object store the path of local copies and of files before their
    /// upload.
    pub fn local_dir(&self) -> PathBuf {
        match &self.0 {
            Place::Local(path) => path.clone(),
            Place::Remote(remote) => remote.scratch(),
        }
    }

    /// Whether there is a file (not a folder).
    pub fn exists(&self) -> Result<bool, DatasetError> {
        match &self.0 {
            Place::Local(path) => Ok(path.is_file()),
            Place::Remote(remote) => Ok(remote.length()?.is_some()),
        }
    }

    /// Length in bytes, and a version that changes with the content (modification time or ETag);
    /// `None` if there is no such file.
    pub fn stamp(&self) -> Result<Option<(u64, String)>, DatasetError> {
        match &self.0 {
            Place::Local(path) => local::stamp(path),
            Place::Remote(remote) => remote.stamp(),
        }
    }

    /// Reads a small file; `None` if there is none.
    pub fn read(&self) -> Result<Option<Vec<u8>>, DatasetError> {
        match &self.0 {
            Place::Local(path) => local::read(path),
            Place::Remote(remote) => remote.read(),
        }
    }

    /// Durably writes a small file.
    pub fn write(&self, content: &[u8]) -> Result<(), DatasetError> {
        match &self.0 {
            Place::Local(path) => local::write(path, content),
            Place::Remote(remote) => remote.write(content),
        }
    }

    /// The entries of this folder; empty if it does not exist.
    pub fn list(&self) -> Result<Listing, DatasetError> {
        match &self.0 {
            Place::Local(path) => local::list(path),
            Place::Remote(remote) => remote.list(),
        }
    }

    /// The lengths in bytes of all files below this folder, by relative name, except those in its
    /// folder `except`.
    pub fn files(&self, except: &str) -> Result<BTreeMap<String, u64>, DatasetError> {
        match &self.0 {
            Place::Local(path) => local::files(path, except),
            Place::Remote(remote) => remote.files(),
        }
    }

    /// Makes this an empty folder. Existing contents are deleted, the log first, so that a kill in
    /// between leaves nothing that looks like a dataset.
    pub fn clear(&self, log: &str) -> Result<(), DatasetError> {
        self.remove(log)?;
        local::create_dir(&self.local_dir())
    }

    /// Deletes the folder, its log first.
    pub fn remove(&self, log: &str) -> Result<(), DatasetError> {
        if let Place::Remote(remote) = &self.0 {
            remote.remove(log)?;
        }
        let folder = self.local_dir();
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

    /// Durably publishes the file that was written under its unfinished name in
    /// [`Location::local_dir`].
    pub fn publish(&self) -> Result<(), DatasetError> {
        match &self.0 {
            Place::Local(path) => local::publish(path),
            Place::Remote(remote) => remote.publish(),
        }
    }

    /// The local path of this file, or of a local copy.
    pub fn local_copy(&self) -> Result<PathBuf, DatasetError> {
        match &self.0 {
            Place::Local(path) => Ok(path.clone()),
            Place::Remote(remote) => remote.local_copy(),
        }
    }

    /// Reads a log; `None` if there is none.
    pub fn read_log(&self) -> Result<Option<Vec<u8>>, DatasetError> {
        match &self.0 {
            Place::Local(path) => local::read(path),
            Place::Remote(remote) => remote.read_log(),
        }
    }

    /// Durably creates a log with its first line.
    pub fn begin_log(&self, line: &[u8]) -> Result<(), DatasetError> {
        match &self.0 {
            Place::Local(path) => local::write(path, line),
            Place::Remote(remote) => remote.append_log(0, line),
        }
    }

    /// Durably appends a line to a log of `lines` lines.
    pub fn append_log(&self, lines: usize, line: &[u8]) -> Result<(), DatasetError> {
        match &self.0 {
            Place::Local(path) => local::append(path, line),
            Place::Remote(remote) => remote.append_log(lines, line),
        }
    }

    /// Truncates a log to `length` bytes, to remove a torn last line. An object store has none.
    pub fn truncate_log(&self, length: u64) -> Result<(), DatasetError> {
        match &self.0 {
            Place::Local(path) => local::truncate(path, length),
            Place::Remote(_) => Ok(()),
        }
    }
}

/// The entries of a folder by name, sorted.
#[derive(Debug, Default)]
pub struct Listing {
    /// Folders.
    pub folders: Vec<String>,
    /// Files.
    pub files: Vec<String>,
}

/// Whether a text is a URL rather than a path.
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
        self.display_path().display().fmt(f)
    }
}

impl fmt::Debug for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.display_path().fmt(f)
    }
}

/// Deletes the files below a folder for which `keep` is false, except those in its folder `except`.
pub(crate) fn delete_except(
    folder: &Location,
    except: &str,
    keep: &dyn Fn(&str) -> bool,
) -> Result<(), DatasetError> {
    for name in folder.files(except)?.into_keys() {
        if !keep(&name) {
            folder.join(&name).remove_file()?;
        }
    }
    // Files whose upload a kill interrupted.
    let scratch = folder.local_dir();
    if folder.as_remote().is_some() && scratch.exists() {
        for name in local::files(&scratch, except)?.into_keys() {
            fs::remove_file(scratch.join(&name))
                .map_err(|error| DatasetError::io(scratch.join(name), error))?;
        }
    }
    Ok(())
}
