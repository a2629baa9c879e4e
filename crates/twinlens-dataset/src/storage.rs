//! Durable file operations: what makes a commit survive a power cut.
//!
//! Every new file is written beside its final name, fsynced, renamed, and its folder fsynced.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::error::DatasetError;

/// Files under construction end in this; they are never read, and deleted when a dataset is opened for writing.
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

/// Gives a finished file its final name, durably. Idempotent: a file that is already there is replaced.
pub fn publish(path: &Path) -> Result<(), DatasetError> {
    let from = unfinished(path);
    File::open(&from).and_then(|file| file.sync_all()).map_err(|error| DatasetError::io(&from, error))?;
    fs::rename(&from, path).map_err(|error| DatasetError::io(path, error))?;
    match path.parent() {
        Some(parent) => sync_dir(parent),
        None => Ok(()),
    }
}

/// Writes a whole small file durably.
pub fn write(path: &Path, content: &[u8]) -> Result<(), DatasetError> {
    if let Some(parent) = path.parent() {
        create_dir(parent)?;
    }
    let temporary = unfinished(path);
    fs::write(&temporary, content).map_err(|error| DatasetError::io(&temporary, error))?;
    publish(path)
}

/// Appends to a file and fsyncs it. A write that fails half-way (a full disk) is cut off again, so that the file stays whole.
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
