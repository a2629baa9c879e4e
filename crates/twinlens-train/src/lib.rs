//! Optimiser, schedule, checkpoints, the training loop.

mod checkpoint;
mod error;
mod examples;
mod log;
mod optimizer;
mod sampler;
mod schedule;
mod stages;
mod trainer;

pub use checkpoint::Checkpoints;
pub use error::{Result, TrainError};
pub use examples::{Examples, ExamplesReader, ExamplesWriter, Record};
pub use log::LogRow;
pub use optimizer::{AdamW, AdamWOptions, Moments, StepError};
pub use sampler::Sampler;
pub use schedule::Schedule;
pub use stages::{TokenizerStage, Train, register};
pub use trainer::{Outcome, TrainOptions, train};
