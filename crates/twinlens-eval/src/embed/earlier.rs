//! Embeddings of an earlier dataset of the same model and options: of a table that grew by one
//! image, one image is encoded.
//!
//! What is found must be what this run would compute, so a row is known by the bytes of its image
//! and by the text that it is compared with.

use std::collections::{BTreeSet, HashMap, VecDeque};

use arrow::array::{Array, AsArray, Float32Array, RecordBatch, StringArray};
use arrow::compute::cast;
use arrow::datatypes::DataType;
use sha2::{Digest, Sha256};
use twinlens_dataset::reader::ShardReader;
use twinlens_dataset::{Dataset, ImageColumn, MAIN};
use twinlens_pipeline::RunError;

use super::options::Embed;
use crate::error::EvalError;
use crate::vectors::{CLIP_SCORE, EMBEDDING, IMAGE_HASH, TEXT_EMBEDDING, Vectors};

/// Rows that are read at a time.
const BATCH_ROWS: usize = 1024;

/// What determines a row: the SHA-256 of its image in hexadecimal, and its text.
type Key = (String, Option<String>);

/// What is computed of a row.
#[derive(Debug, Clone)]
pub(super) struct Known {
    /// Of the image.
    pub vector: Vec<f32>,
    pub score: Option<f32>,
    /// Of the text; `None` if texts are not kept, or there is none.
    pub text: Option<Vec<f32>>,
}

/// An earlier dataset.
pub(super) struct Earlier {
    dataset: Dataset,
    captions: Option<String>,
    /// The columns that are read of it.
    columns: Vec<&'static str>,
    /// The first 8 bytes of hashes of images, with their splits, sorted.
    index: Vec<(u64, u64)>,
    /// Splits that were read, the last one at the end.
    read: VecDeque<(u64, HashMap<Key, Known>)>,
    /// Bytes that may be held.
    budget: usize,
    /// Rows that were found.
    pub taken: u64,
}

impl Earlier {
    /// The earlier dataset, if there is one and its rows can be compared. It holds about `budget`
    /// bytes of it in memory, at least one split.
    ///
    /// # Errors
    /// It cannot be read.
    pub(super) fn open(
        dataset: Option<&Dataset>,
        stage: &Embed,
        budget: usize,
    ) -> Result<Option<Self>, EvalError> {
        let Some(dataset) = dataset.cloned() else { return Ok(None) };
        let captions = stage.captions.as_ref().map(|column| column.to_string());
        let mut columns = vec![IMAGE_HASH, EMBEDDING];
        columns.extend(captions.as_ref().map(|_| CLIP_SCORE));
        columns.extend(stage.text_embeddings.then_some(TEXT_EMBEDDING));
        let schema = dataset.schema(MAIN)?;
        let has = |name: &str| schema.field_with_name(name).is_ok();
        if !columns.iter().all(|name| has(name)) || captions.as_ref().is_some_and(|name| !has(name)) {
            return Ok(None);
        }
        let mut index = Vec::new();
        for &split in dataset.state().commits.keys() {
            for batch in ShardReader::new(&dataset.only_split(split), MAIN, &[IMAGE_HASH], BATCH_ROWS) {
                let hashes = texts(&batch?, IMAGE_HASH)?;
                index.extend(hashes.iter().flatten().filter_map(short).map(|hash| (hash, split)));
            }
        }
        index.sort_unstable();
        index.dedup();
        Ok(Some(Self { dataset, captions, columns, index, read: VecDeque::new(), budget, taken: 0 }))
    }

