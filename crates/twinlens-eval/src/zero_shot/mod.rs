//! The stage `zero-shot`: classification by class names that the model was not trained on.
//!
//! Sets that share an input are evaluated in one pass over it, so that each image is decoded and
//! encoded once. A set is one split; a killed evaluation resumes with the sets that are not
//! committed. A set that cannot be evaluated, or whose data are missing, is skipped with a warning.

mod check;
mod declared;
mod overlap;
mod pass;
pub(crate) mod rows;
mod select;
mod set_pass;
pub(crate) mod tables;
mod training;
mod variant;

use std::collections::BTreeSet;

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use twinlens_dataset::{SplitWriter, contracts};
use twinlens_image::Limits;
use twinlens_model::{DeviceOption, Precision};
use twinlens_pipeline::{
    CheckContext, Fault, Input, InputData, InputTables, Job, Located, Output, RunContext, RunError, Stage,
    StageKind, Tables, Work,
};

use crate::error::EvalError;
use crate::images::limits_or_default;
use crate::model::{self, Model, input};
use crate::prompts::PromptOptions;
use crate::set::{SetEntry, SetOptions};
use crate::sets::looked_at;
use crate::trust::{SET_REFUSED, Warning};
use declared::{ConvertedSet, DeclaredSet};
use pass::Pass;
pub use training::InTrainingEvaluation;

/// Classifies images by the class name whose prompts are most similar.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ZeroShot {
    /// A `train` stage, the path of a directory (`./models/b32`) with config.json,
    /// model.safetensors and tokenizer.json, or a model on the Hugging Face Hub
    /// (`hf://openai/clip-vit-base-patch32`).
    model: Input,
    /// The evaluation sets: names of declared sets (`"cifar10"`, `"./mine.toml"`), and tables that
    /// describe others.
    sets: Located<Vec<Located<SetEntry>>>,
    /// The directory with the data of declared sets: those of `cifar10` are expected in
    /// `cifar10.parquet` or in the directory `cifar10`.
    #[serde(default)]
    data: Option<Located<String>>,
    /// Prompt sets, each of which is evaluated separately: a template with `{}` or `{c}` for the
    /// class name; `ensemble` for the mean over general templates (or the evaluation set's own); or
    /// a table `{ name, templates }`.
    #[serde(default = "default_prompts")]
    prompts: Located<Vec<Located<PromptOptions>>>,
    /// Images, or prompts, per forward pass.
    #[serde(default = "default_batch_size")]
    batch_size: Located<usize>,
    /// Limits on the images: an image beyond them is rejected before it is decoded.
    #[serde(default)]
    limits: Option<Located<Limits>>,
    /// Device: `cpu`, `cuda:0` (in a build with `--features cuda`), or `auto`, the first GPU if
    /// there is one.
    #[serde(default, skip_serializing_if = "Located::is_default")]
    device: Located<DeviceOption>,
    /// Precision of matrix products: `f32`, or on a GPU `bf16` or `f16`.
    #[serde(default, skip_serializing_if = "Located::is_default")]
    precision: Located<Precision>,
}

fn default_prompts() -> Located<Vec<Located<PromptOptions>>> {
    let all = ["{}", "a photo of a {}.", crate::prompts::ENSEMBLE];
    Located::without_span(all.map(|text| Located::without_span(PromptOptions::Text(text.into()))).to_vec())
}

fn default_batch_size() -> Located<usize> {
    Located::without_span(128)
}

const PER_CLASS: &str = "per_class";
const PREDICTIONS: &str = "predictions";
const CALIBRATION: &str = "calibration";
const WARNINGS: &str = "warnings";

impl ZeroShot {
    /// The inputs of the sets first, since the ledger has the columns of the first input.
    fn input_options(&self) -> Vec<Input> {
        let examples = self.described().map(|set| set.input.clone());
        let classes = self.described().filter_map(SetOptions::classes_input);
        let training = self.described().filter_map(|set| set.overlap_with.clone());
        let model = (!self.model.is_path()).then(|| self.model.clone());
        let mut seen = BTreeSet::new();
        examples
            .chain(classes)
            .chain(training)
            .chain(model)
            .filter(|input| seen.insert(input.name().to_string()))
            .collect()
    }

