//! Embeddings as columns: what an `embed` stage writes, and what everything that stands on it
//! reads.
//!
//! A vector is a `fixed_size_list` of f32 or f16. Beside it stands what made it (the hash of the
//! weights, and how images were prepared), in each row: so it goes with the rows through every
//! filter, query and export, and vectors of two models are never compared by mistake.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, FixedSizeListArray, Float32Array, RecordBatch};
use arrow::buffer::NullBuffer;
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Float32Type, Schema};
use arrow::error::ArrowError;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use twinlens_dataset::Dataset;

use crate::error::EvalError;

/// The column of image embeddings.
pub const EMBEDDING: &str = "embedding";
/// The column that says what made the embeddings.
pub const MADE_BY: &str = "embedding_model";
/// The column of text embeddings.
pub const TEXT_EMBEDDING: &str = "text_embedding";
/// The column of cosines of image and caption.
pub const CLIP_SCORE: &str = "clip_score";
/// The column of the SHA-256 of the image as it was read: an image's identity, where the image
/// itself is no longer there.
pub const IMAGE_HASH: &str = "image_sha256";

/// How exactly embeddings are stored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// 4 bytes a number: exactly what the model gave.
    #[default]
    F32,
    /// 2 bytes a number: 3 digits.
    F16,
}

impl Dtype {
    fn kind(self) -> DataType {
        match self {
            Self::F32 => DataType::Float32,
            Self::F16 => DataType::Float16,
        }
    }

    /// The column of `width` numbers a row.
    pub fn field(self, name: &str, width: usize) -> Field {
        Field::new(name, DataType::FixedSizeList(self.item(), width as i32), true)
    }

    fn item(self) -> Arc<Field> {
        Arc::new(Field::new("item", self.kind(), true))
    }

    /// A column out of values `[rows, width]`; null where a row is not `valid`.
    ///
    /// # Errors
    /// When the lengths do not fit.
    pub fn column(
        self,
        values: Vec<f32>,
        width: usize,
        valid: Option<Vec<bool>>,
    ) -> Result<ArrayRef, ArrowError> {
        let values = cast(&Float32Array::from(values), &self.kind())?;
        let list =
            FixedSizeListArray::try_new(self.item(), width as i32, values, valid.map(NullBuffer::from))?;
        Ok(Arc::new(list))
    }
}

/// The width of a column of embeddings; `None` for one of another type.
pub fn width(kind: &DataType) -> Option<usize> {
    match kind {
        DataType::FixedSizeList(item, width) if item.data_type().is_floating() => {
            usize::try_from(*width).ok()
        }
        _ => None,
    }
}

/// Whether a table has embeddings to stand in for its images.
pub fn has_embeddings(schema: &Schema) -> bool {
    schema.field_with_name(EMBEDDING).is_ok_and(|field| width(field.data_type()).is_some())
}

/// The vectors of some rows.
#[derive(Debug, Clone)]
pub struct Vectors {
    values: Vec<f32>,
    width: usize,
    valid: Option<NullBuffer>,
}

impl Vectors {
    /// Those of a column; `None` where it is not there, or of another type.
    pub fn of(batch: &RecordBatch, column: &str) -> Option<Self> {
        let list = batch.column_by_name(column)?.as_fixed_size_list_opt()?;
        let width = width(list.data_type())?;
        let first = usize::try_from(list.value_offset(0)).ok()?;
        let values = cast(&list.values().slice(first, list.len() * width), &DataType::Float32).ok()?;
        let values = values.as_primitive_opt::<Float32Type>()?.values().to_vec();
        Some(Self { values, width, valid: list.nulls().cloned() })
    }

    /// Numbers of a vector.
    pub fn width(&self) -> usize {
        self.width
    }

    /// The vector of a row; `None` where it is null.
    pub fn get(&self, row: usize) -> Option<&[f32]> {
        let valid = self.valid.as_ref().is_none_or(|valid| valid.is_valid(row));
        valid.then(|| &self.values[row * self.width..(row + 1) * self.width])
    }
}

