//! One evaluation set on its way through a pass: its classes and classifiers, what has been
//! counted, and at the end its results.

use arrow::array::RecordBatch;
use candle_core::Tensor;
use sha2::{Digest, Sha256};
use twinlens_dataset::{MAIN, SplitWriter};
use twinlens_model::Clip;
use twinlens_pipeline::{InputData, RunContext, RunError};

use super::overlap::{Overlap, Training};
use super::rows::{Labelled, Rows, Truth, classes, refuse};
use super::select::{HeldOut, Looking, select};
use super::tables::{self, Measured, Prediction, Provenance};
use super::variant::{Counts, Variant, measure};
use super::{CALIBRATION, PER_CLASS, PREDICTIONS, Task, WARNINGS, ZeroShot};
use crate::error::EvalError;
use crate::images::{ImageSource, Refusal, UNKNOWN_LABEL};
use crate::ledger;
use crate::metrics::{Tally, top_k};
use crate::model::{Model, input};
use crate::prompts::{TextCache, Texts, classifier, hex};
use crate::set::{ClassFault, Classes, Labels, SetOptions};
use crate::trust::{self, Warning};
use crate::vectors::check_finite;

/// Best classes that are kept of an example.
const BEST: usize = 5;

/// One evaluation set on its way through the pass.
pub struct SetPass {
    pub options: SetOptions,
    labels: Labels,
    classes: Classes,
    variants: Vec<Variant>,
    split: SplitWriter,
    hash: Sha256,
    /// The images that were trained on, and how many of the set are among them.
    pub training: Option<Training>,
    overlap: Overlap,
    rows: u64,
    refused: u64,
    first_refusal: Option<String>,
    unknown: u64,
    /// Of the set, whatever the prompts.
    warnings: Vec<Warning>,
    /// What the model's similarities are multiplied by to give logits.
    scale: Option<f32>,
}

/// A row of a chunk that a set refuses.
#[derive(Clone)]
pub struct Refused {
    pub row: u32,
    pub refusal: Refusal,
    /// Shard, row, uid.
    pub place: String,
}

/// An example that waits for its batch to be full.
pub struct Waiting {
    pub example: String,
    /// Its class in each set; `None` where that set refused it.
    pub labels: Vec<Option<Truth>>,
    /// Whether it is among the images that each set was told were trained on.
    pub trained_on: Vec<bool>,
}

