//! Pipeline files: from TOML to checked stages, without I/O except reading the file itself.
//!
//! The text is parsed into tables with source positions ([`source`]); `${name}` is replaced in
//! strings ([`vars`]); each stage's table becomes its options ([`stages`], [`options`]), once per
//! combination of swept values ([`sweep`], [`variants`]); names of inputs become edges, and the
//! stages are sorted ([`graph`]); each stage is planned with the schemas of its inputs, and the
//! tests are planned over all tables ([`tables`]). Errors are collected and reported together
//! ([`Report`]); follow-on errors are suppressed. A command may give values instead of a file
//! ([`values`]).

mod file;
mod graph;
mod inputs;
mod options;
mod pipeline;
mod report;
mod schema;
mod secrets;
mod source;
mod stages;
mod sweep;
mod tables;
#[cfg(test)]
mod tests;
mod values;
mod variants;
mod vars;

use std::io::Read;
use std::path::{Path, PathBuf};

pub use inputs::InputSchemas;
pub use pipeline::{Cluster, Expect, Node, NodeInput, Pipeline, Resolved, Test, Written};
pub use report::Report;
pub use schema::{OptionDoc, json_schema, options_doc};
pub use values::{Argument, PipelineValues, StageValues};
pub use vars::Overrides;

use crate::registry::Registry;
use file::Check;
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
    let set = overrides.set.iter().map(|argument| ("--set".to_string(), argument.clone()));
    let source = Source::new(path.display().to_string(), text, set);
    let mut strings = Strings::default();
    match (Check { source: &source, registry, schemas }).file(&mut strings, overrides) {
        Ok(checked) => {
            let base = path.parent().unwrap_or(Path::new("")).into();
            Ok(Pipeline { base, file: Some(path.into()), ..checked })
        }
        Err(faults) => Err(Report::new(source, &strings, faults)),
    }
}
