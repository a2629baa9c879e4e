//! One split of an `embed` stage: reads a range of rows, decodes and encodes their images, and
//! writes the rows with their embeddings.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::{Array, ArrayRef, AsArray, Float32Array, RecordBatch, StringArray, UInt32Array};
use arrow::compute::{cast, concat_batches};
use arrow::datatypes::{DataType, Field, Schema};
use candle_core::{Device, Tensor};
use twinlens_dataset::{MAIN, SplitWriter};
use twinlens_pipeline::{InputData, RunContext, RunError};

use super::earlier::{Earlier, Known};
use super::options::Embed;
use crate::error::EvalError;
use crate::images::{Chunk, DecodeOptions, Examples, ImageSource};
use crate::ledger;
use crate::model::Model;
use crate::options::limits_or_default;

use crate::vectors::{
    CLIP_SCORE, EMBEDDING, EMBEDDING_MODEL, IMAGE_HASH, TEXT_EMBEDDING, check_finite, cosine,
};

/// A model that embeds the rows of splits.
pub(super) struct Embedder {
    pub options: Embed,
    pub model: Model,
    /// Rows that need not be computed again.
    pub earlier: Option<Mutex<Earlier>>,
}

/// Computes one split.
pub(super) struct Pass<'a> {
    stage: &'a Embed,
    cx: &'a RunContext,
    input: &'a InputData,
    model: &'a Model,
    identity: String,
    split: SplitWriter,
    /// Rows that need not be computed again.
    earlier: Option<&'a Mutex<Earlier>>,
    /// Of the rows to write, those that were found there.
    known: HashMap<usize, Known>,
    /// The rows to write, without pixels, in order; their embeddings are in `vectors`.
    rows: Vec<RecordBatch>,
    /// The pixels of images waiting for a full batch: `[waiting, 3, size, size]`.
    pixels: Vec<f32>,
    /// The rows of these images.
    waiting: Vec<usize>,
    /// `[rows, embed]`; zeros for rows that wait.
    vectors: Vec<f32>,
}

impl<'a> Pass<'a> {
    pub(super) fn new(
        embedder: &'a Embedder,
        cx: &'a RunContext,
        input: &'a InputData,
        split: SplitWriter,
    ) -> Self {
        let Embedder { options, model, earlier } = embedder;
        Self {
            stage: options,
            cx,
            input,
            model,
            identity: model.identity(),
            split,
            earlier: earlier.as_ref(),
            known: HashMap::new(),
            rows: Vec::new(),
            pixels: Vec::new(),
            waiting: Vec::new(),
            vectors: Vec::new(),
        }
    }

    /// Embeds rows of the input; returns the split, ready to be committed.
    pub(super) fn run(mut self, rows: Range<u64>) -> Result<SplitWriter, EvalError> {
        let (dataset, table) = (&self.input.dataset, &self.input.table);
        let schema = dataset.schema(table)?;
        let named = self.stage.image.as_ref().map(|column| column.as_str());
        let source = match ImageSource::resolve(&schema, named) {
            Ok(source @ ImageSource::Images(_)) => source,
            Ok(ImageSource::Embeddings) => {
                return Err(RunError::user(format!("`{}` has no images", self.input.name)).into());
            }
            Err(fault) => {
                return Err(RunError::User {
                    message: format!("`{}`: {}", self.input.name, fault.why),
                    hint: fault.hint,
                }
                .into());
            }
        };
        let read = schema.fields().iter().filter(|field| source.needs_column(field));
        let columns: Vec<&str> = read.map(|field| field.name().as_str()).collect();
        let (most, budget) = (*self.stage.batch_size, self.cx.bytes_in_flight / 4);
        let mut examples = Examples::range(dataset, table, rows.clone(), &columns, most, budget);
        while let Some(chunk) = examples.next().transpose()? {
            self.cx.check_cancelled()?;
            self.take(&chunk, &examples, &source)?;
        }
        self.encode(&source)?;
        self.write()?;
        self.split.count_rows_in(rows.end - rows.start);
        Ok(self.split)
    }

    /// Decodes the images of a chunk: good ones wait for a full batch, damaged ones become rejects.
    fn take(
        &mut self,
        chunk: &Chunk,
        examples: &Examples<'_>,
        source: &ImageSource,
    ) -> Result<(), EvalError> {
        let batch = &chunk.batch;
        let mut known = match self.earlier {
            Some(earlier) => {
                earlier.lock().unwrap_or_else(PoisonError::into_inner).find(batch, source.column())?
            }
            None => vec![None; batch.num_rows()],
        };
        let wanted: Vec<bool> = known.iter().map(Option::is_none).collect();
        let limits = limits_or_default(self.stage.limits.as_ref());
        let prepare = DecodeOptions::new(self.model, &limits, self.cx);
        let images = source.images(batch, &wanted, &self.identity, &prepare);
        let images = images.map_err(|(why, hint)| RunError::User {
            message: format!("`{}`: {why}", self.input.name),
            hint,
        })?;
        let (mut kept, mut hashes, mut refused) = (Vec::new(), Vec::new(), Vec::new());
        let width = self.model.clip.config().embed;
        for (row, image) in images.into_iter().enumerate() {
            let place = self.vectors.len() / width;
            if image.pixels.as_ref().is_none_or(Result::is_ok) {
                kept.push(row as u32);
                hashes.push(hex::encode(image.digest));
                self.vectors.resize((place + 1) * width, 0.0);
            }
            match image.pixels {
                Some(Ok(pixels)) => {
                    self.pixels.extend(pixels);
                    self.waiting.push(place);
                    if self.waiting.len() == *self.stage.batch_size {
                        self.encode(source)?;
                    }
                }
                Some(Err(refusal)) => {
                    let detail =
                        format!("{}: {}", examples.location(chunk.first + row as u64), refusal.detail);
                    refused.push(ledger::RejectedRow { row: row as u32, code: refusal.code, detail });
                }
                None => {
                    if let Some(known) = known[row].take() {
                        self.vectors[place * width..].copy_from_slice(&known.vector);
                        self.known.insert(place, known);
                    }
                }
            }
        }
        let rows = ledger::take(&ledger::without_pixels(batch)?, &UInt32Array::from(kept))?;
        self.rows.push(with_column(&rows, IMAGE_HASH, Arc::new(StringArray::from(hashes)))?);
        self.cx.progress.rejects(refused.len() as u64);
        ledger::write(&mut self.split, &self.cx.stage, batch, &refused)?;
        self.cx.progress.done(batch.num_rows() as u64);
        Ok(())
    }