    fn described(&self) -> impl Iterator<Item = &SetOptions> {
        self.sets.iter().filter_map(|set| set.described())
    }

    fn limits(&self) -> Limits {
        limits_or_default(self.limits.as_ref())
    }
}

impl Stage for ZeroShot {
    fn inputs(&self) -> Vec<Input> {
        self.input_options()
    }

    fn files(&self) -> Vec<Located<String>> {
        model::model_files(&self.model)
    }

    fn may_read(&self) -> Vec<String> {
        let Some(data) = &self.data else { return Vec::new() };
        let declared = self.sets.iter().filter(|set| set.described().is_none());
        declared.flat_map(|set| looked_at(set.name(), data)).collect()
    }

    fn side_tables(&self) -> &'static [&'static str] {
        &[PER_CLASS, PREDICTIONS, CALIBRATION, WARNINGS]
    }

    fn tables(&self, _: &CheckContext, inputs: &[InputTables]) -> Result<Tables, Vec<Fault>> {
        let faults = check::faults(self, inputs);
        if !faults.is_empty() {
            return Err(faults);
        }
        let tables = Tables::main(contracts::accuracy());
        let tables =
            tables.with(PER_CLASS, contracts::per_class()).with(PREDICTIONS, contracts::predictions());
        Ok(tables.with(CALIBRATION, contracts::calibration()).with(WARNINGS, contracts::warnings()))
    }

    fn work(&self) -> Work<'_> {
        Work::Job(self)
    }
}

impl StageKind for ZeroShot {
    const KIND: &'static str = "zero-shot";
    const ABOUT: &'static str =
        "Classifies the images of evaluation sets by class names in prompts, and reports accuracies.";
    const EXAMPLE: &'static str = r#"[stages.zero_shot]
kind = "zero-shot"
model = "clip"
data = "sets"
sets = [
    "cifar10",
    { name = "groups", input = "held_out", label = "group", main_metric = "mean_per_class" },
    { name = "digits", input = "digits/test.parquet", label = "label", templates = ["a photo of the number: \"{}\"."] },
]
prompts = ["{}", "a photo of a {}.", "ensemble"]
"#;
    const VERSION: u32 = 3;
}

/// A set to evaluate.
struct SetTask {
    split: u64,
    options: SetOptions,
    /// It was converted for this evaluation: the rejects of the conversion belong to the results.
    declared: bool,
    /// From the conversion.
    warnings: Vec<Warning>,
}

struct SkippedSet {
    split: u64,
    name: String,
    warning: Warning,
    hint: Option<String>,
}

/// Groups sets that read the same column of the same input, to evaluate each group in one pass.
fn groups(tasks: Vec<SetTask>) -> Vec<Vec<SetTask>> {
    let mut groups: Vec<Vec<SetTask>> = Vec::new();
    for task in tasks {
        let same = |group: &&mut Vec<SetTask>| {
            let first = &group[0].options;
            first.input.name() == task.options.input.name()
                && first.image_column() == task.options.image_column()
        };
        match groups.iter_mut().find(same) {
            Some(group) => group.push(task),
            None => groups.push(vec![task]),
        }
    }
    groups
}

impl ZeroShot {
    /// The sets that are not committed yet: those to evaluate, and those to skip. Adds the datasets
    /// of declared sets to `inputs`.
    async fn prepare(
        &self,
        cx: &RunContext,
        inputs: &mut Vec<InputData>,
        output: &Output,
    ) -> Result<(Vec<SetTask>, Vec<SkippedSet>), RunError> {
        let (mut tasks, mut skipped) = (Vec::new(), Vec::new());
        for (split, entry) in (0..).zip(self.sets.iter()).filter(|(split, _)| !output.is_done(*split)) {
            let name = match entry.value() {
                SetEntry::Described(set) => {
                    let (options, warnings) = (set.as_ref().clone(), Vec::new());
                    tasks.push(SetTask { split, options, declared: false, warnings });
                    continue;
                }
                SetEntry::Declared(name) => name,
            };
            let data = self.data.as_ref().map_or("", |data| data.value());
            let skip = |warning, hint| SkippedSet { split, name: name.clone(), warning, hint };
            match declared::prepare(cx, name, data, &self.limits(), output.work_dir()?).await {
                Ok(DeclaredSet::Ready(set)) => {
                    let ConvertedSet { options, input, warnings } = *set;
                    inputs.push(input);
                    tasks.push(SetTask { split, options, declared: true, warnings });
                }
                Ok(DeclaredSet::Missing(warning)) => skipped.push(skip(warning, None)),
                Err(error) => {
                    let (detail, hint) = user_error(error)?;
                    skipped.push(skip(Warning { code: SET_REFUSED, detail, value: 0.0 }, hint));
                }
            }
        }
        Ok((tasks, skipped))
    }
}

