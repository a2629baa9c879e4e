//! Durable operations on local files: what makes a commit survive a power cut.
//!
//! Every new file is written beside its final name, fsynced, renamed, and its folder fsynced.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use sha2::{Digest, Sha256};

use super::Listing;
use crate::error::DatasetError;

/// Files under construction end in this; they are never read, and deleted when a dataset is opened
/// for writing.
pub const UNFINISHED: &str = ".unfinished";

/// The name under which `path` is written until it is published.
pub fn unfinished(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(UNFINISHED);
    name.into()
}

/// Makes a folder and all above it.
pub fn create_dir(path: &Path) -> Result<(), DatasetError> {
    fs::create_dir_all(path).map_err(|error| DatasetError::io(path, error))
}

/// Makes what a folder lists survive a power cut.
pub fn sync_dir(path: &Path) -> Result<(), DatasetError> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(|error| DatasetError::io(path, error))
}

/// Gives a finished file its final name, durably. Idempotent: a file that is already there is
/// replaced.
pub fn publish(path: &Path) -> Result<(), DatasetError> {
    let from = unfinished(path);
    File::open(&from).and_then(|file| file.sync_all()).map_err(|error| DatasetError::io(&from, error))?;
    fs::rename(&from, path).map_err(|error| DatasetError::io(path, error))?;
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => sync_dir(parent),
        // A bare name lies in the working folder.
        _ => sync_dir(Path::new(".")),
    }
}

/// Writes a whole small file durably.
pub fn write(path: &Path, content: &[u8]) -> Result<(), DatasetError> {
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        create_dir(parent)?;
    }
    let temporary = unfinished(path);
    fs::write(&temporary, content).map_err(|error| DatasetError::io(&temporary, error))?;
    publish(path)
}

/// Whether an error says that there is no such file. (What would lie in a folder that is a file is
/// not there either.)
fn absent(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory)
}

/// A whole small file; `None` when there is none.
pub fn read(path: &Path) -> Result<Option<Vec<u8>>, DatasetError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if absent(&error) => Ok(None),
        Err(error) => Err(DatasetError::io(path, error)),
    }
}

/// Length in bytes and time of change of a file; `None` when there is none.
pub fn stamp(path: &Path) -> Result<Option<(u64, String)>, DatasetError> {
    let metadata = match fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => return Ok(None),
        Ok(metadata) => metadata,
        Err(error) if absent(&error) => return Ok(None),
        Err(error) => return Err(DatasetError::io(path, error)),
    };
    let changed =
        metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
    Ok(Some((metadata.len(), changed.as_nanos().to_string())))
}

/// The names of what a folder holds, sorted; none when it is not there.
pub fn list(folder: &Path) -> Result<Listing, DatasetError> {
    let mut listing = Listing::default();
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if absent(&error) => return Ok(listing),
        Err(error) => return Err(DatasetError::io(folder, error)),
    };
    for entry in entries {
        let path = entry.map_err(|error| DatasetError::io(folder, error))?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        // A link counts as what it points to.
        if path.is_dir() { listing.folders.push(name) } else { listing.files.push(name) }
    }
    listing.folders.sort();
    listing.files.sort();
    Ok(listing)
}

/// All files below a folder with their lengths, by name relative to it; its folder `except` is left
/// out.
pub fn files(folder: &Path, except: &str) -> Result<BTreeMap<String, u64>, DatasetError> {
    let mut found = BTreeMap::new();
    let mut folders = vec![String::new()];
    while let Some(within) = folders.pop() {
        let full = |name: &String| if within.is_empty() { name.clone() } else { format!("{within}/{name}") };
        let listing = list(&folder.join(&within))?;
        for name in listing.files.iter().map(full) {
            let path = folder.join(&name);
            let metadata = fs::metadata(&path).map_err(|error| DatasetError::io(&path, error))?;
            found.insert(name, metadata.len());
        }
        folders.extend(listing.folders.iter().map(full).filter(|name| name != except));
    }
    Ok(found)
}

/// Cuts a file to its first `length` bytes, durably.
pub fn cut(path: &Path, length: u64) -> Result<(), DatasetError> {
    let cut = OpenOptions::new().write(true).open(path).and_then(|file| {
        file.set_len(length)?;
        file.sync_all()
    });
    cut.map_err(|error| DatasetError::io(path, error))
}

/// Appends to a file and fsyncs it. A write that fails half-way (a full disk) is cut off again, so
/// that the file stays whole.
pub fn append(path: &Path, content: &[u8]) -> Result<(), DatasetError> {
    let fail = |error| DatasetError::io(path, error);
    let mut file = OpenOptions::new().append(true).open(path).map_err(fail)?;
    let length = file.metadata().map_err(fail)?.len();
    if let Err(error) = file.write_all(content).and_then(|()| file.sync_all()) {
        // Best effort: a torn last line is also recognised and cut when the manifest is read.
        let _ = file.set_len(length);
        return Err(fail(error));
    }
    Ok(())
}

/// Deletes a file; one that is not there is fine.
pub fn remove_file(path: &Path) -> Result<(), DatasetError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(DatasetError::io(path, error)),
        _ => Ok(()),
    }
}

/// Deletes a folder and all in it; one that is not there is fine.
pub fn remove_dir(path: &Path) -> Result<(), DatasetError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(DatasetError::io(path, error)),
        _ => Ok(()),
    }
}

/// Length in bytes and SHA-256 (hexadecimal) of a file, read in pieces.
pub fn digest(path: &Path) -> Result<(u64, String), DatasetError> {
    let fail = |error| DatasetError::io(path, error);
    let mut file = File::open(path).map_err(fail)?;
    let (mut hash, mut length, mut piece) = (Sha256::new(), 0, vec![0; 1 << 16]);
    loop {
        let read = file.read(&mut piece).map_err(fail)?;
        if read == 0 {
            return Ok((length, hex(&hash.finalize())));
        }
        hash.update(&piece[..read]);
        length += read as u64;
    }
}

/// Lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
