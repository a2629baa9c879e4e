//! Optimiser, schedule, checkpoints, the training loop.

mod checkpoint;
mod collective;
pub mod data;
mod ema;
mod error;
mod log;
mod measure;
mod optimizer;
mod schedule;
mod stages;
mod step;
mod trainer;
mod watch;

pub use checkpoint::{Checkpoints, State};
pub use collective::{Collective, Local, Threads};
pub use error::{Result, TrainError};
pub use log::LogRow;
pub use measure::Measurement;
pub use optimizer::{AdamW, AdamWOptions, Gradients, Moments, StepError};
pub use schedule::Schedule;
pub use stages::{TokenizerStage, Train, register};
pub use step::{Step, Stepper};
pub use trainer::{Batch, Batches, Evaluate, Hooks, Outcome, TrainOptions, Trained, train};
