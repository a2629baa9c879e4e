//! The interface of a store.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use datafusion::prelude::SessionContext;
use futures::future::BoxFuture;
use object_store::ObjectStore;
use parquet::arrow::async_reader::AsyncFileReader;

use crate::error::DatasetError;

/// A Parquet file open for reading by ranges.
pub type ParquetFile = Box<dyn AsyncFileReader>;

/// Stores files by path: the local file system, or an object store.
///
/// Every implementation guarantees that a file appears whole or not at all, and that a log only
/// grows.
pub trait Store: fmt::Debug + Send + Sync {
    /// The path of `name` (or of several names separated by `/`) in a folder.
    fn join(&self, folder: &Path, name: &str) -> PathBuf;
    /// The path or URL, for messages.
    fn display_path(&self, path: &Path) -> PathBuf;
    /// Whether paths are those of the local file system.
    fn is_local(&self) -> bool;
    /// The local path, or for a remote store the path of local copies and of files before their
    /// upload.
    fn local_path(&self, path: &Path) -> PathBuf;

    /// Length in bytes, and a version that changes with the content (modification time or ETag);
    /// `None` if there is no such file.
    fn stat(&self, path: &Path) -> Result<Option<(u64, String)>, DatasetError>;
    /// Reads a small file; `None` if there is none.
    fn read(&self, path: &Path) -> Result<Option<Vec<u8>>, DatasetError>;
    /// Reads small files of a folder, all of which are there, several at a time.
    fn read_all(&self, folder: &Path, names: Vec<String>) -> Result<Vec<Bytes>, DatasetError>;
    /// Durably writes a small file.
    fn write(&self, path: &Path, content: &[u8]) -> Result<(), DatasetError>;
    /// Durably writes a small file only if there is none; whether this call wrote it. A file that
    /// is there with the same content counts as written by this call: a request may be repeated
    /// after a lost connection.
    fn create(&self, path: &Path, content: &[u8]) -> Result<bool, DatasetError>;
    /// Durably publishes the file that was written under its unfinished name at
    /// [`local_path`](Self::local_path).
    fn publish(&self, path: &Path) -> Result<(), DatasetError>;
    /// The local path of the file, after copying a remote one.
    fn local_copy(&self, path: &Path) -> Result<PathBuf, DatasetError>;
    /// A local file with both ends of a Parquet file where they are in it, and nothing between in a
    /// remote store: its first bytes, by which files are told, and the metadata at its end.
    fn parquet_ends(&self, path: &Path) -> Result<PathBuf, DatasetError>;
    /// Deletes a file, if it exists.
    fn delete(&self, path: &Path) -> Result<(), DatasetError>;
    /// Deletes files of a folder, in any order; those that do not exist are skipped.
    fn delete_all(&self, folder: &Path, names: Vec<String>) -> Result<(), DatasetError>;

    /// The entries of a folder; empty if it does not exist.
    fn list(&self, folder: &Path) -> Result<Listing, DatasetError>;
    /// The names of the files of a folder that come after `name` in the order of bytes, sorted; all
    /// if it is empty. A folder that does not exist has none.
    fn list_after(&self, folder: &Path, name: &str) -> Result<Vec<String>, DatasetError>;
    /// What [`stat`](Self::stat) says of each file of a folder, by name.
    fn stats(&self, folder: &Path) -> Result<BTreeMap<String, (u64, String)>, DatasetError>;
    /// The lengths in bytes of all files below a folder, by relative name, except those in its
    /// folder `except`.
    fn files(&self, folder: &Path, except: &str) -> Result<BTreeMap<String, u64>, DatasetError>;
    /// The relative names of all files and links below a folder, except those in its folder
    /// `except`. No link is followed: what is behind one was not written here.
    fn own_files(&self, folder: &Path, except: &str) -> Result<BTreeSet<String>, DatasetError>;
    /// Durably moves a folder; `log` is the name of its log. There is nothing at `to`.
    fn move_folder(&self, from: &Path, to: &Path, log: &str) -> Result<(), DatasetError>;
    /// Deletes a folder, its log first, so that a kill in between leaves nothing that looks like a
    /// dataset. Of a link, only the link.
    fn delete_folder(&self, folder: &Path, log: &str) -> Result<(), DatasetError>;

    /// Whether there is a log.
    fn has_log(&self, path: &Path) -> Result<bool, DatasetError>;
    /// Reads a log; `None` if there is none.
    fn read_log(&self, path: &Path) -> Result<Option<Log>, DatasetError>;
    /// Durably appends whole lines to a log that ends at `end`, which moves. The first lines create
    /// the log. A log that another process has written to is refused.
    fn append_log(&self, path: &Path, end: &mut LogEnd, lines: &[u8]) -> Result<(), DatasetError>;
    /// Truncates a log to `length` bytes, to remove a torn last line.
    fn truncate_log(&self, path: &Path, length: u64) -> Result<(), DatasetError>;

    /// Opens a Parquet file of `bytes` bytes.
    fn open_parquet(&self, path: &Path, bytes: u64) -> BoxFuture<'static, Result<ParquetFile, DatasetError>>;
    /// The files below a folder, for reading.
    fn object_store(&self, folder: &Path) -> Result<Arc<dyn ObjectStore>, DatasetError>;
    /// Registers the store in a session of the query engine; returns the URL of the file there.
    fn register(&self, path: &Path, session: &SessionContext) -> Result<String, DatasetError>;
}

/// The entries of a folder by name, sorted.
#[derive(Debug, Default)]
pub struct Listing {
    /// Folders.
    pub folders: Vec<String>,
    /// Files.
    pub files: Vec<String>,
}

/// The content of a log, and where the next lines go.
#[derive(Debug)]
pub struct Log {
    /// Its lines.
    pub bytes: Vec<u8>,
    /// Its end.
    pub end: LogEnd,
}

/// Where a log ends. Only the store that made it knows what it means.
#[derive(Debug, Clone, Default)]
pub struct LogEnd {
    /// Number of objects in an object store; for a local log, 0 before the first line.
    pub(super) objects: usize,
    /// Its length, of a local log.
    pub(crate) bytes: u64,
    /// The segments that are due but not written: their numbers and lines.
    pub(super) due: Vec<(usize, Vec<u8>)>,
    /// The lines of the objects after the last whole segment.
    pub(super) tail: Vec<u8>,
}
