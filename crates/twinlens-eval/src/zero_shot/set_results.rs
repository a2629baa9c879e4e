//! What the stage keeps of a set: rejects, predictions, the set's hash and overlap, and finally its
//! results.

use arrow::array::RecordBatch;
use sha2::{Digest, Sha256};
use twinlens_dataset::SplitWriter;
use twinlens_pipeline::{RunContext, RunError};

use super::overlap::{Overlap, TrainingHashes, needs_phash};
use super::thumbnails::Thumbnails;
use crate::classify::{Counts, Row, SetPass, Sink, Variant, measure};
use crate::error::EvalError;
use crate::images::UNKNOWN_LABEL;
use crate::ledger::RejectedRow;
use crate::model::Model;

use crate::results::{ALL, CLEAN, MetricRow, OVERLAP, Prediction, Provenance, ResultWriter};
use crate::set_reader::SetReader;
use crate::trust::{self, Warning};

/// The results of one set.
pub(super) struct SetResults<'a> {
    cx: &'a RunContext,
    set: String,
    writer: ResultWriter,
    hash: Sha256,
    training: Option<TrainingHashes>,
    overlap: Overlap,
    rows: u64,
    rejected: u64,
    first_reject: Option<String>,
    /// The first row that was rejected when its input was made.
    input_reject: Option<String>,
    unknown_labels: u64,
    thumbnails: Thumbnails,
    /// About the set, not about single prompt sets.
    warnings: Vec<Warning>,
}

impl Sink for SetResults<'_> {
    fn needs_all_columns(&self) -> bool {
        true
    }

    fn needs_phash(&self, batch: &RecordBatch) -> bool {
        self.training.is_some() && needs_phash(batch)
    }

    /// Adds image and label to the set's hash.
    fn row(&mut self, row: &Row<'_>) -> bool {
        self.rows += 1;
        self.hash.update(row.image.digest);
        self.hash.update((row.label.len() as u64).to_le_bytes());
        self.hash.update(row.label);
        self.thumbnails.add(row);
        let training = self.training.as_ref().filter(|_| !row.is_rejected);
        training.is_some_and(|training| training.contains(row, &mut self.overlap))
    }

    fn rejects(&mut self, batch: &RecordBatch, rejected: &[RejectedRow]) -> Result<(), EvalError> {
        let Some(first) = rejected.first() else { return Ok(()) };
        self.cx.progress.rejects(rejected.len() as u64);
        self.rejected += rejected.len() as u64;
        self.unknown_labels += rejected.iter().filter(|row| row.code == UNKNOWN_LABEL).count() as u64;
        self.first_reject.get_or_insert_with(|| first.detail.clone());
        let entry = |row: &RejectedRow| RejectedRow {
            detail: format!("set `{}`, {}", self.set, row.detail),
            ..row.clone()
        };
        self.writer.rejects(self.cx, batch, &rejected.iter().map(entry).collect::<Vec<_>>())
    }

    fn predictions(&mut self, prompts: &str, rows: &[Prediction<'_>]) -> Result<(), EvalError> {
        self.writer.predictions(prompts, rows)
    }
}

impl<'a> SetResults<'a> {
    /// `training`: the images to compare with.
    pub(super) fn new(
        cx: &'a RunContext,
        reader: &SetReader,
        split: SplitWriter,
        training: Option<TrainingHashes>,
        thumbnails: Thumbnails,
    ) -> Self {
        Self {
            cx,
            set: reader.name().into(),
            writer: ResultWriter::new(reader.name(), split),
            hash: Sha256::new_with_prefix(b"twinlens evaluation set 1"),
            training,
            overlap: Overlap::default(),
            rows: 0,
            rejected: 0,
            first_reject: None,
            input_reject: None,
            unknown_labels: 0,
            thumbnails,
            warnings: Vec::new(),
        }
    }

    /// Adds the warnings about the set so far, and those about its class names.
    pub(super) fn with_warnings(mut self, reader: &SetReader, warnings: &[Warning]) -> Self {
        let names = trust::names(reader.classes.names());
        warnings.iter().cloned().chain(names).for_each(|warning| self.warn(warning));
        self
    }

    /// Explains an input without rows.
    pub(super) fn with_input_reject(self, input_reject: Option<String>) -> Self {
        Self { input_reject, ..self }
    }

    fn warn(&mut self, warning: Warning) {
        self.log(None, &warning);
        self.warnings.push(warning);
    }

    /// Logs a warning.
    pub(super) fn log(&self, prompts: Option<&str>, warning: &Warning) {
        let prompts = prompts.map(|prompts| format!(", prompts `{prompts}`")).unwrap_or_default();
        self.cx.progress.note(format!("set `{}`{prompts}: {}", self.set, warning.detail));
    }

