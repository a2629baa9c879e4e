//! `train`: a CLIP model out of pairs.

mod faults;
mod run;

use super::inputs::{Cache, Weighted};
use super::{blocking, inputs};
use crate::optimizer::AdamWOptions;
use crate::trainer::TrainOptions;
use async_trait::async_trait;
use run::Run;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use twinlens_dataset::contracts;
use twinlens_image::Augment;
use twinlens_model::{Clip, ClipConfig, DeviceOption, Objective, Precision, TOKENIZER_FILE};
use twinlens_pipeline::evaluation::{Evaluation, Never};
use twinlens_pipeline::hub::is_hub_name;
use twinlens_pipeline::suggest::did_you_mean;
use twinlens_pipeline::{
    CheckContext, Fault, Input, InputData, InputTables, Job, Located, Output, RunContext, RunError, Stage,
    StageKind, Tables, Work,
};

/// Trains a CLIP model on pairs. Leaves `config.json`, `model.safetensors` (open_clip's names) and
/// `tokenizer.json`; its table is the log, a row a step.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Train")]
pub struct Train<E = Never> {
    /// The pairs, with images: a stage, the path of a dataset or of a Parquet file, or a pattern of
    /// Parquet or tar files (`./cc12m/*.tar`), or `hf://datasets/org/name`. Either this or
    /// `inputs`.
    #[serde(skip_serializing_if = "Option::is_none")]
    input: Option<Input>,
    /// Several of them, each with a weight.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    inputs: Vec<Weighted>,
    /// The stage that made the tokenizer; or a folder that holds a `tokenizer.json` (`./clip/`), or
    /// a model of the Hugging Face hub (`hf://openai/clip-vit-base-patch32`).
    tokenizer: Input,
    /// The model's shape: the name of a preset (`vit-tiny-48`, `vit-b-32`, ...) or a table. The
    /// vocabulary's size is the tokenizer's.
    model: Located<ModelOption>,
    /// What is optimised, where it is not what the model's shape says: `contrastive` (the paper's
    /// choice), `sigmoid` (SigLIP), or what the paper's figure 2 compares with: `bag_of_words` and
    /// `caption`.
    #[serde(skip_serializing_if = "Option::is_none")]
    objective: Option<Objective>,
    /// How often each pair is seen. Either this or `steps`.
    #[serde(skip_serializing_if = "Option::is_none")]
    epochs: Option<Located<f64>>,
    /// How many steps are made.
    #[serde(skip_serializing_if = "Option::is_none")]
    steps: Option<Located<u64>>,
    /// The column of captions; of tar files, the member of the JSON that holds the caption where
    /// there is no text, or before it where this option is given.
    #[serde(default = "caption")]
    caption: Located<String>,
    /// The column of images: `struct<bytes, path>`, as the Hugging Face `Image`, or binary.
    #[serde(default = "image")]
    image: Located<String>,
    /// Bytes of encoded images that are shuffled among each other: whole pieces of shards come in a
    /// random order, and so many bytes of them are mixed. What is smaller is shuffled as a whole.
    #[serde(default = "shuffle_bytes")]
    shuffle_bytes: u64,
    /// Whether decoded images are kept in a file for the next time they are seen. It changes the
    /// time that training takes, and nothing else.
    #[serde(default)]
    cache: Cache,
    /// Whether training begins while the stage before it still runs, on the shards that it has
    /// committed. The first epoch is then in the order of the commits. Needs `steps`.
    #[serde(default = "follow")]
    follow: Located<bool>,
    /// Pairs of a step. Each image is told from all other captions of its batch: larger is harder
    /// and better.
    #[serde(default = "batch_size")]
    batch_size: Located<usize>,
    /// The highest learning rate.
    #[serde(default = "lr")]
    lr: Located<f64>,
    /// Steps over which the learning rate rises to `lr`, before it falls along a cosine.
    #[serde(default = "warmup")]
    warmup: u64,
    /// Decoupled weight decay, on all but gains, biases and the temperature.
    #[serde(default = "weight_decay")]
    weight_decay: f64,
    /// Decay of Adam's first moment.
    #[serde(default = "beta1")]
    beta1: f64,
    /// Decay of Adam's second moment.
    #[serde(default = "beta2")]
    beta2: f64,
    /// Added to the root of Adam's second moment.
    #[serde(default = "eps")]
    eps: f64,
    /// Gradients are scaled down to this global norm; 0 leaves them.
    #[serde(default = "clip_grad_norm")]
    clip_grad_norm: f64,
    /// Each time an image is seen, a random square of at least this part of its area is cut out and
    /// resized; 1 sees images whole.
    #[serde(default = "random_crop")]
    random_crop: Located<f64>,
    /// Further random changes to each look at an image, for small data: `{ rotate = 10, hue = 0.1,
    /// ... }`.
    #[serde(skip_serializing_if = "Option::is_none")]
    augment: Option<Located<Augment>>,
    /// Steps between checkpoints: what a killed run does again.
    #[serde(default = "checkpoint_every")]
    checkpoint_every: u64,
    /// Checkpoints that are kept while training.
    #[serde(default = "keep_checkpoints")]
    keep_checkpoints: usize,
    /// Where it computes: `cpu`, `cuda:0` (a build with `--features cuda`), or `auto`: the first
    /// GPU where there is one.
    #[serde(default, skip_serializing_if = "Located::is_default")]
    device: Located<DeviceOption>,
    /// What matrix products are computed in: `f32`, or on a GPU `bf16` or `f16`. Weights and losses
    /// are f32.
    #[serde(default, skip_serializing_if = "Located::is_default")]
    precision: Located<Precision>,
    /// Pairs of a forward pass, where a whole batch does not fit in memory. All pairs of the batch
    /// are compared all the same, for one more forward pass; a ResNet's batch norms see one
    /// micro-batch at a time. [default: the whole batch]
    #[serde(skip_serializing_if = "Option::is_none")]
    micro_batch: Option<Located<usize>>,
    /// Threads that each hold a replica of the model and take an equal part of each batch.
    /// [default: 1]
    #[serde(skip_serializing_if = "Option::is_none")]
    ranks: Option<Located<usize>>,
    /// Keep the input alone of each transformer block, and compute the rest again on the way back:
    /// less memory for more time. A ResNet, and whatever runs on a GPU, keeps all. [default: false]
    #[serde(skip_serializing_if = "Option::is_none")]
    recompute: Option<bool>,
    /// The highest learning rate of the image tower, where it is another than `lr`.
    #[serde(skip_serializing_if = "Option::is_none")]
    image_lr: Option<Located<f64>>,
    /// The highest learning rate of the text tower, where it is another than `lr`.
    #[serde(skip_serializing_if = "Option::is_none")]
    text_lr: Option<Located<f64>>,
    /// The weights to start from: a `train` stage, or the path of a folder (`./models/b32`) as this
    /// program, Hugging Face or open_clip writes it, or a model of the Hugging Face hub
    /// (`hf://openai/clip-vit-base-patch32`).
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<Input>,
    /// What of `from` is taken: `visual` and `text` are the towers, anything else is a variable's
    /// name up to a dot. [default: everything]
    #[serde(skip_serializing_if = "Option::is_none")]
    from_parts: Option<Located<Vec<Located<String>>>>,
    /// What is not trained, named as in `from_parts`: `freeze = ["visual"]` with `from` is LiT.
    #[serde(skip_serializing_if = "Option::is_none")]
    freeze: Option<Located<Vec<Located<String>>>>,
    /// How slowly a running mean of the weights forgets (0.999, say). With it, the mean is the
    /// model that is evaluated and left; the weights of the last step lie beside it in
    /// `last.safetensors`. [default: no mean]
    #[serde(skip_serializing_if = "Option::is_none")]
    ema: Option<Located<f64>>,
    /// Steps between weights that are left beside the model, as `step-0000000500.safetensors`.
    /// [default: none are]
    #[serde(skip_serializing_if = "Option::is_none")]
    keep_every: Option<Located<u64>>,
    /// Which weights are the model: of the last step, or of the best by the first metric of
    /// `evaluate`, or without it by the mean loss of 100 steps, looked at with each checkpoint.
    /// [default: last]
    #[serde(skip_serializing_if = "Option::is_none")]
    weights: Option<Weights>,
    /// Evaluation while training: its results are the side table `evaluations`.
    #[serde(skip_serializing_if = "Option::is_none")]
    evaluate: Option<E>,
}

