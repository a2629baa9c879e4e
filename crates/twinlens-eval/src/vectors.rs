//! Embedding columns, as an `embed` stage writes them.
//!
//! A vector is a `fixed_size_list` of f32 or f16. Every row also records the model that made it
//! (hash of the weights, and preprocessing), so that this survives filters, queries and exports,
//! and vectors of different models are never compared by mistake.

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
/// The column with the identity of the model that made the embeddings.
pub const EMBEDDING_MODEL: &str = "embedding_model";
/// The column of text embeddings.
pub const TEXT_EMBEDDING: &str = "text_embedding";
/// The column with the cosine similarity of image and caption.
pub const CLIP_SCORE: &str = "clip_score";
/// The column with the SHA-256 of the encoded image, which identifies it once its pixels are
/// dropped.
pub const IMAGE_HASH: &str = "image_sha256";

/// Number format of stored embeddings.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// 4 bytes per number: the exact output of the model.
    #[default]
    F32,
    /// 2 bytes per number: about 3 digits.
    F16,
}

impl Dtype {
    fn kind(self) -> DataType {
        match self {
            Self::F32 => DataType::Float32,
            Self::F16 => DataType::Float16,
        }
    }

    /// The field of a column with `width` numbers per row.
    pub fn field(self, name: &str, width: usize) -> Field {
        Field::new(name, DataType::FixedSizeList(self.item(), width as i32), true)
    }

    fn item(self) -> Arc<Field> {
        Arc::new(Field::new("item", self.kind(), true))
    }

    /// A column from values `[rows, width]`; null where a row is not `valid`.
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

/// The width of an embedding column; `None` for another type.
pub fn width(kind: &DataType) -> Option<usize> {
    match kind {
        DataType::FixedSizeList(item, width) if item.data_type().is_floating() => {
            usize::try_from(*width).ok()
        }
        _ => None,
    }
}

/// Whether a table has image embeddings.
pub fn has_embeddings(schema: &Schema) -> bool {
    schema.field_with_name(EMBEDDING).is_ok_and(|field| width(field.data_type()).is_some())
}

/// The vectors of a batch.
#[derive(Debug, Clone)]
pub struct Vectors {
    values: Vec<f32>,
    width: usize,
    valid: Option<NullBuffer>,
}

impl Vectors {
    /// `None` if the column is missing or of another type.
    pub fn from_column(batch: &RecordBatch, column: &str) -> Option<Self> {
        let list = batch.column_by_name(column)?.as_fixed_size_list_opt()?;
        let width = width(list.data_type())?;
        let first = usize::try_from(list.value_offset(0)).ok()?;
        let values = cast(&list.values().slice(first, list.len() * width), &DataType::Float32).ok()?;
        let values = values.as_primitive_opt::<Float32Type>()?.values().to_vec();
        Some(Self { values, width, valid: list.nulls().cloned() })
    }

    pub fn width(&self) -> usize {
        self.width
    }

    /// The vector of a row; `None` if null.
    pub fn get(&self, row: usize) -> Option<&[f32]> {
        let valid = self.valid.as_ref().is_none_or(|valid| valid.is_valid(row));
        valid.then(|| &self.values[row * self.width..(row + 1) * self.width])
    }
}

/// Checks that the model `identity` made the embeddings of a batch.
///
/// # Errors
/// Message and hint.
pub fn check_embedding_model(batch: &RecordBatch, identity: &str) -> Result<(), (String, Option<String>)> {
    let hint = || Some("make the embeddings with an `embed` stage that has the same `model`".into());
    let model = batch.column_by_name(EMBEDDING_MODEL).and_then(|column| cast(column, &DataType::Utf8).ok());
    let Some(model) = model else {
        return Err((
            format!(
                "it does not record which model made its embeddings: it has no column `{EMBEDDING_MODEL}`"
            ),
            hint(),
        ));
    };
    let model = model.as_string::<i32>();
    match model.iter().find(|found| *found != Some(identity)) {
        None => Ok(()),
        Some(found) => {
            let found = found.unwrap_or("null");
            Err((
                format!("its embeddings were made by another model ({found}; the model is {identity})"),
                hint(),
            ))
        }
    }
}

/// The model and settings that made the embeddings of a dataset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EmbeddingOrigin {
    /// As named in the pipeline file; the hash of the weights if that is unknown.
    pub model: String,
    /// SHA-256 of the weights.
    pub weights: String,
    pub preprocessing: String,
    /// Of matrix products, if known.
    pub precision: Option<String>,
}

