//! The training that a stage continues, and what is different since.

use crate::continuation::{Earlier, STATE_FILE};
use crate::log::LogRow;
use crate::snapshot::CHECKPOINTS;
use datafusion::arrow::array::AsArray;
use datafusion::arrow::datatypes::{Float32Type, Int64Type, TimestampMicrosecondType};
use serde_json::{Value, json};
use std::path::PathBuf;
use twinlens_dataset::protocol::WORK;
use twinlens_dataset::reader::ShardReader;
use twinlens_dataset::{Dataset, MAIN};
use twinlens_model::weights::PREPROCESSING_FILE;
use twinlens_model::{CONFIG_FILE, TOKENIZER_FILE};
use twinlens_pipeline::hub::is_hub_name;
use twinlens_pipeline::run::fingerprint::difference;
use twinlens_pipeline::{ArtifactInput, InputData, Inputs, RunContext, RunError};

/// Options that say nothing about the steps.
const ASIDE: [&str; 4] = ["from", "optimizer", "evaluate", "weights"];
/// Options that say nothing about the steps while the learning rate is constant.
const LENGTH: [&str; 2] = ["steps", "epochs"];

/// The training that another one continues.
pub(super) struct Continued(Dataset);

impl Continued {
    /// Opens what `from` names.
    pub(super) fn open(from: &ArtifactInput, cx: &RunContext, inputs: &Inputs) -> Result<Self, RunError> {
        match from {
            ArtifactInput::Dataset(table) => Ok(Self(inputs.get(table).dataset.clone())),
            ArtifactInput::Step(..) => {
                let hint = "leave out `@step-...`: a training is continued from its last step";
                Err(RunError::user_with_hint("of an earlier step there are only weights", hint))
            }
            ArtifactInput::Folder(written) if is_hub_name(written) => {
                let name = written.value();
                Err(RunError::user(format!("{name} is not a training of this program to continue")))
            }
            ArtifactInput::Folder(written) => {
                Ok(Self(Dataset::open(cx.files.location(written.trim_end_matches('/'))?)?))
            }
        }
    }

    /// Its state.
    pub(super) fn state(&self) -> Result<Earlier, RunError> {
        let dataset = &self.0;
        let no_state = |why: &str| {
            let message = format!("`{}` cannot be continued: {why}", dataset.state().begin.stage);
            RunError::user_with_hint(message, "leave out `optimizer` to take only its weights")
        };
        if !dataset.state().complete {
            let checkpoints = dataset.dir().join(WORK).join(CHECKPOINTS);
            let earlier = if checkpoints.exists() { Earlier::unfinished(&checkpoints)? } else { None };
            return earlier.ok_or_else(|| no_state("it is unfinished, and has no checkpoint"));
        }
        if !dataset.state().files().any(|file| file.path == STATE_FILE) {
            return Err(no_state(&format!("it has no {STATE_FILE} (`keep_state`)")));
        }
        let mut earlier = Earlier::finished(&dataset.artifact(STATE_FILE)?)?;
        fill_times(&mut earlier.log, dataset)?;
        Ok(earlier)
    }

    /// What is different in a training with these options and pairs, in words.
    pub(super) fn change(&self, options: &Value, pairs: &[&InputData]) -> Option<String> {
        let recipe = &self.0.state().begin.recipe;
        let mut changes: Vec<String> = options_changed(&recipe["options"], options).into_iter().collect();
        for input in pairs {
            let before = recipe["inputs"][&input.name].as_str();
            if before.is_some_and(|before| !before.starts_with(&input.dataset.state().begin.fingerprint)) {
                changes.push(format!("input `{}` changed", input.name));
            }
        }
        Some(changes.join("; ")).filter(|text| !text.is_empty())
    }

    /// A directory that describes its model.
    pub(super) fn description(&self) -> Result<PathBuf, RunError> {
        let training = &self.0;
        if !training.state().complete {
            return Ok(training.dir().join(WORK).join(CHECKPOINTS));
        }
        for file in [CONFIG_FILE, PREPROCESSING_FILE, TOKENIZER_FILE] {
            training.artifact(file)?;
        }
        Ok(training.dir())
    }
}

/// How the options that determine steps differ.
fn options_changed(before: &Value, now: &Value) -> Option<String> {
    let is_constant = |options: &Value| options["schedule"] == "constant";
    let aside: Vec<&str> = if is_constant(before) && is_constant(now) {
        ASIDE.iter().chain(&LENGTH).copied().collect()
    } else {
        ASIDE.into()
    };
    let kept = |options: &Value| {
        let mut options = options.clone();
        if let Value::Object(entries) = &mut options {
            aside.iter().for_each(|name| drop(entries.remove(*name)));
        }
        json!({ "options": options })
    };
    let (before, now) = (kept(before), kept(now));
    (before != now).then(|| difference(&before, &now))
}

/// Takes the times of a log, which its state does not have, from the table of the log.
fn fill_times(log: &mut [LogRow], dataset: &Dataset) -> Result<(), RunError> {
    for batch in ShardReader::new(dataset, MAIN, &["step", "samples_per_second", "wall"], 8192) {
        let batch = batch?;
        let column = |name| batch.column_by_name(name);
        let (Some(steps), Some(speeds), Some(walls)) =
            (column("step"), column("samples_per_second"), column("wall"))
        else {
            continue;
        };
        let (steps, speeds) = (steps.as_primitive::<Int64Type>(), speeds.as_primitive::<Float32Type>());
        let walls = walls.as_primitive::<TimestampMicrosecondType>();
        for place in 0..batch.num_rows() {
            let index = usize::try_from(steps.value(place) - 1).unwrap_or(usize::MAX);
            if let Some(row) = log.get_mut(index) {
                row.samples_per_second = f64::from(speeds.value(place));
                row.wall = walls.value(place);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changes_steps_is_said() {
        let options = |lr: f64, steps: u64, schedule: &str| json!({ "lr": lr, "steps": steps, "schedule": schedule, "from": lr });
        let cases = [
            (options(0.1, 5, "constant"), options(0.1, 9, "constant"), None),
            (options(0.1, 5, "constant"), options(0.2, 9, "constant"), Some("option `lr`: 0.1 -> 0.2")),
            (options(0.1, 5, "cosine"), options(0.1, 9, "cosine"), Some("option `steps`: 5 -> 9")),
        ];
        for (before, now, expected) in cases {
            assert_eq!(options_changed(&before, &now).as_deref(), expected);
        }
    }
}