/// Which weights a training leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Weights {
    /// Those of the last step.
    Last,
    /// Those of the best step.
    Best,
}

/// The side table of what was measured on the way.
const EVALUATIONS: &str = "evaluations";

/// A preset's name, or the shape itself.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum ModelOption {
    /// The name of a preset.
    Preset(String),
    /// The shape.
    Shape(ClipConfig),
}

fn caption() -> Located<String> {
    Located::without_span("caption".into())
}
fn image() -> Located<String> {
    Located::without_span("image".into())
}
fn follow() -> Located<bool> {
    Located::without_span(false)
}
fn shuffle_bytes() -> u64 {
    256 << 20
}
fn batch_size() -> Located<usize> {
    Located::without_span(128)
}
fn lr() -> Located<f64> {
    Located::without_span(1e-3)
}
fn warmup() -> u64 {
    100
}
fn weight_decay() -> f64 {
    0.2
}
fn beta1() -> f64 {
    0.9
}
fn beta2() -> f64 {
    0.98
}
fn eps() -> f64 {
    1e-6
}
fn clip_grad_norm() -> f64 {
    1.0
}
fn random_crop() -> Located<f64> {
    Located::without_span(0.9)
}
fn checkpoint_every() -> u64 {
    250
}
fn keep_checkpoints() -> usize {
    2
}

