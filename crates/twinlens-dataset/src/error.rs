//! What can go wrong with a dataset; every variant names the file.

use std::path::PathBuf;

use arrow::error::ArrowError;
use datafusion::error::DataFusionError;
use parquet::errors::ParquetError;

/// An error of a dataset on disk.
#[derive(Debug, thiserror::Error)]
pub enum DatasetError {
    /// A line of the manifest is not what was written.
    #[error("{path}:{line}: damaged manifest line: {why}")]
    DamagedManifest {
        /// The manifest.
        path: PathBuf,
        /// Its line, from 1.
        line: usize,
        /// What is wrong with it.
        why: String,
    },
    /// A recorded file is missing or has another length.
    #[error("{path}: damaged: {why}")]
    DamagedFile {
        /// The shard or artifact.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A dataset without a manifest, or an unfinished one where a finished one is needed.
    #[error("{path}: {why}")]
    NotReady {
        /// The dataset's folder.
        path: PathBuf,
        /// What is missing.
        why: String,
    },
    /// A table or artifact that the dataset does not have.
    #[error("{path}: no {what} `{name}`; there are: {known}")]
    Unknown {
        /// The dataset's folder.
        path: PathBuf,
        /// `table` or `artifact`.
        what: &'static str,
        /// The name that was asked for.
        name: String,
        /// The names that exist.
        known: String,
    },
    /// The system refused an operation on a file.
    #[error("{path}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// An object store refused or failed.
    #[error("{path}: {source}")]
    Store {
        /// The URL.
        path: PathBuf,
        /// What the store said.
        source: object_store::Error,
    },
    /// Text that names no place where a dataset can lie.
    #[error("{path}: {why}")]
    Location {
        /// The text.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Another writer has added to the same log.
    #[error("{path}: another process writes this dataset")]
    Taken {
        /// The log.
        path: PathBuf,
    },
    /// What was asked for cannot be done with this dataset or folder.
    #[error("{path}: {why}")]
    Refused {
        /// The dataset or folder.
        path: PathBuf,
        /// Why not.
        why: String,
        /// What to do about it.
        hint: String,
    },
    /// Parquet could not be read or written.
    #[error("{path}: {source}")]
    Parquet {
        /// The shard.
        path: PathBuf,
        /// What the reader or writer said.
        source: ParquetError,
    },
    /// A batch does not fit the table's schema.
    #[error("table `{table}`: {source}")]
    Schema {
        /// The table.
        table: String,
        /// What arrow said.
        source: ArrowError,
    },
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

    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::DamagedManifest { path, .. } => Some(format!(
                "restore {} from a copy, or delete its folder: the next run makes the dataset again",
                path.display()
            )),
            Self::DamagedFile { path, .. } => Some(format!(
                "restore {} from a copy, or delete the dataset's folder: the next run makes it again",
                path.display()
            )),
            Self::Io { path, source } if source.kind() == std::io::ErrorKind::StorageFull => Some(format!(
                "make room on the disk that holds {}, then run the same command: it goes on where it stopped",
                path.display()
            )),
            Self::Store { source: object_store::Error::PermissionDenied { .. }, .. }
            | Self::Store { source: object_store::Error::Unauthenticated { .. }, .. } => {
                Some("check the store's keys in the environment (AWS_ACCESS_KEY_ID, GOOGLE_SERVICE_ACCOUNT, AZURE_STORAGE_ACCOUNT_KEY, ...)".into())
            }
            Self::Refused { hint, .. } => Some(hint.clone()),
            Self::Taken { .. } => Some("wait for it, stop it, or choose another directory with --dir".into()),
            _ => None,
        }
    }
}
