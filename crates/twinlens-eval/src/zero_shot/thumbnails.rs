//! Random images of a set, kept as thumbnails, so that a report can show them wherever the images
//! come from.
//!
//! The images with the least SHA-256 are kept: a random sample that depends on nothing but the
//! images. Memory holds `most` thumbnails.

use std::collections::BTreeMap;

use arrow::array::Array;
use twinlens_dataset::ImageColumn;
use twinlens_image::{Encode, Encoding, Limits, Resize, ResizeMode, process};

use crate::classify::Row;

/// Pixels of the longer side.
const SIDE: u32 = 144;

pub(super) struct Thumbnails {
    most: usize,
    column: String,
    limits: Limits,
    /// JPEG files by the hash of the image and the name of the example.
    kept: BTreeMap<([u8; 32], String), Vec<u8>>,
}

impl Thumbnails {
    pub(super) fn new(most: usize, column: &str, limits: Limits) -> Self {
        Self { most, column: column.into(), limits, kept: BTreeMap::new() }
    }

    /// Takes the image of a row, if it is one of those to keep.
    pub(super) fn add(&mut self, row: &Row<'_>) {
        let key = (row.image.digest, row.name.to_string());
        let is_full = self.kept.len() >= self.most;
        if row.is_rejected || self.most == 0 || is_full && self.kept.keys().next_back() < Some(&key) {
            return;
        }
        let Some(thumbnail) = self.thumbnail(row) else { return };
        self.kept.insert(key, thumbnail);
        if self.kept.len() > self.most {
            self.kept.pop_last();
        }
    }

    /// A small JPEG; `None` if the row has no image: it has an embedding.
    fn thumbnail(&self, row: &Row<'_>) -> Option<Vec<u8>> {
        let column = row.batch.column_by_name(&self.column)?.slice(row.row, 1);
        let images = ImageColumn::new(&column).ok()?;
        let resize = Resize { size: SIDE, mode: ResizeMode::Longest, only_if_bigger: true };
        let encode = Encode { format: Encoding::Jpeg, quality: Some(85) };
        process(images.get(0)?, &self.limits, &resize, &encode).ok().map(|thumbnail| thumbnail.bytes)
    }

    /// The names of the examples, and their thumbnails.
    pub(super) fn into_rows(self) -> Vec<(String, Vec<u8>)> {
        self.kept.into_iter().map(|((_, name), jpeg)| (name, jpeg)).collect()
    }
}
