//! Loading of pipeline files.

use std::path::Path;

use twinlens_pipeline::Registry;
use twinlens_pipeline::config::{self, InputSchemas, LoadError, Overrides, Pipeline};
use twinlens_pipeline::files::Files;

use crate::errors::Failure;
use crate::text::Paint;
use crate::{env, hub, secrets};

/// Reads and checks a pipeline file, and no other file; the error reports all faults.
pub(crate) fn load(path: &Path, registry: &Registry, set: &[String]) -> Result<Pipeline, Failure> {
    read(path, registry, set, &InputSchemas::none())
}

/// As [`load`], before a run: also opens the files that the pipeline names as inputs, and checks
/// their columns.
pub(crate) fn open(path: &Path, registry: &Registry, set: &[String]) -> Result<Pipeline, Failure> {
    let base = path.parent().unwrap_or(Path::new("")).into();
    let files = Files { base, scratch: env::cache_dir(), hub: hub::open() };
    read(path, registry, set, &InputSchemas::of(&files))
}

fn read(
    path: &Path,
    registry: &Registry,
    set: &[String],
    schemas: &InputSchemas<'_>,
) -> Result<Pipeline, Failure> {
    let overrides = Overrides { set: set.to_vec(), env: env::all() };
    let pipeline = config::load(path, registry, &overrides, schemas).map_err(|error| match error {
        LoadError::Invalid(report) => Failure::report(report.render(Paint::stderr().is_on())),
        other => Failure::user(other.to_string()),
    })?;
    secrets::learn(&pipeline.secrets);
    Ok(pipeline)
}
