//! Pipeline files: from TOML to checked stages, without I/O except reading the file itself.
//!
//! The text is parsed into tables with source positions ([`source`]); `${name}` is replaced in
//! strings ([`vars`]); each stage's table becomes its options ([`stages`], [`options`]), once per
//! combination of swept values ([`sweep`]); names of inputs become edges, and the stages are sorted
//! ([`graph`]); each stage is planned with the schemas of its inputs, and the tests are planned
//! over all tables ([`tables`]). Errors are collected and reported together ([`Report`]); follow-on
//! errors are suppressed.

mod file;
mod graph;
mod options;
mod pipeline;
mod report;
mod schema;
mod source;
mod stages;
mod sweep;
mod tables;
#[cfg(test)]
mod tests;
mod vars;

use std::io::Read;
use std::path::{Path, PathBuf};

use datafusion::arrow::datatypes::SchemaRef;
use twinlens_dataset::MAIN;

pub use pipeline::{Expect, Node, NodeInput, Pipeline, Resolved, Test};
pub use report::Report;
pub use schema::{OptionDoc, json_schema, options_doc};
pub use vars::Overrides;

use crate::error::RunError;
use crate::files::Files;
use crate::registry::Registry;
use source::{Source, Strings};

/// The largest pipeline file, in bytes.
pub const MAX_FILE_BYTES: u64 = 4 * 1024 * 1024;

/// Why a pipeline file could not be used.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file could not be read.
    #[error("cannot read the pipeline file {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// The file is not UTF-8.
    #[error("the pipeline file {path} is not valid UTF-8: invalid byte on line {line}")]
    NotText {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
    },
    /// The file is too large for a pipeline file.
    #[error("the pipeline file {path} is larger than {MAX_FILE_BYTES} bytes: is it a data file?")]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// The file has errors.
    #[error(transparent)]
    Invalid(Box<Report>),
}

/// What is known of the files and datasets that a pipeline names as inputs.
#[derive(Debug, Clone, Copy)]
pub struct InputSchemas<'a>(Option<&'a Files>);

impl<'a> InputSchemas<'a> {
    /// Nothing, and nothing is assumed about them: what depends on their columns is not checked.
    pub fn none() -> Self {
        Self(None)
    }

    /// They are opened (the footer of a Parquet file, the manifest of a dataset): what depends on
    /// their columns is checked before anything runs.
    pub fn of(files: &'a Files) -> Self {
        Self(Some(files))
    }

    /// The columns of one; `None` if it is not to be opened.
    fn get(&self, path: &str) -> Result<Option<SchemaRef>, RunError> {
        let Some(files) = self.0 else { return Ok(None) };
        Ok(Some(files.dataset(path)?.schema(MAIN)?))
    }
}

/// Reads and checks a pipeline file. Of the files that it names, those are read that `schemas`
/// needs.
pub fn load(
    path: &Path,
    registry: &Registry,
    overrides: &Overrides,
    schemas: &InputSchemas<'_>,
) -> Result<Pipeline, LoadError> {
    let io = |source| LoadError::Io { path: path.into(), source };
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(io)?;
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(LoadError::TooLarge { path: path.into() });
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = valid.iter().filter(|byte| **byte == b'\n').count() + 1;
        LoadError::NotText { path: path.into(), line }
    })?;
    check(path, &text, registry, overrides, schemas).map_err(|report| LoadError::Invalid(Box::new(report)))
}

/// Checks the text of a pipeline file. `path` is for messages, and relative paths start at its
/// folder.
pub fn check(
    path: &Path,
    text: &str,
    registry: &Registry,
    overrides: &Overrides,
    schemas: &InputSchemas<'_>,
) -> Result<Pipeline, Report> {
    let source = Source::new(text, &overrides.set);
    let mut strings = Strings::default();
    match file::read(path, &source, &mut strings, registry, overrides, schemas) {
        Ok(pipeline) => Ok(pipeline),
        Err(faults) => Err(Report::new(path, source, &strings, faults)),
    }
}
