//! Evaluates one set: encodes images and captions to files, ranks them and computes the metrics.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{Device, Tensor};
use sha2::{Digest, Sha256};
use twinlens_dataset::SplitWriter;
use twinlens_pipeline::{InputData, RunContext, RunError};

use super::captions::{Captions, holds};
use super::options::{Retrieval, RetrievalSet};
use super::ranks::{Places, VectorFile, places};
use crate::error::EvalError;
use crate::images::{Chunk, DecodeOptions, Examples, Image, ImageSource};
use crate::inputs::input;
use crate::ledger::RejectedRow;
use crate::metrics::retrieval::{GroupedRecall, chance_of_any, chance_of_one};
use crate::model::Model;
use crate::options::limits_or_default;
use crate::prompts::{fill, list_hash};
use crate::results::{ALL, MetricRow, Provenance, ResultWriter};
use crate::vectors::check_finite;

/// Evaluates a set; returns its split, ready to be committed.
pub(super) fn run(
    options: &Retrieval,
    cx: &RunContext,
    inputs: &[InputData],
    model: &Model,
    set: &RetrievalSet,
    work: &Path,
    split: SplitWriter,
) -> Result<SplitWriter, RunError> {
    let start = cx.clock.micros();
    let data = input(inputs, &set.input)?;
    let (schema, named) =
        (data.dataset.schema(&data.table)?, set.image.as_ref().map(|column| column.as_str()));
    let source = ImageSource::resolve(&schema, named)
        .map_err(|fault| EvalError::set(&set.name, fault.why, fault.hint))?;
    let width = model.clip.config().embed;
    let file = |name: &str| VectorFile::create(&work.join(name), width);
    let pass = Pass {
        options,
        cx,
        data,
        model,
        set,
        source,
        results: ResultWriter::new(&set.name, split),
        identity: model.identity(),
        images: file("images.f32")?,
        texts: file("texts.f32")?,
        seen: HashMap::new(),
        waiting: Vec::new(),
        tokens: Vec::new(),
        image_of_text: Vec::new(),
        hash: Sha256::new_with_prefix(b"twinlens retrieval set 1"),
        candidates: Sha256::new(),
    };
    Ok(pass.run(start)?)
}

struct Pass<'a> {
    options: &'a Retrieval,
    cx: &'a RunContext,
    data: &'a InputData,
    model: &'a Model,
    set: &'a RetrievalSet,
    source: ImageSource,
    results: ResultWriter,
    identity: String,
    images: VectorFile,
    texts: VectorFile,
    /// The index of each image, by its SHA-256.
    seen: HashMap<[u8; 32], usize>,
    /// Images waiting for a full batch: pixels, or the embedding itself.
    waiting: Vec<Vec<f32>>,
    /// Tokens of captions waiting for a full batch.
    tokens: Vec<u32>,
    image_of_text: Vec<usize>,
    /// The hash of images and captions.
    hash: Sha256,
    /// The hash of the captions alone, the candidates of text retrieval.
    candidates: Sha256,
}

