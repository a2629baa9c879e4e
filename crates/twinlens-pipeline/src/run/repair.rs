//! Finds damaged files in a run directory, so that the next run makes exactly their splits again.

use twinlens_dataset::storage::Location;
use twinlens_dataset::{Dataset, DatasetError, DatasetWriter, manifest};

use crate::config::Pipeline;
use crate::error::RunError;
use crate::run::directory::RunDirectory;

/// The damage of one dataset.
#[derive(Debug)]
pub struct Damage {
    /// The name of its folder.
    pub dataset: String,
    /// Its damaged splits.
    pub splits: Vec<u64>,
    /// What is wrong, one error a file.
    pub faults: Vec<DatasetError>,
}

/// Compares every file of every dataset with its manifest.
///
/// # Errors
/// A manifest that cannot be read, or a file that cannot be read at all.
pub fn find(dir: &Location) -> Result<Vec<Damage>, RunError> {
    let mut found = Vec::new();
    for folder in dir.list()?.folders {
        let location = dir.join(&folder);
        let Some(state) = manifest::read(&location)? else { continue };
        let damaged = Dataset::from_state(location, state).damaged_splits()?;
        if !damaged.is_empty() {
            let splits = damaged.keys().copied().collect();
            found.push(Damage { dataset: folder, splits, faults: damaged.into_values().flatten().collect() });
        }
    }
    Ok(found)
}

/// Takes back the damaged splits of all datasets of a pipeline's run directory.
///
/// # Errors
/// As [`find`]; and the directory is that of another pipeline, or another process works in it.
pub fn take_back(dir: &Location, pipeline: &Pipeline) -> Result<Vec<Damage>, RunError> {
    let _lock = RunDirectory::open(dir, &pipeline.name, &pipeline.secrets)?;
    let found = find(dir)?;
    for damage in &found {
        DatasetWriter::take_back(dir.join(&damage.dataset), damage.splits.clone())?;
    }
    Ok(found)
}
