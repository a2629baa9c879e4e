//! Training of CLIP models: optimiser, schedule, checkpoints, training loop.

mod checkpoint;
mod collective;
pub mod data;
mod ema;
mod error;
mod log;
mod measure;
mod monitor;
mod optimizer;
mod schedule;
mod stages;
mod step;
mod trainer;

pub use checkpoint::{Checkpoints, TrainState};
pub use collective::{Collective, Local, Threads};
pub use error::{Result, TrainError};
pub use log::LogRow;
pub use measure::Measurement;
pub use optimizer::{AdamW, AdamWOptions, Gradients, Moments, StepError};
pub use schedule::Schedule;
pub use stages::{TokenizerStage, Train, register};
pub use step::{Step, Stepper};
pub use trainer::{Batch, BatchSource, Evaluate, Hooks, Outcome, TrainOptions, TrainOutput, train};
