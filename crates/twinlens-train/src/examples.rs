//! Decoded examples in a file of records of one size: read at random, whatever their number, in little memory.
//!
//! Training reads every image once an epoch in a new order. Images are therefore decoded and resized once, into
//! `[side, side, 3]` bytes and `context` token ids a record; the system's page cache keeps what fits.

use crate::error::{Result, TrainError};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// The sizes of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// Side of the stored images, in pixels: the model's own, or more where crops are taken from them.
    pub side: usize,
    /// Token ids of a caption.
    pub context: usize,
}

impl Record {
    /// Bytes of the pixels, `[side, side, 3]`.
    pub fn pixels_len(self) -> usize {
        self.side * self.side * 3
    }

    fn len(self) -> usize {
        self.pixels_len() + 4 * self.context
    }
}

/// Writes examples.
pub struct ExamplesWriter {
    record: Record,
    path: PathBuf,
    file: BufWriter<File>,
    captions: Vec<u64>,
}

/// A finished file of examples.
#[derive(Debug)]
pub struct Examples {
    record: Record,
    path: PathBuf,
    captions: Vec<u64>,
}

/// A number that is equal where captions are.
fn caption_key(ids: &[u8]) -> u64 {
    let mut first = [0; 8];
    first.copy_from_slice(&Sha256::digest(ids)[..8]);
    u64::from_le_bytes(first)
}

impl ExamplesWriter {
    /// A new file at `path`; one that is there is overwritten.
    ///
    /// # Errors
    /// `Io`, with the file's name.
    pub fn create(path: &Path, record: Record) -> Result<Self> {
        let file = File::create(path).map_err(TrainError::io(path))?;
        Ok(Self {
            record,
            path: path.to_owned(),
            file: BufWriter::with_capacity(1 << 20, file),
            captions: Vec::new(),
        })
    }

    /// Adds one example: `[side, side, 3]` bytes and `context` ids.
    ///
    /// # Errors
    /// `Io` when the disk is full; `Options` when a length does not fit.
    pub fn push(&mut self, pixels: &[u8], ids: &[u32]) -> Result<()> {
        if pixels.len() != self.record.pixels_len() || ids.len() != self.record.context {
            let (got, want) = ((pixels.len(), ids.len()), self.record);
            return Err(TrainError::Options(format!(
                "an example of {got:?} bytes and ids for records of {want:?}"
            )));
        }
        let ids: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
        let written = self.file.write_all(pixels).and_then(|()| self.file.write_all(&ids));
        written.map_err(TrainError::io(&self.path))?;
        self.captions.push(caption_key(&ids));
        Ok(())
    }

    /// Closes the file.
    ///
    /// # Errors
    /// `Io` when the disk is full.
    pub fn finish(mut self) -> Result<Examples> {
        self.file.flush().map_err(TrainError::io(&self.path))?;
        Ok(Examples { record: self.record, path: self.path, captions: self.captions })
    }
}

impl Examples {
    /// Number of examples.
    pub fn len(&self) -> usize {
        self.captions.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.captions.is_empty()
    }

    /// The sizes of a record.
    pub fn record(&self) -> Record {
        self.record
    }

    /// For each example a number that is equal where captions are.
    pub fn captions(&self) -> &[u64] {
        &self.captions
    }

    /// Opens the file for reading.
    ///
    /// # Errors
    /// `Io`, with the file's name.
    pub fn reader(&self) -> Result<ExamplesReader> {
        let file = File::open(&self.path).map_err(TrainError::io(&self.path))?;
        Ok(ExamplesReader {
            record: self.record,
            path: self.path.clone(),
            file,
            buffer: vec![0; self.record.len()],
        })
    }
}

/// Reads examples at random.
pub struct ExamplesReader {
    record: Record,
    path: PathBuf,
    file: File,
    buffer: Vec<u8>,
}

impl ExamplesReader {
    /// Pixels `[side, side, 3]` of example `index`; its token ids are added to `ids`.
    ///
    /// # Errors
    /// `Io` when the file is gone or shorter than it was.
    pub fn read(&mut self, index: u32, ids: &mut Vec<u32>) -> Result<&[u8]> {
        let start = u64::from(index) * self.record.len() as u64;
        let read =
            self.file.seek(SeekFrom::Start(start)).and_then(|_| self.file.read_exact(&mut self.buffer));
        read.map_err(TrainError::io(&self.path))?;
        let (pixels, tokens) = self.buffer.split_at(self.record.pixels_len());
        ids.extend(tokens.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])));
        Ok(pixels)
    }
}