impl SetPass {
    pub fn new(
        options: &ZeroShot,
        cx: &RunContext,
        inputs: &[InputData],
        model: &Model,
        task: &Task,
        source: &Result<ImageSource, ClassFault>,
        split: SplitWriter,
    ) -> Result<Self, EvalError> {
        let set = &task.options;
        let own = input(inputs, &set.input)?;
        let schema = own.dataset.schema(&own.table)?;
        let class_names = set.class_names.as_ref().map(|names| names.as_slice());
        let labels = Labels::new(&schema, set.label.value(), class_names).map_err(refuse(set))?;
        let source = source.clone().map_err(refuse(set))?;
        let classes = classes(cx, set, inputs, own, &labels)?;
        let names = classes.all_names();
        let cache = TextCache::new(&cx.files.scratch.join("texts"));
        let texts = Texts {
            clip: &model.clip,
            tokenizer: &model.tokenizer,
            weights_hash: &model.weights_hash,
            batch: *options.batch_size.value(),
            cache: Some(&cache),
        };
        let of_set = set.templates.as_ref().map(|templates| templates.as_slice());
        let rows = Rows { labels: &labels, classes: &classes, set };
        let training = match &set.overlap_with {
            Some(_) if labels.several() => {
                let why = "`overlap_with` is for sets of one class an image";
                return Err(EvalError::set(&set.name, why, None));
            }
            Some(other) => Some(Training::open(input(inputs, other)?, &set.name)?),
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
                if labels.several() {
                    return Err(EvalError::set(
                        &set.name,
                        "templates are selected for one class an image",
                        None,
                    ));
                }
                let looking = Looking {
                    cx,
                    model,
                    input: own,
                    source: &source,
                    limits: &options.limits(),
                    batch: *options.batch_size.value(),
                    rows,
                };
                prompts = select(&looking, texts, &set.name, &names, &prompts, &selection)?;
                held_out = Some(HeldOut::new(cx, &set.name, selection.held_out));
            }
            let classifier = classifier(texts, &names, &prompts)?;
            let seconds = cx.clock.seconds_since(start);
            let same_tokens = trust::same_tokens(classes.names(), classifier.twins);
            let mut variant = Variant::new(prompts, classifier, classes.len(), labels.several(), seconds);
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
            refused: 0,
            first_refusal: None,
            unknown: 0,
            warnings,
            scale,
        })
    }

    /// The label of each row.
    pub fn label(&self, batch: &RecordBatch) -> Result<Vec<Labelled>, EvalError> {
        Rows { labels: &self.labels, classes: &self.classes, set: &self.options }.label(batch)
    }

    /// Whether an example that is evaluated was trained on.
    pub fn was_trained_on(
        &mut self,
        batch: &RecordBatch,
        row: usize,
        digest: &[u8; 32],
        look: Option<u64>,
    ) -> bool {
        let training = self.training.as_ref();
        training.is_some_and(|training| training.holds(batch, row, digest, look, &mut self.overlap))
    }

    /// Hashes a row into the set's identity: its image and its label, refused or not.
    pub fn count_row(&mut self, image: &[u8; 32], label: &str) {
        self.rows += 1;
        self.hash.update(image);
        self.hash.update((label.len() as u64).to_le_bytes());
        self.hash.update(label);
    }

    /// Writes refused rows of a chunk to the ledger.
    pub fn write_refused(
        &mut self,
        stage: &str,
        batch: &RecordBatch,
        refused: &[Refused],
    ) -> Result<(), EvalError> {
        let Some(first) = refused.first() else { return Ok(()) };
        self.refused += refused.len() as u64;
        self.unknown += refused.iter().filter(|row| row.refusal.code == UNKNOWN_LABEL).count() as u64;
        self.first_refusal.get_or_insert_with(|| format!("{}: {}", first.place, first.refusal.detail));
        let set = self.options.name.value();
        let entry = |row: &Refused| ledger::Entry {
            row: row.row,
            code: row.refusal.code,
            detail: format!("set `{set}`, {}: {}", row.place, row.refusal.detail),
        };
        ledger::write(&mut self.split, stage, batch, &refused.iter().map(entry).collect::<Vec<_>>())
    }

    /// Scores a batch of images for every prompt set. `embeddings`: `[waiting, embed]`.
    pub fn score(
        &mut self,
        cx: &RunContext,
        clip: &Clip,
        index: usize,
        waiting: &[Waiting],
        embeddings: &Tensor,
    ) -> Result<(), EvalError> {
        for variant in &mut self.variants {
            let start = cx.clock.micros();
            let scores = variant.classifier.scores(clip, embeddings)?.to_vec2::<f32>()?;
            let mut rows = Vec::with_capacity(waiting.len());
            for (example, scores) in waiting.iter().zip(&scores) {
                let Some(truth) = &example.labels[index] else { continue };
                if variant.held_out.is_some_and(|held_out| held_out.holds(&example.example)) {
                    variant.left_out += 1;
                    continue;
                }
                check_finite(scores, || format!("the image embedding of example {}", example.example))?;
                let ranked = top_k(scores, BEST);
                let label = match truth {
                    Truth::One(label) => {
                        variant.count(*label, scores, &ranked, self.scale);
                        if let Some(parts) = &mut variant.parts {
                            parts[usize::from(example.trained_on[index])].add(*label, &ranked);
                        }
                        Some(*label)
                    }
                    Truth::Several { present, ignored } => {
                        variant.count_several(present, ignored, scores);
                        None
                    }
                };
                let score = ranked.first().map_or(f32::NAN, |best| scores[*best]);
                rows.push(Prediction { example: &example.example, label, ranked, score });
            }
            let batch = tables::predictions(&self.options.name, &variant.prompts.name, &rows)?;
            self.split.write(PREDICTIONS, &batch)?;
            variant.seconds += cx.clock.seconds_since(start);
        }
        Ok(())
    }

    /// Writes the results of a set whose every row has been seen.
    pub fn finish(
        mut self,
        cx: &RunContext,
        model: &Model,
        image_seconds: f64,
    ) -> Result<SplitWriter, EvalError> {
        let name = self.options.name.value().clone();
        let (set_hash, classes_hash) = (hex(&self.hash.finalize()), self.classes.hash());
        if self.unknown > 0 {
            cx.progress.note(format!(
                "set `{name}`: {} of {} rows have labels that are none of its classes",
                self.unknown, self.rows
            ));
        }
        for variant in &self.variants {
            let (tally, prompts) = (&variant.tally, variant.prompts.name.as_str());
            let n = variant.examples();
            if n + variant.left_out + self.refused != self.rows {
                let (refused, rows) = (self.refused, self.rows);
                return Err(RunError::Internal(format!(
                    "set `{name}`: {rows} rows in, {n} evaluated, {refused} rejected"
                ))
                .into());
            }
            let counts = Counts { tally, scores: variant.scores.as_ref() };
            let rows = measure(cx, &name, &self.options, variant, counts);
            let Some(first) = rows.first() else {
                let why = match &self.first_refusal {
                    Some(first) => format!("each of its {} rows was rejected; the first: {first}", self.rows),
                    None => "its input has no rows".into(),
                };
                return Err(EvalError::set(&name, why, None));
            };
            cx.progress.note(format!("{name}, {prompts}: {}", first.told(n)));
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
        // The same examples, whatever the prompts.
        let examples = self.variants.first().map_or(&[][..], |variant| variant.tally.examples());
        if let Some(warning) = trust::without_examples(self.classes.names(), examples) {
            warn(cx, &name, None, &warning);
            self.warnings.push(warning);
        }
        let total = self.rows - self.refused;
        let overlap = self.training.as_ref().and_then(|training| training.warning(&self.overlap, total));
        if let Some(warning) = overlap {
            warn(cx, &name, None, &warning);
            self.warnings.push(warning);
        }
        self.split.write(WARNINGS, &tables::warnings(&name, None, &self.warnings)?)?;
        Ok(self.split)
    }
}

