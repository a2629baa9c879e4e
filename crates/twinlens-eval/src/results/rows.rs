//! Rows of the result tables, as record batches of their contracts.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, Float32Array, Float64Array, Int32Array, Int32Builder, Int64Array, LargeBinaryArray,
    ListBuilder, RecordBatch, StringArray,
};
use arrow::error::ArrowError;
use twinlens_dataset::image_column::image_array;

use crate::metrics::calibration::Calibration;
use crate::metrics::{Interval, Tally};
use crate::trust::Warning;

fn repeated(value: &str, rows: usize) -> ArrayRef {
    Arc::new(StringArray::from_iter_values(std::iter::repeat_n(value, rows)))
}

/// All examples.
pub(crate) const ALL: &str = "all";
/// Examples that are not training images.
pub(crate) const CLEAN: &str = "clean";
/// Examples that are training images.
pub(crate) const OVERLAP: &str = "overlap";

const PROGRAM: &str = concat!("twinlens ", env!("CARGO_PKG_VERSION"));

/// The columns that are equal in all rows of a set and prompt set.
#[derive(Debug, Clone)]
pub(crate) struct Provenance<'a> {
    pub model: &'a str,
    pub checkpoint: Option<&'a str>,
    pub split: &'a str,
    pub task: &'a str,
    pub prompts: &'a str,
    pub set_hash: &'a str,
    pub classes_hash: &'a str,
    pub prompts_hash: &'a str,
    pub weights_hash: &'a str,
    pub preprocess_hash: &'a str,
    /// Of matrix products, if known.
    pub precision: Option<&'a str>,
    /// [`ALL`], [`CLEAN`] or [`OVERLAP`].
    pub part: &'a str,
    pub n: u64,
    pub seconds: f64,
}

/// The value of a metric.
#[derive(Debug)]
pub(crate) struct MetricRow {
    pub metric: String,
    pub value: f64,
    pub interval: Interval,
    pub chance: f64,
}

impl MetricRow {
    /// For the log.
    pub(crate) fn summary(&self, n: u64) -> String {
        let Self { metric, value, interval, chance } = self;
        let [value, low, high, chance] =
            [*value, interval.low, interval.high, *chance].map(|share| 100.0 * share);
        format!("{metric} {value:.1} % [{low:.1}, {high:.1}], chance {chance:.1} %, n {n}")
    }
}

/// Rows of the accuracy contract.
pub(super) fn accuracy(
    set: &str,
    from: &Provenance<'_>,
    rows: &[MetricRow],
) -> Result<RecordBatch, ArrowError> {
    let count = rows.len();
    let same = |value: &str| repeated(value, count);
    let floats = |value: fn(&MetricRow) -> f64| -> ArrayRef {
        Arc::new(Float64Array::from_iter_values(rows.iter().map(value)))
    };
    RecordBatch::try_from_iter([
        ("model", same(from.model)),
        ("checkpoint", Arc::new(StringArray::from(vec![from.checkpoint; count])) as ArrayRef),
        ("set", same(set)),
        ("split", same(from.split)),
        ("part", same(from.part)),
        ("task", same(from.task)),
        ("prompts", same(from.prompts)),
        ("metric", Arc::new(StringArray::from_iter_values(rows.iter().map(|row| &row.metric)))),
        ("value", floats(|row| row.value)),
        ("ci_low", floats(|row| row.interval.low)),
        ("ci_high", floats(|row| row.interval.high)),
        ("chance", floats(|row| row.chance)),
        ("n", Arc::new(Int64Array::from(vec![from.n as i64; count]))),
        ("set_hash", same(from.set_hash)),
        ("classes_hash", same(from.classes_hash)),
        ("prompts_hash", same(from.prompts_hash)),
        ("weights_hash", same(from.weights_hash)),
        ("preprocess_hash", same(from.preprocess_hash)),
        ("precision", Arc::new(StringArray::from(vec![from.precision; count]))),
        ("seconds", Arc::new(Float64Array::from(vec![from.seconds; count]))),
        ("program", same(PROGRAM)),
    ])
}