impl Pass<'_> {
    fn run(mut self, start: i64) -> Result<SplitWriter, EvalError> {
        let (dataset, table) = (&self.data.dataset, &self.data.table);
        let schema = dataset.schema(table)?;
        let read = schema.fields().iter().filter(|field| self.source.needs_column(field));
        let columns: Vec<&str> = read.map(|field| field.name().as_str()).collect();
        let most = *self.options.batch_size;
        let mut examples = Examples::new(dataset, table, &columns, most, self.cx.bytes_in_flight / 4);
        while let Some(chunk) = examples.next().transpose()? {
            self.cx.check_cancelled()?;
            self.take(&chunk, &examples)?;
        }
        self.encode_images()?;
        self.encode_texts()?;
        if self.image_of_text.is_empty() {
            return Err(EvalError::set(&self.set.name, "it has no image with a caption", None));
        }
        let cx = self.cx;
        let found =
            places(&mut self.images, &mut self.texts, &self.image_of_text, || Ok(cx.check_cancelled()?))?;
        self.write(&found, start)?;
        Ok(self.results.into_split())
    }

    fn refuse(&self, why: String, hint: Option<String>) -> EvalError {
        EvalError::set(&self.set.name, format!("`{}`: {why}", self.data.name), hint)
    }

    /// Takes the new images and the captions of a chunk; damaged images become rejects.
    fn take(&mut self, chunk: &Chunk, examples: &Examples<'_>) -> Result<(), EvalError> {
        let batch = &chunk.batch;
        let name = self.set.captions.value();
        let column = batch
            .column_by_name(name)
            .ok_or_else(|| self.refuse(format!("there is no column `{name}`"), None))?;
        if !holds(column.data_type()) {
            return Err(self.refuse(format!("the column `{name}` is of type {}", column.data_type()), None));
        }
        let captions = Captions::of(column)?;
        let mut refused = Vec::new();
        for (row, image) in self.images_of(chunk)?.into_iter().enumerate() {
            let texts = captions.get(row);
            let pixels = match image.pixels {
                Some(Ok(pixels)) => pixels,
                Some(Err(refusal)) => {
                    let place = examples.location(chunk.first + row as u64);
                    let detail = format!("set `{}`, {place}: {}", self.set.name.value(), refusal.detail);
                    refused.push(RejectedRow { row: row as u32, code: refusal.code, detail });
                    continue;
                }
                None => continue,
            };
            self.hash.update(image.digest);
            let next = self.seen.len();
            // Without a hash (embeddings not made by `embed`) every row is a separate image.
            let own = if image.digest == [0; 32] { number_digest(next) } else { image.digest };
            let index = *self.seen.entry(own).or_insert(next);
            if index == next {
                self.waiting.push(pixels);
                if self.waiting.len() == *self.options.batch_size {
                    self.encode_images()?;
                }
            }
            for text in texts {
                self.take_text(text, index)?;
            }
        }
        self.cx.progress.rejects(refused.len() as u64);
        self.results.rejects(self.cx, batch, &refused)?;
        self.cx.progress.done(batch.num_rows() as u64);
        Ok(())
    }

    fn take_text(&mut self, text: &str, image: usize) -> Result<(), EvalError> {
        for hash in [&mut self.hash, &mut self.candidates] {
            hash.update((text.len() as u64).to_le_bytes());
            hash.update(text);
        }
        let context = self.model.clip.config().text.context;
        self.tokens.extend(self.model.tokenizer.encode(&fill(&self.options.template, text), context));
        self.image_of_text.push(image);
        if self.tokens.len() == *self.options.batch_size * context { self.encode_texts() } else { Ok(()) }
    }

    fn images_of(&self, chunk: &Chunk) -> Result<Vec<Image>, EvalError> {
        let limits = limits_or_default(self.options.limits.as_ref());
        let prepare = DecodeOptions::new(self.model, &limits, self.cx);
        let wanted = vec![true; chunk.batch.num_rows()];
        let images = self.source.images(&chunk.batch, &wanted, &self.identity, &prepare);
        images.map_err(|(why, hint)| self.refuse(why, hint))
    }

    fn encode_images(&mut self) -> Result<(), EvalError> {
        let waiting = std::mem::take(&mut self.waiting);
        if waiting.is_empty() {
            return Ok(());
        }
        let (n, values) = (waiting.len(), waiting.into_iter().flatten().collect());
        let vectors = self.source.embed(&self.model.clip, values, n)?.flatten_all()?.to_vec1::<f32>()?;
        check_finite(&vectors, || "an image embedding".into())?;
        self.images.push(&vectors)
    }

    fn encode_texts(&mut self) -> Result<(), EvalError> {
        let tokens = std::mem::take(&mut self.tokens);
        if tokens.is_empty() {
            return Ok(());
        }
        let context = self.model.clip.config().text.context;
        let ids = Tensor::from_slice(&tokens, (tokens.len() / context, context), &Device::Cpu)?;
        let vectors = self.model.clip.encode_text(&ids)?.flatten_all()?.to_vec1::<f32>()?;
        check_finite(&vectors, || "a text embedding".into())?;
        self.texts.push(&vectors)
    }

    fn write(&mut self, places: &Places, start: i64) -> Result<(), EvalError> {
        let ks = &self.options.ks;
        let mut captions: Vec<u64> = vec![0; self.images.len()];
        self.image_of_text.iter().for_each(|image| captions[*image] += 1);
        let (set, images, texts) = (self.set.name.value(), self.images.len() as u64, self.texts.len() as u64);
        let mut rng = self.cx.rng(&format!("bootstrap/{set}"));
        for (direction, n) in
            [("image", texts), ("text", captions.iter().filter(|count| **count > 0).count() as u64)]
        {
            let mut rows = Vec::new();
            for k in ks.iter() {
                let mut found = GroupedRecall::default();
                let mut hits: Vec<u64> = vec![0; self.images.len()];
                let chance = if direction == "image" {
                    let texts = self.image_of_text.iter().zip(&places.of_texts);
                    texts.for_each(|(image, place)| hits[*image] += u64::from((*place as usize) < *k));
                    captions.iter().zip(&hits).for_each(|(queries, hits)| found.add(*hits, *queries));
                    chance_of_one(*k as u64, images)
                } else {
                    let places = places.of_images.iter().flatten();
                    places.for_each(|place| found.add(u64::from((*place as usize) < *k), 1));
                    let own = captions.iter().copied().filter(|own| *own > 0);
                    own.map(|own| chance_of_any(*k as u64, own, texts)).sum::<f64>() / n as f64
                };
                let (Some(value), Some(interval)) = (found.value(), found.interval(&mut rng)) else {
                    continue;
                };
                rows.push(MetricRow {
                    metric: format!("{direction}_retrieval_recall@{k}"),
                    value,
                    interval,
                    chance,
                });
            }
            if let Some(first) = rows.first() {
                self.cx.progress.note(format!("{set}: {}", first.summary(n)));
            }
            let template: &String = &self.options.template;
            let from = Provenance {
                model: &self.model.name,
                checkpoint: self.model.checkpoint.as_deref(),
                split: self.set.input.name(),
                task: "retrieval",
                prompts: template,
                set_hash: &hex::encode(self.hash.clone().finalize()),
                classes_hash: &hex::encode(self.candidates.clone().finalize()),
                prompts_hash: &list_hash(std::slice::from_ref(template)),
                weights_hash: &self.model.weights_hash,
                preprocess_hash: &self.model.preprocess_hash,
                precision: Some(self.model.clip.precision().name()),
                part: ALL,
                n,
                seconds: self.cx.clock.seconds_since(start),
            };
            self.results.accuracy(&from, &rows)?;
        }
        Ok(())
    }
}

/// Replaces the missing hash of an image by its number.
fn number_digest(number: usize) -> [u8; 32] {
    let mut digest = [0xff; 32];
    digest[..8].copy_from_slice(&(number as u64).to_le_bytes());
    digest
}
