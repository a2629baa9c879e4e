//! One evaluation set on its way through a pass: its classes and classifiers, what has been counted, and at the end its results.

use std::collections::BTreeSet;

use arrow::array::RecordBatch;
use candle_core::Tensor;
use sha2::{Digest, Sha256};
use twinlens_dataset::{Dataset, MAIN, SplitWriter};
use twinlens_model::Clip;
use twinlens_pipeline::{InputData, RunContext, RunError};

use super::tables::{self, Measured, Prediction, Provenance};
use super::{CALIBRATION, PER_CLASS, PREDICTIONS, WARNINGS, ZeroShot};
use crate::error::EvalError;
use crate::images::{Examples, NO_LABEL, Refusal, UNKNOWN_LABEL};
use crate::ledger::{self, engine};
use crate::metrics::calibration::{Calibration, confidence};
use crate::metrics::{Metric, Tally, top_k};
use crate::model::{Model, input};
use crate::prompts::{Classifier, PromptSet, classifier, hex};
use crate::set::{ClassFault, ClassOptions, Classes, Labels, SetOptions};
use crate::trust::{self, Confusion, Warning};

/// Rows of a label column that are read at a time.
const LABEL_ROWS: usize = 8192;
/// Best classes that are kept of an example.
const BEST: usize = 5;

/// One prompt set of one evaluation set.
struct Variant {
    prompts: PromptSet,
    classifier: Classifier,
    tally: Tally,
    confusion: Confusion,
    calibration: Calibration,
    warnings: Vec<Warning>,
    /// Seconds of encoding the prompts and of scoring.
    seconds: f64,
}

impl Variant {
    fn new(prompts: PromptSet, classifier: Classifier, classes: usize, seconds: f64) -> Self {
        let (tally, confusion) = (Tally::new(classes), Confusion::new(classes));
        let (calibration, warnings) = (Calibration::default(), Vec::new());
        Self { prompts, classifier, tally, confusion, calibration, warnings, seconds }
    }

    /// Counts an example of class `label`. `scale`: that of the model's similarities, where it was trained with one.
    fn count(&mut self, label: usize, cosines: &[f32], ranked: &[usize], scale: Option<f32>) {
        self.tally.add(label, ranked);
        let Some(best) = ranked.first() else { return };
        self.confusion.add(label, *best);
        if let Some(scale) = scale {
            self.calibration.add(confidence(cosines, *best, scale), *best == label);
        }
    }
}

/// One evaluation set on its way through the pass.
pub struct SetPass {
    pub options: SetOptions,
    labels: Labels,
    classes: Classes,
    variants: Vec<Variant>,
    split: SplitWriter,
    hash: Sha256,
    rows: u64,
    refused: u64,
    first_refusal: Option<String>,
    unknown: u64,
    /// Of the set, whatever the prompts.
    warnings: Vec<Warning>,
    /// What the model's similarities are multiplied by to give logits.
    scale: Option<f32>,
}

/// The label of a row, as one set reads it.
pub struct Labelled {
    pub class: Result<usize, Refusal>,
    /// As it goes into the set's hash.
    pub text: String,
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
    pub labels: Vec<Option<usize>>,
}

/// Refuses a set for a reason that names the class or column.
pub fn refuse(set: &SetOptions) -> impl Fn(ClassFault) -> EvalError {
    let name = set.name.value().clone();
    move |fault| EvalError::set(&name, fault.why, fault.hint)
}

/// The distinct labels of a table, sorted. Labels outside the class names are left to become rejects.
fn distinct(
    cx: &RunContext,
    dataset: &Dataset,
    table: &str,
    labels: &Labels,
) -> Result<Vec<String>, EvalError> {
    let mut seen: BTreeSet<String> = BTreeSet::new();
    for chunk in Examples::new(dataset, table, &[labels.column()], LABEL_ROWS, usize::MAX) {
        cx.check_cancelled()?;
        let batch = chunk?.batch;
        let Some(column) = batch.column_by_name(labels.column()) else { continue };
        let column = labels.read(column).map_err(engine)?;
        for row in 0..batch.num_rows() {
            if let Ok(Some(label)) = column.get(row)
                && !seen.contains(label)
            {
                seen.insert(label.into());
            }
        }
    }
    Ok(seen.into_iter().collect())
}

