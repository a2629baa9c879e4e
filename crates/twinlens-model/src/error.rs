//! Errors of the model crate.

use std::path::PathBuf;

/// The result of this crate's functions.
pub type Result<T, E = ModelError> = std::result::Result<T, E>;

/// An error of the model crate.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The configuration does not describe a model that can be built.
    #[error("model configuration: {0}")]
    Config(String),
    /// A name that is not a preset's.
    #[error("unknown model preset `{name}`; known presets: {known}")]
    UnknownPreset {
        /// The unknown name.
        name: String,
        /// The known presets, comma-separated.
        known: String,
    },
    /// An argument has the wrong shape or type.
    #[error("{what}: expected {expected}, got {got}")]
    Input {
        /// Which argument.
        what: &'static str,
        /// The expected shape and type.
        expected: String,
        /// The shape and type of the argument.
        got: String,
    },
    /// A weights file that does not match the configuration.
    #[error("{path}: {problem}; the file and config.json must come from the same model", path = path.display())]
    Weights {
        /// The file.
        path: PathBuf,
        /// What does not match.
        problem: String,
    },
    /// Weights that do not match the model that should start from them.
    #[error("{path}: this model cannot start from these weights: {problem}; give both the same shape, or take fewer parts (`from_parts = [\"visual\"]`)", path = path.display())]
    Start {
        /// The file or directory.
        path: PathBuf,
        /// What does not match.
        problem: String,
    },
    /// A file that cannot be read, or a model that cannot be written in the given format.
    #[error("{path}: {problem}; {instead}", path = path.display())]
    Format {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
        /// What to do instead.
        instead: String,
    },
    /// A file that cannot be read or written.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// Reading or training a tokenizer failed.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// A device that is not available, or does not support the precision.
    #[error("device: {0}")]
    Device(String),
    /// A tensor operation failed: a bug, since inputs are checked first.
    #[error("tensor operation failed (this is a bug, please report it): {0}")]
    Tensor(#[from] candle_core::Error),
}

impl ModelError {
    /// Adds the path to an I/O error.
    pub fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}
