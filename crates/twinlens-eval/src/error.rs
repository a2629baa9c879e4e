//! What can go wrong in an evaluation, and whose fault it is.

use arrow::error::ArrowError;
use twinlens_dataset::DatasetError;
use twinlens_model::ModelError;
use twinlens_pipeline::RunError;

/// An error of an evaluation.
#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    /// An evaluation set cannot be used as it is: the user's mistake.
    #[error("evaluation set `{set}`: {why}")]
    Set {
        /// The set.
        set: String,
        /// What is wrong, naming the class, column, shard or row.
        why: String,
        /// What to do next.
        hint: Option<String>,
    },
    /// The model gives embeddings that are not numbers: its training has diverged, or its file is
    /// damaged.
    #[error("{what} is not finite")]
    NotFinite {
        /// Which embedding.
        what: String,
    },
    /// The model or tokenizer cannot be loaded or run.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A tensor operation failed: ours.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
    /// Of the frame around the stage: an interruption, a dataset, the engine.
    #[error(transparent)]
    Run(#[from] RunError),
}

impl EvalError {
    /// An evaluation set that cannot be used.
    pub fn set(set: &str, why: impl Into<String>, hint: Option<String>) -> Self {
        Self::Set { set: set.into(), why: why.into(), hint }
    }
}

impl From<ArrowError> for EvalError {
    fn from(error: ArrowError) -> Self {
        Self::Run(RunError::Engine(error.into()))
    }
}

impl From<DatasetError> for EvalError {
    fn from(error: DatasetError) -> Self {
        Self::Run(error.into())
    }
}

impl From<EvalError> for RunError {
    fn from(error: EvalError) -> Self {
        match error {
            EvalError::Run(error) => error,
            EvalError::Set { ref hint, .. } => {
                RunError::User { message: error.to_string(), hint: hint.clone() }
            }
            EvalError::NotFinite { .. } => RunError::user_with_hint(
                error.to_string(),
                "the training has diverged: look at `grad_norm` in its train_log, and lower its learning rate",
            ),
            EvalError::Model(ModelError::Tensor(error)) | EvalError::Tensor(error) => {
                RunError::Internal(error.to_string())
            }
            EvalError::Model(error) => RunError::user(error.to_string()),
        }
    }
}
