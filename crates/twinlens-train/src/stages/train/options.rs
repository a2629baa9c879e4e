//! The options of `train`.

use crate::data::{Captions, Columns};
use crate::optimizer::AdamWOptions;
use crate::options::{Batches, TrainOptions};
use crate::schedule::ScheduleKind;
use crate::stages::inputs::{Cache, Weighted};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use twinlens_image::Augment;
use twinlens_model::{ClipConfig, DeviceOption, Objective, Precision};
use twinlens_pipeline::evaluation::Never;
use twinlens_pipeline::suggest::did_you_mean;
use twinlens_pipeline::{Fault, Input, Located, RunContext, RunError};
use twinlens_ranks::Transport;

/// Trains a CLIP model on pairs. Writes `config.json`, `model.safetensors` (open_clip's names) and
/// `tokenizer.json`; its table is the log, one row per step.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "TrainOptions")]
pub struct TrainStageOptions<E = Never> {
    /// The pairs, with images: a stage, the path of a dataset or a Parquet file, a pattern of
    /// Parquet or tar files (`./cc12m/*.tar`), or `hf://datasets/org/name`. Either this or
    /// `inputs`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) input: Option<Input>,
    /// Several inputs, each with a weight.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) inputs: Vec<Weighted>,
    /// A `tokenizer` stage, a directory with a `tokenizer.json` (`./clip/`), or a model of the
    /// Hugging Face Hub (`hf://openai/clip-vit-base-patch32`). [default: that of `from`]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) tokenizer: Option<Input>,
    /// The model's shape: a preset (`vit-tiny-48`, `vit-b-32`, ...) or a table. The tokenizer
    /// decides the size of the vocabulary. [default: that of `from`]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) model: Option<Located<ModelOption>>,
    /// Training objective: `contrastive` (the paper's), `sigmoid` (SigLIP), or the baselines of the
    /// paper's figure 2, `bag_of_words` and `caption`. [default: that of the model's shape]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) objective: Option<Objective>,
    /// Number of epochs. Either this or `steps`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) epochs: Option<Located<f64>>,
    /// Number of steps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) steps: Option<Located<u64>>,
    /// The column of captions. For tar files, the JSON member to use if a sample has no text; if
    /// this option is set, it takes precedence over the text.
    #[serde(default = "caption")]
    pub(super) caption: Located<String>,
    /// Which caption is used where the column holds lists of texts: the `first`, or another one at
    /// `random` each time that a pair is seen; then the column is `captions` if sources kept lists
    /// there. The lines of a tar file's texts are such a list. [default: a list is an error]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) captions: Option<Captions>,
    /// The column of images: `struct<bytes, path>` (Hugging Face `Image`) or binary.
    #[serde(default = "image")]
    pub(super) image: Located<String>,
    /// Size of the shuffle window, in bytes of encoded images. Pieces of shards are read in random
    /// order, and pairs are shuffled within the window. Smaller data is shuffled as a whole.
    #[serde(default = "shuffle_bytes")]
    pub(super) shuffle_bytes: u64,
    /// Whether to cache decoded images in a file for later epochs. It only affects speed.
    #[serde(default, skip_serializing)]
    pub(super) cache: Cache,
    /// Whether to start training while the input stage is still running, on the shards committed so
    /// far. The first epoch then keeps the order of commits. Needs `steps`.
    #[serde(default = "follow")]
    pub(super) follow: Located<bool>,
    /// Pairs per step; the other captions of the batch are the negatives.
    #[serde(default = "batch_size")]
    pub(super) batch_size: Located<usize>,
    /// The highest learning rate.
    #[serde(default = "lr")]
    pub(super) lr: Located<f64>,
    /// How the learning rate goes on after the warm-up: along a `cosine` down to 0, or `constant`.
    #[serde(default, skip_serializing_if = "is_cosine")]
    pub(super) schedule: ScheduleKind,
    /// Steps of linear warm-up to `lr`. [default: 100, but at most half of the steps]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) warmup: Option<Located<u64>>,
    /// Decoupled weight decay, except for gains, biases and the temperature.
    #[serde(default = "weight_decay")]
    pub(super) weight_decay: Located<f64>,
    /// Decay of Adam's first moment.
    #[serde(default = "beta1")]
    pub(super) beta1: Located<f64>,
    /// Decay of Adam's second moment.
    #[serde(default = "beta2")]
    pub(super) beta2: Located<f64>,
    /// Added to the square root of Adam's second moment.
    #[serde(default = "eps")]
    pub(super) eps: Located<f64>,
    /// Maximum global norm of the gradients; 0 disables clipping.
    #[serde(default = "clip_grad_norm")]
    pub(super) clip_grad_norm: Located<f64>,
    /// Minimum fraction of the image's area in the random square crop; 1 disables random crops.
    #[serde(default = "random_crop")]
    pub(super) random_crop: Located<f64>,
    /// Further augmentation, for small data: `{ rotate = 10, hue = 0.1, ... }`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) augment: Option<Located<Augment>>,
    /// Steps between checkpoints. A killed run repeats at most this many steps. It changes no
    /// result.
    #[serde(default = "checkpoint_every", skip_serializing)]
    pub(super) checkpoint_every: Located<u64>,
    /// Number of checkpoints to keep during training. It changes no result.
    #[serde(default = "keep_checkpoints", skip_serializing)]
    #[schemars(range(min = 1))]
    pub(super) keep_checkpoints: usize,
    /// Device: `cpu`, `cuda:0` (needs a build with `--features cuda`), or `auto` for the first GPU
    /// if there is one.
    #[serde(default, skip_serializing_if = "Located::is_default")]
    pub(super) device: Located<DeviceOption>,
    /// Precision of matrix products: `f32`, or on a GPU `bf16` or `f16`. Weights and losses are
    /// f32.
    #[serde(default, skip_serializing_if = "Located::is_default")]
    pub(super) precision: Located<Precision>,
    /// Pairs per forward pass, if a whole batch does not fit in memory. The loss still compares all
    /// pairs of the batch, at the cost of a second forward pass; the batch norms of a ResNet see
    /// one micro-batch at a time. [default: the whole batch]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) micro_batch: Option<Located<usize>>,
    /// Ranks, each with a replica of the model and an equal part of each batch: a number of threads
    /// of this process, or processes that a launcher started and that meet by `tcp` or `mpi` (then
    /// their number changes sums by rounding alone). `--ranks` takes precedence. [default: 1]
    #[serde(skip_serializing_if = "RanksOption::are_processes")]
    pub(super) ranks: Option<Located<RanksOption>>,
    /// Whether each rank keeps a part of the optimiser's moments alone (ZeRO, stage 1), and sends
    /// the weights that it updates to the others: of n ranks each needs 8 / n bytes a parameter
    /// for them instead of 8, and sends half as much again. It changes no result.
    #[serde(default, skip_serializing)]
    pub(super) shard_optimizer: bool,
    /// Gradient checkpointing: keep only the inputs of transformer blocks and recompute the rest in
    /// the backward pass. Needs less memory and more time. No effect on a ResNet or on a GPU.
    /// [default: false]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) recompute: Option<bool>,
    /// The highest learning rate of the image tower. [default: `lr`]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) image_lr: Option<Located<f64>>,
    /// The highest learning rate of the text tower. [default: `lr`]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) text_lr: Option<Located<f64>>,
    /// The weights to start from: a `train` stage, an earlier generation of one (`clip@1`), a
    /// directory written by this program, Hugging Face or open_clip (`./models/b32`), or a model of
    /// the Hugging Face Hub (`hf://openai/clip-vit-base-patch32`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) from: Option<Input>,
    /// Whether to continue the training in `from`, with its moments, step, place in the data and
    /// log. `steps` and `epochs` count its steps, too. `from = "clip@1"` in the stage `clip` itself
    /// is its own training so far.
    #[serde(default, skip_serializing_if = "is_false")]
    pub(super) optimizer: Located<bool>,
    /// The parts of `from` to use: the towers `visual` and `text`, or the start of a variable's
    /// name up to a dot. [default: everything]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) from_parts: Option<Located<Vec<Located<String>>>>,
    /// Parts to freeze, named as in `from_parts`. `freeze = ["visual"]` with `from` is LiT.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) freeze: Option<Located<Vec<Located<String>>>>,
    /// Decay of an exponential moving average of the weights (such as 0.999). The average is then
    /// the model that is evaluated and written; `last.safetensors` has the weights of the last
    /// step. [default: no average]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) ema: Option<Located<f64>>,
    /// Steps between weights to keep beside the model, as `step-0000000500.safetensors`.
    /// [default: none]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) keep_every: Option<Located<u64>>,
    /// Whether to keep `state.safetensors` beside the model, three times as large, with which the
    /// training can be continued. It changes no other result.
    #[serde(default = "keep_state", skip_serializing)]
    pub(super) keep_state: bool,
    /// Which weights to use: of the last step, or of the best step by the first metric of
    /// `evaluate` (without `evaluate`: by the mean loss of each 100 steps). [default: last]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) weights: Option<Weights>,
    /// Evaluation during training. Its results are the side table `evaluations`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) evaluate: Option<E>,
}

