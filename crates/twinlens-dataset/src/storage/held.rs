//! A folder that is being written: whoever moves it away, or puts another in its place, does not
//! make its writer write into that.

use std::fs::{self, File};
use std::path::PathBuf;
use std::sync::Arc;

use super::location::Location;
use crate::error::DatasetError;

/// An open folder. In an object store there is nothing to hold.
#[derive(Debug, Clone, Default)]
pub(crate) struct Held(Option<Arc<(PathBuf, File)>>);

impl Held {
    pub(crate) fn open(folder: &Location) -> Result<Self, DatasetError> {
        let Some(path) = folder.as_local() else { return Ok(Self(None)) };
        let handle = File::open(path).map_err(|error| DatasetError::io(path, error))?;
        Ok(Self(Some(Arc::new((path.into(), handle)))))
    }

    /// Fails if the folder is not at its path any more.
    #[cfg(unix)]
    pub(crate) fn check(&self) -> Result<(), DatasetError> {
        use std::os::unix::fs::MetadataExt;

        let Some((path, handle)) = self.0.as_deref() else { return Ok(()) };
        let held = handle.metadata().map_err(|error| DatasetError::io(path, error))?;
        if fs::metadata(path).is_ok_and(|now| (now.dev(), now.ino()) == (held.dev(), held.ino())) {
            return Ok(());
        }
        let why = "it was moved away or replaced while it was being written".to_string();
        Err(DatasetError::refused(path, why, "let one process at a time work in it, and run again"))
    }

    /// What an error while writing means: that the folder is gone, if it is.
    pub(crate) fn explain(&self, error: DatasetError) -> DatasetError {
        self.check().err().unwrap_or(error)
    }

    #[cfg(not(unix))]
    pub(crate) fn check(&self) -> Result<(), DatasetError> {
        Ok(())
    }
}
