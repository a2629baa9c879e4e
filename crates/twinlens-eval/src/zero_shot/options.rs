//! The options of the stage `zero-shot`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use twinlens_image::Limits;
use twinlens_model::{DeviceOption, Precision};
use twinlens_pipeline::{Input, Located};

use crate::options::limits_or_default;
use crate::prompts::PromptOptions;
use crate::set::{SetEntry, SetOptions};

/// Classifies the images of evaluation sets by class names in prompts, and reports accuracies.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ZeroShot {
    /// A `train` stage, the path of a directory (`./models/b32`) with config.json,
    /// model.safetensors and tokenizer.json, or a model on the Hugging Face Hub
    /// (`hf://openai/clip-vit-base-patch32`).
    pub(super) model: Input,
    /// The evaluation sets: names of declared sets (`"cifar10"`, `"./mine.toml"`), paths of data
    /// without a declaration (`"./my-classes/"`, `"./pets.parquet"`), and tables that describe
    /// others.
    pub(super) sets: Located<Vec<Located<SetEntry>>>,
    /// The directory with the data of declared sets: those of `cifar10` are expected in
    /// `cifar10.parquet` or in the directory `cifar10`.
    #[serde(default)]
    pub(super) data: Option<Located<String>>,
    /// Prompt sets, each of which is evaluated separately: a template with `{}` or `{c}` for the
    /// class name; `ensemble` for the mean over general templates (or the evaluation set's own); or
    /// a table `{ name, templates }`.
    #[serde(default = "default_prompts")]
    pub(super) prompts: Located<Vec<Located<PromptOptions>>>,
    /// Images, or prompts, per forward pass.
    #[serde(default = "default_batch_size")]
    pub(super) batch_size: Located<usize>,
    /// Random images of each set that the table `examples` keeps as thumbnails, for the report: at
    /// most 1000.
    #[serde(default = "default_examples")]
    pub(super) examples: Located<usize>,
    /// Limits on the images: an image beyond them is rejected before it is decoded.
    #[serde(default)]
    pub(super) limits: Option<Located<Limits>>,
    /// Device: `cpu`, `cuda:0` (in a build with `--features cuda`), or `auto`, the first GPU if
    /// there is one.
    #[serde(default, skip_serializing_if = "Located::is_default")]
    pub(super) device: Located<DeviceOption>,
    /// Precision of matrix products: `f32`, or on a GPU `bf16` or `f16`.
    #[serde(default, skip_serializing_if = "Located::is_default")]
    pub(super) precision: Located<Precision>,
}

fn default_prompts() -> Located<Vec<Located<PromptOptions>>> {
    let all = ["{}", "a photo of a {}.", crate::prompts::ENSEMBLE];
    Located::without_span(all.map(|text| Located::without_span(PromptOptions::Text(text.into()))).to_vec())
}

fn default_examples() -> Located<usize> {
    Located::without_span(48)
}

fn default_batch_size() -> Located<usize> {
    Located::without_span(128)
}

impl ZeroShot {
    pub(super) fn described(&self) -> impl Iterator<Item = &SetOptions> {
        self.sets.iter().filter_map(|set| set.described())
    }

    pub(super) fn limits(&self) -> Limits {
        limits_or_default(self.limits.as_ref())
    }
}