/// Batches made ahead take at most this many bytes, also where the run allows more.
const PREFETCH_BYTES: usize = 64 << 20;

impl<E: Evaluation<Clip>> Train<E> {
    fn config(&self) -> Result<ClipConfig, Fault> {
        let mut config = match self.model.value() {
            ModelOption::Preset(name) => ClipConfig::preset(name).map_err(|error| {
                let fault = Fault::at(self.model.span(), error.to_string());
                did_you_mean(name, ClipConfig::presets()).into_iter().fold(fault, Fault::hint)
            })?,
            ModelOption::Shape(config) => {
                // Its vocabulary is the tokenizer's, which is not known yet.
                let mut config = config.clone();
                config.text.vocab = config.text.vocab.max(1);
                config
            }
        };
        config.objective = self.objective.unwrap_or(config.objective);
        config.check().map_err(|error| Fault::at(self.model.span(), error.to_string()))?;
        Ok(config)
    }

    /// What holds a tokenizer or a model: a stage, or a folder here or on the hub.
    fn models(&self) -> impl Iterator<Item = &Input> {
        [&self.tokenizer].into_iter().chain(&self.from)
    }

    /// The inputs, each with its weight.
    fn pairs(&self) -> Vec<(Input, f64)> {
        let one = self.input.iter().map(|input| (input.clone(), 1.0));
        one.chain(self.inputs.iter().map(|several| (several.input.clone(), *several.weight))).collect()
    }

    fn options(&self, cx: &RunContext, pairs: u64) -> TrainOptions {
        let per_epoch = pairs as f64 / *self.batch_size as f64;
        let steps = match (&self.steps, &self.epochs) {
            (Some(steps), _) => **steps,
            (None, epochs) => (epochs.as_ref().map_or(1.0, |e| **e) * per_epoch).ceil().max(1.0) as u64,
        };
        let rate = |own: &Option<Located<f64>>| own.as_ref().map_or(1.0, |own| **own / *self.lr);
        TrainOptions {
            steps,
            batch_size: *self.batch_size,
            micro_batch: self.micro_batch.as_ref().map(|count| **count),
            ranks: self.ranks.as_ref().map_or(1, |count| **count),
            lr: *self.lr,
            warmup: self.warmup.min(steps / 2),
            adamw: AdamWOptions {
                beta1: self.beta1,
                beta2: self.beta2,
                eps: self.eps,
                weight_decay: self.weight_decay,
                clip_grad_norm: (self.clip_grad_norm > 0.0).then_some(self.clip_grad_norm),
                image_rate: rate(&self.image_lr),
                text_rate: rate(&self.text_lr),
            },
            ema: self.ema.as_ref().map(|decay| **decay),
            checkpoint_every: self.checkpoint_every,
            keep_every: self.keep_every.as_ref().map(|every| **every),
            keep_best: self.weights == Some(Weights::Best),
            evaluate_every: self.evaluate.as_ref().map(Evaluation::every),
            seed: cx.seed_for("order"),
            crop_min_area: (*self.random_crop < 1.0).then_some(*self.random_crop),
            augment: self.augment.as_ref().map(|augment| augment.value().clone()),
            prefetch_bytes: cx.bytes_in_flight.min(PREFETCH_BYTES),
        }
    }
}

