//! What can go wrong in training, and whose fault it is.

use std::path::PathBuf;
use twinlens_dataset::DatasetError;
use twinlens_model::ModelError;
use twinlens_pipeline::RunError;

/// The result of this crate's functions.
pub type Result<T, E = TrainError> = std::result::Result<T, E>;

/// An error of training. Each says what was seen and what to do next.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// Options that no training can follow.
    #[error("{0}")]
    Options(String),
    /// The loss or a gradient is no longer a number.
    #[error(
        "training diverged at step {step}: {what} is {value} (loss before: {before:.4}, lr {lr:.2e}, logit_scale \
         {logit_scale:.3}). Try a lower lr (half), a longer warmup, or clip_grad_norm = 1.0; `twinlens run` goes on from \
         the last checkpoint only if the options are unchanged"
    )]
    Diverged {
        /// The step.
        step: u64,
        /// Loss, or the variable.
        what: String,
        /// What was found.
        value: f64,
        /// The loss of the step before.
        before: f64,
        /// Learning rate of the step.
        lr: f64,
        /// Logarithm of the similarities' factor.
        logit_scale: f64,
    },
    /// The loss is where it was before anything was learned.
    #[error(
        "nothing was learned: after {step} steps the mean loss of the last {window} is {loss:.3}, and ln(batch) = \
         {chance:.3} is what guessing gets. Do captions describe their images? If so, try another lr (ten times higher or \
         lower), a larger batch, or a longer warmup"
    )]
    Stuck {
        /// The step.
        step: u64,
        /// Steps averaged over.
        window: usize,
        /// Their mean loss.
        loss: f64,
        /// ln of the batch size.
        chance: f64,
    },
    /// What was learned is lost again.
    #[error(
        "training fell apart: the mean loss of {window} steps was {first:.3} at the start and {low:.3} up to step {best}, and is \
         {loss:.3} after step {step}. Try a lower lr (half), a longer warmup, clip_grad_norm = 1.0, or a larger batch; \
         `keep_every` would leave the weights of the good steps"
    )]
    Relapsed {
        /// The step.
        step: u64,
        /// Steps averaged over.
        window: usize,
        /// Their mean loss.
        loss: f64,
        /// The lowest mean loss.
        low: f64,
        /// The last step of the lowest.
        best: u64,
        /// The mean loss of the first steps.
        first: f64,
    },
    /// Another rank of the training ended; its own error says why.
    #[error("another rank of the training ended (this is a defect unless it says why itself)")]
    Lost,
    /// An evaluation inside the training failed.
    #[error(transparent)]
    Evaluation(Box<RunError>),
    /// A checkpoint that cannot be used.
    #[error("{path}: {problem}; delete it, and training goes on from the checkpoint before it, or from the start", path = path.display())]
    Checkpoint {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A file that cannot be read or written.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's word.
        source: std::io::Error,
    },
    /// The data could not be read.
    #[error(transparent)]
    Data(#[from] DatasetError),
    /// The training was asked to stop while it waited for data.
    #[error("interrupted")]
    Interrupted,
    /// The model's own error.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// An operation on tensors failed: a defect of ours.
    #[error("tensor operation failed (this is a defect, please report it): {0}")]
    Tensor(#[from] candle_core::Error),
    /// A thread of ours panicked.
    #[error("the {0} thread panicked (this is a defect, please report it)")]
    Panicked(&'static str),
}

impl TrainError {
    /// Wraps an I/O error with the file that it is about.
    pub fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}
