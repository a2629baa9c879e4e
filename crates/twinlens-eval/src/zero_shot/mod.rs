//! The stage `zero-shot`: how well a model names what it was never trained to name.
//!
//! Sets that share an input are evaluated in one pass over it, so that each image is decoded and
//! encoded once whatever the number of sets and prompts; a set is one split, and a killed
//! evaluation goes on with the sets that are not committed. A set that cannot be evaluated, or
//! whose data are not there, is a warning and does not hold the others up.

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
use crate::images::limits_of;
use crate::model::{self, Model, input};
use crate::prompts::PromptOptions;
use crate::set::{SetEntry, SetOptions};
use crate::sets::looked_at;
use crate::trust::{SET_REFUSED, Warning};
use declared::{Prepared, Ready};
use pass::Pass;
pub use training::InTraining;

/// Classifies images by the nearest of their classes' names, put into prompts.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ZeroShot {
    /// A `train` stage, or the path of a folder (`./models/b32`) with config.json,
    /// model.safetensors and tokenizer.json, or a model of the Hugging Face hub
    /// (`hf://openai/clip-vit-base-patch32`).
    model: Input,
    /// The evaluation sets: names of declared ones (`"cifar10"`, `"./mine.toml"`), and tables that
    /// describe others.
    sets: Located<Vec<Located<SetEntry>>>,
    /// The folder with the data of declared sets: those of `cifar10` are looked for in
    /// `cifar10.parquet` and in the folder `cifar10`.
    #[serde(default)]
    data: Option<Located<String>>,
    /// Each is evaluated by itself: a template with `{}` or `{c}` where the class name goes;
    /// `ensemble` for the mean over a set of general templates (or the evaluation set's own); or a
    /// table `{ name, templates }`.
    #[serde(default = "default_prompts")]
    prompts: Located<Vec<Located<PromptOptions>>>,
    /// Images, or prompts, in one forward pass.
    #[serde(default = "default_batch_size")]
    batch_size: Located<usize>,
    /// Bounds on the images: what breaks them is rejected undecoded.
    #[serde(default)]
    limits: Option<Located<Limits>>,
    /// Where it computes: `cpu`, `cuda:0` (a build with `--features cuda`), or `auto`: the first
    /// GPU where there is one.
    #[serde(default, skip_serializing_if = "Located::is_default")]
    device: Located<DeviceOption>,
    /// What matrix products are computed in: `f32`, or on a GPU `bf16` or `f16`.
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
    /// The inputs of sets, then those of their classes, then the model where it is a stage: the
    /// ledger has the columns of the first.
    fn wiring(&self) -> Vec<Input> {
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

    /// The sets that are described in the pipeline file.
    fn described(&self) -> impl Iterator<Item = &SetOptions> {
        self.sets.iter().filter_map(|set| set.described())
    }

    fn limits(&self) -> Limits {
        limits_of(self.limits.as_ref())
    }
}

impl Stage for ZeroShot {
    fn inputs(&self) -> Vec<Input> {
        self.wiring()
    }

    fn files(&self) -> Vec<Located<String>> {
        model::files(&self.model)
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
    const ABOUT: &'static str = "Classifies the images of evaluation sets among class names put into prompts, and reports accuracies.";
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

/// A set on its way: its split, and what is asked of it.
struct Task {
    split: u64,
    options: SetOptions,
    /// Its files were read for this evaluation: what was refused then belongs to the results.
    declared: bool,
    /// Of the set as it was read.
    warnings: Vec<Warning>,
}

/// A set that is left out.
struct Skipped {
    split: u64,
    name: String,
    warning: Warning,
    hint: Option<String>,
}

/// Sets that are evaluated in one pass: they read the same column of the same input.
fn groups(tasks: Vec<Task>) -> Vec<Vec<Task>> {
    let mut groups: Vec<Vec<Task>> = Vec::new();
    for task in tasks {
        let same = |group: &&mut Vec<Task>| {
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
    /// The sets that are not committed, ready to be evaluated, and those that cannot be. Datasets
    /// of declared ones join `inputs`.
    async fn prepare(
        &self,
        cx: &RunContext,
        inputs: &mut Vec<InputData>,
        output: &Output,
    ) -> Result<(Vec<Task>, Vec<Skipped>), RunError> {
        let (mut tasks, mut skipped) = (Vec::new(), Vec::new());
        for (split, entry) in (0..).zip(self.sets.iter()).filter(|(split, _)| !output.is_done(*split)) {
            let name = match entry.value() {
                SetEntry::Described(set) => {
                    let (options, warnings) = (set.as_ref().clone(), Vec::new());
                    tasks.push(Task { split, options, declared: false, warnings });
                    continue;
                }
                SetEntry::Declared(name) => name,
            };
            let data = self.data.as_ref().map_or("", |data| data.value());
            let skip = |warning, hint| Skipped { split, name: name.clone(), warning, hint };
            match declared::prepare(cx, name, data, &self.limits(), output.work_dir()?).await {
                Ok(Prepared::Ready(ready)) => {
                    let Ready { options, input, warnings } = *ready;
                    inputs.push(input);
                    tasks.push(Task { split, options, declared: true, warnings });
                }
                Ok(Prepared::Missing(warning)) => skipped.push(skip(warning, None)),
                Err(error) => {
                    let (detail, hint) = refused(error)?;
                    skipped.push(skip(Warning { code: SET_REFUSED, detail, value: 0.0 }, hint));
                }
            }
        }
        Ok((tasks, skipped))
    }
}

/// What a set says that cannot be evaluated; other errors end the evaluation.
fn refused(error: RunError) -> Result<(String, Option<String>), RunError> {
    match error {
        RunError::User { message, hint } => Ok((message, hint)),
        other => Err(other),
    }
}

/// Records the sets that were left out, each as a split with a warning.
///
/// # Errors
/// None was evaluated: then nothing is recorded, and the first says why.
async fn record(cx: &RunContext, skipped: Vec<Skipped>, output: &mut Output) -> Result<(), RunError> {
    for set in &skipped {
        cx.progress.note(format!("set `{}` is skipped: {}", set.name, set.warning.detail));
    }
    if output.state().rows(twinlens_dataset::MAIN) == 0
        && let Some(first) = skipped.first()
    {
        let message = match first.warning.detail.contains(&format!("`{}`", first.name)) {
            true => first.warning.detail.clone(),
            false => format!("evaluation set `{}`: {}", first.name, first.warning.detail),
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
            // Hours of arithmetic do not belong on the threads that answer Ctrl-C.
            let work = tokio::task::spawn_blocking(move || {
                let results = Pass::new(&options, &cx, &all, &open, group, splits)?.run()?;
                Ok::<_, RunError>((open, results))
            });
            let (back, results) = work.await.map_err(|error| RunError::Internal(error.to_string()))??;
            model = Some(back);
            for (task, result) in results {
                match result {
                    Ok(mut split) => {
                        if task.declared {
                            declared::pass_on_rejects(input(&inputs, &task.options.input)?, &mut split)?;
                        }
                        output.commit(split).await?;
                    }
                    Err(error) => {
                        let (detail, hint) = refused(error.into())?;
                        let warning = Warning { code: SET_REFUSED, detail, value: 0.0 };
                        let name = task.options.name.value().clone();
                        skipped.push(Skipped { split: task.split, name, warning, hint });
                    }
                }
            }
        }
        record(cx, skipped, output).await?;
        // What was read of declared sets has served.
        let work = output.work_dir()?.join(declared::FOLDER);
        match std::fs::remove_dir_all(&work) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(RunError::io(&work, error)),
            _ => Ok(()),
        }
    }
}
