//! Which examples were trained on: by the hash of the bytes, and by the perceptual hash (section 5
//! of the paper).

use std::collections::{HashMap, HashSet};

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Int64Type};
use twinlens_dataset::reader::ShardReader;
use twinlens_pipeline::InputData;

use crate::error::EvalError;
use crate::prompts::hex;
use crate::trust::{TRAINED_ON, Warning};

/// Two images are taken to be the same if so many bits of their perceptual hashes differ, or fewer.
pub const DISTANCE: u32 = 4;
const BANDS: usize = DISTANCE as usize + 1;
const ROWS: usize = 8192;

const SHA256: &str = "sha256";
const PHASH: &str = "phash";

/// The images that were trained on: 16 bytes of a SHA-256 and five places of a perceptual hash
/// each.
#[derive(Debug, Default)]
pub struct Training {
    name: String,
    bytes: HashSet<[u8; 16]>,
    /// By band: of two hashes that differ in as many bits as there are bands but one, a band is
    /// equal.
    bands: [HashMap<u16, Vec<u64>>; BANDS],
}

/// How many examples of a set were found.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Overlap {
    by_bytes: u64,
    by_look: u64,
}

fn band(hash: u64, band: usize) -> u16 {
    let bits = 64 / BANDS;
    (hash >> (band * bits)) as u16 & ((1 << bits) - 1)
}

/// The first 16 bytes of a hash in hexadecimal digits.
fn digits(text: &str) -> Option<[u8; 16]> {
    let mut bytes = [0; 16];
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * at..2 * at + 2)?, 16).ok()?;
    }
    Some(bytes)
}

impl Training {
    /// Reads the hashes of a table.
    ///
    /// # Errors
    /// It has neither `sha256` nor `phash`.
    pub fn open(input: &InputData, set: &str) -> Result<Self, EvalError> {
        let schema = input.dataset.schema(&input.table)?;
        let columns: Vec<&str> =
            [SHA256, PHASH].into_iter().filter(|name| schema.field_with_name(name).is_ok()).collect();
        if columns.is_empty() {
            let why =
                format!("`overlap_with` names `{}`, which has neither `sha256` nor `phash`", input.name);
            return Err(EvalError::set(set, why, Some("a `fetch` stage writes both".into())));
        }
        let mut training = Self { name: input.name.clone(), ..Self::default() };
        for batch in ShardReader::new(&input.dataset, &input.table, &columns, ROWS) {
            let batch = batch?;
            for row in 0..batch.num_rows() {
                training.bytes.extend(sha256(&batch, row));
                if let Some(hash) = phash(&batch, row) {
                    for (at, places) in training.bands.iter_mut().enumerate() {
                        places.entry(band(hash, at)).or_default().push(hash);
                    }
                }
            }
        }
        Ok(training)
    }

    fn looks_like_one(&self, hash: u64) -> bool {
        let near = |known: &u64| (known ^ hash).count_ones() <= DISTANCE;
        self.bands
            .iter()
            .enumerate()
            .any(|(at, places)| places.get(&band(hash, at)).is_some_and(|known| known.iter().any(near)))
    }

    /// Whether an example was trained on. Its own columns come first: an image that was resized has
    /// other bytes now than it had.
    pub fn holds(
        &self,
        batch: &RecordBatch,
        row: usize,
        digest: &[u8; 32],
        look: Option<u64>,
        found: &mut Overlap,
    ) -> bool {
        let bytes = sha256(batch, row).or_else(|| digits(&hex(&digest[..16])));
        if bytes.is_some_and(|bytes| self.bytes.contains(&bytes)) {
            found.by_bytes += 1;
            return true;
        }
        let looks = phash(batch, row).or(look).is_some_and(|hash| self.looks_like_one(hash));
        found.by_look += u64::from(looks);
        looks
    }

    /// A warning of what was found among `total` examples.
    pub fn warning(&self, found: &Overlap, total: u64) -> Option<Warning> {
        let all = found.by_bytes + found.by_look;
        (all > 0).then(|| Warning {
            code: TRAINED_ON,
            detail: format!(
                "{all} of {total} images are among those of `{}` ({} by their bytes, {} by their looks): the rows of the part `clean` \
                 are without them",
                self.name, found.by_bytes, found.by_look
            ),
            value: all as f64 / total.max(1) as f64,
        })
    }
}

/// Whether the perceptual hash of a table's images must be computed.
pub fn needs_look(batch: &RecordBatch) -> bool {
    batch.column_by_name(PHASH).is_none()
}

fn sha256(batch: &RecordBatch, row: usize) -> Option<[u8; 16]> {
    let column = batch.column_by_name(SHA256)?.as_string_opt::<i32>()?;
    column.is_valid(row).then(|| digits(column.value(row))).flatten()
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

    /// The bands against their plain twin, a look at every hash.
    #[test]
    fn near_hashes_are_found_and_far_ones_are_not() {
        let mut training = Training::default();
        let known: Vec<u64> = (1..60_u64).map(|seed| seed.wrapping_mul(0x9E37_79B9_7F4A_7C15)).collect();
        for hash in &known {
            for (at, places) in training.bands.iter_mut().enumerate() {
                places.entry(band(*hash, at)).or_default().push(*hash);
            }
        }
        for (at, hash) in known.iter().enumerate() {
            for flipped in 0..8_u32 {
                // Bits spread over the whole hash.
                let changed = (0..flipped).fold(*hash, |hash, bit| hash ^ 1 << ((bit * 11 + at as u32) % 64));
                let plain = known.iter().any(|known| (known ^ changed).count_ones() <= DISTANCE);
                assert_eq!(training.looks_like_one(changed), plain, "{flipped} bits");
            }
        }
    }
}