    /// Encodes the waiting images.
    fn encode(&mut self, source: &ImageSource) -> Result<(), EvalError> {
        let (places, pixels) = (std::mem::take(&mut self.waiting), std::mem::take(&mut self.pixels));
        if places.is_empty() {
            return Ok(());
        }
        let vectors = source.embed(&self.model.clip, pixels, places.len())?;
        let vectors = vectors.flatten_all()?.to_vec1::<f32>()?;
        check_finite(&vectors, || "an image embedding".into())?;
        let width = self.model.clip.config().embed;
        for (place, vector) in places.into_iter().zip(vectors.chunks_exact(width)) {
            self.vectors[place * width..][..width].copy_from_slice(vector);
        }
        Ok(())
    }

    /// Writes the rows of the split with their embeddings.
    fn write(&mut self) -> Result<(), EvalError> {
        let Some(first) = self.rows.first() else { return Ok(()) };
        let rows = concat_batches(&first.schema(), &self.rows)?;
        let (width, dtype) = (self.model.clip.config().embed, self.stage.dtype);
        let vectors = std::mem::take(&mut self.vectors);
        let models = StringArray::from_iter_values(std::iter::repeat_n(&self.identity, rows.num_rows()));
        let mut added: Vec<(&str, ArrayRef)> = vec![(EMBEDDING_MODEL, Arc::new(models))];
        if let Some(captions) = &self.stage.captions {
            let texts = self.texts(&rows, captions)?;
            let pairs = vectors.chunks_exact(width).zip(texts.chunks_exact(width));
            let known = |row: usize| rows.column_by_name(captions).is_some_and(|column| column.is_valid(row));
            let valid: Vec<bool> = (0..rows.num_rows()).map(known).collect();
            let scores = pairs.zip(&valid).enumerate().map(|(row, ((image, text), valid))| {
                // Not from stored numbers, which may have fewer digits.
                let known = self.known.get(&row).map(|known| known.score);
                known.unwrap_or_else(|| valid.then(|| cosine(image, text) as f32))
            });
            added.push((CLIP_SCORE, Arc::new(scores.collect::<Float32Array>())));
            if self.stage.text_embeddings {
                added.push((TEXT_EMBEDDING, dtype.column(texts, width, Some(valid))?));
            }
        }
        added.push((EMBEDDING, dtype.column(vectors, width, None)?));
        let rows =
            added.into_iter().try_fold(rows, |rows, (name, column)| with_column(&rows, name, column))?;
        Ok(self.split.write(MAIN, &rows)?)
    }

    /// The embeddings `[rows, embed]` of a text column; zeros for nulls.
    fn texts(&self, rows: &RecordBatch, column: &str) -> Result<Vec<f32>, EvalError> {
        let texts = rows
            .column_by_name(column)
            .ok_or_else(|| RunError::user(format!("`{}` has no column `{column}`", self.input.name)))?;
        let texts = cast(texts, &DataType::Utf8)?;
        let texts = texts.as_string::<i32>();
        let (context, width) = (self.model.clip.config().text.context, self.model.clip.config().embed);
        let mut vectors = vec![0.0; texts.len() * width];
        for (row, known) in &self.known {
            if let Some(text) = &known.text {
                vectors[row * width..][..width].copy_from_slice(text);
            }
        }
        let is_wanted = |row: &usize| texts.is_valid(*row) && !self.known.contains_key(row);
        let wanted: Vec<usize> = (0..texts.len()).filter(is_wanted).collect();
        for rows in wanted.chunks(*self.stage.batch_size) {
            self.cx.check_cancelled()?;
            let ids: Vec<u32> =
                rows.iter().flat_map(|row| self.model.tokenizer.encode(texts.value(*row), context)).collect();
            let ids = Tensor::from_vec(ids, (rows.len(), context), &Device::Cpu)?;
            for (row, vector) in rows.iter().zip(self.model.clip.encode_text(&ids)?.to_vec2::<f32>()?) {
                check_finite(&vector, || format!("the text embedding of {:?}", texts.value(*row)))?;
                vectors[row * width..(row + 1) * width].copy_from_slice(&vector);
            }
        }
        Ok(vectors)
    }
}

/// Adds a column to a batch, or replaces the column of that name.
fn with_column(batch: &RecordBatch, name: &str, column: ArrayRef) -> Result<RecordBatch, EvalError> {
    let field = Arc::new(Field::new(name, column.data_type().clone(), true));
    let (mut fields, mut columns) = (batch.schema().fields().to_vec(), batch.columns().to_vec());
    match fields.iter().position(|field| field.name() == name) {
        Some(at) => (fields[at], columns[at]) = (field, column),
        None => {
            fields.push(field);
            columns.push(column);
        }
    }
    Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)?)
}
