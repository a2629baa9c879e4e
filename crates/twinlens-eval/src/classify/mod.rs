//! Classification of images by prompts, in one pass over an input: every image is decoded and
//! encoded once, and scored against all sets and prompt sets that share the input. Memory holds one
//! batch of images, the classifiers, and counts per class.
//!
//! The `zero-shot` stage and the evaluation during training run the same pass. What they do with
//! the examples besides counting is a [`Sink`].

mod held_out;
mod options;
mod variant;

use arrow::array::RecordBatch;
use candle_core::Tensor;
use twinlens_pipeline::{InputData, RunContext};

use crate::error::EvalError;
use crate::images::{Chunk, Examples, Image, ImageEncoder};
use crate::ledger::RejectedRow;
use crate::metrics::top_k;
use crate::results::Prediction;
use crate::set_reader::{IGNORED, RowLabel, SetReader, Truth, example_name, uid};
use crate::vectors::check_finite;
pub(crate) use held_out::HeldOut;
pub(crate) use options::{check_prompts, check_set, group_by_images, set_inputs};
pub(crate) use variant::{Counts, Variant, measure};

/// Classes stored per prediction.
const TOP: usize = 5;

/// Receives the examples of one set. By default they are only counted.
pub(crate) trait Sink {
    /// Whether all columns of the input are read, as the reject ledger needs them.
    fn needs_all_columns(&self) -> bool {
        false
    }

    /// Whether [`Image::phash`] is computed.
    fn needs_phash(&self, _batch: &RecordBatch) -> bool {
        false
    }

    /// A row in table order, rejected or not. Returns whether it is a training image.
    fn row(&mut self, _row: &Row<'_>) -> bool {
        false
    }

    /// The rejected rows of a chunk.
    fn rejects(&mut self, _batch: &RecordBatch, _rejected: &[RejectedRow]) -> Result<(), EvalError> {
        Ok(())
    }

    /// The predictions for a batch of images with one prompt set.
    fn predictions(&mut self, _prompts: &str, _rows: &[Prediction<'_>]) -> Result<(), EvalError> {
        Ok(())
    }
}

/// A row as a set sees it.
pub(crate) struct Row<'a> {
    /// The name of the example in the results.
    pub name: &'a str,
    pub batch: &'a RecordBatch,
    pub row: usize,
    pub image: &'a Image,
    /// The label as text.
    pub label: &'a str,
    pub is_rejected: bool,
}

/// One set in a pass.
pub(crate) struct SetPass<'a, S> {
    pub reader: &'a SetReader,
    pub variants: Vec<Variant>,
    /// Turns cosines into logits, if the model has one.
    pub scale: Option<f32>,
    pub sink: S,
}

/// An example of the next batch.
struct PendingExample {
    name: String,
    /// For each set; `None` if the set rejects it.
    labels: Vec<Option<Truth>>,
    /// For each set, whether it is a training image.
    in_training: Vec<bool>,
}

pub(crate) struct Pass<'a, 's, S> {
    cx: &'a RunContext,
    input: &'a InputData,
    encoder: ImageEncoder<'a>,
    batch_size: usize,
    sets: Vec<SetPass<'s, S>>,
    pending: Vec<PendingExample>,
    /// `[pending, 3, size, size]`, or `[pending, embed]` if the input has embeddings.
    pixels: Vec<f32>,
    image_seconds: f64,
}

impl<'a, 's, S: Sink> Pass<'a, 's, S> {
    /// A pass over `input` for at least one set.
    pub(crate) fn new(
        cx: &'a RunContext,
        input: &'a InputData,
        encoder: ImageEncoder<'a>,
        batch_size: usize,
        sets: Vec<SetPass<'s, S>>,
    ) -> Self {
        let (pending, pixels) = (Vec::new(), Vec::new());
        Self { cx, input, encoder, batch_size, sets, pending, pixels, image_seconds: 0.0 }
    }

    /// Classifies all rows; `on_rows` is called with the number of rows of each chunk. Returns the
    /// sets, and the seconds spent on reading, decoding and encoding images.
    pub(crate) fn run(mut self, on_rows: impl Fn(u64)) -> Result<(Vec<SetPass<'s, S>>, f64), EvalError> {
        let InputData { dataset, table, .. } = self.input;
        let schema = dataset.schema(table)?;
        let fields = schema.fields().iter().filter(|field| self.encoder.source.needs_column(field));
        let columns: Vec<&str> =
            fields.map(|field| field.name().as_str()).filter(|name| self.needs_column(name)).collect();
        // A quarter of the budget for the encoded bytes, the rest for decoding them.
        let mut examples =
            Examples::new(dataset, table, &columns, self.batch_size, self.cx.bytes_in_flight / 4);
        loop {
            self.cx.check_cancelled()?;
            let start = self.cx.clock.micros();
            let Some(chunk) = examples.next().transpose()? else { break };
            self.image_seconds += self.cx.clock.seconds_since(start);
            self.add_chunk(&chunk, &examples)?;
            on_rows(chunk.batch.num_rows() as u64);
        }
        self.flush()?;
        Ok((self.sets, self.image_seconds))
    }

