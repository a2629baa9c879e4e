//! One evaluation set in a pass: its classes, classifiers, counts, and finally its results.

use arrow::array::RecordBatch;
use candle_core::Tensor;
use sha2::{Digest, Sha256};
use twinlens_dataset::{MAIN, SplitWriter};
use twinlens_model::Clip;
use twinlens_pipeline::{InputData, RunContext, RunError};

use super::overlap::{Overlap, TrainingHashes};
use super::rows::{RowLabel, SetReader, Truth, read_classes, set_error};
use super::select::{HeldOut, SelectionInput, select};
use super::tables::{self, MetricRow, Prediction, Provenance};
use super::variant::{Counts, Variant, measure};
use super::{CALIBRATION, PER_CLASS, PREDICTIONS, SetTask, WARNINGS, ZeroShot};
use crate::error::EvalError;
use crate::images::{ImageSource, Reject, UNKNOWN_LABEL};
use crate::ledger;
use crate::metrics::{Tally, top_k};
use crate::model::{Model, input};
use crate::prompts::{TextCache, TextEncoder, build_classifier};
use crate::set::{Classes, Labels, SetFault, SetOptions};
use crate::trust::{self, Warning};
use crate::vectors::check_finite;

/// Classes stored per prediction.
const TOP: usize = 5;

pub struct SetPass {
    pub options: SetOptions,
    labels: Labels,
    classes: Classes,
    variants: Vec<Variant>,
    split: SplitWriter,
    hash: Sha256,
    pub training: Option<TrainingHashes>,
    overlap: Overlap,
    rows: u64,
    rejected: u64,
    first_reject: Option<String>,
    unknown_labels: u64,
    /// About the set, not about single prompt sets.
    warnings: Vec<Warning>,
    /// Turns cosines into logits, if the model has one.
    scale: Option<f32>,
}

/// A rejected row of a chunk.
#[derive(Clone)]
pub struct RejectedExample {
    pub row: u32,
    pub reject: Reject,
    /// Shard, row, uid.
    pub location: String,
}

/// An example of the next batch.
pub struct PendingExample {
    pub name: String,
    /// For each set; `None` if the set rejects it.
    pub labels: Vec<Option<Truth>>,
    /// For each set, whether it is a training image.
    pub in_training: Vec<bool>,
}

impl SetPass {
    pub fn new(
        options: &ZeroShot,
        cx: &RunContext,
        inputs: &[InputData],
        model: &Model,
        task: &SetTask,
        source: &Result<ImageSource, SetFault>,
        split: SplitWriter,
    ) -> Result<Self, EvalError> {
        let set = &task.options;
        let own = input(inputs, &set.input)?;
        let schema = own.dataset.schema(&own.table)?;
        let class_names = set.class_names.as_ref().map(|names| names.as_slice());
        let labels = Labels::new(&schema, set.label.value(), class_names).map_err(set_error(set))?;
        let source = source.clone().map_err(set_error(set))?;
        let classes = read_classes(cx, set, inputs, own, &labels)?;
        let names = classes.all_names();
        let cache = TextCache::new(&cx.files.scratch.join("texts"));
        let texts = TextEncoder {
            clip: &model.clip,
            tokenizer: &model.tokenizer,
            weights_hash: &model.weights_hash,
            batch: *options.batch_size.value(),
            cache: Some(&cache),
        };
        let of_set = set.templates.as_ref().map(|templates| templates.as_slice());
        let reader = SetReader { labels: &labels, classes: &classes, set };
        let training = match &set.overlap_with {
            Some(_) if labels.is_multi_label() => {
                let why = "`overlap_with` requires a single-label set";
                return Err(EvalError::set(&set.name, why, None));
            }
            Some(other) => Some(TrainingHashes::open(input(inputs, other)?, &set.name)?),
            None => None,
        };
        let mut variants = Vec::new();
        for prompts in options.prompts.iter() {
            cx.check_cancelled()?;
            let mut prompts =
                prompts.resolve(of_set).map_err(|(why, hint)| EvalError::set(&set.name, why, hint))?;
            let start = cx.clock.micros();
            let mut held_out = None;
            if let Some(selection) = prompts.select.clone() {
                if labels.is_multi_label() {
                    return Err(EvalError::set(&set.name, "`select` requires a single-label set", None));
                }
                let input = SelectionInput {
                    cx,
                    model,
                    data: own,
                    source: &source,
                    limits: &options.limits(),
                    batch: *options.batch_size.value(),
                    reader,
                };
                prompts = select(&input, texts, &set.name, &names, &prompts, &selection)?;
                held_out = Some(HeldOut::new(cx, &set.name, selection.held_out));
            }
            let classifier = build_classifier(texts, &names, &prompts)?;
            let seconds = cx.clock.seconds_since(start);
            let same_tokens = trust::same_tokens(classes.names(), classifier.duplicates);
            let mut variant =
                Variant::new(prompts, classifier, classes.len(), labels.is_multi_label(), seconds);
            variant.held_out = held_out;
            variant.parts =
                training.is_some().then(|| [Tally::new(classes.len()), Tally::new(classes.len())]);
            if let Some(warning) = same_tokens {
                warn(cx, &set.name, Some(&variant.prompts.name), &warning);
                variant.warnings.push(warning);
            }
            variants.push(variant);
        }
        let warnings: Vec<Warning> =
            task.warnings.iter().cloned().chain(trust::names(classes.names())).collect();
        warnings.iter().for_each(|warning| warn(cx, &set.name, None, warning));
        let has_scale = model.clip.variables().get("logit_scale").is_some();
        let scale = has_scale.then(|| model.clip.logit_scale().exp());
        let hash = Sha256::new_with_prefix(b"twinlens evaluation set 1");
        let options = set.clone();
        Ok(Self {
            options,
            labels,
            classes,
            variants,
            split,
            hash,
            training,
            overlap: Overlap::default(),
            rows: 0,
            rejected: 0,
            first_reject: None,
            unknown_labels: 0,
            warnings,
            scale,
        })
    }

