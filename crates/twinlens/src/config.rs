//! Loading of pipeline files.

use std::path::Path;

use twinlens_pipeline::Registry;
use twinlens_pipeline::config::{self, InputSchemas, LoadError, Overrides, Pipeline};
use twinlens_pipeline::files::Files;

use crate::errors::Failure;
use crate::{env, hub, secrets};

/// As [`open`], for the text of a pipeline file; relative paths start at the folder of `path`.
pub(crate) fn open_text(
    path: &Path,
    text: &str,
    registry: &Registry,
    set: &[String],
) -> Result<Pipeline, Failure> {
    let overrides = Overrides { set: set.to_vec(), env: env::all() };
    let files = files(path);
    let pipeline = config::check(path, text, registry, &overrides, &InputSchemas::of(&files))
        .map_err(|report| Failure::report(Box::new(report)))?;
    secrets::learn(&pipeline.secrets);
    Ok(pipeline)
}

/// Reads and checks a pipeline file, and no other file; the error reports all faults.
pub(crate) fn load(path: &Path, registry: &Registry, set: &[String]) -> Result<Pipeline, Failure> {
    read(path, registry, set, &InputSchemas::none())
}

/// As [`load`], before a run: also opens the files that the pipeline names as inputs, and checks
/// their columns.
pub(crate) fn open(path: &Path, registry: &Registry, set: &[String]) -> Result<Pipeline, Failure> {
    read(path, registry, set, &InputSchemas::of(&files(path)))
}

/// The files that a pipeline file names.
fn files(path: &Path) -> Files {
    let base = path.parent().unwrap_or(Path::new("")).into();
    Files { base, scratch: env::cache_dir(), hub: hub::open() }
}

fn read(
    path: &Path,
    registry: &Registry,
    set: &[String],
    schemas: &InputSchemas<'_>,
) -> Result<Pipeline, Failure> {
    let overrides = Overrides { set: set.to_vec(), env: env::all() };
    let pipeline = config::load(path, registry, &overrides, schemas).map_err(|error| match error {
        LoadError::Invalid(report) => Failure::report(report),
        other => Failure::user(other.to_string()),
    })?;
    secrets::learn(&pipeline.secrets);
    Ok(pipeline)
}