/// Which weights a training leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Weights {
    /// Those of the last step.
    Last,
    /// Those of the best step.
    Best,
}

/// Threads, or processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(untagged)]
pub(crate) enum RanksOption {
    /// So many threads.
    Count(usize),
    /// What they are.
    Kind(RanksKind),
}

/// What ranks are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum RanksKind {
    /// Threads: one, unless a number is given instead.
    Threads,
    /// Processes, connected by TCP.
    Tcp,
    /// Processes, connected by MPI.
    Mpi,
}

impl RanksOption {
    /// Whether the option gives no number: only a number belongs to the recipe, so that a training
    /// may resume with more or fewer processes.
    fn are_processes(option: &Option<Located<Self>>) -> bool {
        !matches!(option.as_deref(), Some(Self::Count(_)))
    }

    pub(super) fn count(self) -> Option<usize> {
        if let Self::Count(count) = self { Some(count) } else { None }
    }

    pub(super) fn transport(self) -> Option<Transport> {
        match self {
            Self::Count(_) => None,
            Self::Kind(RanksKind::Threads) => Some(Transport::Threads),
            Self::Kind(RanksKind::Tcp) => Some(Transport::Tcp),
            Self::Kind(RanksKind::Mpi) => Some(Transport::Mpi),
        }
    }
}

