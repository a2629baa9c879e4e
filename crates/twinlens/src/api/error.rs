//! Errors of the functions, with their places.

use std::fmt::{self, Display, Formatter};
use std::panic::{AssertUnwindSafe, catch_unwind};

use twinlens_dataset::DatasetError;
use twinlens_pipeline::RunError;

use crate::errors::{Exit, Failure};

/// Whose error it is, as the exit codes of the command say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// Of the user or the environment (network, disk).
    User,
    /// A bug in twinlens.
    Internal,
    /// The run finished, with more rejects than the pipeline allows.
    Rejects,
    /// The run was stopped after a clean commit.
    Interrupted,
}

/// A fault at a place of a pipeline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file, or what the text is called.
    pub file: String,
    /// From 1.
    pub line: usize,
    /// In characters, from 1.
    pub column: usize,
    /// The fault, in one sentence.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

/// Why a function failed. Displayed with its hint, and with the source where it is a pipeline's.
#[derive(Debug, Clone)]
pub struct Error {
    /// Whose error it is.
    pub kind: ErrorKind,
    /// What is wrong; of a pipeline, all faults with their underlined source.
    pub message: String,
    /// What to do next.
    pub hint: Option<String>,
    /// The faults of a pipeline, in the order of the file; those of values that were set are not
    /// among them.
    pub places: Vec<Place>,
}

impl Error {
    fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), hint: None, places: Vec::new() }
    }

    /// An error of the caller.
    pub fn user(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::User, message)
    }

    /// A bug.
    pub fn internal(error: impl Display) -> Self {
        Failure::internal(error.to_string()).into()
    }
}

impl Display for Error {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        self.hint.iter().try_for_each(|hint| write!(f, "\nhint: {hint}"))
    }
}

impl std::error::Error for Error {}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        let kind = match failure.exit {
            Exit::User | Exit::Quiet => ErrorKind::User,
            Exit::Internal => ErrorKind::Internal,
            Exit::Rejects => ErrorKind::Rejects,
            Exit::Interrupted => ErrorKind::Interrupted,
        };
        let Some(report) = failure.report else {
            let hint = failure.hint.map(|hint| hide(&hint));
            return Self { hint, ..Self::new(kind, hide(&failure.message)) };
        };
        let place = |fault| {
            let (line, column) = report.position(fault)?;
            let (message, hint) = (hide(&fault.message), fault.hint.as_deref().map(hide));
            Some(Place { file: report.name().into(), line, column, message, hint })
        };
        let places: Vec<Place> = report.faults().iter().filter_map(place).collect();
        Self { places, ..Self::new(kind, hide(&report.render(false))) }
    }
}

impl From<RunError> for Error {
    fn from(error: RunError) -> Self {
        Failure::from(error).into()
    }
}

impl From<DatasetError> for Error {
    fn from(error: DatasetError) -> Self {
        Failure::from(error).into()
    }
}

fn hide(text: &str) -> String {
    crate::secrets::hide(text).into_owned()
}

/// A panic becomes an error.
pub(super) fn catch<T>(work: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    let done = catch_unwind(AssertUnwindSafe(work));
    done.unwrap_or_else(|_| Err(Error::internal("a thread panicked")))
}
