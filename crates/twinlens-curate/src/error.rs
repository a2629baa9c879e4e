//! Errors of this crate.

use std::path::PathBuf;

/// An error caused by an input or an option; every variant names it.
#[derive(Debug, thiserror::Error)]
pub enum CurateError {
    /// A source of the query list cannot be read.
    #[error("cannot read {path}: {source}; give the path of a file that exists and may be read", path = path.display())]
    Read { path: PathBuf, source: std::io::Error },
    /// A source of the query list is not what it should be.
    #[error("{source}{}", source.hint().map(|hint| format!("; {hint}")).unwrap_or_default())]
    Source {
        #[from]
        source: twinlens_dataset::DatasetError,
    },
    /// A line of a query-list source is malformed.
    #[error("{path}:{line}: {message}", path = path.display())]
    Line {
        path: PathBuf,
        /// From 1.
        line: u64,
        message: String,
    },
    /// A file is not the list of queries that its name says it is.
    #[error("{path}: {why}", path = path.display())]
    QueryList { path: PathBuf, why: String },
    /// A wiki dump is damaged or truncated.
    #[error("{path}: at byte {byte} of the decompressed text, after {pages} pages: {message}; download the dump again", path = path.display())]
    Dump {
        path: PathBuf,
        /// Bytes of XML read.
        byte: u64,
        /// Pages read completely.
        pages: u64,
        message: String,
    },
    /// The run was cancelled.
    #[error("interrupted")]
    Interrupted,
    /// The queries do not fit in one trie.
    #[error("the query list is too large for one matcher; split it or shorten its entries")]
    TooManyQueries,
}

impl From<CurateError> for twinlens_pipeline::RunError {
    fn from(error: CurateError) -> Self {
        match error {
            CurateError::Interrupted => Self::Interrupted,
            other => Self::user(other.to_string()),
        }
    }
}

pub(crate) type Result<T> = std::result::Result<T, CurateError>;
