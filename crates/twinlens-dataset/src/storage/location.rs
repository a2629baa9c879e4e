//! The location of a file or folder in a store.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use datafusion::prelude::SessionContext;
use object_store::ObjectStore;
use url::Url;

use super::checksums::{BLOCK, BlockSums, Recorded};
use super::local::{self, LocalStore};
use super::recorded::{RangeFile, RecordedParquet};
use super::remote::RemoteStore;
use super::store::{Listing, Log, LogEnd, ParquetFile, Store};
use super::verify::Verify;
use crate::error::DatasetError;

/// A file or folder of a [`Store`].
#[derive(Clone)]
pub struct Location {
    store: Arc<dyn Store>,
    path: PathBuf,
    /// By what readers of this file verify it.
    recorded: Option<Arc<Recorded>>,
    /// When readers of the files of this folder do.
    verify: Verify,
}

impl Location {
    /// Parses the URL of an object store or a local path; a relative path starts at `base`.
    /// `scratch` is a local folder for copies of remote files and for files before their upload.
    ///
    /// # Errors
    /// A malformed URL, or one with a scheme that is unknown or not built in.
    pub fn parse(written: &str, base: &Path, scratch: &Path) -> Result<Self, DatasetError> {
        if is_url(written) {
            let (store, path) = RemoteStore::parse(written, scratch)?;
            Ok(Self::new(Arc::new(store), path))
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
        let store = RemoteStore::new(store, root, scratch)?;
        let path = store.join(Path::new(""), path);
        Ok(Self::new(Arc::new(store), path))
    }

    fn new(store: Arc<dyn Store>, path: PathBuf) -> Self {
        Self { store, path, recorded: None, verify: Verify::Always }
    }

    /// This folder, with readers that compare what they read with checksums then.
    pub fn verifying(self, verify: Verify) -> Self {
        Self { verify, ..self }
    }

    /// The file of this folder that a manifest records: readers verify what they read.
    pub(crate) fn recorded(&self, name: &str, bytes: u64, sums: &BlockSums) -> Self {
        let location = self.join(name);
        let recorded = Recorded::new(location.display_path(), bytes, sums, &self.verify);
        Self { recorded: recorded.map(Arc::new), ..location }
    }

    /// Appends a name, or several separated by `/`.
    pub fn join(&self, name: &str) -> Self {
        let location = Self::new(self.store.clone(), self.store.join(&self.path, name));
        location.verifying(self.verify.clone())
    }

    /// The last part of the name.
    pub fn name(&self) -> String {
        let path = self.display_path();
        path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
    }

    /// The path or URL, for messages.
    pub fn display_path(&self) -> PathBuf {
        self.store.display_path(&self.path)
    }

    /// The local path; `None` in an object store.
    pub fn as_local(&self) -> Option<&Path> {
        self.store.is_local().then_some(&self.path)
    }

    /// The local path, or for an object store the path of local copies and of files before their
    /// upload.
    pub fn local_path(&self) -> PathBuf {
        self.store.local_path(&self.path)
    }

    /// Whether there is a file (not a folder).
    pub fn exists(&self) -> Result<bool, DatasetError> {
        Ok(self.stat()?.is_some())
    }

    /// Length in bytes, and a version that changes with the content (modification time or ETag);
    /// `None` if there is no such file.
    pub fn stat(&self) -> Result<Option<(u64, String)>, DatasetError> {
        self.store.stat(&self.path)
    }

    /// Reads a small file; `None` if there is none.
    pub fn read(&self) -> Result<Option<Vec<u8>>, DatasetError> {
        self.store.read(&self.path)
    }

    /// Reads small files of this folder, all of which are there, several at a time.
    pub(crate) fn read_all(&self, names: Vec<String>) -> Result<Vec<Bytes>, DatasetError> {
        self.store.read_all(&self.path, names)
    }

    /// Durably writes a small file.
    pub fn write(&self, content: &[u8]) -> Result<(), DatasetError> {
        self.store.write(&self.path, content)
    }

    /// Durably writes a small file only if there is none. Whether this call wrote it, or one that
    /// wrote the same content: of several callers with different contents, one is told so.
    pub fn create(&self, content: &[u8]) -> Result<bool, DatasetError> {
        self.store.create(&self.path, content)
    }

    /// Durably publishes the file that was written under its unfinished name at
    /// [`Location::local_path`].
    pub fn publish(&self) -> Result<(), DatasetError> {
        self.store.publish(&self.path)
    }

    /// The local path of this file, after copying a remote one.
    pub fn local_copy(&self) -> Result<PathBuf, DatasetError> {
        self.store.local_copy(&self.path)
    }

    /// A local file with both ends of this Parquet file: what its footer says can be read there.
    pub(crate) fn parquet_ends(&self) -> Result<PathBuf, DatasetError> {
        self.store.parquet_ends(&self.path)
    }

    /// Deletes this file, if it exists.
    pub fn delete(&self) -> Result<(), DatasetError> {
        self.store.delete(&self.path)
    }

    /// The entries of this folder; empty if it does not exist.
    pub fn list(&self) -> Result<Listing, DatasetError> {
        self.store.list(&self.path)
    }

    /// The names of the files of this folder that come after `name` in the order of bytes, sorted;
    /// all if it is empty.
    pub fn list_after(&self, name: &str) -> Result<Vec<String>, DatasetError> {
        self.store.list_after(&self.path, name)
    }

    /// What [`Location::stat`] says of each file of this folder, by name.
    pub fn stats(&self) -> Result<BTreeMap<String, (u64, String)>, DatasetError> {
        self.store.stats(&self.path)
    }

    /// The lengths in bytes of files of this folder and of the folders of some names: a part of a
    /// large folder is listed without the rest.
    pub(crate) fn lengths_around<'a>(
        &self,
        names: impl Iterator<Item = &'a str>,
    ) -> Result<BTreeMap<String, u64>, DatasetError> {
        let own = self.stats()?.into_iter().map(|(name, (bytes, _))| (name, bytes));
        let mut lengths: BTreeMap<String, u64> = own.collect();
        let folders: BTreeSet<&str> = names.filter_map(|name| Some(name.split_once('/')?.0)).collect();
        for folder in folders {
            let below = self.join(folder).files("")?.into_iter();
            lengths.extend(below.map(|(name, bytes)| (format!("{folder}/{name}"), bytes)));
        }
        Ok(lengths)
    }

