//! Loading of pipeline files.

use std::path::Path;

use twinlens_pipeline::Registry;
use twinlens_pipeline::config::{self, LoadError, Overrides, Pipeline};

use crate::env;
use crate::errors::Failure;
use crate::text::Paint;

/// Reads and checks a pipeline file; the error reports all faults.
pub fn load(path: &Path, registry: &Registry, set: &[String]) -> Result<Pipeline, Failure> {
    let overrides = Overrides { set: set.to_vec(), env: env::all() };
    config::load(path, registry, &overrides).map_err(|error| match error {
        LoadError::Invalid(report) => Failure::report(report.render(Paint::stderr().is_on())),
        other => Failure::user(other.to_string()),
    })
}
