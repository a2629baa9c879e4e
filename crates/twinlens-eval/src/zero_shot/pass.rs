//! One pass over an input: every image is decoded and encoded once, and scored against all sets and
//! prompt sets, so that memory holds one batch of images, the classifiers, and counts per class.

use arrow::array::RecordBatch;
use twinlens_dataset::SplitWriter;
use twinlens_image::Limits;
use twinlens_pipeline::{InputData, RunContext};

use super::overlap::needs_phash;
use super::rows::{RowLabel, example_name, uid};
use super::set_pass::{PendingExample, RejectedExample, SetPass};
use super::{SetTask, ZeroShot};
use crate::error::EvalError;
use crate::images::{Chunk, DecodeOptions, Examples, Image, ImageSource};
use crate::model::{Model, input};

/// A set after a pass: its results, or why it could not be evaluated.
pub type SetResult = (SetTask, Result<SplitWriter, EvalError>);

pub struct Pass<'a> {
    cx: &'a RunContext,
    model: &'a Model,
    input: &'a InputData,
    /// `None` if no set can be evaluated.
    source: Option<ImageSource>,
    /// The identity that the input's embeddings must have.
    identity: String,
    batch_size: usize,
    limits: Limits,
    sets: Vec<SetPass>,
    /// Of `sets`.
    tasks: Vec<SetTask>,
    /// Sets that cannot be evaluated.
    failed: Vec<SetResult>,
    pending: Vec<PendingExample>,
    /// `[pending, 3, size, size]`, or `[pending, embed]` if the input has embeddings.
    pixels: Vec<f32>,
    /// Time for reading, decoding and encoding the images.
    image_seconds: f64,
}

impl<'a> Pass<'a> {
    /// Prepares the classes and classifiers of the sets of `group`, whose splits are `splits`.
    pub fn new(
        options: &ZeroShot,
        cx: &'a RunContext,
        inputs: &'a [InputData],
        model: &'a Model,
        group: Vec<SetTask>,
        splits: Vec<SplitWriter>,
    ) -> Result<Self, EvalError> {
        let input = input(inputs, &group[0].options.input)?;
        let first = &group[0].options;
        let named = first.image.as_ref().map(|column| column.as_str());
        let schema = input.dataset.schema(&input.table)?;
        let source = ImageSource::resolve(&schema, named);
        let (mut sets, mut tasks, mut failed) = (Vec::new(), Vec::new(), Vec::new());
        for (task, split) in group.into_iter().zip(splits) {
            match SetPass::new(options, cx, inputs, model, &task, &source, split) {
                Ok(set) => {
                    sets.push(set);
                    tasks.push(task);
                }
                Err(error @ EvalError::Set { .. }) => failed.push((task, Err(error))),
                Err(error) => return Err(error),
            }
        }
        Ok(Self {
            cx,
            model,
            input,
            source: source.ok(),
            identity: model.identity(),
            batch_size: *options.batch_size.value(),
            limits: options.limits(),
            sets,
            tasks,
            failed,
            pending: Vec::new(),
            pixels: Vec::new(),
            image_seconds: 0.0,
        })
    }

    /// Returns each set with its split, ready to be committed, or with the reason why it cannot be
    /// evaluated.
    pub fn run(mut self) -> Result<Vec<SetResult>, EvalError> {
        if let Some(source) = self.source.take().filter(|_| !self.sets.is_empty()) {
            self.read(&source)?;
        }
        let (cx, model, seconds) = (self.cx, self.model, self.image_seconds);
        let done = self.tasks.into_iter().zip(self.sets).map(|(task, set)| {
            let result = set.finish(cx, model, seconds);
            (task, result)
        });
        Ok(self.failed.into_iter().chain(done).collect())
    }

    fn read(&mut self, source: &ImageSource) -> Result<(), EvalError> {
        let InputData { dataset, table, .. } = self.input;
        let schema = dataset.schema(table)?;
        let fields = schema.fields().iter().filter(|field| source.needs_column(field));
        let columns: Vec<&str> = fields.map(|field| field.name().as_str()).collect();
        // A quarter of the budget for the encoded bytes, the rest for decoding them.
        let mut examples =
            Examples::new(dataset, table, &columns, self.batch_size, self.cx.bytes_in_flight / 4);
        loop {
            self.cx.check_cancelled()?;
            let start = self.cx.clock.micros();
            let Some(chunk) = examples.next().transpose()? else { break };
            self.image_seconds += self.cx.clock.seconds_since(start);
            self.add_chunk(&chunk, &examples, source)?;
        }
        self.flush(source)
    }

