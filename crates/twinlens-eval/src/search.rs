//! Exact nearest-neighbour search in the embeddings of a dataset: one pass, which holds one chunk
//! and `k` rows in memory.

use std::sync::Arc;

use arrow::array::{Float32Array, RecordBatch, UInt32Array};
use arrow::compute::concat_batches;
use arrow::datatypes::{Field, Schema};
use candle_core::{Device, Tensor};
use twinlens_dataset::Dataset;
use twinlens_image::Limits;
use twinlens_pipeline::RunError;

use crate::encode;
use crate::error::EvalError;
use crate::images::Examples;
use crate::ledger::take;
use crate::model::Model;
use crate::vectors::{EMBEDDING, EMBEDDING_MODEL, Vectors, check_embedding_model, cosine};

/// Rows per chunk.
const ROWS: usize = 4096;

/// The embedding of a text.
///
/// # Errors
/// `ModelError::Input` if the model does not embed texts.
pub fn text(model: &Model, text: &str) -> Result<Vec<f32>, EvalError> {
    Ok(encode::texts(model, &[text.into()])?.values)
}

/// The embedding of an image, from its encoded bytes.
///
/// # Errors
/// User error: the image cannot be decoded.
pub fn image(model: &Model, bytes: &[u8]) -> Result<Vec<f32>, EvalError> {
    let size = model.preprocess.size as usize;
    let pixels = model.preprocess.tensor(bytes, &Limits::default());
    let pixels = pixels.map_err(|error| RunError::user(error.to_string()))?;
    let pixels = Tensor::from_vec(pixels, (1, 3, size, size), &Device::Cpu)?;
    Ok(model.clip.encode_image(&pixels)?.flatten_all()?.to_vec1()?)
}

/// The `k` rows of a table whose embeddings have the highest cosine similarity with `query`, best
/// first, ties in row order. Returns the column `cosine` and those of `columns` that exist.
///
/// # Errors
/// User error: the table has no embeddings, or a model other than `identity` made them.
pub fn nearest(
    dataset: &Dataset,
    table: &str,
    query: &[f32],
    identity: &str,
    k: usize,
    columns: &[&str],
) -> Result<RecordBatch, EvalError> {
    let read = [columns, &[EMBEDDING, EMBEDDING_MODEL][..]].concat();
    let place = || dataset.dir().display().to_string();
    let mut best: Vec<(f32, RecordBatch)> = Vec::new();
    for chunk in Examples::new(dataset, table, &read, ROWS, usize::MAX) {
        let batch = chunk?.batch;
        check_embedding_model(&batch, identity)
            .map_err(|(why, hint)| RunError::User { message: format!("{}: {why}", place()), hint })?;
        let vectors =
            Vectors::from_column(&batch, EMBEDDING).filter(|vectors| vectors.width() == query.len());
        let vectors = vectors.ok_or_else(|| {
            RunError::user(format!("{}: no column `{EMBEDDING}` of width {}", place(), query.len()))
        })?;
        let shown: Vec<usize> =
            columns.iter().filter_map(|name| batch.schema().index_of(name).ok()).collect();
        for row in 0..batch.num_rows() {
            let Some(vector) = vectors.get(row) else { continue };
            let score = cosine(query, vector) as f32;
            let at = best.partition_point(|(held, _)| *held >= score);
            if at < k {
                // Copies the row: a slice would keep the whole chunk in memory.
                let own = batch.project(&shown)?;
                best.insert(at, (score, take(&own, &UInt32Array::from(vec![row as u32]))?));
                best.truncate(k);
            }
        }
    }
    let Some((_, first)) = best.first() else {
        return Err(RunError::user(format!("{}: there are no embeddings", place())).into());
    };
    let rows = concat_batches(&first.schema(), best.iter().map(|(_, row)| row))?;
    let scores = Float32Array::from_iter_values(best.iter().map(|(score, _)| *score));
    let mut fields = vec![Arc::new(Field::new("cosine", arrow::datatypes::DataType::Float32, false))];
    fields.extend(rows.schema().fields().iter().cloned());
    let mut all: Vec<arrow::array::ArrayRef> = vec![Arc::new(scores)];
    all.extend(rows.columns().iter().cloned());
    Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), all)?)
}
