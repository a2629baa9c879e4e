//! Training of CLIP models: optimiser, schedule, checkpoints, training loop.

mod batch;
mod checkpoint;
mod continuation;
pub mod data;
mod ema;
mod error;
mod log;
mod measure;
mod monitor;
mod optimizer;
mod options;
mod schedule;
mod snapshot;
mod stages;
mod step;
mod trainer;

pub use batch::{Batch, BatchSource};
pub use checkpoint::{Checkpoints, TrainState};
pub use continuation::{Earlier, STATE_FILE};
pub use error::{Result, TrainError};
pub use log::LogRow;
pub use measure::Measurement;
pub use optimizer::{AdamW, AdamWOptions, Gradients, Moments, StepError};
pub use options::{Batches, TrainOptions};
pub use schedule::{Schedule, ScheduleKind};
pub use snapshot::weights_at;
pub use stages::{TokenizerStage, Train, register};
pub use step::{Step, Stepper};
pub use trainer::{Evaluate, Hooks, Outcome, TrainOutput, train};