/// Checks that the model `identity` made the vectors of a batch.
///
/// # Errors
/// What is there instead, as a sentence, and what to do.
pub fn check_made_by(batch: &RecordBatch, identity: &str) -> Result<(), (String, Option<String>)> {
    let again = || Some("make the embeddings with this model: an `embed` stage with the same `model`".into());
    let made_by = batch.column_by_name(MADE_BY).and_then(|column| cast(column, &DataType::Utf8).ok());
    let Some(made_by) = made_by else {
        return Err((
            format!("nothing says which model made its embeddings: it has no column `{MADE_BY}`"),
            again(),
        ));
    };
    let made_by = made_by.as_string::<i32>();
    match made_by.iter().find(|found| *found != Some(identity)) {
        None => Ok(()),
        Some(found) => {
            let found = found.unwrap_or("null");
            Err((
                format!("its embeddings were made by another model ({found}; the model is {identity})"),
                again(),
            ))
        }
    }
}

/// What made the vectors of a dataset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Made {
    /// As the pipeline file names the model where that is known, else the hash of its weights.
    pub model: String,
    /// SHA-256 of the weights.
    pub weights: String,
    /// What was done to images.
    pub preprocessing: String,
    /// What matrix products were computed in, where that is known.
    pub precision: Option<String>,
}

impl Made {
    /// By the dataset's recipe, and by how its rows are marked.
    pub fn of(dataset: &Dataset, made_by: &str) -> Self {
        let (weights, preprocessing) = made_by.split_once(", ").unwrap_or((made_by, ""));
        let options = dataset.state().begin.recipe.pointer("/options");
        let option = |name: &str| options?.get(name)?.as_str();
        // An option that has its default is not written.
        let precision = option("model").map(|_| option("precision").unwrap_or("f32").to_string());
        Self {
            model: option("model").unwrap_or(weights).to_string(),
            weights: weights.to_string(),
            preprocessing: preprocessing.to_string(),
            precision,
        }
    }
}

/// Checks that vectors which a model made are numbers.
///
/// # Errors
/// `NotFinite`, of what `what` says.
pub fn check_finite(values: &[f32], what: impl FnOnce() -> String) -> Result<(), EvalError> {
    if values.iter().all(|value| value.is_finite()) {
        return Ok(());
    }
    Err(EvalError::NotFinite { what: what() })
}

/// The cosine of two vectors; 0 where one has no direction. In f64, in the order of the numbers.
pub fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    let lengths = (dot(a, a) * dot(b, b)).sqrt();
    if lengths > 0.0 { (dot(a, b) / lengths).clamp(-1.0, 1.0) } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use arrow::array::StringArray;

    use super::*;

    #[test]
    fn vectors_come_back_in_both_precisions_and_from_slices() {
        let values: Vec<f32> = (0..12).map(|value| value as f32 / 4.0).collect();
        for precision in [Dtype::F32, Dtype::F16] {
            let column = precision.column(values.clone(), 3, Some(vec![true, true, false, true])).unwrap();
            let batch = RecordBatch::try_from_iter([(EMBEDDING, column)]).unwrap();
            assert!(has_embeddings(&batch.schema()));
            let all = Vectors::of(&batch, EMBEDDING).unwrap();
            assert_eq!((all.get(1), all.get(2), all.width()), (Some(&values[3..6]), None, 3));
            let part = Vectors::of(&batch.slice(1, 3), EMBEDDING).unwrap();
            assert_eq!(
                (part.get(0), part.get(1), part.get(2)),
                (Some(&values[3..6]), None, Some(&values[9..]))
            );
            let none = Vectors::of(&batch.slice(4, 0), EMBEDDING).unwrap();
            assert_eq!(none.width(), 3);
        }
    }

    #[test]
    fn vectors_of_another_model_are_not_taken() {
        let made = |by: Vec<Option<&str>>| {
            let by: ArrayRef = Arc::new(StringArray::from(by));
            check_made_by(&RecordBatch::try_from_iter([(MADE_BY, by)]).unwrap(), "a")
        };
        assert_eq!(made(vec![Some("a"), Some("a")]), Ok(()));
        assert!(
            made(vec![Some("a"), Some("b")]).unwrap_err().0.contains("another model (b; the model is a)")
        );
        assert!(made(vec![Some("a"), None]).unwrap_err().0.contains("null"));
        let other: ArrayRef = Arc::new(StringArray::from(vec!["a"]));
        let other = RecordBatch::try_from_iter([("uid", other)]).unwrap();
        assert!(check_made_by(&other, "a").unwrap_err().0.contains("no column `embedding_model`"));
    }

    #[test]
    fn cosines_of_what_has_no_direction_are_zero() {
        assert!((cosine(&[3.0, 4.0], &[4.0, 3.0]) - 0.96).abs() < 1e-12);
        assert_eq!((cosine(&[0.0], &[1.0]), cosine(&[2.0], &[-7.0])), (0.0, -1.0));
    }
}
