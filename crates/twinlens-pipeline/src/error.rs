//! Errors of pipeline files and of runs.

use std::ops::Range;
use std::path::PathBuf;

use datafusion::error::DataFusionError;
use twinlens_dataset::{DatasetError, Panicked};
use twinlens_ranks::RankError;

/// An error in a pipeline file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The faulty bytes of the pipeline file.
    pub span: Range<usize>,
    /// If `span` is a string value: the faulty bytes of its content. They are mapped back to the
    /// file through quotes, escapes and `${name}`.
    pub within: Option<Range<usize>>,
    /// The error, in one sentence without a full stop.
    pub message: String,
    /// The text under the underlined range: what was expected there.
    pub label: String,
    /// Related ranges, with their labels.
    pub related: Box<[(Range<usize>, String)]>,
    /// What to do about it (`did you mean ...?`).
    pub hint: Option<Box<str>>,
}

impl Fault {
    /// An error at `span`.
    pub fn at(span: Range<usize>, message: impl Into<String>) -> Self {
        Self {
            span,
            within: None,
            message: message.into(),
            label: String::new(),
            related: Box::default(),
            hint: None,
        }
    }

    /// Narrows an error in a string value to some bytes of its content.
    pub fn within(mut self, content: Range<usize>) -> Self {
        self.within = Some(content);
        self
    }

    /// Sets the text under the underlined range.
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.label = label.into();
        self
    }

    /// Sets the hint.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into().into_boxed_str());
        self
    }
}

/// An error of a run or of one of its stages.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// An error that the user can resolve, or an external one (a bad file, a full disk, the
    /// network).
    #[error("{message}")]
    User {
        /// The error, with the file, URL, shard or row.
        message: String,
        /// What to do next.
        hint: Option<String>,
    },
    /// A bug: an invariant does not hold.
    #[error("internal error: {0}")]
    Internal(String),
    /// The run was stopped on request; everything committed is kept.
    #[error("interrupted")]
    Interrupted,
    /// The query engine failed.
    #[error(transparent)]
    Engine(#[from] DataFusionError),
    /// A dataset could not be read or written.
    #[error(transparent)]
    Dataset(#[from] DatasetError),
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        source: std::io::Error,
    },
}

/// The exit code of an interrupted run.
pub const INTERRUPTED: u8 = 130;

impl RunError {
    /// The exit code of a run that ends with this error.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Interrupted => INTERRUPTED,
            Self::Internal(_) => 2,
            _ => 1,
        }
    }

    /// A user or external error.
    pub fn user(message: impl Into<String>) -> Self {
        Self::User { message: message.into(), hint: None }
    }

    /// A user or external error with a hint.
    pub fn user_with_hint(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::User { message: message.into(), hint: Some(hint.into()) }
    }

    /// An I/O error with its file.
    pub fn io(path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Self::Io { path: path.into(), source }
    }
}

impl From<Panicked> for RunError {
    fn from(panic: Panicked) -> Self {
        Self::Internal(panic.to_string())
    }
}

impl From<RankError> for RunError {
    fn from(error: RankError) -> Self {
        match error {
            RankError::Exited | RankError::OutOfStep(_) => Self::Internal(error.to_string()),
            RankError::Setup { message, hint } => Self::user_with_hint(message, hint),
            // An interrupt of any rank is one of all.
            RankError::Ended { code: INTERRUPTED, .. } => Self::Interrupted,
            RankError::Lost { .. } | RankError::Ended { .. } => Self::user(error.to_string()),
        }
    }
}

impl From<RunError> for DataFusionError {
    fn from(error: RunError) -> Self {
        match error {
            RunError::Engine(inner) => inner,
            other => DataFusionError::External(Box::new(other)),
        }
    }
}
