//! Durable operations on local files, so that commits survive a power failure.
//!
//! A new file is written under an unfinished name, fsynced and renamed; then its folder is fsynced.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use bytes::Bytes;
use datafusion::prelude::SessionContext;
use futures::FutureExt;
use futures::future::BoxFuture;
use object_store::ObjectStore;
use object_store::local::LocalFileSystem;
use sha2::{Digest as _, Sha256};

use super::checksums::{BlockSummer, BlockSums};
use super::store::{Listing, Log, LogEnd, ParquetFile, Store};
use crate::error::DatasetError;

/// Suffix of unfinished files. They are never read, and are deleted when a dataset is opened for
/// writing.
pub const UNFINISHED: &str = ".unfinished";

/// The path under which a file is written before it is published as `path`.
pub fn unfinished(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(UNFINISHED);
    name.into()
}

/// Durably creates a folder and its parents.
pub fn create_dir(path: &Path) -> Result<(), DatasetError> {
    let is_missing = |folder: &&Path| !folder.as_os_str().is_empty() && !folder.exists();
    let missing: Vec<&Path> = path.ancestors().take_while(is_missing).collect();
    fs::create_dir_all(path).map_err(|error| DatasetError::io(path, error))?;
    missing.into_iter().try_for_each(sync_parent)
}

/// Makes the entry of a file or folder survive a power failure.
fn sync_parent(path: &Path) -> Result<(), DatasetError> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => sync_dir(parent),
        // A bare name is in the working folder.
        _ => sync_dir(Path::new(".")),
    }
}

/// Makes the entries of a folder survive a power failure.
fn sync_dir(path: &Path) -> Result<(), DatasetError> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(|error| DatasetError::io(path, error))
}

/// Durably gives a finished file its final name; an existing file is replaced.
pub fn publish(path: &Path) -> Result<(), DatasetError> {
    let from = unfinished(path);
    File::open(&from).and_then(|file| file.sync_all()).map_err(|error| DatasetError::io(&from, error))?;
    fs::rename(&from, path).map_err(|error| DatasetError::io(path, error))?;
    sync_parent(path)
}

/// Durably writes a small file.
pub fn write(path: &Path, content: &[u8]) -> Result<(), DatasetError> {
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        create_dir(parent)?;
    }
    let temporary = unfinished(path);
    fs::write(&temporary, content).map_err(|error| DatasetError::io(&temporary, error))?;
    publish(path)
}

/// Durably writes a small file only if there is none; whether this call wrote it.
fn create(path: &Path, content: &[u8]) -> Result<bool, DatasetError> {
    let fail = |error| DatasetError::io(path, error);
    let folder = path.parent().unwrap_or(Path::new("."));
    create_dir(folder)?;
    // Under a name of its own first: others create the same file at the same time.
    let mut temporary = tempfile::Builder::new().suffix(UNFINISHED).tempfile_in(folder).map_err(fail)?;
    temporary.write_all(content).and_then(|()| temporary.as_file().sync_all()).map_err(fail)?;
    match fs::hard_link(temporary.path(), path) {
        Ok(()) => sync_parent(path).map(|()| true),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            Ok(read(path)?.as_deref() == Some(content))
        }
        Err(error) => Err(fail(error)),
    }
}

/// Whether an error means that there is no such file, be it because its folder is a file.
fn is_absent(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory)
}

/// Reads a small file; `None` if there is none.
pub fn read(path: &Path) -> Result<Option<Vec<u8>>, DatasetError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if is_absent(&error) => Ok(None),
        Err(error) => Err(DatasetError::io(path, error)),
    }
}

/// Length in bytes and modification time of a file; `None` if there is none.
pub(super) fn stat(path: &Path) -> Result<Option<(u64, String)>, DatasetError> {
    let metadata = match fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => return Ok(None),
        Ok(metadata) => metadata,
        Err(error) if is_absent(&error) => return Ok(None),
        Err(error) => return Err(DatasetError::io(path, error)),
    };
    let changed =
        metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
    Ok(Some((metadata.len(), changed.as_nanos().to_string())))
}

/// The entries of a folder, sorted; empty if the folder does not exist.
pub fn list(folder: &Path) -> Result<Listing, DatasetError> {
    let mut listing = Listing::default();
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if is_absent(&error) => return Ok(listing),
        Err(error) => return Err(DatasetError::io(folder, error)),
    };
    for entry in entries {
        let path = entry.map_err(|error| DatasetError::io(folder, error))?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        // A link counts as its target.
        if path.is_dir() { listing.folders.push(name) } else { listing.files.push(name) }
    }
    listing.folders.sort();
    listing.files.sort();
    Ok(listing)
}