/// The classes of a set: those listed, those of another table, those that name integer labels, or the distinct
/// labels.
pub fn classes(
    cx: &RunContext,
    set: &SetOptions,
    inputs: &[InputData],
    own: &InputData,
    labels: &Labels,
) -> Result<Classes, EvalError> {
    let names = match set.classes.as_ref().map(|classes| classes.value()) {
        Some(ClassOptions::List(names)) => names.clone(),
        Some(ClassOptions::From(_)) => {
            let other = set.classes_input().map_or(Ok(own), |other| input(inputs, &other))?;
            let schema = other.dataset.schema(&other.table)?;
            let labels = Labels::new(&schema, labels.column(), labels.class_names()).map_err(refuse(set))?;
            distinct(cx, &other.dataset, &other.table, &labels)?
        }
        None => match labels.class_names() {
            Some(names) => names.to_vec(),
            None => distinct(cx, &own.dataset, &own.table, labels)?,
        },
    };
    Classes::new(names, &set.names).map_err(refuse(set))
}

impl SetPass {
    pub fn new(
        options: &ZeroShot,
        cx: &RunContext,
        inputs: &[InputData],
        model: &Model,
        set: &SetOptions,
        split: SplitWriter,
    ) -> Result<Self, EvalError> {
        let own = input(inputs, &set.input)?;
        let schema = own.dataset.schema(&own.table)?;
        let class_names = set.class_names.as_ref().map(|names| names.as_slice());
        let labels = Labels::new(&schema, set.label.value(), class_names).map_err(refuse(set))?;
        let classes = classes(cx, set, inputs, own, &labels)?;
        let mut variants = Vec::new();
        for prompts in options.prompts.iter() {
            cx.check_cancelled()?;
            let of_set = set.templates.as_ref().map(|templates| templates.as_slice());
            let prompts =
                prompts.resolve(of_set).map_err(|(why, hint)| EvalError::set(&set.name, why, hint))?;
            let start = cx.clock.micros();
            let classifier = classifier(
                &model.clip,
                &model.tokenizer,
                classes.names(),
                &prompts,
                *options.batch_size.value(),
            )?;
            let seconds = since(cx, start);
            let same_tokens = trust::same_tokens(classes.names(), classifier.twins);
            let mut variant = Variant::new(prompts, classifier, classes.len(), seconds);
            if let Some(warning) = same_tokens {
                warn(cx, &set.name, Some(&variant.prompts.name), &warning);
                variant.warnings.push(warning);
            }
            variants.push(variant);
        }
        let warnings = trust::names(classes.names());
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
        let name = self.labels.column();
        let column = batch.column_by_name(name);
        let column = column.ok_or_else(|| {
            EvalError::set(&self.options.name, format!("a shard lacks the column `{name}`"), None)
        })?;
        let column = self.labels.read(column).map_err(engine)?;
        let unknown = |detail: String| Err(Refusal { code: UNKNOWN_LABEL, detail });
        let one = |row: usize| match column.get(row) {
            Err(detail) => Labelled { text: detail.clone(), class: unknown(detail) },
            Ok(None) => Labelled {
                text: String::new(),
                class: Err(Refusal { code: NO_LABEL, detail: "the label is null".into() }),
            },
            Ok(Some(label)) => {
                let none = || unknown(format!("the label `{label}` is none of the classes"));
                Labelled { text: label.into(), class: self.classes.id(label).map_or_else(none, Ok) }
            }
        };
        Ok((0..batch.num_rows()).map(one).collect())
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
                let Some(label) = example.labels[index] else { continue };
                if scores.iter().any(|score| !score.is_finite()) {
                    return Err(EvalError::NotFinite {
                        what: format!("the image embedding of example {}", example.example),
                    });
                }
                let ranked = top_k(scores, BEST);
                variant.count(label, scores, &ranked, self.scale);
                let score = ranked.first().map_or(f32::NAN, |best| scores[*best]);
                rows.push(Prediction { example: &example.example, label, ranked, score });
            }
            let batch =
                tables::predictions(&self.options.name, &variant.prompts.name, &rows).map_err(engine)?;
            self.split.write(PREDICTIONS, &batch)?;
            variant.seconds += since(cx, start);
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
            if tally.total() + self.refused != self.rows {
                let (n, refused, rows) = (tally.total(), self.refused, self.rows);
                return Err(RunError::Internal(format!(
                    "set `{name}`: {rows} rows in, {n} evaluated, {refused} rejected"
                ))
                .into());
            }
            let rows = measure(cx, &name, self.options.main_metric, variant);
            let Some(first) = rows.first() else {
                let why = match &self.first_refusal {
                    Some(first) => format!("each of its {} rows was rejected; the first: {first}", self.rows),
                    None => "its input has no rows".into(),
                };
                return Err(EvalError::set(&name, why, None));
            };
            cx.progress.note(format!(
                "{name}, {prompts}: {} {:.1} % [{:.1}, {:.1}], chance {:.1} %, n {}",
                first.metric,
                100.0 * first.value,
                100.0 * first.interval.low,
                100.0 * first.interval.high,
                100.0 * first.chance,
                tally.total()
            ));
            let from = Provenance {
                model: &model.name,
                checkpoint: model.checkpoint.as_deref(),
                set: &name,
                split: self.options.input.name(),
                task: "zero-shot",
                prompts,
                set_hash: &set_hash,
                classes_hash: &classes_hash,
                prompts_hash: &variant.prompts.hash(),
                weights_hash: &model.weights_hash,
                n: tally.total(),
                seconds: image_seconds + variant.seconds,
            };
            self.split.write(MAIN, &tables::accuracy(&from, &rows).map_err(engine)?)?;
            let classes = tables::per_class(&name, prompts, self.classes.names(), tally).map_err(engine)?;
            self.split.write(PER_CLASS, &classes)?;
            write_trust(cx, &mut self.split, &name, self.classes.names(), variant, &rows)?;
        }
        // The same examples, whatever the prompts.
        let examples = self.variants.first().map_or(&[][..], |variant| variant.tally.examples());
        if let Some(warning) = trust::without_examples(self.classes.names(), examples) {
            warn(cx, &name, None, &warning);
            self.warnings.push(warning);
        }
        self.split.write(WARNINGS, &tables::warnings(&name, None, &self.warnings).map_err(engine)?)?;
        Ok(self.split)
    }
}