/// A preset or a shape.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(untagged)]
pub(crate) enum ModelOption {
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
fn weight_decay() -> Located<f64> {
    Located::without_span(0.2)
}
fn beta1() -> Located<f64> {
    Located::without_span(0.9)
}
fn beta2() -> Located<f64> {
    Located::without_span(0.98)
}
fn eps() -> Located<f64> {
    Located::without_span(1e-6)
}
fn clip_grad_norm() -> Located<f64> {
    Located::without_span(1.0)
}
fn random_crop() -> Located<f64> {
    Located::without_span(0.9)
}
fn checkpoint_every() -> Located<u64> {
    Located::without_span(250)
}
fn keep_state() -> bool {
    true
}
fn is_cosine(schedule: &ScheduleKind) -> bool {
    *schedule == ScheduleKind::Cosine
}
fn is_false(flag: &Located<bool>) -> bool {
    !**flag
}
fn keep_checkpoints() -> usize {
    2
}

/// Steps of warm-up, if training is long enough.
const WARMUP: u64 = 100;

/// Maximum bytes of prefetched batches, even if the run allows more.
const PREFETCH_BYTES: usize = 64 << 20;

impl<E> TrainStageOptions<E> {
    /// The columns of pairs.
    pub(super) fn columns(&self) -> Columns {
        Columns {
            caption: self.caption.to_string(),
            image: self.image.to_string(),
            captions: self.captions,
            caption_is_explicit: !self.caption.span().is_empty(),
        }
    }

