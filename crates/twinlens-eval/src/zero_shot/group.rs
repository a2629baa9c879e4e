//! Evaluates sets that share their images in one pass.

use twinlens_dataset::SplitWriter;
use twinlens_pipeline::{InputData, RunContext};

use super::options::ZeroShot;
use super::overlap::TrainingHashes;
use super::select::{SelectionInput, select};
use super::set_results::{SetResults, finish};
use super::task::SetTask;
use super::thumbnails::Thumbnails;
use crate::classify::{HeldOut, Pass, SetPass, Variant};
use crate::error::EvalError;
use crate::images::{ImageEncoder, ImageSource};
use crate::inputs::input;
use crate::ledger::first_reject;
use crate::metrics::Tally;
use crate::model::Model;
use crate::prompts::{PromptOptions, TextCache, TextEncoder};
use crate::set_reader::{SetReader, set_error};
use crate::trust;

/// A set after its pass: its split, ready to be committed, or why it cannot be evaluated.
pub(super) type SetResult = (SetTask, Result<SplitWriter, EvalError>);

pub(super) struct Group<'a> {
    pub options: &'a ZeroShot,
    pub cx: &'a RunContext,
    pub inputs: &'a [InputData],
    pub model: &'a Model,
}

impl Group<'_> {
    /// Evaluates the sets, whose results go to their splits.
    pub(super) fn run(&self, sets: Vec<(SetTask, SplitWriter)>) -> Result<Vec<SetResult>, EvalError> {
        let first = &sets[0].0.options;
        let input = input(self.inputs, &first.input)?;
        let named = first.image.as_ref().map(|column| column.as_str());
        let source = ImageSource::resolve(input.dataset.schema(&input.table)?.as_ref(), named);
        let (mut opened, mut done) = (Vec::new(), Vec::new());
        for (task, split) in sets {
            let found = source.as_ref().map_err(|fault| set_error(&task.options)(fault.clone()));
            let reader = found.and_then(|_| SetReader::open(self.cx, self.inputs, &task.options));
            match skippable(reader)? {
                Ok(reader) => opened.push((task, split, reader)),
                Err(error) => done.push((task, Err(error))),
            }
        }
        let Ok(source) = source else { return Ok(done) };
        let (readers, sets): (Vec<_>, Vec<_>) =
            opened.into_iter().map(|(task, split, reader)| (reader, (task, split))).unzip();
        let limits = self.options.limits();
        let encoder = ImageEncoder::new(self.model, &source, &limits, self.cx);
        let (mut tasks, mut passes) = (Vec::new(), Vec::new());
        for ((task, split), reader) in sets.into_iter().zip(&readers) {
            match skippable(self.prepare(&encoder, reader, &task, split))? {
                Ok(set) => {
                    tasks.push(task);
                    passes.push(set);
                }
                Err(error) => done.push((task, Err(error))),
            }
        }
        if !passes.is_empty() {
            let batch_size = *self.options.batch_size.value();
            let pass = Pass::new(self.cx, input, encoder, batch_size, passes);
            let (passes, seconds) = pass.run(|rows| self.cx.progress.done(rows))?;
            let results = passes.into_iter().map(|set| finish(set, self.model, seconds));
            done.extend(tasks.into_iter().zip(results));
        }
        Ok(done)
    }

    /// Prepares the classifiers of a set.
    fn prepare<'a>(
        &'a self,
        encoder: &ImageEncoder<'_>,
        reader: &'a SetReader,
        task: &SetTask,
        split: SplitWriter,
    ) -> Result<SetPass<'a, SetResults<'a>>, EvalError> {
        let training = match &task.options.overlap_with {
            Some(_) if reader.labels.is_multi_label() => {
                let why = "`overlap_with` requires a single-label set";
                return Err(EvalError::set(reader.name(), why, None));
            }
            Some(other) => Some(TrainingHashes::open(input(self.inputs, other)?, reader.name())?),
            None => None,
        };
        let with_parts = training.is_some();
        let input_reject = first_reject(&input(self.inputs, &reader.options.input)?.dataset)?;
        let column = reader.options.image_column();
        let thumbnails = Thumbnails::new(*self.options.examples, column, self.options.limits());
        let sink = SetResults::new(self.cx, reader, split, training, thumbnails);
        let sink = sink.with_warnings(reader, &task.warnings).with_input_reject(input_reject);
        let mut variants = Vec::new();
        for prompts in self.options.prompts.iter() {
            self.cx.check_cancelled()?;
            let start = self.cx.clock.micros();
            let mut variant = self.variant(encoder, reader, prompts)?;
            variant.seconds = self.cx.clock.seconds_since(start);
            let classes = reader.classes.len();
            variant.parts = with_parts.then(|| [Tally::new(classes), Tally::new(classes)]);
            if let Some(warning) = trust::same_tokens(reader.classes.names(), variant.classifier.duplicates) {
                sink.log(Some(&variant.prompts.name), &warning);
                variant.warnings.push(warning);
            }
            variants.push(variant);
        }
        let has_scale = self.model.clip.variables().get("logit_scale").is_some();
        let scale = has_scale.then(|| self.model.clip.logit_scale().exp());
        Ok(SetPass { reader, variants, scale, sink })
    }

    /// Selects templates if requested, and encodes the prompts.
    fn variant(
        &self,
        encoder: &ImageEncoder<'_>,
        reader: &SetReader,
        prompts: &PromptOptions,
    ) -> Result<Variant, EvalError> {
        let mut prompts = reader.resolve(prompts)?;
        let cache = TextCache::new(&self.cx.files.scratch.join("texts"));
        let batch = *self.options.batch_size.value();
        let texts = TextEncoder {
            clip: &self.model.clip,
            tokenizer: &self.model.tokenizer,
            weights_hash: &self.model.weights_hash,
            batch,
            cache: Some(&cache),
        };
        let Some(selection) = prompts.select.clone() else { return Variant::new(reader, prompts, texts) };
        if reader.labels.is_multi_label() {
            return Err(EvalError::set(reader.name(), "`select` requires a single-label set", None));
        }
        let data = input(self.inputs, &reader.options.input)?;
        let examples = SelectionInput { cx: self.cx, data, encoder, batch, reader };
        prompts = select(&examples, texts, &prompts, &selection)?;
        let held_out = Some(HeldOut::new(self.cx, reader.name(), selection.held_out));
        Ok(Variant { held_out, ..Variant::new(reader, prompts, texts)? })
    }
}

/// Separates errors that skip a set from those that stop the evaluation.
fn skippable<T>(result: Result<T, EvalError>) -> Result<Result<T, EvalError>, EvalError> {
    match result {
        Err(error @ EvalError::Set { .. }) => Ok(Err(error)),
        Err(error) => Err(error),
        Ok(value) => Ok(Ok(value)),
    }
}
