//! The stage `zero-shot`: classification by class names that the model was not trained on.
//!
//! Sets that share an input are evaluated in one pass over it, so that each image is decoded and
//! encoded once. A set is one split; a killed evaluation resumes with the sets that are not
//! committed. A set that cannot be evaluated, or whose data are missing, is skipped with a warning.

mod check;
mod declared;
mod group;
mod job;
mod overlap;
mod select;
mod set_results;

use std::collections::BTreeSet;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use twinlens_dataset::contracts;
use twinlens_image::Limits;
use twinlens_model::{DeviceOption, Precision};
use twinlens_pipeline::{CheckContext, Fault, Input, InputTables, Located, Stage, StageKind, Tables, Work};

use crate::classify::set_inputs;
use crate::model;
use crate::options::limits_or_default;
use crate::prompts::PromptOptions;
use crate::results::{CALIBRATION, PER_CLASS, PREDICTIONS, WARNINGS};
use crate::set::{SetEntry, SetOptions};
use crate::sets::looked_at;
use crate::trust::Warning;

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

impl ZeroShot {
    fn described(&self) -> impl Iterator<Item = &SetOptions> {
        self.sets.iter().filter_map(|set| set.described())
    }

    fn limits(&self) -> Limits {
        limits_or_default(self.limits.as_ref())
    }
}

impl Stage for ZeroShot {
    fn inputs(&self) -> Vec<Input> {
        let described: Vec<&SetOptions> = self.described().collect();
        let model = (!self.model.is_path()).then(|| self.model.clone());
        let mut seen = BTreeSet::new();
        set_inputs(described.into_iter())
            .chain(model)
            .filter(|input| seen.insert(input.name().to_string()))
            .collect()
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
