//! Errors of datasets; every variant names the file.

use std::path::{Path, PathBuf};

use arrow::error::ArrowError;
use datafusion::error::DataFusionError;
use parquet::errors::ParquetError;

use crate::blocking::Panicked;
use crate::sniff::FileKind;

/// An error of a dataset on disk.
#[derive(Debug, thiserror::Error)]
pub enum DatasetError {
    /// A line of the manifest is damaged.
    #[error("{path}:{line}: damaged manifest line: {why}")]
    DamagedManifest {
        /// The manifest.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        why: String,
    },
    /// A recorded file is missing or has a different length.
    #[error("{path}: damaged: {why}")]
    DamagedFile {
        /// The shard or artifact.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A file that others wrote cannot be read.
    #[error("{path}: damaged: {why}")]
    DamagedInput {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A file is not what its name or its place says.
    #[error("{path} is {kind}, not {expected}")]
    WrongKind {
        /// The file.
        path: PathBuf,
        /// What it is by its first bytes.
        kind: FileKind,
        /// What is read here: `a tar archive`.
        expected: &'static str,
    },
    /// There is no dataset, or an incomplete one where a complete one is needed.
    #[error("{path}: {why}")]
    NotReady {
        /// The dataset's folder.
        path: PathBuf,
        /// What is missing.
        why: String,
    },
    /// A table or artifact that the dataset does not have.
    #[error("{path}: no {what} `{name}`; known: {known}")]
    Unknown {
        /// The dataset's folder.
        path: PathBuf,
        /// `table` or `artifact`.
        what: &'static str,
        /// The requested name.
        name: String,
        /// The names that exist.
        known: String,
    },
    /// An operation on a file failed.
    #[error("{path}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// A request to an object store failed.
    #[error("{path}: {source}")]
    Store {
        /// The URL.
        path: PathBuf,
        /// The error of the store.
        source: object_store::Error,
    },
    /// A request to an object store failed, for which this machine has no credentials.
    #[error("{path}: this machine has no credentials for the store: {source}")]
    NoCredentials {
        /// The URL.
        path: PathBuf,
        /// The error of the store.
        source: object_store::Error,
    },
    /// A text that is not a usable path or URL.
    #[error("{path}: {why}")]
    Location {
        /// The text.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Another process writes to the same dataset.
    #[error("{path}: another process is writing this dataset")]
    Locked {
        /// The log or folder.
        path: PathBuf,
    },
    /// The request cannot be carried out on this dataset or folder.
    #[error("{path}: {why}")]
    Refused {
        /// The dataset or folder.
        path: PathBuf,
        /// The reason.
        why: String,
        /// What to do about it.
        hint: String,
    },
    /// Parquet could not be read or written.
    #[error("{path}: {source}")]
    Parquet {
        /// The shard.
        path: PathBuf,
        /// The error of the reader or writer.
        source: ParquetError,
    },
    /// A batch does not fit the table's schema.
    #[error("table `{table}`: {source}")]
    Schema {
        /// The table.
        table: String,
        /// The error of Arrow.
        source: ArrowError,
    },
    /// Blocking work panicked: a bug.
    #[error(transparent)]
    Panicked(#[from] Panicked),
    /// The query engine failed.
    #[error(transparent)]
    Engine(#[from] DataFusionError),
    /// An invariant of the commit protocol is broken.
    #[error("internal error in the commit protocol: {0}")]
    Protocol(String),
}

impl DatasetError {
    /// An I/O error with its file.
    pub fn io(path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Self::Io { path: path.into(), source }
    }

    /// A request that cannot be carried out, with the reason and a hint.
    pub fn refused(path: impl Into<PathBuf>, why: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Refused { path: path.into(), why: why.into(), hint: hint.into() }
    }

    /// Whether a store refuses what it was asked, or nobody can tell it who asks.
    pub fn is_about_credentials(&self) -> bool {
        use object_store::Error::{PermissionDenied, Unauthenticated};
        match self {
            Self::NoCredentials { .. } => true,
            Self::Store { source, .. } => {
                matches!(source, PermissionDenied { .. } | Unauthenticated { .. })
            }
            _ => false,
        }
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::DamagedManifest { path, .. } => Some(format!(
                "restore {} from a copy, or delete its folder: the next run rebuilds the dataset",
                path.display()
            )),
            Self::DamagedFile { path, .. } => Some(format!(
                "restore {} from a copy, or make it again (`twinlens repair` for a dataset of a run)",
                path.display()
            )),
            Self::DamagedInput { .. } => Some("get the file again, or leave it out".into()),
            Self::WrongKind { kind, .. } => Some(kind.hint().map_or_else(
                || "get the right file, or leave this one out".into(),
                |hint| format!("{hint}, or leave it out"),
            )),
            Self::Io { path, source } if source.kind() == std::io::ErrorKind::StorageFull => Some(format!(
                "free space on the disk that holds {}, then run the same command: it resumes where it stopped",
                path.display()
            )),
            _ if self.is_about_credentials() => Some(
                "set the store's keys in the environment of this machine (AWS_ACCESS_KEY_ID and \
                 AWS_SECRET_ACCESS_KEY, GOOGLE_SERVICE_ACCOUNT, AZURE_STORAGE_ACCOUNT_KEY, ...)"
                    .into(),
            ),
            Self::Refused { hint, .. } => Some(hint.clone()),
            Self::Locked { .. } => {
                Some("wait for it, stop it, or choose another directory with --dir".into())
            }
            _ => None,
        }
    }
}

/// Unwraps I/O errors, so that a full disk is not reported as a bad shard.
pub(crate) fn parquet_error(path: &Path, error: ParquetError) -> DatasetError {
    match error {
        ParquetError::External(inner) => match inner.downcast::<std::io::Error>() {
            Ok(io) => DatasetError::io(path, *io),
            Err(inner) => match inner.downcast::<DatasetError>() {
                Ok(damaged) => *damaged,
                Err(inner) => {
                    DatasetError::Parquet { path: path.into(), source: ParquetError::External(inner) }
                }
            },
        },
        source => DatasetError::Parquet { path: path.into(), source },
    }
}
