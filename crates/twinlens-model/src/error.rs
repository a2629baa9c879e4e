//! What can go wrong in a model, and whose fault it is.

use std::path::PathBuf;

/// The result of this crate's functions.
pub type Result<T, E = ModelError> = std::result::Result<T, E>;

/// An error of the model crate. Each says whose fault it is and what to do next.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The configuration does not describe a model that can be built.
    #[error("model configuration: {0}")]
    Config(String),
    /// A name that is no preset.
    #[error("no model preset is called `{name}`; there are: {known}")]
    UnknownPreset {
        /// The name that was asked for.
        name: String,
        /// The presets that exist, comma-separated.
        known: String,
    },
    /// A tensor that the caller handed in has the wrong shape or type.
    #[error("{what}: expected {expected}, got {got}")]
    Input {
        /// What was handed in.
        what: &'static str,
        /// The shape and type that fit.
        expected: String,
        /// What came.
        got: String,
    },
    /// A weights file that does not belong to the configuration beside it.
    #[error("{path}: {problem}; the file and config.json must come from the same model", path = path.display())]
    Weights {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        problem: String,
    },
    /// Weights that a model of another shape cannot start from.
    #[error("{path}: this model cannot start from these weights: {problem}; give both the same shape, or take fewer parts (`from_parts = [\"visual\"]`)", path = path.display())]
    Start {
        /// The file or folder.
        path: PathBuf,
        /// What does not fit.
        problem: String,
    },
    /// A file or a model in a form that cannot be read or written.
    #[error("{path}: {problem}; {instead}", path = path.display())]
    Format {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
        /// What to do or use instead.
        instead: String,
    },
    /// A file that cannot be read or written.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's word.
        source: std::io::Error,
    },
    /// A tokenizer file or a tokenizer's training that failed.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// A device that is not there, or that does not compute as asked.
    #[error("device: {0}")]
    Device(String),
    /// An operation on tensors failed: a defect of ours, since inputs are checked before.
    #[error("tensor operation failed (this is a defect, please report it): {0}")]
    Tensor(#[from] candle_core::Error),
}

impl ModelError {
    /// Wraps an I/O error with the file that it is about.
    pub fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}
