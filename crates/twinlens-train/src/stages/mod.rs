//! The stages `tokenizer` and `train`, as thin wrappers around the rest of the crate.

mod errors;
mod inputs;
mod output;
mod start;
mod tokenizer;
mod train;

use twinlens_model::Clip;
use twinlens_pipeline::Registry;
use twinlens_pipeline::evaluation::Evaluation;

pub use tokenizer::TokenizerStage;
pub use train::Train;

/// Registers the stages. `E` evaluates models during training.
pub fn register<E: Evaluation<Clip>>(registry: &mut Registry) {
    registry.add::<TokenizerStage>();
    registry.add::<Train<E>>();
}
