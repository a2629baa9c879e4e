//! What can go wrong, and whose fault it is.

use std::ops::Range;
use std::path::PathBuf;

use datafusion::error::DataFusionError;
use twinlens_dataset::DatasetError;

/// Who has to act on an error; the binary turns it into the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    /// The user's mistake, or the world's (a bad file, a full disk, a dead network): exit 1.
    User,
    /// Ours: exit 2.
    Ours,
    /// Interrupted after a clean commit: exit 130.
    Interrupted,
}

/// One thing that is wrong in a pipeline file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Bytes of the pipeline file that are wrong.
    pub span: Range<usize>,
    /// Where `span` is a whole string value: the bytes of the string's content that are wrong. They
    /// are found again in the file although quotes, escapes and `${name}` stand between.
    pub within: Option<Range<usize>>,
    /// What is wrong, in one sentence without a full stop.
    pub message: String,
    /// What stands under the underlined place: what was expected there.
    pub label: String,
    /// Other places that belong to it, with what is to be said there.
    pub also: Box<[(Range<usize>, String)]>,
    /// What to do about it (`did you mean ...?`).
    pub hint: Option<Box<str>>,
}

impl Fault {
    /// A fault at `span`.
    pub fn at(span: Range<usize>, message: impl Into<String>) -> Self {
        Self {
            span,
            within: None,
            message: message.into(),
            label: String::new(),
            also: Box::default(),
            hint: None,
        }
    }

    /// Narrows a fault about a string value to some bytes of its content.
    pub fn within(mut self, content: Range<usize>) -> Self {
        self.within = Some(content);
        self
    }

    /// Says under the underlined place what was expected.
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.label = label.into();
        self
    }

    /// Says what to do.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into().into_boxed_str());
        self
    }
}

/// An error of a run or of one of its stages.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The user's mistake or the world's: a sentence, and what to do next.
    #[error("{message}")]
    User {
        /// What is wrong, naming the file, URL, shard or row.
        message: String,
        /// What to do next.
        hint: Option<String>,
    },
    /// A broken invariant of ours.
    #[error("internal error: {0}")]
    Internal(String),
    /// The run was asked to stop; everything committed stays.
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
        /// What the system said.
        source: std::io::Error,
    },
}

impl RunError {
    /// A mistake of the user's (or the world's).
    pub fn user(message: impl Into<String>) -> Self {
        Self::User { message: message.into(), hint: None }
    }

    /// A mistake of the user's and what to do about it.
    pub fn user_with_hint(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::User { message: message.into(), hint: Some(hint.into()) }
    }

    /// An I/O error with the file it happened to.
    pub fn io(path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Self::Io { path: path.into(), source }
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
