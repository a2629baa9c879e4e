//! Evaluation: sets, prompts, zero-shot classification, metrics with intervals.
//!
//! Invariants: labels are bound to class names in the data, never by position; every number carries
//! its interval, its chance level, its sample count, and hashes of what it was computed from;
//! memory does not grow with the number of examples; an example that cannot be evaluated is
//! rejected with its location and not counted in `n`.

mod classify;
mod embed;
pub mod encode;
pub mod error;
mod images;
mod in_training;
mod inputs;
mod ledger;
pub mod metrics;
pub mod model;
mod options;
mod probe;
pub mod prompts;
mod results;
mod retrieval;
mod scaling;
pub mod search;
mod set;
mod set_reader;
pub mod sets;
mod sql;
pub mod trust;
pub mod vectors;
mod zero_shot;

use twinlens_pipeline::Registry;

pub use embed::Embed;
pub use error::EvalError;
pub use images::REJECT_CODES;
pub use in_training::InTrainingEvaluation;
pub use probe::Probe;
pub use retrieval::Retrieval;
pub use scaling::Scaling;
pub use sets::EvaluationSet;
pub use zero_shot::ZeroShot;

/// Adds the stage kinds and SQL functions of this crate.
pub fn register(registry: &mut Registry) {
    registry.add::<Embed>();
    registry.add::<EvaluationSet>();
    registry.add::<Probe>();
    registry.add::<Retrieval>();
    registry.add::<ZeroShot>();
    registry.add::<Scaling>();
    for function in sql::functions() {
        registry.add_function(function);
    }
    for function in sql::aggregates() {
        registry.add_aggregate(function);
    }
}