    /// The lengths in bytes of all files below this folder, by relative name, except those in its
    /// folder `except`.
    pub fn files(&self, except: &str) -> Result<BTreeMap<String, u64>, DatasetError> {
        self.store.files(&self.path, except)
    }

    /// Deletes this folder, its log first, so that a kill in between leaves nothing that looks like
    /// a dataset.
    pub fn delete_folder(&self, log: &str) -> Result<(), DatasetError> {
        self.store.delete_folder(&self.path, log)
    }

    /// Durably moves this folder to one that does not exist yet, in the same store. A kill leaves a
    /// dataset at one of the two.
    pub fn move_folder(&self, to: &Self, log: &str) -> Result<(), DatasetError> {
        self.store.move_folder(&self.path, &to.path, log)
    }

    /// Makes this an empty folder; existing contents are deleted, the log first. A link to a folder
    /// stays, and the contents of that folder, but for the log.
    pub fn clear(&self, log: &str) -> Result<(), DatasetError> {
        if self.as_local().is_some_and(local::is_link) {
            return self.join(log).delete();
        }
        self.delete_folder(log)?;
        local::create_dir(&self.local_path())
    }

    /// The relative names of all files and links below this folder, except those in its folder
    /// `except`. No link is followed.
    pub fn own_files(&self, except: &str) -> Result<BTreeSet<String>, DatasetError> {
        self.store.own_files(&self.path, except)
    }

    /// Deletes the files below this folder for which `is_own` is true, except those in its folder
    /// `except`. No link is followed.
    pub(crate) fn delete_where(
        &self,
        except: &str,
        is_own: &dyn Fn(&str) -> bool,
    ) -> Result<(), DatasetError> {
        let own = self.own_files(except)?.into_iter().filter(|name| is_own(name)).collect();
        self.store.delete_all(&self.path, own)?;
        self.delete_scratch(except)
    }