    /// All metrics of a prompt set; an error if no example was evaluated.
    fn metrics(&self, reader: &SetReader, variant: &Variant) -> Result<Vec<MetricRow>, EvalError> {
        let (n, rejected, rows) = (variant.examples(), self.rejected, self.rows);
        if n + variant.excluded + rejected != rows {
            let message = format!("set `{}`: {rows} rows in, {n} evaluated, {rejected} rejected", self.set);
            return Err(RunError::Internal(message).into());
        }
        let counts = Counts { tally: &variant.tally, scores: variant.scores.as_ref() };
        let metrics = measure(self.cx, &self.set, &reader.options, variant, counts);
        if metrics.is_empty() {
            let why = match &self.first_reject {
                Some(first) => format!("all of its {rows} rows were rejected; the first: {first}"),
                None => match &self.input_reject {
                    Some(first) => format!("its input has no rows, all were rejected; the first: {first}"),
                    None => "its input has no rows".into(),
                },
            };
            return Err(EvalError::set(&self.set, why, None));
        }
        Ok(metrics)
    }

    /// Writes the results of a prompt set. `from` are those of all its examples.
    fn write(
        &mut self,
        reader: &SetReader,
        variant: &Variant,
        from: Provenance<'_>,
    ) -> Result<(), EvalError> {
        let (cx, prompts) = (self.cx, from.prompts);
        let rows = self.metrics(reader, variant)?;
        cx.progress.note(format!("{}, {prompts}: {}", self.set, rows[0].summary(from.n)));
        self.writer.accuracy(&from, &rows)?;
        for (part, tally) in [CLEAN, OVERLAP].into_iter().zip(variant.parts.iter().flatten()) {
            let counts = Counts { tally, scores: None };
            let rows = measure(cx, &format!("{}/{part}", self.set), &reader.options, variant, counts);
            self.writer.accuracy(&Provenance { part, n: tally.total(), ..from.clone() }, &rows)?;
        }
        let names = reader.classes.names();
        self.writer.per_class(prompts, names, &variant.tally)?;
        let mut rng = cx.rng(&format!("calibration/{}/{prompts}", self.set));
        let interval = variant.calibration.interval(&mut rng);
        self.writer.calibration(prompts, &variant.calibration, interval)?;
        let below = rows
            .iter()
            .filter_map(|row| trust::below_chance(&row.metric, row.value, row.interval, row.chance));
        let warnings: Vec<Warning> =
            trust::permuted(&variant.confusion, names).into_iter().chain(below).collect();
        warnings.iter().for_each(|warning| self.log(Some(prompts), warning));
        self.writer.warnings(Some(prompts), &[&variant.warnings[..], &warnings].concat())
    }
}

/// Writes the results of a set after its pass.
pub(super) fn finish(
    set: SetPass<'_, SetResults<'_>>,
    model: &Model,
    image_seconds: f64,
) -> Result<SplitWriter, EvalError> {
    let SetPass { reader, variants, mut sink, .. } = set;
    let (set_hash, classes_hash) = (hex::encode(sink.hash.clone().finalize()), reader.classes.hash());
    if sink.unknown_labels > 0 {
        sink.cx.progress.note(format!(
            "set `{}`: {} of {} rows have labels that are not among its classes",
            sink.set, sink.unknown_labels, sink.rows
        ));
    }
    for variant in &variants {
        let from = Provenance {
            model: &model.name,
            checkpoint: model.checkpoint.as_deref(),
            split: reader.options.split.as_deref().unwrap_or(reader.options.input.name()),
            task: "zero-shot",
            prompts: &variant.prompts.name,
            set_hash: &set_hash,
            classes_hash: &classes_hash,
            prompts_hash: &variant.prompts.hash(),
            weights_hash: &model.weights_hash,
            preprocess_hash: &model.preprocess_hash,
            precision: Some(model.clip.precision().name()),
            part: ALL,
            n: variant.examples(),
            seconds: image_seconds + variant.seconds,
        };
        sink.write(reader, variant, from)?;
    }
    // All prompt sets have the same examples.
    let examples = variants.first().map_or(&[][..], |variant| variant.tally.examples());
    let empty_classes = trust::without_examples(reader.classes.names(), examples);
    let total = sink.rows - sink.rejected;
    let overlap = sink.training.as_ref().and_then(|training| training.warning(&sink.overlap, total));
    empty_classes.into_iter().chain(overlap).for_each(|warning| sink.warn(warning));
    let warnings = std::mem::take(&mut sink.warnings);
    sink.writer.warnings(None, &warnings)?;
    sink.writer.examples(sink.thumbnails.into_rows())?;
    Ok(sink.writer.into_split())
}