/// Rows of the examples contract.
pub(super) fn examples(set: &str, examples: Vec<(String, Vec<u8>)>) -> Result<RecordBatch, ArrowError> {
    let bytes = LargeBinaryArray::from_iter_values(examples.iter().map(|(_, jpeg)| jpeg));
    let images = image_array(bytes, StringArray::new_null(examples.len()))?;
    RecordBatch::try_from_iter([
        ("set", repeated(set, examples.len())),
        ("example", Arc::new(StringArray::from_iter_values(examples.iter().map(|(name, _)| name)))),
        ("image", Arc::new(images)),
    ])
}

/// Rows of the per_class contract.
pub(super) fn per_class(
    set: &str,
    prompts: &str,
    names: &[String],
    tally: &Tally,
) -> Result<RecordBatch, ArrowError> {
    let counts = |counts: &[u64]| -> ArrayRef {
        Arc::new(Int64Array::from_iter_values(counts.iter().map(|count| *count as i64)))
    };
    RecordBatch::try_from_iter([
        ("set", repeated(set, names.len())),
        ("prompts", repeated(prompts, names.len())),
        ("class_id", Arc::new(Int32Array::from_iter_values(0..names.len() as i32)) as ArrayRef),
        ("class_name", Arc::new(StringArray::from_iter_values(names))),
        ("n", counts(tally.examples())),
        ("correct", counts(tally.correct())),
    ])
}

/// A row of the calibration contract; `None` without examples.
pub(super) fn calibration(
    set: &str,
    prompts: &str,
    measured: &Calibration,
    interval: Option<Interval>,
) -> Result<Option<RecordBatch>, ArrowError> {
    let (Some(error), Some(interval)) = (measured.error(), interval) else { return Ok(None) };
    let float = |value: Option<f64>| -> ArrayRef { Arc::new(Float64Array::from(vec![value])) };
    RecordBatch::try_from_iter([
        ("set", repeated(set, 1)),
        ("prompts", repeated(prompts, 1)),
        ("error", float(Some(error))),
        ("ci_low", float(Some(interval.low))),
        ("ci_high", float(Some(interval.high))),
        ("confidence", float(measured.confidence())),
        ("accuracy", float(measured.accuracy())),
        ("n", Arc::new(Int64Array::from(vec![measured.n() as i64])) as ArrayRef),
    ])
    .map(Some)
}

/// Rows of the warnings contract.
pub(super) fn warnings(
    set: &str,
    prompts: Option<&str>,
    rows: &[Warning],
) -> Result<RecordBatch, ArrowError> {
    let texts = |text: fn(&Warning) -> &str| -> ArrayRef {
        Arc::new(StringArray::from_iter_values(rows.iter().map(text)))
    };
    RecordBatch::try_from_iter([
        ("set", repeated(set, rows.len())),
        ("prompts", Arc::new(StringArray::from(vec![prompts; rows.len()])) as ArrayRef),
        ("code", texts(|row| row.code)),
        ("detail", texts(|row| &row.detail)),
        ("value", Arc::new(Float64Array::from_iter_values(rows.iter().map(|row| row.value)))),
    ])
}

/// The prediction for one example.
#[derive(Debug)]
pub(crate) struct Prediction<'a> {
    pub example: &'a str,
    /// `None` in multi-label sets.
    pub label: Option<usize>,
    /// The best five class ids, best first.
    pub ranked: Vec<usize>,
    /// Of the best class.
    pub score: f32,
}

/// Rows of the predictions contract.
pub(super) fn predictions(
    set: &str,
    prompts: &str,
    rows: &[Prediction<'_>],
) -> Result<RecordBatch, ArrowError> {
    let mut top5 = ListBuilder::new(Int32Builder::new());
    for row in rows {
        top5.append_value(row.ranked.iter().map(|id| Some(*id as i32)));
    }
    let ids = |id: fn(&Prediction<'_>) -> Option<i32>| -> ArrayRef {
        Arc::new(Int32Array::from_iter(rows.iter().map(id)))
    };
    RecordBatch::try_from_iter([
        ("set", repeated(set, rows.len())),
        ("prompts", repeated(prompts, rows.len())),
        ("example", Arc::new(StringArray::from_iter_values(rows.iter().map(|row| row.example))) as ArrayRef),
        ("label", ids(|row| row.label.map(|label| label as i32))),
        ("predicted", ids(|row| row.ranked.first().map(|id| *id as i32))),
        ("top5", Arc::new(top5.finish())),
        ("score", Arc::new(Float32Array::from_iter_values(rows.iter().map(|row| row.score)))),
    ])
}
