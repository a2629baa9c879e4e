//! Overlap between examples and training images, by hash of the bytes and by perceptual hash
//! (section 5 of the CLIP paper).

use std::collections::{HashMap, HashSet};

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Int64Type};
use twinlens_dataset::reader::ShardReader;
use twinlens_pipeline::InputData;

use crate::classify::Row;
use crate::error::EvalError;
use crate::trust::{TRAINED_ON, Warning};

/// Images are duplicates if at most this many bits of their perceptual hashes differ.
const MAX_DISTANCE: u32 = 4;
const BANDS: usize = MAX_DISTANCE as usize + 1;
const ROWS: usize = 8192;

const SHA256: &str = "sha256";
const PHASH: &str = "phash";

/// Hashes of the training images.
#[derive(Debug, Default)]
pub(super) struct TrainingHashes {
    name: String,
    /// The first 16 bytes of SHA-256 hashes.
    sha256: HashSet<[u8; 16]>,
    /// Perceptual hashes by band: two hashes that differ in fewer bits than there are bands have an
    /// equal band.
    bands: [HashMap<u16, Vec<u64>>; BANDS],
}

/// Examples of a set among the training images.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Overlap {
    by_sha256: u64,
    by_phash: u64,
}

fn band(hash: u64, band: usize) -> u16 {
    let bits = 64 / BANDS;
    (hash >> (band * bits)) as u16 & ((1 << bits) - 1)
}

/// Parses the first 16 bytes of a hash in hexadecimal.
fn hash_prefix(text: &str) -> Option<[u8; 16]> {
    let mut bytes = [0; 16];
    hex::decode_to_slice(text.get(..32)?, &mut bytes).ok()?;
    Some(bytes)
}

impl TrainingHashes {
    /// Reads the columns `sha256` and `phash` of a table, at least one of which must exist.
    pub(super) fn open(input: &InputData, set: &str) -> Result<Self, EvalError> {
        let schema = input.dataset.schema(&input.table)?;
        let columns: Vec<&str> =
            [SHA256, PHASH].into_iter().filter(|name| schema.field_with_name(name).is_ok()).collect();
        if columns.is_empty() {
            let why = format!(
                "`overlap_with` names `{}`, which has neither a column `sha256` nor `phash`",
                input.name
            );
            return Err(EvalError::set(set, why, Some("a `fetch` stage writes both".into())));
        }
        let mut training = Self { name: input.name.clone(), ..Self::default() };
        for batch in ShardReader::new(&input.dataset, &input.table, &columns, ROWS) {
            let batch = batch?;
            for row in 0..batch.num_rows() {
                training.sha256.extend(sha256(&batch, row));
                if let Some(hash) = phash(&batch, row) {
                    training.add_phash(hash);
                }
            }
        }
        Ok(training)
    }

    fn add_phash(&mut self, hash: u64) {
        for (at, hashes) in self.bands.iter_mut().enumerate() {
            hashes.entry(band(hash, at)).or_default().push(hash);
        }
    }

    fn contains_near(&self, hash: u64) -> bool {
        let near = |known: &u64| (known ^ hash).count_ones() <= MAX_DISTANCE;
        self.bands
            .iter()
            .enumerate()
            .any(|(at, hashes)| hashes.get(&band(hash, at)).is_some_and(|known| known.iter().any(near)))
    }

    /// Whether an example is a training image; counts it in `overlap`. Hashes in the example's own
    /// columns take precedence: a resized image no longer has its original bytes.
    pub(super) fn contains(&self, &Row { batch, row, image, .. }: &Row<'_>, overlap: &mut Overlap) -> bool {
        let bytes = sha256(batch, row).or_else(|| image.digest[..16].try_into().ok());
        if bytes.is_some_and(|bytes| self.sha256.contains(&bytes)) {
            overlap.by_sha256 += 1;
            return true;
        }
        let near = phash(batch, row).or(image.phash).is_some_and(|hash| self.contains_near(hash));
        overlap.by_phash += u64::from(near);
        near
    }

    /// Warns of an overlap among `total` examples.
    pub(super) fn warning(&self, overlap: &Overlap, total: u64) -> Option<Warning> {
        let all = overlap.by_sha256 + overlap.by_phash;
        (all > 0).then(|| Warning {
            code: TRAINED_ON,
            detail: format!(
                "{all} of {total} images are among those of `{}` ({} by SHA-256, {} by perceptual hash): the rows of the part `clean` \
                 exclude them",
                self.name, overlap.by_sha256, overlap.by_phash
            ),
            value: all as f64 / total.max(1) as f64,
        })
    }
}

/// Whether the perceptual hashes of the images must be computed.
pub(super) fn needs_phash(batch: &RecordBatch) -> bool {
    batch.column_by_name(PHASH).is_none()
}

fn sha256(batch: &RecordBatch, row: usize) -> Option<[u8; 16]> {
    let column = batch.column_by_name(SHA256)?.as_string_opt::<i32>()?;
    column.is_valid(row).then(|| hash_prefix(column.value(row))).flatten()
}

fn phash(batch: &RecordBatch, row: usize) -> Option<u64> {
    let column = batch.column_by_name(PHASH)?;
    if column.is_null(row) {
        return None;
    }
    let cell = cast(&column.slice(row, 1), &DataType::Int64).ok()?;
    Some(cell.as_primitive::<Int64Type>().value(0) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reference implementation: compare with every hash.
    #[test]
    fn near_hashes_are_found_and_far_ones_are_not() {
        let mut training = TrainingHashes::default();
        let known: Vec<u64> = (1..60_u64).map(|seed| seed.wrapping_mul(0x9E37_79B9_7F4A_7C15)).collect();
        known.iter().for_each(|hash| training.add_phash(*hash));
        for (at, hash) in known.iter().enumerate() {
            for flipped in 0..8_u32 {
                // Bits spread over the whole hash.
                let changed = (0..flipped).fold(*hash, |hash, bit| hash ^ 1 << ((bit * 11 + at as u32) % 64));
                let plain = known.iter().any(|known| (known ^ changed).count_ones() <= MAX_DISTANCE);
                assert_eq!(training.contains_near(changed), plain, "{flipped} bits");
            }
        }
    }
}
