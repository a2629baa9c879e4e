//! Finds the weights of a training at some step, also while it runs.

use crate::checkpoint::{self, STEPS};
use crate::continuation::STATE_FILE;
use crate::error::{Result, TrainError};
use std::path::PathBuf;
use twinlens_dataset::Dataset;
use twinlens_dataset::protocol::WORK;
use twinlens_model::WEIGHTS_FILE;

/// The folder of checkpoints in a stage's work directory.
pub(crate) const CHECKPOINTS: &str = "checkpoints";
/// What the names of weights begin with that are kept during a training.
pub(crate) const KEPT: &str = "kept-";

/// The name of the file with the weights of a step, beside the model of a finished training.
pub(crate) fn kept_file(step: u64) -> String {
    format!("step-{step:010}.safetensors")
}

/// A file with weights of a training, whose directory describes the model: those of `step`, or else
/// the newest. Of a running training it may be deleted soon.
///
/// # Errors
/// `Options` if there is none, with the steps that there are. `Data` or `Io` for files.
pub fn weights_at(training: &Dataset, step: Option<u64>) -> Result<PathBuf> {
    let state = training.state();
    if state.complete {
        let file = step.map_or(WEIGHTS_FILE.into(), kept_file);
        if state.files().any(|recorded| recorded.path == file) {
            return Ok(training.artifact(&file)?);
        }
        let last = step.is_some_and(|step| state.rows(twinlens_dataset::MAIN) == step);
        if last && state.files().any(|recorded| recorded.path == STATE_FILE) {
            return Ok(training.artifact(STATE_FILE)?);
        }
        let kept = state.files().filter_map(|file| step_in(&file.path, "step-"));
        return Err(none(training, step, kept.collect()));
    }
    let folder = training.dir().join(WORK).join(CHECKPOINTS);
    let mut steps = Vec::new();
    if folder.exists() {
        for prefix in [KEPT, STEPS] {
            for file in checkpoint::files(&folder, prefix)?.into_iter().rev() {
                let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
                let Some(of) = step_in(&name, prefix) else { continue };
                let is_wanted = step.map_or(prefix == STEPS, |step| step == of);
                if is_wanted && checkpoint::read_sealed(&file).is_ok() {
                    return Ok(file);
                }
                steps.push(of);
            }
        }
    }
    Err(none(training, step, steps))
}

/// The step in the name of a file.
fn step_in(name: &str, prefix: &str) -> Option<u64> {
    name.strip_prefix(prefix)?.split(['-', '.']).next()?.parse().ok()
}

fn none(training: &Dataset, step: Option<u64>, mut steps: Vec<u64>) -> TrainError {
    steps.sort_unstable();
    steps.dedup();
    let steps: Vec<String> = steps.iter().map(u64::to_string).collect();
    let what = step.map_or("no weights yet".into(), |step| format!("no weights of step {step}"));
    let known = match &steps[..] {
        [] => "`keep_every` keeps those of some steps".into(),
        steps => format!("there are those of the steps {}", steps.join(", ")),
    };
    TrainError::Options(format!("{}: there are {what}; {known}", training.dir().display()))
}
