//! What a run asks of an executor, and what it answers.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use twinlens_dataset::Commit;
use twinlens_pipeline::run::failure::SplitFailure;
use twinlens_pipeline::run::splits::SplitTask;

/// A split to make.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct SplitRequest {
    /// The run directory.
    pub(crate) dir: String,
    /// The recipe of the unit: not read again where the unit is built already.
    pub(crate) recipe: Box<RawValue>,
    /// The split.
    pub(crate) task: SplitTask,
    /// How many executors make splits: limits for a host are divided by it.
    pub(crate) executors: usize,
}

/// What came of a split. An error of the engine would arrive as a text of nested errors: blame,
/// message and hint are told as they are.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Report {
    /// It was made and recorded.
    Done {
        /// The record that counts, which may be that of an earlier attempt.
        commit: Commit,
        /// Seconds that it took.
        seconds: f64,
    },
    /// It failed.
    Failed(SplitFailure),
}
