//! Whether an image is the one that the list was made of: domains expire, and who buys them can
//! serve what they like.

use arrow::array::{Array, AsArray, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Int64Type, Schema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use twinlens_image::ProcessedImage;
use twinlens_pipeline::RunError;

use super::engine;
use super::images::Refusal;

/// The codes of images that are not what was expected.
pub const CODES: &[&str] = &["sha256_mismatch", "phash_mismatch"];

/// What is known of the images beforehand. Rows without a value are not verified.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Verify {
    /// The column with the SHA-256 of the body, in hexadecimal digits.
    pub sha256: Option<String>,
    /// The column with the perceptual hash: 64 bits as an integer, or 16 hexadecimal digits.
    pub phash: Option<String>,
    /// Most bits in which the perceptual hash may differ; the same picture, stored again, differs
    /// in few.
    pub phash_distance: u32,
}

impl Default for Verify {
    fn default() -> Self {
        Self { sha256: None, phash: None, phash_distance: 8 }
    }
}

/// The names under which the columns travel beside the image columns, which may have the same
/// names.
const SHA256: &str = "_expected_sha256";
const PHASH: &str = "_expected_phash";

impl Verify {
    /// The columns that are read, and the names under which they travel.
    pub(super) fn columns(&self) -> impl Iterator<Item = (&str, &'static str)> {
        let all = [(self.sha256.as_deref(), SHA256), (self.phash.as_deref(), PHASH)];
        all.into_iter().filter_map(|(column, name)| Some((column?, name)))
    }

    /// What is wrong with the options, given the columns of the input.
    pub(super) fn check(&self, schema: &Schema) -> Option<String> {
        let text =
            |kind: &DataType| matches!(kind, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View);
        for (column, name) in self.columns() {
            match schema.field_with_name(column).map(|field| field.data_type()) {
                Err(_) => {
                    return Some(format!(
                        "`verify` names a column `{column}`, which the input does not have"
                    ));
                }
                Ok(kind) if text(kind) || (name == PHASH && *kind == DataType::Int64) => {}
                Ok(kind) => {
                    return Some(format!("the column `{column}` of `verify` holds {kind}, not a hash"));
                }
            }
        }
        let distance = self.phash_distance;
        (distance > 32).then(|| format!("`phash_distance` must be from 0 to 32 bits, not {distance}"))
    }

    /// The expectations of the rows.
    pub(super) fn of(&self, rows: &RecordBatch) -> Result<Expected, RunError> {
        let column = |name: &str| match rows.column_by_name(name) {
            None => Ok(None),
            Some(column) => arrow::compute::cast(column, &DataType::Utf8).map(Some).map_err(engine),
        };
        let phash = match rows.column_by_name(PHASH) {
            Some(column) if *column.data_type() == DataType::Int64 => {
                Some(column.as_primitive::<Int64Type>().clone())
            }
            _ => column(PHASH)?.map(|digits| digits.as_string::<i32>().iter().map(hash_of).collect()),
        };
        let sha256 = column(SHA256)?.map(|column| column.as_string::<i32>().clone());
        Ok(Expected { sha256, phash, distance: self.phash_distance })
    }
}

/// What is not a hash is one that no image has: the row is refused, and not waved through.
fn hash_of(digits: Option<&str>) -> Option<i64> {
    digits.map(|digits| u64::from_str_radix(digits, 16).unwrap_or(u64::MAX).cast_signed())
}

/// What is expected of the images of some rows.
pub(super) struct Expected {
    sha256: Option<StringArray>,
    phash: Option<Int64Array>,
    distance: u32,
}

impl Expected {
    /// Why this image is not the one of that row.
    pub(super) fn refuse(&self, row: u32, url: &str, image: &ProcessedImage) -> Option<Refusal> {
        let row = row as usize;
        let expected =
            self.sha256.as_ref().filter(|column| column.is_valid(row)).map(|column| column.value(row));
        if let Some(expected) = expected.filter(|hash| !hash.eq_ignore_ascii_case(&image.sha256)) {
            let detail = format!("{url}: sha256 is {}, expected {expected}", image.sha256);
            return Some(Refusal { code: "sha256_mismatch", detail });
        }
        let expected =
            self.phash.as_ref().filter(|column| column.is_valid(row)).map(|column| column.value(row))?;
        let distance = (expected ^ image.phash).count_ones();
        (distance > self.distance).then(|| Refusal {
            code: "phash_mismatch",
            detail: format!(
                "{url}: the perceptual hash is {distance} bits from the expected {expected:016x}"
            ),
        })
    }
}
