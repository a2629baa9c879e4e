//! Weights of a training at some step as the directory of a model, also while the training runs.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};

use twinlens_dataset::Dataset;
use twinlens_dataset::manifest;
use twinlens_dataset::storage::Location;
use twinlens_model::{Clip, TOKENIZER_FILE};
use twinlens_pipeline::RunError;
use twinlens_pipeline::hub::is_hub_name;
use twinlens_train::weights_at;

use crate::env;
use crate::errors::Failure;

/// A copy of a checkpoint, which the training may delete soon; deleted at the end.
pub(crate) struct Checkpoint {
    /// The directory of the model.
    pub folder: PathBuf,
    /// What is deleted.
    parent: PathBuf,
}

impl Checkpoint {
    /// The checkpoint that `--weights` names: `runs/mine/clip@step-500`, or the newest of the
    /// unfinished training `runs/mine/clip`. `None` for anything else.
    pub(crate) fn of(weights: &str) -> Result<Option<Self>, Failure> {
        if is_hub_name(weights) {
            return Ok(None);
        }
        let written = weights.trim_end_matches('/');
        let (training, step) = match written.rsplit_once("@step-") {
            Some((training, step)) if !Path::new(written).exists() => match step.parse() {
                Ok(step) => (training, Some(step)),
                Err(_) => return Ok(None),
            },
            _ => (written, None),
        };
        let location = Location::from(Path::new(training));
        let is_unfinished = manifest::read(&location)?.is_some_and(|state| !state.complete);
        if step.is_none() && !is_unfinished {
            return Ok(None);
        }
        let dataset = Dataset::open(location)?;
        let file = weights_at(&dataset, step).map_err(RunError::from)?;
        // With `@` it would again name a step of a training.
        let name = Path::new(written).file_name().unwrap_or_default().to_string_lossy().replace('@', "-");
        Ok(Some(Self::copy(&file, &name)?))
    }

    fn copy(file: &Path, name: &str) -> Result<Self, Failure> {
        let place = file.canonicalize().map_err(|error| Failure::io(file, error))?;
        // The same name for the same file: a killed evaluation resumes.
        let mut hasher = DefaultHasher::new();
        place.hash(&mut hasher);
        let parent = env::cache_dir().join("checkpoints").join(format!("{:016x}", hasher.finish()));
        let copy = Self { folder: parent.join(name), parent };
        std::fs::create_dir_all(&copy.folder).map_err(|error| Failure::io(&copy.folder, error))?;
        let failed = |error: twinlens_model::ModelError| Failure::user(error.to_string());
        Clip::load(file).map_err(failed)?.save(&copy.folder).map_err(failed)?;
        let beside = file.with_file_name(TOKENIZER_FILE);
        std::fs::copy(&beside, copy.folder.join(TOKENIZER_FILE))
            .map_err(|error| Failure::io(beside, error))?;
        Ok(copy)
    }
}

impl Drop for Checkpoint {
    fn drop(&mut self) {
        // What stays is in the cache folder, and the same call uses it again.
        let _ = std::fs::remove_dir_all(&self.parent);
    }
}
