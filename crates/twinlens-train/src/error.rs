//! Errors of training.

use std::path::PathBuf;
use twinlens_dataset::DatasetError;
use twinlens_model::ModelError;
use twinlens_pipeline::RunError;
use twinlens_ranks::RankError;

pub type Result<T, E = TrainError> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// Options that do not fit together or the data.
    #[error("{0}")]
    Options(String),
    /// The loss or a gradient is NaN or infinite.
    #[error(
        "training diverged at step {step}: {what} is {value} (previous loss {previous_loss:.4}, lr {lr:.2e}, logit_scale \
         {logit_scale:.3}). Try half the lr, a longer warmup, or clip_grad_norm = 1.0; `twinlens run` resumes from \
         the last checkpoint only if the options are unchanged"
    )]
    NotFinite {
        step: u64,
        /// `the loss`, or the gradient of a variable.
        what: String,
        value: f64,
        previous_loss: f64,
        lr: f64,
        /// Natural logarithm of the scale of similarities.
        logit_scale: f64,
    },
    /// The loss is still that of an untrained model.
    #[error(
        "training does not converge: after {step} steps, the mean loss of the last {window} is {loss:.3}; guessing gives \
         ln(batch) = {chance:.3}. Check that captions describe their images; then try another lr (ten times higher or \
         lower), a larger batch, or a longer warmup"
    )]
    NotConverging {
        step: u64,
        /// Steps averaged over.
        window: usize,
        /// Mean loss of the window.
        loss: f64,
        /// ln of the batch size.
        chance: f64,
    },
    /// The loss fell and then rose to where it began.
    #[error(
        "training diverged: the mean loss over {window} steps was {first:.3} at the start, fell to {low:.3} by step {best} and \
         is {loss:.3} after step {step}. Try half the lr, a longer warmup, clip_grad_norm = 1.0, or a larger batch; \
         `keep_every` keeps the weights of earlier steps"
    )]
    Diverged {
        step: u64,
        /// Steps averaged over.
        window: usize,
        /// Mean loss of the last window.
        loss: f64,
        /// Lowest mean loss.
        low: f64,
        /// Last step of the window with the lowest mean loss.
        best: u64,
        /// Mean loss of the first window.
        first: f64,
    },
    /// The ranks cannot work together.
    #[error(transparent)]
    Ranks(#[from] RankError),
    /// An evaluation during training failed.
    #[error(transparent)]
    Evaluation(Box<RunError>),
    /// A checkpoint is unusable.
    #[error("{path}: {problem}; delete it to resume from the previous checkpoint or from the start", path = path.display())]
    Checkpoint { path: PathBuf, problem: String },
    #[error("{path}: {source}", path = path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Data(#[from] DatasetError),
    #[error("interrupted")]
    Interrupted,
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error("tensor operation failed (this is a defect, please report it): {0}")]
    Tensor(#[from] candle_core::Error),
    #[error("the {0} thread panicked (this is a defect, please report it)")]
    Panicked(&'static str),
}

impl TrainError {
    /// Adds the file's path to an I/O error.
    pub fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}