    pub fn labels(&self, batch: &RecordBatch) -> Result<Vec<RowLabel>, EvalError> {
        SetReader { labels: &self.labels, classes: &self.classes, set: &self.options }.labels(batch)
    }

    pub fn is_training_image(
        &mut self,
        batch: &RecordBatch,
        row: usize,
        digest: &[u8; 32],
        phash: Option<u64>,
    ) -> bool {
        let training = self.training.as_ref();
        training.is_some_and(|training| training.contains(batch, row, digest, phash, &mut self.overlap))
    }

    /// Adds image and label of a row to the set's hash, rejected or not.
    pub fn count_row(&mut self, image: &[u8; 32], label: &str) {
        self.rows += 1;
        self.hash.update(image);
        self.hash.update((label.len() as u64).to_le_bytes());
        self.hash.update(label);
    }

    /// Writes rejected rows of a chunk to the ledger.
    pub fn write_rejects(
        &mut self,
        stage: &str,
        batch: &RecordBatch,
        rejected: &[RejectedExample],
    ) -> Result<(), EvalError> {
        let Some(first) = rejected.first() else { return Ok(()) };
        self.rejected += rejected.len() as u64;
        self.unknown_labels += rejected.iter().filter(|row| row.reject.code == UNKNOWN_LABEL).count() as u64;
        self.first_reject.get_or_insert_with(|| format!("{}: {}", first.location, first.reject.detail));
        let set = self.options.name.value();
        let entry = |row: &RejectedExample| ledger::RejectedRow {
            row: row.row,
            code: row.reject.code,
            detail: format!("set `{set}`, {}: {}", row.location, row.reject.detail),
        };
        ledger::write(&mut self.split, stage, batch, &rejected.iter().map(entry).collect::<Vec<_>>())
    }

    /// Scores a batch of images for all prompt sets. `embeddings`: `[pending, embed]`.
    pub fn score(
        &mut self,
        cx: &RunContext,
        clip: &Clip,
        index: usize,
        pending: &[PendingExample],
        embeddings: &Tensor,
    ) -> Result<(), EvalError> {
        for variant in &mut self.variants {
            let start = cx.clock.micros();
            let scores = variant.classifier.scores(clip, embeddings)?.to_vec2::<f32>()?;
            let mut rows = Vec::with_capacity(pending.len());
            for (example, scores) in pending.iter().zip(&scores) {
                let Some(truth) = &example.labels[index] else { continue };
                if variant.held_out.is_some_and(|held_out| held_out.contains(&example.name)) {
                    variant.excluded += 1;
                    continue;
                }
                check_finite(scores, || format!("the image embedding of example {}", example.name))?;
                let ranked = top_k(scores, TOP);
                let label = match truth {
                    Truth::Single(label) => {
                        variant.count(*label, scores, &ranked, self.scale);
                        if let Some(parts) = &mut variant.parts {
                            parts[usize::from(example.in_training[index])].add(*label, &ranked);
                        }
                        Some(*label)
                    }
                    Truth::Multi { present, ignored } => {
                        variant.count_multi_label(present, ignored, scores);
                        None
                    }
                };
                let score = ranked.first().map_or(f32::NAN, |best| scores[*best]);
                rows.push(Prediction { example: &example.name, label, ranked, score });
            }
            let batch = tables::predictions(&self.options.name, &variant.prompts.name, &rows)?;
            self.split.write(PREDICTIONS, &batch)?;
            variant.seconds += cx.clock.seconds_since(start);
        }
        Ok(())
    }

