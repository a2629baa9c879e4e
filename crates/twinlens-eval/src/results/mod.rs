//! The tables that evaluations write: their names, rows and writer. The contracts themselves are
//! those of [`twinlens_dataset::contracts`].

mod rows;

use arrow::array::RecordBatch;
use twinlens_dataset::{MAIN, SplitWriter};
use twinlens_pipeline::RunContext;

use crate::error::EvalError;
use crate::ledger::{self, RejectedRow};
use crate::metrics::calibration::Calibration;
use crate::metrics::{Interval, Tally};
use crate::trust::Warning;
pub(crate) use rows::{ALL, CLEAN, MetricRow, OVERLAP, Prediction, Provenance};

/// Side tables.
pub(crate) const PER_CLASS: &str = "per_class";
pub(crate) const PREDICTIONS: &str = "predictions";
pub(crate) const CALIBRATION: &str = "calibration";
pub(crate) const WARNINGS: &str = "warnings";
pub(crate) const EXAMPLES: &str = "examples";

/// Writes the results of one set to its split.
pub(crate) struct ResultWriter {
    set: String,
    split: SplitWriter,
}

impl ResultWriter {
    pub(crate) fn new(set: &str, split: SplitWriter) -> Self {
        Self { set: set.into(), split }
    }

    /// The split, ready to be committed.
    pub(crate) fn into_split(self) -> SplitWriter {
        self.split
    }

    /// Rows of the main table.
    pub(crate) fn accuracy(&mut self, from: &Provenance<'_>, rows: &[MetricRow]) -> Result<(), EvalError> {
        self.write(MAIN, rows::accuracy(&self.set, from, rows)?)
    }

    pub(crate) fn per_class(
        &mut self,
        prompts: &str,
        names: &[String],
        tally: &Tally,
    ) -> Result<(), EvalError> {
        self.write(PER_CLASS, rows::per_class(&self.set, prompts, names, tally)?)
    }

    pub(crate) fn predictions(&mut self, prompts: &str, rows: &[Prediction<'_>]) -> Result<(), EvalError> {
        self.write(PREDICTIONS, rows::predictions(&self.set, prompts, rows)?)
    }

    /// Writes nothing without examples.
    pub(crate) fn calibration(
        &mut self,
        prompts: &str,
        calibration: &Calibration,
        interval: Option<Interval>,
    ) -> Result<(), EvalError> {
        match rows::calibration(&self.set, prompts, calibration, interval)? {
            Some(row) => self.write(CALIBRATION, row),
            None => Ok(()),
        }
    }

    pub(crate) fn warnings(&mut self, prompts: Option<&str>, warnings: &[Warning]) -> Result<(), EvalError> {
        self.write(WARNINGS, rows::warnings(&self.set, prompts, warnings)?)
    }

    /// Names of examples, and their thumbnails as JPEG files.
    pub(crate) fn examples(&mut self, examples: Vec<(String, Vec<u8>)>) -> Result<(), EvalError> {
        self.write(EXAMPLES, rows::examples(&self.set, examples)?)
    }

    /// Rejected rows of a batch of the input.
    pub(crate) fn rejects(
        &mut self,
        cx: &RunContext,
        batch: &RecordBatch,
        rejected: &[RejectedRow],
    ) -> Result<(), EvalError> {
        ledger::write(&mut self.split, &cx.stage, batch, rejected)
    }

    fn write(&mut self, table: &str, batch: RecordBatch) -> Result<(), EvalError> {
        Ok(self.split.write(table, &batch)?)
    }
}
