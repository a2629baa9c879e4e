//! One pass over an input: every image is decoded and encoded once, and scored at once against every set and
//! prompt set, so that memory holds one batch of images, the classifiers, and counts by class.

use arrow::array::{Array, AsArray, RecordBatch};
use candle_core::{Device, Tensor};
use twinlens_dataset::SplitWriter;
use twinlens_image::Limits;
use twinlens_pipeline::{InputData, RunContext};

use super::ZeroShot;
use super::set_pass::{Labelled, Refused, SetPass, Waiting, refuse, since};
use crate::error::EvalError;
use crate::images::{Chunk, Examples, Image, ImageSource, decode, stored};
use crate::model::{Model, input};

/// One pass over an input.
pub struct Pass<'a> {
    cx: &'a RunContext,
    model: &'a Model,
    input: &'a InputData,
    source: ImageSource,
    /// What the input's embeddings must be marked with.
    identity: String,
    batch_size: usize,
    limits: Limits,
    sets: Vec<SetPass>,
    waiting: Vec<Waiting>,
    /// `[waiting, 3, size, size]`, or `[waiting, embed]` where the input has embeddings.
    pixels: Vec<f32>,
    /// Seconds of reading, decoding and encoding the images.
    image_seconds: f64,
}

impl<'a> Pass<'a> {
    /// Prepares the sets of `group` (indices): their classes, and their classifiers. `splits` are theirs, in the
    /// same order.
    pub fn new(
        options: &ZeroShot,
        cx: &'a RunContext,
        inputs: &'a [InputData],
        model: &'a Model,
        group: Vec<usize>,
        splits: Vec<SplitWriter>,
    ) -> Result<Self, EvalError> {
        let input = input(inputs, &options.sets[group[0]].input)?;
        let first = &options.sets[group[0]];
        let named = first.image.as_ref().map(|column| column.as_str());
        let schema = input.dataset.schema(&input.table)?;
        let source = ImageSource::of(&schema, named).map_err(refuse(first))?;
        let sets = group.into_iter().zip(splits);
        let sets =
            sets.map(|(set, split)| SetPass::new(options, cx, inputs, model, &options.sets[set], split));
        Ok(Self {
            cx,
            model,
            input,
            source,
            identity: model.identity(),
            batch_size: *options.batch_size.value(),
            limits: options.limits(),
            sets: sets.collect::<Result<_, _>>()?,
            waiting: Vec::new(),
            pixels: Vec::new(),
            image_seconds: 0.0,
        })
    }

    /// Evaluates, and gives the splits back, ready to be committed.
    pub fn run(mut self) -> Result<Vec<SplitWriter>, EvalError> {
        let (dataset, table) = (&self.input.dataset, &self.input.table);
        let schema = dataset.schema(table)?;
        let read = schema.fields().iter().filter(|field| self.source.reads(field));
        let columns: Vec<&str> = read.map(|field| field.name().as_str()).collect();
        // A quarter of the budget for the encoded bytes, the rest for decoding them.
        let mut examples =
            Examples::new(dataset, table, &columns, self.batch_size, self.cx.bytes_in_flight / 4);
        loop {
            self.cx.check_cancelled()?;
            let start = self.cx.clock.micros();
            let Some(chunk) = examples.next().transpose()? else { break };
            self.image_seconds += since(self.cx, start);
            self.take(&chunk, &examples)?;
        }
        self.flush()?;
        let (cx, model, seconds) = (self.cx, self.model, self.image_seconds);
        self.sets.into_iter().map(|set| set.finish(cx, model, seconds)).collect()
    }

    /// Decodes the rows of a chunk: the good ones wait for a full batch, the others go to the ledger.
    fn take(&mut self, chunk: &Chunk, examples: &Examples<'_>) -> Result<(), EvalError> {
        let start = self.cx.clock.micros();
        let batch = &chunk.batch;
        let labels = self.sets.iter().map(|set| set.label(batch)).collect::<Result<Vec<_>, _>>()?;
        let wanted: Vec<bool> =
            (0..batch.num_rows()).map(|row| labels.iter().any(|set| set[row].class.is_ok())).collect();
        let images = self.images(batch, &wanted)?;
        self.image_seconds += since(self.cx, start);
        let uids = batch.column_by_name("uid").and_then(|column| column.as_string_opt::<i32>());
        let mut refused: Vec<Vec<Refused>> = vec![Vec::new(); self.sets.len()];
        for (row, image) in images.into_iter().enumerate() {
            let uid = uids.filter(|uids| uids.is_valid(row)).map(|uids| uids.value(row));
            let number = chunk.first + row as u64;
            let place = || match uid {
                Some(uid) => format!("{} (uid {uid})", examples.place(number)),
                None => examples.place(number),
            };
            let mut waits = Waiting {
                example: uid.map_or_else(|| number.to_string(), str::to_string),
                labels: Vec::new(),
            };
            for (index, set) in self.sets.iter_mut().enumerate() {
                let Labelled { class, text } = &labels[index][row];
                set.count_row(&image.digest, text);
                let refusal = match (class, &image.pixels) {
                    (Err(refusal), _) | (_, Some(Err(refusal))) => Some(refusal),
                    _ => None,
                };
                waits.labels.push(class.as_ref().ok().copied().filter(|_| refusal.is_none()));
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
                self.flush()?;
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
    fn images(&self, batch: &RecordBatch, wanted: &[bool]) -> Result<Vec<Image>, EvalError> {
        let refuse = |why: String, hint| EvalError::set(&self.sets[0].options.name, why, hint);
        match &self.source {
            ImageSource::Embeddings => stored(batch, wanted, &self.identity)
                .map_err(|(why, hint)| refuse(format!("`{}`: {why}", self.input.name), hint)),
            ImageSource::Images(column) => {
                let budget = self.cx.bytes_in_flight - self.cx.bytes_in_flight / 4;
                let images = decode(batch, column, wanted, &self.model.preprocess, &self.limits, budget);
                images.ok_or_else(|| refuse(format!("a shard lacks the image column `{column}`"), None))
            }
        }
    }

    /// Encodes the images that wait, and scores them. Batches are full whatever the sizes of the chunks, so that
    /// a result does not depend on the memory of the machine.
    fn flush(&mut self) -> Result<(), EvalError> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        let start = self.cx.clock.micros();
        let waiting = std::mem::take(&mut self.waiting);
        let (pixels, n) = (std::mem::take(&mut self.pixels), waiting.len());
        let embeddings = match self.source {
            ImageSource::Embeddings => {
                Tensor::from_vec(pixels, (n, self.model.clip.config().embed), &Device::Cpu)?
            }
            ImageSource::Images(_) => {
                let size = self.model.preprocess.size as usize;
                self.model.clip.encode_image(&Tensor::from_vec(pixels, (n, 3, size, size), &Device::Cpu)?)?
            }
        };
        self.image_seconds += since(self.cx, start);
        for (index, set) in self.sets.iter_mut().enumerate() {
            set.score(self.cx, &self.model.clip, index, &waiting, &embeddings)?;
        }
        Ok(())
    }
}