    /// In an object store: deletes the local files whose upload a kill interrupted, and copies,
    /// except those in the folder `except`.
    pub(crate) fn delete_scratch(&self, except: &str) -> Result<(), DatasetError> {
        let scratch = self.local_path();
        if !self.store.is_local() && scratch.exists() {
            for name in local::own_files(&scratch, except)? {
                local::remove_file(&scratch.join(name))?;
            }
        }
        Ok(())
    }

    /// Whether there is a log.
    pub(crate) fn has_log(&self) -> Result<bool, DatasetError> {
        self.store.has_log(&self.path)
    }

    /// Reads a log; `None` if there is none.
    pub fn read_log(&self) -> Result<Option<Log>, DatasetError> {
        self.store.read_log(&self.path)
    }

    /// Durably appends whole lines to a log that ends at `end`, which moves. The first lines create
    /// the log. A log that another process has written to is refused.
    pub(crate) fn append_log(&self, end: &mut LogEnd, lines: &[u8]) -> Result<(), DatasetError> {
        self.store.append_log(&self.path, end, lines)
    }

    /// Truncates a log to `length` bytes, to remove a torn last line.
    pub(crate) fn truncate_log(&self, length: u64) -> Result<(), DatasetError> {
        self.store.truncate_log(&self.path, length)
    }

    /// Opens this Parquet file of `bytes` bytes for reading by ranges.
    pub(crate) async fn open_parquet(&self, bytes: u64) -> Result<ParquetFile, DatasetError> {
        let file = self.store.open_parquet(&self.path, bytes).await?;
        Ok(match self.recorded.clone() {
            Some(recorded) => Box::new(RecordedParquet { file, recorded }),
            None => file,
        })
    }

    /// By what readers of this file verify it.
    pub(crate) fn into_recorded(self) -> Option<Arc<Recorded>> {
        self.recorded
    }

    /// Whether readers verify this file.
    pub(crate) fn is_recorded(&self) -> bool {
        self.recorded.is_some()
    }

    /// Opens this file, after copying a remote one, for synchronous reading by ranges.
    pub(crate) fn open_ranges(&self) -> Result<RangeFile, DatasetError> {
        let path = self.local_copy()?;
        let file = File::open(&path).and_then(|file| RangeFile::new(file, self.recorded.clone()));
        file.map_err(|error| DatasetError::io(&path, error))
    }

    /// Verifies the whole file, if it is recorded.
    pub(crate) fn verify(&self) -> Result<(), DatasetError> {
        let Some(recorded) = &self.recorded else { return Ok(()) };
        let path = self.local_copy()?;
        let fail = |error| DatasetError::io(&path, error);
        let mut file = File::open(&path).map_err(fail)?;
        let mut block = Vec::new();
        let mut start = 0;
        loop {
            block.clear();
            (&mut file).take(BLOCK).read_to_end(&mut block).map_err(fail)?;
            if block.is_empty() {
                return Ok(());
            }
            recorded.verify(start, &block)?;
            start += BLOCK;
        }
    }

    /// The files below this folder, for reading by the query engine.
    pub(crate) fn object_store(&self) -> Result<Arc<dyn ObjectStore>, DatasetError> {
        self.store.object_store(&self.path)
    }

    /// Registers the store in a session of the query engine; returns the URL of this file there.
    pub(crate) fn register(&self, session: &SessionContext) -> Result<String, DatasetError> {
        self.store.register(&self.path, session)
    }
}

/// Whether a text is a URL rather than a path.
pub fn is_url(written: &str) -> bool {
    written.split_once("://").is_some_and(|(scheme, _)| {
        !scheme.is_empty() && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'+')
    })
}

impl From<PathBuf> for Location {
    fn from(path: PathBuf) -> Self {
        Self::new(Arc::new(LocalStore), path)
    }
}

impl From<&Path> for Location {
    fn from(path: &Path) -> Self {
        path.to_path_buf().into()
    }
}

impl From<&PathBuf> for Location {
    fn from(path: &PathBuf) -> Self {
        path.clone().into()
    }
}

impl From<&Location> for Location {
    fn from(location: &Location) -> Self {
        location.clone()
    }
}

impl From<&Location> for PathBuf {
    fn from(location: &Location) -> Self {
        location.display_path()
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
