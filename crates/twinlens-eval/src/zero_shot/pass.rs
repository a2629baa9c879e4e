//! One pass over an input: every image is decoded and encoded once, and scored at once against
//! every set and prompt set, so that memory holds one batch of images, the classifiers, and counts
//! by class.

use arrow::array::RecordBatch;
use twinlens_dataset::SplitWriter;
use twinlens_image::Limits;
use twinlens_pipeline::{InputData, RunContext};

use super::overlap::needs_look;
use super::rows::{Labelled, example, uid};
use super::set_pass::{Refused, SetPass, Waiting};
use super::{Task, ZeroShot};
use crate::error::EvalError;
use crate::images::{Chunk, Examples, Image, ImageSource, Prepare};
use crate::model::{Model, input};

/// A set after a pass: its results, or why it could not be evaluated.
pub type Evaluated = (Task, Result<SplitWriter, EvalError>);

/// One pass over an input.
pub struct Pass<'a> {
    cx: &'a RunContext,
    model: &'a Model,
    input: &'a InputData,
    /// Where the images are; `None` where no set can be evaluated.
    source: Option<ImageSource>,
    /// What the input's embeddings must be marked with.
    identity: String,
    batch_size: usize,
    limits: Limits,
    /// Those that can be evaluated, and what was asked of each.
    sets: Vec<SetPass>,
    tasks: Vec<Task>,
    /// Those that cannot.
    failed: Vec<(Task, Result<SplitWriter, EvalError>)>,
    waiting: Vec<Waiting>,
    /// `[waiting, 3, size, size]`, or `[waiting, embed]` where the input has embeddings.
    pixels: Vec<f32>,
    /// Seconds of reading, decoding and encoding the images.
    image_seconds: f64,
}

impl<'a> Pass<'a> {
    /// Prepares the sets of `group`: their classes, and their classifiers. `splits` are theirs, in
    /// the same order.
    pub fn new(
        options: &ZeroShot,
        cx: &'a RunContext,
        inputs: &'a [InputData],
        model: &'a Model,
        group: Vec<Task>,
        splits: Vec<SplitWriter>,
    ) -> Result<Self, EvalError> {
        let input = input(inputs, &group[0].options.input)?;
        let first = &group[0].options;
        let named = first.image.as_ref().map(|column| column.as_str());
        let schema = input.dataset.schema(&input.table)?;
        let source = ImageSource::of(&schema, named);
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
            waiting: Vec::new(),
            pixels: Vec::new(),
            image_seconds: 0.0,
        })
    }

    /// Evaluates. Gives each set back with its split, ready to be committed, or with why it cannot
    /// be evaluated.
    pub fn run(mut self) -> Result<Vec<Evaluated>, EvalError> {
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
        let read = schema.fields().iter().filter(|field| source.reads(field));
        let columns: Vec<&str> = read.map(|field| field.name().as_str()).collect();
        // A quarter of the budget for the encoded bytes, the rest for decoding them.
        let mut examples =
            Examples::new(dataset, table, &columns, self.batch_size, self.cx.bytes_in_flight / 4);
        loop {
            self.cx.check_cancelled()?;
            let start = self.cx.clock.micros();
            let Some(chunk) = examples.next().transpose()? else { break };
            self.image_seconds += self.cx.clock.seconds_since(start);
            self.take(&chunk, &examples, source)?;
        }
        self.flush(source)
    }

    /// Decodes the rows of a chunk: the good ones wait for a full batch, the others go to the
    /// ledger.
    fn take(
        &mut self,
        chunk: &Chunk,
        examples: &Examples<'_>,
        source: &ImageSource,
    ) -> Result<(), EvalError> {
        let start = self.cx.clock.micros();
        let batch = &chunk.batch;
        let labels = self.sets.iter().map(|set| set.label(batch)).collect::<Result<Vec<_>, _>>()?;
        let wanted: Vec<bool> =
            (0..batch.num_rows()).map(|row| labels.iter().any(|set| set[row].class.is_ok())).collect();
        let images = self.images(batch, &wanted, source)?;
        self.image_seconds += self.cx.clock.seconds_since(start);
        let mut refused: Vec<Vec<Refused>> = vec![Vec::new(); self.sets.len()];
        for (row, image) in images.into_iter().enumerate() {
            let uid = uid(batch, row);
            let number = chunk.first + row as u64;
            let place = || match uid {
                Some(uid) => format!("{} (uid {uid})", examples.place(number)),
                None => examples.place(number),
            };
            let mut waits = Waiting {
                example: example(batch, row, chunk.first),
                labels: Vec::new(),
                trained_on: Vec::new(),
            };
            for (index, set) in self.sets.iter_mut().enumerate() {
                let Labelled { class, text } = &labels[index][row];
                set.count_row(&image.digest, text);
                let refusal = match (class, &image.pixels) {
                    (Err(refusal), _) | (_, Some(Err(refusal))) => Some(refusal),
                    _ => None,
                };
                waits
                    .trained_on
                    .push(refusal.is_none() && set.was_trained_on(batch, row, &image.digest, image.look));
                waits.labels.push(class.as_ref().ok().cloned().filter(|_| refusal.is_none()));
                if let Some(refusal) = refusal {
                    refused[index].push(Refused {
                        row: row as u32,
                        refusal: refusal.clone(),
                        place: place(),
                    });
                }
            }
            if let Some(Ok(pixels)) = image.pixels {
                self.pixels.extend(pixels);
                self.waiting.push(waits);
            }
            if self.waiting.len() == self.batch_size {
                self.flush(source)?;
            }
        }
        for (set, refused) in self.sets.iter_mut().zip(&refused) {
            self.cx.progress.rejects(refused.len() as u64);
            set.write_refused(&self.cx.stage, batch, refused)?;
        }
        self.cx.progress.done(batch.num_rows() as u64);
        Ok(())
    }

    /// The images of a chunk: decoded, or encoded long ago.
    fn images(
        &self,
        batch: &RecordBatch,
        wanted: &[bool],
        source: &ImageSource,
    ) -> Result<Vec<Image>, EvalError> {
        let look = needs_look(batch) && self.sets.iter().any(|set| set.training.is_some());
        let prepare = Prepare { look, ..Prepare::new(self.model, &self.limits, self.cx) };
        source.images(batch, wanted, &self.identity, &prepare).map_err(|(why, hint)| {
            EvalError::set(&self.sets[0].options.name, format!("`{}`: {why}", self.input.name), hint)
        })
    }

    /// Encodes the images that wait, and scores them. Batches are full whatever the sizes of the
    /// chunks, so that a result does not depend on the memory of the machine.
    fn flush(&mut self, source: &ImageSource) -> Result<(), EvalError> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        let start = self.cx.clock.micros();
        let waiting = std::mem::take(&mut self.waiting);
        let (pixels, n) = (std::mem::take(&mut self.pixels), waiting.len());
        let embeddings = source.embed(&self.model.clip, pixels, n)?;
        self.image_seconds += self.cx.clock.seconds_since(start);
        for (index, set) in self.sets.iter_mut().enumerate() {
            set.score(self.cx, &self.model.clip, index, &waiting, &embeddings)?;
        }
        Ok(())
    }
}
