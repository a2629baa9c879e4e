//! Locations as the command line names them.

use std::path::Path;

use twinlens_dataset::storage::Location;
use twinlens_pipeline::config::Pipeline;

use crate::env;
use crate::errors::Failure;

/// The run directory: `dir`, or the default for the pipeline.
pub(crate) fn run_dir(dir: Option<&str>, pipeline: &Pipeline) -> Result<Location, Failure> {
    match dir {
        Some(dir) => parse_location(dir),
        None => Ok(Path::new("runs").join(&pipeline.name).into()),
    }
}

/// A path or URL of the command line.
pub(crate) fn parse_location(text: &str) -> Result<Location, Failure> {
    Ok(Location::parse(text, Path::new(""), &env::cache_dir())?)
}
