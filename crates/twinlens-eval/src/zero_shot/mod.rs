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

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use twinlens_dataset::contracts;
use twinlens_image::Limits;
use twinlens_model::{DeviceOption, Precision};
use twinlens_pipeline::{ArtifactInput, Input, Located, Ports, SortKey, StageKind, Work};

use crate::classify::set_inputs;
use crate::inputs::NamedInputs;
use crate::options::limits_or_default;
use crate::prompts::PromptOptions;
use crate::results::{CALIBRATION, PER_CLASS, PREDICTIONS, WARNINGS};
use crate::set::{SetEntry, SetOptions};
use crate::sets::data_paths;
use crate::trust::Warning;

/// Classifies the images of evaluation sets by class names in prompts, and reports accuracies.
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

impl StageKind for ZeroShot {
    type Options = Self;
    const NAME: &'static str = "zero-shot";
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

    fn plan(options: Self, ports: &mut Ports<'_>) -> Option<Work> {
        let described: Vec<&SetOptions> = options.described().collect();
        let inputs = NamedInputs::declare(ports, set_inputs(described.into_iter()));
        let model = ports.model(&options.model);
        if let Some(data) = &options.data {
            let declared = options.sets.iter().filter(|set| set.described().is_none());
            let files = declared.flat_map(|set| data_paths(set.name(), data));
            files.for_each(|file| ports.optional_file(file));
        }
        let faults = check::faults(&options, &inputs.schemas(ports));
        faults.into_iter().for_each(|fault| ports.fault(fault));
        ports.output(contracts::accuracy(), SortKey::AsGiven);
        ports.side_table(PER_CLASS, contracts::per_class());
        ports.side_table(PREDICTIONS, contracts::predictions());
        ports.side_table(CALIBRATION, contracts::calibration());
        ports.side_table(WARNINGS, contracts::warnings());
        ports.rejects(contracts::pair_texts());
        Some(Work::job(ZeroShotJob { options, inputs, model }))
    }
}

/// `zero-shot` as it runs.
struct ZeroShotJob {
    options: ZeroShot,
    inputs: NamedInputs,
    model: ArtifactInput,
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
