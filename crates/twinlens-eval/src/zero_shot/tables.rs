//! The rows of results, as record batches of the contracts.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, Float32Array, Float64Array, Int32Array, Int32Builder, Int64Array, ListBuilder, RecordBatch,
    StringArray,
};
use arrow::error::ArrowError;

use crate::metrics::calibration::Calibration;
use crate::metrics::{Interval, Tally};
use crate::trust::Warning;

fn same(value: &str, rows: usize) -> ArrayRef {
    Arc::new(StringArray::from_iter_values(std::iter::repeat_n(value, rows)))
}

/// Every example.
pub const ALL: &str = "all";
/// Those that were not trained on.
pub const CLEAN: &str = "clean";
/// Those that were.
pub const OVERLAP: &str = "overlap";

/// This program, in results.
const PROGRAM: &str = concat!("twinlens ", env!("CARGO_PKG_VERSION"));

/// What is the same in every row of a set and prompt set.
#[derive(Debug, Clone)]
pub struct Provenance<'a> {
    pub model: &'a str,
    pub checkpoint: Option<&'a str>,
    pub set: &'a str,
    pub split: &'a str,
    pub task: &'a str,
    pub prompts: &'a str,
    pub set_hash: &'a str,
    pub classes_hash: &'a str,
    pub prompts_hash: &'a str,
    pub weights_hash: &'a str,
    pub preprocess_hash: &'a str,
    /// What matrix products were computed in, where that is known.
    pub precision: Option<&'a str>,
    /// Which of the examples: [`ALL`], [`CLEAN`] or [`OVERLAP`].
    pub part: &'a str,
    pub n: u64,
    pub seconds: f64,
}

/// One metric's row.
#[derive(Debug)]
pub struct Measured {
    /// As it is written in tables.
    pub metric: String,
    pub value: f64,
    pub interval: Interval,
    pub chance: f64,
}

impl Measured {
    /// As it is told while a run goes on.
    pub fn told(&self, n: u64) -> String {
        let Self { metric, value, interval, chance } = self;
        let [value, low, high, chance] =
            [*value, interval.low, interval.high, *chance].map(|share| 100.0 * share);
        format!("{metric} {value:.1} % [{low:.1}, {high:.1}], chance {chance:.1} %, n {n}")
    }
}

/// Rows of the accuracy contract.
pub fn accuracy(from: &Provenance<'_>, rows: &[Measured]) -> Result<RecordBatch, ArrowError> {
    let count = rows.len();
    let same = |value: &str| same(value, count);
    let floats = |value: fn(&Measured) -> f64| -> ArrayRef {
        Arc::new(Float64Array::from_iter_values(rows.iter().map(value)))
    };
    RecordBatch::try_from_iter([
        ("model", same(from.model)),
        ("checkpoint", Arc::new(StringArray::from(vec![from.checkpoint; count])) as ArrayRef),
        ("set", same(from.set)),
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

/// Rows of the per_class contract; `correct` counts the examples whose class has the highest score.
pub fn per_class(
    set: &str,
    prompts: &str,
    names: &[String],
    tally: &Tally,
) -> Result<RecordBatch, ArrowError> {
    let counts = |counts: &[u64]| -> ArrayRef {
        Arc::new(Int64Array::from_iter_values(counts.iter().map(|count| *count as i64)))
    };
    RecordBatch::try_from_iter([
        ("set", same(set, names.len())),
        ("prompts", same(prompts, names.len())),
        ("class_id", Arc::new(Int32Array::from_iter_values(0..names.len() as i32)) as ArrayRef),
        ("class_name", Arc::new(StringArray::from_iter_values(names))),
        ("n", counts(tally.examples())),
        ("correct", counts(tally.correct())),
    ])
}

/// A row of the calibration contract; none without examples.
pub fn calibration(
    set: &str,
    prompts: &str,
    measured: &Calibration,
    interval: Option<Interval>,
) -> Result<Option<RecordBatch>, ArrowError> {
    let (Some(error), Some(interval)) = (measured.error(), interval) else { return Ok(None) };
    let float = |value: Option<f64>| -> ArrayRef { Arc::new(Float64Array::from(vec![value])) };
    RecordBatch::try_from_iter([
        ("set", same(set, 1)),
        ("prompts", same(prompts, 1)),
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
pub fn warnings(set: &str, prompts: Option<&str>, rows: &[Warning]) -> Result<RecordBatch, ArrowError> {
    let texts = |text: fn(&Warning) -> &str| -> ArrayRef {
        Arc::new(StringArray::from_iter_values(rows.iter().map(text)))
    };
    RecordBatch::try_from_iter([
        ("set", same(set, rows.len())),
        ("prompts", Arc::new(StringArray::from(vec![prompts; rows.len()])) as ArrayRef),
        ("code", texts(|row| row.code)),
        ("detail", texts(|row| &row.detail)),
        ("value", Arc::new(Float64Array::from_iter_values(rows.iter().map(|row| row.value)))),
    ])
}

/// What the model said of one example.
#[derive(Debug)]
pub struct Prediction<'a> {
    pub example: &'a str,
    /// `None` for one of several classes.
    pub label: Option<usize>,
    /// Class ids, best first: five, or all when there are fewer.
    pub ranked: Vec<usize>,
    /// Cosine of the best one.
    pub score: f32,
}

/// Rows of the predictions contract.
pub fn predictions(set: &str, prompts: &str, rows: &[Prediction<'_>]) -> Result<RecordBatch, ArrowError> {
    let mut top5 = ListBuilder::new(Int32Builder::new());
    for row in rows {
        top5.append_value(row.ranked.iter().map(|id| Some(*id as i32)));
    }
    let ids = |id: fn(&Prediction<'_>) -> Option<i32>| -> ArrayRef {
        Arc::new(Int32Array::from_iter(rows.iter().map(id)))
    };
    RecordBatch::try_from_iter([
        ("set", same(set, rows.len())),
        ("prompts", same(prompts, rows.len())),
        ("example", Arc::new(StringArray::from_iter_values(rows.iter().map(|row| row.example))) as ArrayRef),
        ("label", ids(|row| row.label.map(|label| label as i32))),
        ("predicted", ids(|row| row.ranked.first().map(|id| *id as i32))),
        ("top5", Arc::new(top5.finish())),
        ("score", Arc::new(Float32Array::from_iter_values(rows.iter().map(|row| row.score)))),
    ])
}