    /// The model's shape, checked; `None` if it is that of `from`, which is opened later. The size
    /// of the vocabulary is not known yet.
    pub(super) fn config(&self) -> Result<Option<ClipConfig>, Fault> {
        let Some(model) = &self.model else { return Ok(None) };
        let mut config = match model.value() {
            ModelOption::Preset(name) => ClipConfig::preset(name).map_err(|error| {
                let fault = Fault::at(model.span(), error.to_string());
                did_you_mean(name, ClipConfig::presets()).into_iter().fold(fault, Fault::hint)
            })?,
            ModelOption::Shape(config) => {
                // The tokenizer, which decides the vocabulary, is not known yet.
                let mut config = config.clone();
                config.text.vocab = config.text.vocab.max(1);
                config
            }
        };
        config.objective = self.objective.unwrap_or(config.objective);
        config.check().map_err(|error| Fault::at(model.span(), error.to_string()))?;
        Ok(Some(config))
    }

    /// The inputs of pairs with their weights.
    pub(super) fn pairs(&self) -> Vec<(Input, f64)> {
        let one = self.input.iter().map(|input| (input.clone(), 1.0));
        one.chain(self.inputs.iter().map(|several| (several.input.clone(), *several.weight))).collect()
    }

    /// The number of ranks, if it is given.
    pub(super) fn rank_count(&self) -> Option<usize> {
        self.ranks.as_ref().and_then(|ranks| ranks.count())
    }

    /// `earlier` are the steps of the training that is continued; `evaluate_every` is the number of
    /// steps between evaluations.
    ///
    /// # Errors
    /// User error: the warm-up is longer than the training.
    pub(super) fn train_options(
        &self,
        cx: &RunContext,
        pairs: u64,
        earlier: Vec<Batches>,
        evaluate_every: Option<u64>,
    ) -> Result<TrainOptions, RunError> {
        let per_epoch = pairs as f64 / *self.batch_size as f64;
        let steps = match (&self.steps, &self.epochs) {
            (Some(steps), _) => **steps,
            (None, epochs) => (epochs.as_ref().map_or(1.0, |e| **e) * per_epoch).ceil().max(1.0) as u64,
        };
        let warmup = match &self.warmup {
            None => WARMUP.min(steps / 2),
            Some(warmup) if **warmup <= steps => **warmup,
            Some(warmup) => {
                let message = format!("`warmup` is {} steps, but the training has only {steps}", **warmup);
                let hint = "lower `warmup`, or train for more epochs";
                return Err(RunError::user_with_hint(message, hint));
            }
        };
        let made: u64 = earlier.iter().map(|batches| batches.steps).sum();
        if !earlier.is_empty() && made >= steps {
            let message =
                format!("the training to continue has made {made} steps, and this one ends after {steps}");
            return Err(RunError::user_with_hint(
                message,
                "`steps` and `epochs` count its steps, too: raise them",
            ));
        }
        let rate = |own: &Option<Located<f64>>| own.as_ref().map_or(1.0, |own| **own / *self.lr);
        Ok(TrainOptions {
            steps,
            earlier,
            schedule: self.schedule,
            keep_state: self.keep_state,
            batch_size: *self.batch_size,
            micro_batch: self.micro_batch.as_ref().map(|count| **count),
            ranks: self.rank_count().unwrap_or(1),
            shard_optimizer: self.shard_optimizer,
            lr: *self.lr,
            warmup,
            adamw: AdamWOptions {
                beta1: *self.beta1,
                beta2: *self.beta2,
                eps: *self.eps,
                weight_decay: *self.weight_decay,
                clip_grad_norm: Some(*self.clip_grad_norm).filter(|norm| *norm > 0.0),
                image_rate: rate(&self.image_lr),
                text_rate: rate(&self.text_lr),
            },
            ema: self.ema.as_ref().map(|decay| **decay),
            checkpoint_every: *self.checkpoint_every,
            keep_every: self.keep_every.as_ref().map(|every| **every),
            keep_best: self.weights == Some(Weights::Best),
            evaluate_every,
            seed: cx.seed_for("order"),
            crop_min_area: (*self.random_crop < 1.0).then_some(*self.random_crop),
            augment: self.augment.as_ref().map(|augment| augment.value().clone()),
            prefetch_bytes: cx.bytes_in_flight.min(PREFETCH_BYTES),
        })
    }
}
