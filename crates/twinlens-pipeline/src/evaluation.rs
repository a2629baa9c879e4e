//! Evaluation inside another stage: the seam between a training and whoever can measure what it
//! makes.
//!
//! Neither crate knows the other. The options of the evaluation are a type that the training is
//! given as a parameter, with their own checks; `M` is the model.

use std::fmt::Debug;
use std::path::Path;

use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::context::{InputData, RunContext};
use crate::error::{Fault, RunError};
use crate::located::Input;
use crate::stage::InputTables;

/// Options of an evaluation, as they stand in the table of the stage that trains.
pub trait Evaluation<M>:
    Debug + Clone + Serialize + DeserializeOwned + JsonSchema + Send + Sync + 'static
{
    /// Steps between evaluations; the last step is evaluated too.
    fn every(&self) -> u64;

    /// What it reads: becomes part of the stage's inputs.
    fn inputs(&self) -> Vec<Input>;

    /// Everything that is wrong with the options, without I/O. `inputs` are those of the stage.
    fn faults(&self, inputs: &[InputTables]) -> Vec<Fault>;

    /// Prepares the evaluations; `tokenizer` is the file of the model's tokenizer. Blocking.
    ///
    /// # Errors
    /// The user's where inputs and options do not fit.
    fn open(
        &self,
        cx: &RunContext,
        inputs: &[InputData],
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
    fn every(&self) -> u64 {
        match *self {}
    }

    fn inputs(&self) -> Vec<Input> {
        match *self {}
    }

    fn faults(&self, _: &[InputTables]) -> Vec<Fault> {
        match *self {}
    }

    fn open(&self, _: &RunContext, _: &[InputData], _: &Path) -> Result<Box<dyn Evaluator<M>>, RunError> {
        match *self {}
    }
}