    fn needs_column(&self, name: &str) -> bool {
        self.encoder.source.column() == name
            || self.sets.iter().any(|set| {
                set.sink.needs_all_columns() || name == IGNORED || set.reader.labels.column() == name
            })
    }

    /// Decodes the rows of a chunk: examples go to the next batch, rejects to the sinks.
    fn add_chunk(&mut self, chunk: &Chunk, examples: &Examples<'_>) -> Result<(), EvalError> {
        let start = self.cx.clock.micros();
        let batch = &chunk.batch;
        let labels = self.sets.iter().map(|set| set.reader.labels(batch)).collect::<Result<Vec<_>, _>>()?;
        let wanted: Vec<bool> =
            (0..batch.num_rows()).map(|row| labels.iter().any(|set| set[row].class.is_ok())).collect();
        let images = self.images(batch, &wanted)?;
        self.image_seconds += self.cx.clock.seconds_since(start);
        let mut rejected: Vec<Vec<RejectedRow>> = vec![Vec::new(); self.sets.len()];
        for (row, image) in images.into_iter().enumerate() {
            let mut pending = PendingExample {
                name: example_name(batch, row, chunk.first),
                labels: Vec::new(),
                in_training: Vec::new(),
            };
            for (number, set) in self.sets.iter_mut().enumerate() {
                let RowLabel { class, text } = &labels[number][row];
                let reject = match (class, &image.pixels) {
                    (Err(reject), _) | (_, Some(Err(reject))) => Some(reject),
                    _ => None,
                };
                let (name, is_rejected) = (pending.name.as_str(), reject.is_some());
                let seen = Row { name, batch, row, image: &image, label: text, is_rejected };
                pending.in_training.push(set.sink.row(&seen));
                pending.labels.push(class.as_ref().ok().cloned().filter(|_| reject.is_none()));
                if let Some(reject) = reject {
                    let location = location(examples, chunk, row);
                    let detail = format!("set `{}`, {location}: {}", set.reader.name(), reject.detail);
                    rejected[number].push(RejectedRow { row: row as u32, code: reject.code, detail });
                }
            }
            if let Some(Ok(pixels)) = image.pixels {
                self.pixels.extend(pixels);
                self.pending.push(pending);
            }
            if self.pending.len() == self.batch_size {
                self.flush()?;
            }
        }
        self.sets.iter_mut().zip(&rejected).try_for_each(|(set, rows)| set.sink.rejects(batch, rows))
    }

    /// The images of a chunk: pixels, or stored embeddings.
    fn images(&self, batch: &RecordBatch, wanted: &[bool]) -> Result<Vec<Image>, EvalError> {
        let with_phash = self.sets.iter().any(|set| set.sink.needs_phash(batch));
        self.encoder.read(batch, wanted, with_phash).map_err(|(why, hint)| {
            EvalError::set(self.sets[0].reader.name(), format!("`{}`: {why}", self.input.name), hint)
        })
    }

    /// Encodes and scores the pending images. Batch sizes do not depend on chunk sizes, so that
    /// results do not depend on the memory of the machine.
    fn flush(&mut self) -> Result<(), EvalError> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let start = self.cx.clock.micros();
        let pending = std::mem::take(&mut self.pending);
        let embeddings = self.encoder.embed(std::mem::take(&mut self.pixels), pending.len())?;
        self.image_seconds += self.cx.clock.seconds_since(start);
        for number in 0..self.sets.len() {
            self.score(number, &pending, &embeddings)?;
        }
        Ok(())
    }

    /// Counts a batch of images for one set. `embeddings`: `[pending, embed]`.
    fn score(
        &mut self,
        number: usize,
        pending: &[PendingExample],
        embeddings: &Tensor,
    ) -> Result<(), EvalError> {
        let set = &mut self.sets[number];
        for variant in &mut set.variants {
            let start = self.cx.clock.micros();
            let scores = variant.classifier.scores(self.encoder.clip, embeddings)?.to_vec2::<f32>()?;
            let mut rows = Vec::with_capacity(pending.len());
            for (example, scores) in pending.iter().zip(&scores) {
                let Some(truth) = &example.labels[number] else { continue };
                if variant.excludes(&example.name) {
                    continue;
                }
                check_finite(scores, || format!("the image embedding of example {}", example.name))?;
                let ranked = top_k(scores, TOP);
                variant.count(truth, scores, &ranked, set.scale);
                let label = truth.single();
                if let (Some(label), Some(parts)) = (label, &mut variant.parts) {
                    parts[usize::from(example.in_training[number])].add(label, &ranked);
                }
                let score = ranked.first().map_or(f32::NAN, |best| scores[*best]);
                rows.push(Prediction { example: &example.name, label, ranked, score });
            }
            set.sink.predictions(&variant.prompts.name, &rows)?;
            variant.seconds += self.cx.clock.seconds_since(start);
        }
        Ok(())
    }
}

/// Shard, row and uid of a row.
fn location(examples: &Examples<'_>, chunk: &Chunk, row: usize) -> String {
    let location = examples.location(chunk.first + row as u64);
    match uid(&chunk.batch, row) {
        Some(uid) => format!("{location} (uid {uid})"),
        None => location,
    }
}
