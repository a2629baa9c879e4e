//! What can go wrong while curating, and whose fault it is.

use std::path::PathBuf;

/// An error of this crate. Every variant is the fault of an input or of a setting, and says which.
#[derive(Debug, thiserror::Error)]
pub enum CurateError {
    /// A source of the query list cannot be read.
    #[error("cannot read {path}: {source}; give the path of a file that exists and may be read", path = path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A line of a source of the query list does not have the form that its kind of source has.
    #[error("{path}:{line}: {message}", path = path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: u64,
        /// What was found and what was expected.
        message: String,
    },
    /// A dump of a wiki cannot be read to its end.
    #[error("{path}: byte {byte} of its text, after {pages} pages: {message}; fetch the dump again", path = path.display())]
    Dump {
        /// The file.
        path: PathBuf,
        /// How many bytes of XML were read.
        byte: u64,
        /// How many pages were whole.
        pages: u64,
        /// What was found.
        message: String,
    },
    /// Somebody asked for the work to stop.
    #[error("interrupted")]
    Interrupted,
    /// The queries do not fit in one trie.
    #[error("the query list is too large to be matched at once: split it or shorten its entries")]
    TooManyQueries,
    /// A table lacks a column or has it in another type.
    #[error("{0}")]
    Table(String),
}

/// The result of curating.
pub type Result<T> = std::result::Result<T, CurateError>;