    /// Writes the results, after the last row.
    pub fn finish(
        mut self,
        cx: &RunContext,
        model: &Model,
        image_seconds: f64,
    ) -> Result<SplitWriter, EvalError> {
        let name = self.options.name.value().clone();
        let (set_hash, classes_hash) = (hex::encode(self.hash.finalize()), self.classes.hash());
        if self.unknown_labels > 0 {
            cx.progress.note(format!(
                "set `{name}`: {} of {} rows have labels that are not among its classes",
                self.unknown_labels, self.rows
            ));
        }
        for variant in &self.variants {
            let (tally, prompts) = (&variant.tally, variant.prompts.name.as_str());
            let n = variant.examples();
            if n + variant.excluded + self.rejected != self.rows {
                let (rejected, rows) = (self.rejected, self.rows);
                return Err(RunError::Internal(format!(
                    "set `{name}`: {rows} rows in, {n} evaluated, {rejected} rejected"
                ))
                .into());
            }
            let counts = Counts { tally, scores: variant.scores.as_ref() };
            let rows = measure(cx, &name, &self.options, variant, counts);
            let Some(first) = rows.first() else {
                let why = match &self.first_reject {
                    Some(first) => format!("all of its {} rows were rejected; the first: {first}", self.rows),
                    None => "its input has no rows".into(),
                };
                return Err(EvalError::set(&name, why, None));
            };
            cx.progress.note(format!("{name}, {prompts}: {}", first.summary(n)));
            let from = Provenance {
                model: &model.name,
                checkpoint: model.checkpoint.as_deref(),
                set: &name,
                split: self.options.split.as_deref().unwrap_or(self.options.input.name()),
                task: "zero-shot",
                prompts,
                set_hash: &set_hash,
                classes_hash: &classes_hash,
                prompts_hash: &variant.prompts.hash(),
                weights_hash: &model.weights_hash,
                preprocess_hash: &model.preprocess_hash,
                precision: Some(model.clip.precision().name()),
                part: tables::ALL,
                n,
                seconds: image_seconds + variant.seconds,
            };
            self.split.write(MAIN, &tables::accuracy(&from, &rows)?)?;
            for (part, tally) in
                [tables::CLEAN, tables::OVERLAP].into_iter().zip(variant.parts.iter().flatten())
            {
                let rows = measure(
                    cx,
                    &format!("{name}/{part}"),
                    &self.options,
                    variant,
                    Counts { tally, scores: None },
                );
                let from = Provenance { part, n: tally.total(), ..from.clone() };
                self.split.write(MAIN, &tables::accuracy(&from, &rows)?)?;
            }
            let classes = tables::per_class(&name, prompts, self.classes.names(), tally)?;
            self.split.write(PER_CLASS, &classes)?;
            write_trust(cx, &mut self.split, &name, self.classes.names(), variant, &rows)?;
        }
        // All prompt sets have the same examples.
        let examples = self.variants.first().map_or(&[][..], |variant| variant.tally.examples());
        if let Some(warning) = trust::without_examples(self.classes.names(), examples) {
            warn(cx, &name, None, &warning);
            self.warnings.push(warning);
        }
        let total = self.rows - self.rejected;
        let overlap = self.training.as_ref().and_then(|training| training.warning(&self.overlap, total));
        if let Some(warning) = overlap {
            warn(cx, &name, None, &warning);
            self.warnings.push(warning);
        }
        self.split.write(WARNINGS, &tables::warnings(&name, None, &self.warnings)?)?;
        Ok(self.split)
    }
}

/// Writes calibration and warnings of a prompt set.
fn write_trust(
    cx: &RunContext,
    split: &mut SplitWriter,
    set: &str,
    names: &[String],
    variant: &Variant,
    rows: &[MetricRow],
) -> Result<(), EvalError> {
    let prompts = variant.prompts.name.as_str();
    let calibration = &variant.calibration;
    let interval = calibration.interval(&mut cx.rng(&format!("calibration/{set}/{prompts}")));
    if let Some(row) = tables::calibration(set, prompts, calibration, interval)? {
        split.write(CALIBRATION, &row)?;
    }
    let warnings = result_warnings(variant, names, rows);
    warnings.iter().for_each(|warning| warn(cx, set, Some(prompts), warning));
    let all = [&variant.warnings[..], &warnings].concat();
    Ok(split.write(WARNINGS, &tables::warnings(set, Some(prompts), &all)?)?)
}

/// Warnings about the results of a prompt set.
fn result_warnings(variant: &Variant, names: &[String], rows: &[MetricRow]) -> Vec<Warning> {
    let below =
        rows.iter().filter_map(|row| trust::below_chance(&row.metric, row.value, row.interval, row.chance));
    trust::permuted(&variant.confusion, names).into_iter().chain(below).collect()
}

/// Logs a warning.
fn warn(cx: &RunContext, set: &str, prompts: Option<&str>, warning: &Warning) {
    let prompts = prompts.map(|prompts| format!(", prompts `{prompts}`")).unwrap_or_default();
    cx.progress.note(format!("set `{set}`{prompts}: {}", warning.detail));
}
