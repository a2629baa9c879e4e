//! What `check` may know of the files that a pipeline names as inputs.

use std::path::PathBuf;

use datafusion::arrow::datatypes::SchemaRef;

use crate::error::RunError;
use crate::files::Files;

/// What is known of the files and datasets that a pipeline names as inputs.
#[derive(Debug, Clone, Copy)]
pub struct InputSchemas<'a> {
    files: Option<&'a Files>,
    /// Whether the file may be missing.
    may_be_missing: bool,
}

impl<'a> InputSchemas<'a> {
    /// Nothing, and nothing is assumed about them: what depends on their columns is not checked.
    pub fn none() -> Self {
        Self { files: None, may_be_missing: true }
    }

    /// They are opened (the footer of a Parquet file, the manifest of a dataset): what depends on
    /// their columns is checked before anything runs.
    pub fn of(files: &'a Files) -> Self {
        Self { files: Some(files), may_be_missing: false }
    }

    /// Those that are there are opened. A machine that makes splits of one stage does without the
    /// files of the others.
    pub fn of_present(files: &'a Files) -> Self {
        Self { files: Some(files), may_be_missing: true }
    }

    /// The files, if they may be opened.
    pub(crate) fn files(&self) -> Option<&'a Files> {
        self.files
    }

    /// Checks that a file that a stage declared is there, if files are to be opened.
    pub(crate) fn check_file(&self, written: &str) -> Result<(), RunError> {
        match self.files {
            Some(files) if !self.may_be_missing => files.check(written),
            _ => Ok(()),
        }
    }

    /// Local copies of the files that an option names; none if they are missing, which
    /// [`InputSchemas::check_file`] says, or not to be opened.
    pub(crate) fn local_files(&self, written: &str) -> Result<Vec<PathBuf>, RunError> {
        let Some(files) = self.files.filter(|files| files.check(written).is_ok()) else {
            return Ok(Vec::new());
        };
        let found = files.expand(written)?;
        Ok(found.iter().map(|location| location.local_copy()).collect::<Result<_, _>>()?)
    }

    /// The columns of one; `None` if it is not to be opened.
    pub(crate) fn get(&self, path: &str) -> Result<Option<SchemaRef>, RunError> {
        let Some(files) = self.files else { return Ok(None) };
        match files.schema(path) {
            Err(_) if self.may_be_missing => Ok(None),
            schema => Ok(Some(schema?)),
        }
    }
}