impl EmbeddingOrigin {
    /// From the dataset's recipe and the identity in its rows.
    pub fn of(dataset: &Dataset, identity: &str) -> Self {
        let (weights, preprocessing) = identity.split_once(", ").unwrap_or((identity, ""));
        let options = dataset.state().begin.recipe.pointer("/options");
        let option = |name: &str| options?.get(name)?.as_str();
        // Options equal to their defaults are not recorded.
        let precision = option("model").map(|_| option("precision").unwrap_or("f32").to_string());
        Self {
            model: option("model").unwrap_or(weights).to_string(),
            weights: weights.to_string(),
            preprocessing: preprocessing.to_string(),
            precision,
        }
    }
}

/// Checks that the outputs of a model are finite; `what` names them in the error.
pub fn check_finite(values: &[f32], what: impl FnOnce() -> String) -> Result<(), EvalError> {
    if values.iter().all(|value| value.is_finite()) {
        return Ok(());
    }
    Err(EvalError::NotFinite { what: what() })
}

/// The cosine similarity; 0 if a vector is zero. Summed in f64 in index order.
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
    fn vectors_round_trip_in_both_precisions_and_from_slices() {
        let values: Vec<f32> = (0..12).map(|value| value as f32 / 4.0).collect();
        for precision in [Dtype::F32, Dtype::F16] {
            let column = precision.column(values.clone(), 3, Some(vec![true, true, false, true])).unwrap();
            let batch = RecordBatch::try_from_iter([(EMBEDDING, column)]).unwrap();
            assert!(has_embeddings(&batch.schema()));
            let all = Vectors::from_column(&batch, EMBEDDING).unwrap();
            assert_eq!((all.get(1), all.get(2), all.width()), (Some(&values[3..6]), None, 3));
            let part = Vectors::from_column(&batch.slice(1, 3), EMBEDDING).unwrap();
            assert_eq!(
                (part.get(0), part.get(1), part.get(2)),
                (Some(&values[3..6]), None, Some(&values[9..]))
            );
            let none = Vectors::from_column(&batch.slice(4, 0), EMBEDDING).unwrap();
            assert_eq!(none.width(), 3);
        }
    }

    #[test]
    fn vectors_of_another_model_are_refused() {
        let made = |by: Vec<Option<&str>>| {
            let by: ArrayRef = Arc::new(StringArray::from(by));
            check_embedding_model(&RecordBatch::try_from_iter([(EMBEDDING_MODEL, by)]).unwrap(), "a")
        };
        assert_eq!(made(vec![Some("a"), Some("a")]), Ok(()));
        assert!(
            made(vec![Some("a"), Some("b")]).unwrap_err().0.contains("another model (b; the model is a)")
        );
        assert!(made(vec![Some("a"), None]).unwrap_err().0.contains("null"));
        let other: ArrayRef = Arc::new(StringArray::from(vec!["a"]));
        let other = RecordBatch::try_from_iter([("uid", other)]).unwrap();
        assert!(check_embedding_model(&other, "a").unwrap_err().0.contains("no column `embedding_model`"));
    }

    #[test]
    fn cosine_of_a_zero_vector_is_zero() {
        assert!((cosine(&[3.0, 4.0], &[4.0, 3.0]) - 0.96).abs() < 1e-12);
        assert_eq!((cosine(&[0.0], &[1.0]), cosine(&[2.0], &[-7.0])), (0.0, -1.0));
    }
}