    /// What is known of each row of a batch with images in `column`.
    ///
    /// # Errors
    /// The earlier dataset cannot be read.
    pub(super) fn find(
        &mut self,
        batch: &RecordBatch,
        column: &str,
    ) -> Result<Vec<Option<Known>>, EvalError> {
        let images = batch.column_by_name(column).and_then(|column| ImageColumn::new(column).ok());
        let Some(images) = images else { return Ok(vec![None; batch.num_rows()]) };
        let captions = self.captions.as_ref().map(|name| texts(batch, name)).transpose()?;
        let key = |row: usize| -> Option<Key> {
            let hash = hex::encode(Sha256::digest(images.get(row)?));
            Some((hash, captions.as_ref().and_then(|captions| text(captions, row))))
        };
        let keys: Vec<Option<Key>> = (0..batch.num_rows()).map(key).collect();
        let hashes = keys.iter().flatten().filter_map(|(hash, _)| short(hash));
        let splits: BTreeSet<u64> = hashes.flat_map(|hash| self.splits(hash)).collect();
        let mut found = vec![None; keys.len()];
        for split in splits {
            let rows = self.split(split)?;
            for (key, found) in keys.iter().zip(&mut found).filter(|(_, found)| found.is_none()) {
                *found = key.as_ref().and_then(|key| rows.get(key)).cloned();
            }
        }
        self.taken += found.iter().flatten().count() as u64;
        Ok(found)
    }

    /// The splits that may hold an image.
    fn splits(&self, hash: u64) -> impl Iterator<Item = u64> {
        let first = self.index.partition_point(|(other, _)| *other < hash);
        self.index[first..].iter().take_while(move |(other, _)| *other == hash).map(|(_, split)| *split)
    }

    /// The rows of a split.
    fn split(&mut self, split: u64) -> Result<&HashMap<Key, Known>, EvalError> {
        if let Some(place) = self.read.iter().position(|(read, _)| *read == split) {
            let rows = self.read.remove(place);
            self.read.extend(rows);
        } else {
            let rows = self.read_split(split)?;
            self.read.push_back((split, rows));
            while self.read.len() > 1 && self.bytes() > self.budget {
                self.read.pop_front();
            }
        }
        let last = self.read.back().map(|(_, rows)| rows);
        last.ok_or_else(|| RunError::Internal("a split that was not read".into()).into())
    }

    fn bytes(&self) -> usize {
        let of = |known: &Known| known.vector.len() + known.text.as_ref().map_or(0, Vec::len);
        self.read.iter().flat_map(|(_, rows)| rows.values()).map(|known| 4 * of(known) + 256).sum()
    }

    fn read_split(&self, split: u64) -> Result<HashMap<Key, Known>, EvalError> {
        let split = self.dataset.only_split(split);
        let columns: Vec<&str> = self.columns.iter().copied().chain(self.captions.as_deref()).collect();
        let mut rows = HashMap::new();
        for batch in ShardReader::new(&split, MAIN, &columns, BATCH_ROWS) {
            let batch = batch?;
            let hashes = texts(&batch, IMAGE_HASH)?;
            let captions = self.captions.as_ref().map(|name| texts(&batch, name)).transpose()?;
            let scores = batch.column_by_name(CLIP_SCORE).map(|column| cast(column, &DataType::Float32));
            let scores: Option<Float32Array> =
                scores.transpose()?.and_then(|scores| scores.as_primitive_opt().cloned());
            let vectors = Vectors::from_column(&batch, EMBEDDING);
            let of_texts = Vectors::from_column(&batch, TEXT_EMBEDDING);
            for row in 0..batch.num_rows() {
                let vector = vectors.as_ref().and_then(|vectors| vectors.get(row));
                let (Some(hash), Some(vector)) = (text(&hashes, row), vector) else { continue };
                let score = scores.as_ref().filter(|scores| scores.is_valid(row));
                let known = Known {
                    vector: vector.to_vec(),
                    score: score.map(|scores| scores.value(row)),
                    text: of_texts.as_ref().and_then(|texts| texts.get(row)).map(<[f32]>::to_vec),
                };
                rows.insert((hash, captions.as_ref().and_then(|captions| text(captions, row))), known);
            }
        }
        Ok(rows)
    }
}

/// A column as texts.
fn texts(batch: &RecordBatch, column: &str) -> Result<StringArray, EvalError> {
    let missing = || RunError::Internal(format!("a shard lacks the column `{column}`"));
    let texts = cast(batch.column_by_name(column).ok_or_else(missing)?, &DataType::Utf8)?;
    Ok(texts.as_string::<i32>().clone())
}

fn text(texts: &StringArray, row: usize) -> Option<String> {
    texts.is_valid(row).then(|| texts.value(row).to_owned())
}

/// The first 8 bytes of a hash.
fn short(hash: &str) -> Option<u64> {
    u64::from_str_radix(hash.get(..16)?, 16).ok()
}