/// Message and hint of a user error, which skips a set; other errors stop the evaluation.
fn user_error(error: RunError) -> Result<(String, Option<String>), RunError> {
    match error {
        RunError::User { message, hint } => Ok((message, hint)),
        other => Err(other),
    }
}

/// Commits skipped sets, each as a split with a warning.
///
/// # Errors
/// No set was evaluated: nothing is committed, and the error is that of the first set.
async fn record_skipped(
    cx: &RunContext,
    skipped: Vec<SkippedSet>,
    output: &mut Output,
) -> Result<(), RunError> {
    for set in &skipped {
        cx.progress.note(format!("set `{}` is skipped: {}", set.name, set.warning.detail));
    }
    if output.state().rows(twinlens_dataset::MAIN) == 0
        && let Some(first) = skipped.first()
    {
        let message = if first.warning.detail.contains(&format!("`{}`", first.name)) {
            first.warning.detail.clone()
        } else {
            format!("evaluation set `{}`: {}", first.name, first.warning.detail)
        };
        return Err(RunError::User { message, hint: first.hint.clone() });
    }
    for set in skipped {
        let mut split = output.split(set.split, &set.name);
        split
            .write(WARNINGS, &tables::warnings(&set.name, None, &[set.warning]).map_err(EvalError::from)?)?;
        output.commit(split).await?;
    }
    Ok(())
}

#[async_trait]
impl Job for ZeroShot {
    async fn run(&self, cx: &RunContext, inputs: &[InputData], output: &mut Output) -> Result<(), RunError> {
        let mut inputs = inputs.to_vec();
        let (tasks, mut skipped) = self.prepare(cx, &mut inputs, output).await?;
        let mut rows = 0;
        for task in &tasks {
            rows += input(&inputs, &task.options.input)?.rows();
        }
        cx.progress.total(rows);
        let mut model = None;
        for group in groups(tasks) {
            let open = match model.take() {
                Some(model) => model,
                None => Model::open(&self.model, (*self.device, *self.precision), cx, &inputs).await?,
            };
            let splits: Vec<SplitWriter> =
                group.iter().map(|task| output.split(task.split, task.options.name.value())).collect();
            let (options, cx, all) = (self.clone(), cx.clone(), inputs.clone());
            // Hours of computation must not block the threads that handle Ctrl-C.
            let work = twinlens_pipeline::blocking(move || {
                let results = Pass::new(&options, &cx, &all, &open, group, splits)?.run()?;
                Ok::<_, RunError>((open, results))
            });
            let (open, results) = work.await??;
            model = Some(open);
            for (task, result) in results {
                match result {
                    Ok(mut split) => {
                        if task.declared {
                            declared::copy_rejects(input(&inputs, &task.options.input)?, &mut split)?;
                        }
                        output.commit(split).await?;
                    }
                    Err(error) => {
                        let (detail, hint) = user_error(error.into())?;
                        let warning = Warning { code: SET_REFUSED, detail, value: 0.0 };
                        let name = task.options.name.value().clone();
                        skipped.push(SkippedSet { split: task.split, name, warning, hint });
                    }
                }
            }
        }
        record_skipped(cx, skipped, output).await?;
        let work = output.work_dir()?.join(declared::FOLDER);
        match std::fs::remove_dir_all(&work) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(RunError::io(&work, error)),
            _ => Ok(()),
        }
    }
}