/// The lengths in bytes of all files below a folder, by relative name, except those in its folder
/// `except`.
pub fn files(folder: &Path, except: &str) -> Result<BTreeMap<String, u64>, DatasetError> {
    let mut lengths = BTreeMap::new();
    let mut folders = vec![String::new()];
    while let Some(within) = folders.pop() {
        let full = |name: &String| if within.is_empty() { name.clone() } else { format!("{within}/{name}") };
        let listing = list(&folder.join(&within))?;
        for name in listing.files.iter().map(full) {
            let path = folder.join(&name);
            let metadata = fs::metadata(&path).map_err(|error| DatasetError::io(&path, error))?;
            lengths.insert(name, metadata.len());
        }
        folders.extend(listing.folders.iter().map(full).filter(|name| name != except));
    }
    Ok(lengths)
}

/// The relative names of all files and links below a folder, except those in its folder `except`.
/// No link is followed.
pub fn own_files(folder: &Path, except: &str) -> Result<BTreeSet<String>, DatasetError> {
    let mut names = BTreeSet::new();
    let mut folders = vec![String::new()];
    while let Some(within) = folders.pop() {
        let path = folder.join(&within);
        let entries = match fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(error) if is_absent(&error) => continue,
            Err(error) => return Err(DatasetError::io(&path, error)),
        };
        for entry in entries {
            let fail = |error| DatasetError::io(&path, error);
            let entry = entry.map_err(fail)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let name = if within.is_empty() { name } else { format!("{within}/{name}") };
            if !entry.file_type().map_err(fail)?.is_dir() {
                names.insert(name);
            } else if name != except {
                folders.push(name);
            }
        }
    }
    Ok(names)
}

/// Durably truncates a file to `length` bytes.
pub(super) fn truncate(path: &Path, length: u64) -> Result<(), DatasetError> {
    let truncated = OpenOptions::new().write(true).open(path).and_then(|file| {
        file.set_len(length)?;
        file.sync_all()
    });
    truncated.map_err(|error| DatasetError::io(path, error))
}

/// Appends to a file of `expected` bytes and fsyncs it. If the write fails half-way (a full disk),
/// the partial data are removed again.
pub(super) fn append(path: &Path, expected: u64, content: &[u8]) -> Result<(), DatasetError> {
    let fail = |error| DatasetError::io(path, error);
    let mut file = OpenOptions::new().append(true).open(path).map_err(fail)?;
    let length = file.metadata().map_err(fail)?.len();
    if length != expected {
        // The lock is gone, with the folder that it was on.
        return Err(DatasetError::Locked { path: path.into() });
    }
    if let Err(error) = file.write_all(content).and_then(|()| file.sync_all()) {
        // Best effort: readers of the manifest also recognise a torn last line.
        let _ = file.set_len(length);
        return Err(fail(error));
    }
    Ok(())
}

/// Deletes a file, if it exists.
pub fn remove_file(path: &Path) -> Result<(), DatasetError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(DatasetError::io(path, error)),
        _ => Ok(()),
    }
}

/// Deletes a folder and its contents, if it exists.
pub fn remove_dir(path: &Path) -> Result<(), DatasetError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(DatasetError::io(path, error)),
        _ => Ok(()),
    }
}

/// Durably moves a folder.
pub(super) fn move_folder(from: &Path, to: &Path) -> Result<(), DatasetError> {
    if let Some(parent) = to.parent() {
        create_dir(parent)?;
    }
    fs::rename(from, to).map_err(|error| DatasetError::io(from, error))?;
    sync_parent(to)?;
    sync_parent(from)
}

/// Whether a path is a link. What it points at is somebody else's, or was put there on purpose.
pub fn is_link(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_symlink())
}

/// Deletes a folder, its log first; of a link, only the link.
pub(super) fn delete_folder(folder: &Path, log: &str) -> Result<(), DatasetError> {
    if is_link(folder) {
        return remove_file(folder);
    }
    remove_file(&folder.join(log))?;
    if folder.exists() {
        sync_dir(folder)?;
    }
    remove_dir(folder)
}

/// Length and checksums of a file.
#[derive(Debug)]
pub struct Digest {
    /// Length in bytes.
    pub bytes: u64,
    /// SHA-256, hexadecimal.
    pub sha256: String,
    /// Checksums of its blocks.
    pub crc32: BlockSums,
}

/// Reads a file for its length and checksums.
pub fn digest(path: &Path) -> Result<Digest, DatasetError> {
    let fail = |error| DatasetError::io(path, error);
    let mut file = File::open(path).map_err(fail)?;
    let (mut hash, mut blocks, mut bytes) = (Sha256::new(), BlockSummer::default(), 0);
    let mut piece = vec![0; 1 << 16];
    loop {
        let read = file.read(&mut piece).map_err(fail)?;
        if read == 0 {
            let sha256 = hex::encode(hash.finalize());
            return Ok(Digest { bytes, sha256, crc32: blocks.finish() });
        }
        hash.update(&piece[..read]);
        blocks.update(&piece[..read]);
        bytes += read as u64;
    }
}

/// The local file system.
#[derive(Debug)]
pub(super) struct LocalStore;

impl Store for LocalStore {
    fn join(&self, folder: &Path, name: &str) -> PathBuf {
        folder.join(name)
    }

