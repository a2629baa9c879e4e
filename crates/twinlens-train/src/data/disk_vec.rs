//! Per-row numbers in a file, because they are too many for memory.

use crate::error::{Result, TrainError};
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// A list of numbers in a file.
#[derive(Debug)]
pub(crate) struct DiskVec {
    path: PathBuf,
    file: Mutex<File>,
}

impl DiskVec {
    /// Creates an empty list, overwriting the file if it exists.
    pub(crate) fn create(path: &Path) -> Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path);
        Ok(Self { path: path.to_owned(), file: Mutex::new(file.map_err(TrainError::io(path))?) })
    }

    pub(crate) fn push(&self, numbers: &[u64]) -> Result<()> {
        let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let written = file.seek(SeekFrom::End(0)).and_then(|_| file.write_all(&bytes));
        written.map_err(TrainError::io(&self.path))
    }

    /// Appends zeros until there are `count` numbers.
    pub(crate) fn pad_to(&self, count: u64) -> Result<()> {
        let file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let length = file.metadata().map(|metadata| metadata.len().max(8 * count));
        length.and_then(|length| file.set_len(length)).map_err(TrainError::io(&self.path))
    }

    /// The `count` numbers from index `start`.
    pub(crate) fn read(&self, start: u64, count: usize) -> Result<Vec<u64>> {
        let mut bytes = vec![0; 8 * count];
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let read = file.seek(SeekFrom::Start(8 * start)).and_then(|_| file.read_exact(&mut bytes));
        drop(file);
        read.map_err(TrainError::io(&self.path))?;
        let numbers = bytes.chunks_exact(8);
        Ok(numbers.map(|b| u64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]])).collect())
    }
}
