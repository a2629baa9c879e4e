//! Verifies that an image is the expected one: the new owner of an expired domain may serve
//! anything.

use std::ops::Range;

use arrow::array::{Array, AsArray, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Int64Type};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use twinlens_pipeline::{ColumnName, ColumnType, Fault, Ports, Required, RowsInput, RunError};

use super::body::Rejection;
use super::stored::Stored;
use crate::stages::common::arrow_error;

/// Reject codes of unexpected images.
pub const CODES: &[&str] = &["sha256_mismatch", "phash_mismatch"];

/// Columns with the expected hashes of images. Rows without a value are not verified.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Verify {
    /// Column with the SHA-256 of the body, in hexadecimal.
    pub sha256: Option<String>,
    /// Column with the perceptual hash: a 64-bit integer, or 16 hexadecimal digits.
    pub phash: Option<String>,
    /// Maximum number of differing bits of the perceptual hash; re-encoding an image changes few.
    pub phash_distance: u32,
}

impl Default for Verify {
    fn default() -> Self {
        Self { sha256: None, phash: None, phash_distance: 8 }
    }
}

/// Names of the columns within the stage; their own names may be those of image columns.
const SHA256: &str = "__twinlens_expected_sha256";
const PHASH: &str = "__twinlens_expected_phash";

const PHASH_TYPE: ColumnType = ColumnType::Other("64-bit integers or text", |kind| {
    ColumnType::Int64.accepts(kind) || ColumnType::Text.accepts(kind)
});

impl Verify {
    /// The columns to read, and their names within the stage.
    pub(super) fn columns(&self) -> impl Iterator<Item = (&str, &'static str)> {
        let all = [(self.sha256.as_deref(), SHA256), (self.phash.as_deref(), PHASH)];
        all.into_iter().filter_map(|(column, name)| Some((column?, name)))
    }

    /// Checks the columns, and the options, which are at `span`.
    pub(super) fn check(&self, ports: &mut Ports<'_>, input: &RowsInput, span: Range<usize>) {
        for (column, name) in self.columns() {
            let column = ColumnName::at(column, span.clone());
            let kind = if name == PHASH { PHASH_TYPE } else { ColumnType::Text };
            ports.column(input, column, kind, Required::Yes);
        }
        let distance = self.phash_distance;
        if distance > 32 {
            let message = format!("`phash_distance` must be from 0 to 32 bits, not {distance}");
            ports.fault(Fault::at(span, message));
        }
    }

    pub(super) fn expected_hashes(&self, rows: &RecordBatch) -> Result<ExpectedHashes, RunError> {
        let column = |name: &str| match rows.column_by_name(name) {
            None => Ok(None),
            Some(column) => arrow::compute::cast(column, &DataType::Utf8).map(Some).map_err(arrow_error),
        };
        let phash = match rows.column_by_name(PHASH) {
            Some(column) if *column.data_type() == DataType::Int64 => {
                Some(column.as_primitive::<Int64Type>().clone())
            }
            _ => column(PHASH)?.map(|digits| digits.as_string::<i32>().iter().map(parse_phash).collect()),
        };
        let sha256 = column(SHA256)?.map(|column| column.as_string::<i32>().clone());
        Ok(ExpectedHashes { sha256, phash, distance: self.phash_distance })
    }
}

/// A malformed hash becomes one that no image has, so that the row is rejected.
fn parse_phash(digits: Option<&str>) -> Option<i64> {
    digits.map(|digits| u64::from_str_radix(digits, 16).unwrap_or(u64::MAX).cast_signed())
}

/// The expected hashes of some rows.
pub(super) struct ExpectedHashes {
    sha256: Option<StringArray>,
    phash: Option<Int64Array>,
    distance: u32,
}

impl ExpectedHashes {
    /// Why the image does not match the row.
    pub(super) fn mismatch(&self, row: u32, url: &str, stored: &Stored) -> Option<Rejection> {
        let row = row as usize;
        let expected =
            self.sha256.as_ref().filter(|column| column.is_valid(row)).map(|column| column.value(row));
        if let Some(expected) = expected.filter(|hash| !hash.eq_ignore_ascii_case(stored.sha256())) {
            let detail = format!("{url}: sha256 is {}, expected {expected}", stored.sha256());
            return Some(Rejection { code: "sha256_mismatch", detail });
        }
        let expected =
            self.phash.as_ref().filter(|column| column.is_valid(row)).map(|column| column.value(row))?;
        let distance = stored.image().map(|image| (expected ^ image.phash).count_ones());
        let detail = match distance {
            Some(distance) if distance <= self.distance => return None,
            Some(distance) => {
                format!("{url}: the perceptual hash is {distance} bits from the expected {expected:016x}")
            }
            None => format!("{url}: an image that is not decoded has no perceptual hash"),
        };
        Some(Rejection { code: "phash_mismatch", detail })
    }
}
