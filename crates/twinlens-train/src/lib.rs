//! Optimiser, schedule, checkpoints, the training loop.

mod checkpoint;
pub mod data;
mod error;
mod log;
mod optimizer;
mod schedule;
mod stages;
mod trainer;

pub use checkpoint::Checkpoints;
pub use error::{Result, TrainError};
pub use log::LogRow;
pub use optimizer::{AdamW, AdamWOptions, Moments, StepError};
pub use schedule::Schedule;
pub use stages::{TokenizerStage, Train, register};
pub use trainer::{Batch, Batches, Outcome, TrainOptions, train};