/// Writes what says whether the numbers of a prompt set are to be trusted: calibration, and
/// warnings.
fn write_trust(
    cx: &RunContext,
    split: &mut SplitWriter,
    set: &str,
    names: &[String],
    variant: &Variant,
    rows: &[Measured],
) -> Result<(), EvalError> {
    let prompts = variant.prompts.name.as_str();
    let measured = &variant.calibration;
    let interval = measured.interval(&mut cx.rng(&format!("calibration/{set}/{prompts}")));
    if let Some(row) = tables::calibration(set, prompts, measured, interval)? {
        split.write(CALIBRATION, &row)?;
    }
    let found = suspicions(variant, names, rows);
    found.iter().for_each(|warning| warn(cx, set, Some(prompts), warning));
    let all = [&variant.warnings[..], &found].concat();
    Ok(split.write(WARNINGS, &tables::warnings(set, Some(prompts), &all)?)?)
}

/// What the counts of a prompt set make suspicious.
fn suspicions(variant: &Variant, names: &[String], rows: &[Measured]) -> Vec<Warning> {
    let below =
        rows.iter().filter_map(|row| trust::below_chance(&row.metric, row.value, row.interval, row.chance));
    trust::permuted(&variant.confusion, names).into_iter().chain(below).collect()
}

/// Tells a warning while the evaluation goes on.
fn warn(cx: &RunContext, set: &str, prompts: Option<&str>, warning: &Warning) {
    let prompts = prompts.map(|prompts| format!(", prompts `{prompts}`")).unwrap_or_default();
    cx.progress.note(format!("set `{set}`{prompts}: {}", warning.detail));
}