    fn display_path(&self, path: &Path) -> PathBuf {
        path.into()
    }

    fn is_local(&self) -> bool {
        true
    }

    fn local_path(&self, path: &Path) -> PathBuf {
        path.into()
    }

    fn stat(&self, path: &Path) -> Result<Option<(u64, String)>, DatasetError> {
        stat(path)
    }

    fn read(&self, path: &Path) -> Result<Option<Vec<u8>>, DatasetError> {
        read(path)
    }

    fn read_all(&self, folder: &Path, names: Vec<String>) -> Result<Vec<Bytes>, DatasetError> {
        let read = |name: &String| {
            let path = folder.join(name);
            fs::read(&path).map(Bytes::from).map_err(|error| DatasetError::io(path, error))
        };
        names.iter().map(read).collect()
    }

    fn write(&self, path: &Path, content: &[u8]) -> Result<(), DatasetError> {
        write(path, content)
    }

    fn create(&self, path: &Path, content: &[u8]) -> Result<bool, DatasetError> {
        create(path, content)
    }

    fn publish(&self, path: &Path) -> Result<(), DatasetError> {
        publish(path)
    }

    fn local_copy(&self, path: &Path) -> Result<PathBuf, DatasetError> {
        Ok(path.into())
    }

    fn parquet_ends(&self, path: &Path) -> Result<PathBuf, DatasetError> {
        Ok(path.into())
    }

    fn delete(&self, path: &Path) -> Result<(), DatasetError> {
        remove_file(path)
    }

    fn delete_all(&self, folder: &Path, names: Vec<String>) -> Result<(), DatasetError> {
        names.iter().try_for_each(|name| remove_file(&folder.join(name)))
    }

    fn list(&self, folder: &Path) -> Result<Listing, DatasetError> {
        list(folder)
    }

    fn list_after(&self, folder: &Path, name: &str) -> Result<Vec<String>, DatasetError> {
        let mut files = list(folder)?.files;
        files.retain(|file| file.as_str() > name && !file.ends_with(UNFINISHED));
        Ok(files)
    }

    fn stats(&self, folder: &Path) -> Result<BTreeMap<String, (u64, String)>, DatasetError> {
        let mut stats = BTreeMap::new();
        for name in list(folder)?.files.into_iter().filter(|name| !name.ends_with(UNFINISHED)) {
            // A file may be gone again.
            if let Some(found) = stat(&folder.join(&name))? {
                stats.insert(name, found);
            }
        }
        Ok(stats)
    }

    fn files(&self, folder: &Path, except: &str) -> Result<BTreeMap<String, u64>, DatasetError> {
        files(folder, except)
    }

    fn own_files(&self, folder: &Path, except: &str) -> Result<BTreeSet<String>, DatasetError> {
        own_files(folder, except)
    }

    fn delete_folder(&self, folder: &Path, log: &str) -> Result<(), DatasetError> {
        delete_folder(folder, log)
    }

    fn move_folder(&self, from: &Path, to: &Path, _log: &str) -> Result<(), DatasetError> {
        move_folder(from, to)
    }

    fn has_log(&self, path: &Path) -> Result<bool, DatasetError> {
        Ok(path.exists())
    }

    fn read_log(&self, path: &Path) -> Result<Option<Log>, DatasetError> {
        let Some(bytes) = read(path)? else { return Ok(None) };
        let end = LogEnd { objects: 1, bytes: bytes.len() as u64, ..LogEnd::default() };
        Ok(Some(Log { bytes, end }))
    }

    fn append_log(&self, path: &Path, end: &mut LogEnd, lines: &[u8]) -> Result<(), DatasetError> {
        if end.objects == 0 { write(path, lines) } else { append(path, end.bytes, lines) }?;
        (end.objects, end.bytes) = (1, end.bytes + lines.len() as u64);
        Ok(())
    }

    fn truncate_log(&self, path: &Path, length: u64) -> Result<(), DatasetError> {
        truncate(path, length)
    }

    fn open_parquet(
        &self,
        path: &Path,
        _bytes: u64,
    ) -> BoxFuture<'static, Result<ParquetFile, DatasetError>> {
        let path = path.to_path_buf();
        async move {
            let file = tokio::fs::File::open(&path).await.map_err(|error| DatasetError::io(&path, error))?;
            Ok(Box::new(file) as ParquetFile)
        }
        .boxed()
    }

    fn object_store(&self, folder: &Path) -> Result<Arc<dyn ObjectStore>, DatasetError> {
        let store = LocalFileSystem::new_with_prefix(folder);
        Ok(Arc::new(store.map_err(|source| DatasetError::Store { path: folder.into(), source })?))
    }

    fn register(&self, path: &Path, _session: &SessionContext) -> Result<String, DatasetError> {
        let path = path.canonicalize().map_err(|error| DatasetError::io(path, error))?;
        Ok(path.to_string_lossy().into_owned())
    }
}
