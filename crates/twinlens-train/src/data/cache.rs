//! Caches decoded and resized images in a file, so that they are decoded once.
//!
//! The cache is empty when a training starts or resumes, and fills as images are decoded. Images
//! that do not fit are decoded each time.

use crate::error::{Result, TrainError};
use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use twinlens_image::Rgb;

/// An image and the token ids of each of its captions.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Example {
    pub(crate) image: Rgb,
    pub(crate) ids: Vec<Vec<u32>>,
}

/// The offset of a record, and the size of its image.
#[derive(Clone, Copy)]
struct Entry {
    at: u64,
    width: u32,
    height: u32,
    captions: usize,
}

pub(crate) struct Cache {
    path: PathBuf,
    context: usize,
    /// Maximum bytes of the file.
    limit: u64,
    written: Mutex<(File, u64)>,
    entries: Mutex<HashMap<(usize, u64), Entry>>,
}

impl Cache {
    /// Creates an empty cache of at most `limit` bytes, with `context` token ids per image.
    pub(crate) fn create(path: &Path, context: usize, limit: u64) -> Result<Self> {
        let file = File::create(path).map_err(TrainError::io(path))?;
        let (written, entries) = (Mutex::new((file, 0)), Mutex::default());
        Ok(Self { path: path.to_owned(), context, limit, written, entries })
    }

    /// Whether row `row` of input `input` is cached.
    pub(crate) fn contains(&self, input: usize, row: u64) -> bool {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&(input, row))
    }

    /// Adds an image if it fits.
    pub(crate) fn put(&self, input: usize, row: u64, example: &Example) -> Result<()> {
        let (pixels, ids) = (example.image.pixels(), &example.ids);
        let mut record = Vec::with_capacity(pixels.len() + 4 * self.context * ids.len());
        record.extend_from_slice(pixels);
        record.extend(ids.iter().flatten().flat_map(|id| id.to_le_bytes()));
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        let at = written.1;
        if at + record.len() as u64 > self.limit || ids.iter().any(|ids| ids.len() != self.context) {
            return Ok(());
        }
        written.0.write_all(&record).map_err(TrainError::io(&self.path))?;
        written.1 += record.len() as u64;
        drop(written);
        let (width, height) = (example.image.width(), example.image.height());
        let entry = Entry { at, width, height, captions: ids.len() };
        self.entries.lock().unwrap_or_else(PoisonError::into_inner).insert((input, row), entry);
        Ok(())
    }

    pub(crate) fn get(&self, input: usize, row: u64) -> Result<Option<Example>> {
        let entry = self.entries.lock().unwrap_or_else(PoisonError::into_inner).get(&(input, row)).copied();
        let Some(Entry { at, width, height, captions }) = entry else { return Ok(None) };
        let values = 3 * width as usize * height as usize;
        let mut record = vec![0; values + 4 * self.context * captions];
        let mut file = File::open(&self.path).map_err(TrainError::io(&self.path))?;
        let read = file.seek(SeekFrom::Start(at)).and_then(|_| file.read_exact(&mut record));
        read.map_err(TrainError::io(&self.path))?;
        let ids: Vec<u32> = record[values..].as_chunks().0.iter().map(|id| u32::from_le_bytes(*id)).collect();
        let ids = ids.chunks(self.context.max(1)).map(<[u32]>::to_vec).collect();
        // The ids are at the end, so that no pixel moves.
        record.truncate(values);
        Ok(Rgb::new(width, height, record).ok().map(|image| Example { image, ids }))
    }
}
