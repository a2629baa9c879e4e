//! Errors of a training as errors of a run.

use crate::error::TrainError;
use twinlens_model::ModelError;
use twinlens_pipeline::RunError;

pub(super) fn model_error(error: ModelError) -> RunError {
    match error {
        ModelError::Io { path, source } => RunError::io(path, source),
        ModelError::Tensor(error) => RunError::Internal(error.to_string()),
        other => RunError::user(other.to_string()),
    }
}

impl From<TrainError> for RunError {
    fn from(error: TrainError) -> Self {
        train_error(error)
    }
}

pub(super) fn train_error(error: TrainError) -> RunError {
    match error {
        TrainError::Io { path, source } => RunError::io(path, source),
        TrainError::Model(error) => model_error(error),
        TrainError::Evaluation(error) => *error,
        TrainError::Data(error) => RunError::Dataset(error),
        TrainError::Interrupted => RunError::Interrupted,
        TrainError::Tensor(error) => RunError::Internal(error.to_string()),
        TrainError::Panicked(_) => RunError::Internal(error.to_string()),
        TrainError::Ranks(error) => error.into(),
        other => RunError::user(other.to_string()),
    }
}

pub(super) fn engine(error: datafusion::arrow::error::ArrowError) -> RunError {
    RunError::Engine(error.into())
}