impl<E: Evaluation<Clip>> StageKind for Train<E> {
    const KIND: &'static str = "train";
    const ABOUT: &'static str = "Trains a CLIP model on image-text pairs";
    const EXAMPLE: &'static str = r#"[stages.clip]
kind = "train"
input = "images"
tokenizer = "words"
model = "vit-tiny-64"
epochs = 20
"#;
    const VERSION: u32 = 2;
}

impl<E: Evaluation<Clip>> Stage for Train<E> {
    fn inputs(&self) -> Vec<Input> {
        let pairs = self.pairs().into_iter().map(|(input, _)| input).filter(|input| !inputs::is_files(input));
        let models = self.models().filter(|model| !inputs::is_folder(model)).cloned();
        let evaluated = self.evaluate.iter().flat_map(Evaluation::inputs);
        let mut seen = BTreeSet::new();
        let all = pairs.chain(models).chain(evaluated);
        all.filter(|input| seen.insert(input.name().to_owned())).collect()
    }

    fn files(&self) -> Vec<Located<String>> {
        let files = self.pairs().into_iter().map(|(input, _)| input.0);
        let files = files.filter(|name| inputs::is_files(&Input(name.clone())));
        let folder = |input: &Input, of_it: &str| {
            let name = format!("{}/{of_it}", input.name().trim_end_matches('/'));
            inputs::is_folder(input).then(|| Located::new(name, input.0.span()))
        };
        let models =
            [folder(&self.tokenizer, TOKENIZER_FILE), self.from.as_ref().and_then(|from| folder(from, ""))];
        // What a name of the hub means does not change while it is in the cache.
        files.chain(models.into_iter().flatten()).filter(|name| !is_hub_name(name)).collect()
    }

    fn follows(&self) -> bool {
        *self.follow
    }

    fn side_tables(&self) -> &'static [&'static str] {
        if self.evaluate.is_some() { &[EVALUATIONS] } else { &[] }
    }

    fn tables(&self, _: &CheckContext, inputs: &[InputTables]) -> Result<Tables, Vec<Fault>> {
        let faults = self.faults(inputs);
        if !faults.is_empty() {
            return Err(faults);
        }
        let width = self.config().map_err(|fault| vec![fault])?.embed;
        let tables = Tables::main(contracts::with_embed_width(contracts::train_log(), width));
        Ok(match self.evaluate {
            Some(_) => tables.with(EVALUATIONS, contracts::evaluations()),
            None => tables,
        })
    }

    fn work(&self) -> Work<'_> {
        Work::Job(self)
    }
}

#[async_trait]
impl<E: Evaluation<Clip>> Job for Train<E> {
    async fn run(&self, cx: &RunContext, inputs: &[InputData], output: &mut Output) -> Result<(), RunError> {
        let work = output.work_dir()?;
        if !output.is_done(0) {
            let run = Run {
                stage: self.clone(),
                config: self.config().map_err(|fault| RunError::Internal(fault.message))?,
                cx: cx.clone(),
                inputs: inputs.to_vec(),
                work: work.clone(),
            };
            let split = output.split(0, "model and log");
            let split = blocking(move || run.run(split)).await?;
            output.commit(split).await?;
        }
        // Checkpoints and decoded images have served.
        std::fs::remove_dir_all(&work).map_err(|error| RunError::io(work, error))
    }
}