/// Writes what says whether the numbers of a prompt set are to be trusted: calibration, and warnings.
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
    if let Some(row) = tables::calibration(set, prompts, measured, interval).map_err(engine)? {
        split.write(CALIBRATION, &row)?;
    }
    let found = suspicions(variant, names, rows);
    found.iter().for_each(|warning| warn(cx, set, Some(prompts), warning));
    let all = [&variant.warnings[..], &found].concat();
    Ok(split.write(WARNINGS, &tables::warnings(set, Some(prompts), &all).map_err(engine)?)?)
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

/// Every metric that applies, the main one first; none without examples.
fn measure(cx: &RunContext, set: &str, main: Metric, variant: &Variant) -> Vec<Measured> {
    let tally = &variant.tally;
    let classes = tally.examples().len();
    let others = Metric::ALL.into_iter().filter(|metric| *metric != main);
    let metrics = std::iter::once(main).chain(others).filter(|metric| metric.applies(classes));
    // A stream of its own for each row: another prompt set more must not move the intervals of the others.
    let mut rng = cx.rng(&format!("bootstrap/{set}/{}", variant.prompts.name));
    metrics
        .filter_map(|metric| {
            let (value, interval) = (tally.value(metric)?, tally.interval(metric, &mut rng)?);
            Some(Measured { metric: metric.name().into(), value, interval, chance: metric.chance(classes) })
        })
        .collect()
}

/// Seconds by the run's clock, which may stand still.
pub fn since(cx: &RunContext, start: i64) -> f64 {
    (cx.clock.micros() - start) as f64 / 1e6
}
