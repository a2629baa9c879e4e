//! Evaluation inside another stage: the seam between a training and whoever can measure the model
//! that it makes.
//!
//! Neither crate knows the other. The options of the evaluation are a type parameter of the
//! training; `M` is the model.

use std::path::Path;

use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::context::{Inputs, RunContext};
use crate::error::RunError;
use crate::ports::Ports;

/// Options of an evaluation, in the table of the stage that trains.
pub trait Evaluation<M>: Clone + Serialize + DeserializeOwned + JsonSchema + Send + Sync + 'static {
    /// Declares what it reads, and checks the options. `None` only after a fault has been reported,
    /// as in [`crate::StageKind::plan`].
    fn plan(self, ports: &mut Ports<'_>) -> Option<Box<dyn PlannedEvaluation<M>>>;
}

/// An evaluation whose inputs are declared.
pub trait PlannedEvaluation<M>: Send + Sync {
    /// Steps between evaluations; the last step is evaluated too.
    fn every(&self) -> u64;

    /// Prepares the evaluations; `tokenizer` is the file of the model's tokenizer. Blocking.
    ///
    /// # Errors
    /// The user's where inputs and options do not fit.
    fn open(
        &self,
        cx: &RunContext,
        inputs: &Inputs,
        tokenizer: &Path,
    ) -> Result<Box<dyn Evaluator<M>>, RunError>;
}

/// Evaluations that are prepared.
pub trait Evaluator<M>: Send {
    /// Evaluates a model as it is after `step`: the metrics of all sets, and first the one that
    /// sums them up. A function of the model and the step. Blocking.
    ///
    /// # Errors
    /// [`RunError::Interrupted`] soon after the run is asked to stop.
    fn evaluate(&mut self, model: &M, step: u64) -> Result<Vec<Measured>, RunError>;
}

/// One metric of one evaluation set.
#[derive(Debug, Clone, PartialEq)]
pub struct Measured {
    /// The evaluation set's name.
    pub set: String,
    /// The prompts' name.
    pub prompts: String,
    /// The metric's name.
    pub metric: String,
    /// Its value.
    pub value: f64,
    /// Where its 95 % interval begins.
    pub ci_low: f64,
    /// Where it ends.
    pub ci_high: f64,
    /// What guessing reaches.
    pub chance: f64,
    /// Examples.
    pub n: u64,
}

/// For programs without evaluations: options that cannot be written.
#[derive(Debug, Clone, Copy, Serialize, serde::Deserialize, JsonSchema)]
pub enum Never {}

impl<M> Evaluation<M> for Never {
    fn plan(self, _: &mut Ports<'_>) -> Option<Box<dyn PlannedEvaluation<M>>> {
        match self {}
    }
}
