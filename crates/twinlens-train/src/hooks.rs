//! What a caller gives a training besides its options, and what it gets back.

use crate::error::Result;
use crate::log::LogRow;
use crate::measure::Measurement;
use crate::processes::Processes;
use std::collections::BTreeMap;
use twinlens_model::Clip;
use twinlens_pipeline::RunError;
use twinlens_pipeline::evaluation::Measured;

/// The result of a finished training, besides the weights of the last step in the model.
pub struct TrainOutput {
    /// One row per step.
    pub log: Vec<LogRow>,
    pub measurements: Vec<Measurement>,
    /// The moving average of the weights, if enabled.
    pub ema: Option<Clip>,
    /// The content of a file with which the training can be continued, if enabled.
    pub state: Option<Vec<u8>>,
    /// What changed when the training was continued, by the first step after it.
    pub changes: BTreeMap<u64, String>,
}

/// How a training ended.
pub enum Outcome {
    Finished(Box<TrainOutput>),
    /// Stopped by [`Hooks::stop`], after writing a checkpoint.
    Stopped,
}

/// Evaluates a model after a step.
pub type Evaluate<'a> = dyn FnMut(&Clip, u64) -> Result<Vec<Measured>, RunError> + Send + 'a;

/// The caller's callbacks, and the processes that train with this one.
pub struct Hooks<'a> {
    /// Returns the time in microseconds since 1970.
    pub now: &'a (dyn Fn() -> i64 + Sync),
    /// Whether to stop, checked between steps and between micro-batches. A step in progress is
    /// abandoned.
    pub stop: &'a (dyn Fn() -> bool + Sync),
    /// Shows a message.
    pub note: &'a (dyn Fn(String) + Sync),
    /// Called after each step.
    pub observe: &'a mut (dyn FnMut(&LogRow) + Send),
    /// Called every `evaluate_every` steps and after the last step; [`RunError::Interrupted`] stops
    /// the training.
    pub evaluate: Option<&'a mut Evaluate<'a>>,
    /// The ranks, if they are processes: this one is rank 0, and the others call
    /// [`follow`](crate::follow). `None` if they are threads.
    pub processes: Option<&'a Processes>,
}