    /// Decodes the rows of a chunk: examples go to the next batch, rejects to the ledger.
    fn add_chunk(
        &mut self,
        chunk: &Chunk,
        examples: &Examples<'_>,
        source: &ImageSource,
    ) -> Result<(), EvalError> {
        let start = self.cx.clock.micros();
        let batch = &chunk.batch;
        let labels = self.sets.iter().map(|set| set.labels(batch)).collect::<Result<Vec<_>, _>>()?;
        let wanted: Vec<bool> =
            (0..batch.num_rows()).map(|row| labels.iter().any(|set| set[row].class.is_ok())).collect();
        let images = self.images(batch, &wanted, source)?;
        self.image_seconds += self.cx.clock.seconds_since(start);
        let mut rejected: Vec<Vec<RejectedExample>> = vec![Vec::new(); self.sets.len()];
        for (row, image) in images.into_iter().enumerate() {
            let uid = uid(batch, row);
            let index = chunk.first + row as u64;
            let location = || match uid {
                Some(uid) => format!("{} (uid {uid})", examples.location(index)),
                None => examples.location(index),
            };
            let mut pending = PendingExample {
                name: example_name(batch, row, chunk.first),
                labels: Vec::new(),
                in_training: Vec::new(),
            };
            for (number, set) in self.sets.iter_mut().enumerate() {
                let RowLabel { class, text } = &labels[number][row];
                set.count_row(&image.digest, text);
                let reject = match (class, &image.pixels) {
                    (Err(reject), _) | (_, Some(Err(reject))) => Some(reject),
                    _ => None,
                };
                pending
                    .in_training
                    .push(reject.is_none() && set.is_training_image(batch, row, &image.digest, image.phash));
                pending.labels.push(class.as_ref().ok().cloned().filter(|_| reject.is_none()));
                if let Some(reject) = reject {
                    rejected[number].push(RejectedExample {
                        row: row as u32,
                        reject: reject.clone(),
                        location: location(),
                    });
                }
            }
            if let Some(Ok(pixels)) = image.pixels {
                self.pixels.extend(pixels);
                self.pending.push(pending);
            }
            if self.pending.len() == self.batch_size {
                self.flush(source)?;
            }
        }
        for (set, rejected) in self.sets.iter_mut().zip(&rejected) {
            self.cx.progress.rejects(rejected.len() as u64);
            set.write_rejects(&self.cx.stage, batch, rejected)?;
        }
        self.cx.progress.done(batch.num_rows() as u64);
        Ok(())
    }

    /// The images of a chunk: pixels, or stored embeddings.
    fn images(
        &self,
        batch: &RecordBatch,
        wanted: &[bool],
        source: &ImageSource,
    ) -> Result<Vec<Image>, EvalError> {
        let with_phash = needs_phash(batch) && self.sets.iter().any(|set| set.training.is_some());
        let decode = DecodeOptions { with_phash, ..DecodeOptions::new(self.model, &self.limits, self.cx) };
        source.images(batch, wanted, &self.identity, &decode).map_err(|(why, hint)| {
            EvalError::set(&self.sets[0].options.name, format!("`{}`: {why}", self.input.name), hint)
        })
    }

    /// Encodes and scores the pending images. Batch sizes do not depend on chunk sizes, so that
    /// results do not depend on the memory of the machine.
    fn flush(&mut self, source: &ImageSource) -> Result<(), EvalError> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let start = self.cx.clock.micros();
        let pending = std::mem::take(&mut self.pending);
        let (pixels, n) = (std::mem::take(&mut self.pixels), pending.len());
        let embeddings = source.embed(&self.model.clip, pixels, n)?;
        self.image_seconds += self.cx.clock.seconds_since(start);
        for (index, set) in self.sets.iter_mut().enumerate() {
            set.score(self.cx, &self.model.clip, index, &pending, &embeddings)?;
        }
        Ok(())
    }
}
