//! Errors of evaluations.

use arrow::error::ArrowError;
use twinlens_dataset::DatasetError;
use twinlens_model::ModelError;
use twinlens_pipeline::RunError;

#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    /// User error: an evaluation set cannot be used as it is.
    #[error("evaluation set `{set}`: {why}")]
    Set {
        set: String,
        /// Names the class, column, shard or row.
        why: String,
        hint: Option<String>,
    },
    /// An embedding is NaN or infinite: the training diverged, or the weights are damaged.
    #[error("{what} is not finite")]
    NotFinite { what: String },
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A tensor operation failed: a bug.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
    /// An interruption, or an error of a dataset or the query engine.
    #[error(transparent)]
    Run(#[from] RunError),
}

impl EvalError {
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
                "the training diverged: look at `grad_norm` in its train_log, and lower the learning rate",
            ),
            EvalError::Model(ModelError::Tensor(error)) | EvalError::Tensor(error) => {
                RunError::Internal(error.to_string())
            }
            EvalError::Model(error) => RunError::user(error.to_string()),
        }
    }
}
