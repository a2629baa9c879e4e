//! `train`: a CLIP model out of pairs.

use super::inputs::{Cache, Weighted};
use super::{blocking, engine, inputs, model_error, train_error};
use crate::checkpoint::Checkpoints;
use crate::data::{Columns, Data, DataOptions};
use crate::log::LogRow;
use crate::optimizer::AdamWOptions;
use crate::trainer::{Outcome, TrainOptions, train};
use async_trait::async_trait;
use datafusion::arrow::array::{
    ArrayRef, Float32Array, Float64Array, Int64Array, RecordBatch, TimestampMicrosecondArray,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use twinlens_dataset::{MAIN, SplitWriter, contracts};
use twinlens_image::Augment;
use twinlens_model::{
    CONFIG_FILE, Clip, ClipConfig, DeviceOption, Objective, Precision, TOKENIZER_FILE, Tokenizer,
    WEIGHTS_FILE,
};
use twinlens_pipeline::hub::is_hub;
use twinlens_pipeline::run::events::Event;
use twinlens_pipeline::run::output::write_rejects;
use twinlens_pipeline::suggest::did_you_mean;
use twinlens_pipeline::{
    CheckContext, Fault, Input, InputData, InputTables, Job, Located, Output, RunContext, RunError, Stage,
    StageKind, Tables, Work,
};

/// Trains a CLIP model on pairs. Leaves `config.json`, `model.safetensors` (open_clip's names) and
/// `tokenizer.json`; its table is the log, a row a step.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Train {
    /// The pairs, with images: a stage, the path of a dataset or of a Parquet file, or a pattern of Parquet or tar files
    /// (`./cc12m/*.tar`), or `hf://datasets/org/name`. Either this or `inputs`.
    #[serde(skip_serializing_if = "Option::is_none")]
    input: Option<Input>,
    /// Several of them, each with a weight.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    inputs: Vec<Weighted>,
    /// The stage that made the tokenizer; or a folder that holds a `tokenizer.json` (`./clip/`), or a model of the Hugging Face hub
    /// (`hf://openai/clip-vit-base-patch32`).
    tokenizer: Input,
    /// The model's shape: the name of a preset (`vit-tiny-48`, `vit-b-32`, ...) or a table. The vocabulary's size is the
    /// tokenizer's.
    model: Located<ModelOption>,
    /// What is optimised, where it is not what the model's shape says: `contrastive` (the paper's choice), `sigmoid` (SigLIP), or what the
    /// paper's figure 2 compares with: `bag_of_words` and `caption`.
    #[serde(skip_serializing_if = "Option::is_none")]
    objective: Option<Objective>,
    /// How often each pair is seen. Either this or `steps`.
    #[serde(skip_serializing_if = "Option::is_none")]
    epochs: Option<Located<f64>>,
    /// How many steps are made.
    #[serde(skip_serializing_if = "Option::is_none")]
    steps: Option<Located<u64>>,
    /// The column of captions; of tar files, the member of the JSON that holds the caption where there is no text, or before it
    /// where this option is given.
    #[serde(default = "caption")]
    caption: Located<String>,
    /// The column of images: `struct<bytes, path>`, as the Hugging Face `Image`, or binary.
    #[serde(default = "image")]
    image: Located<String>,
    /// Bytes of encoded images that are shuffled among each other: whole pieces of shards come in a random order, and so many
    /// bytes of them are mixed. What is smaller is shuffled as a whole.
    #[serde(default = "shuffle_bytes")]
    shuffle_bytes: u64,
    /// Whether decoded images are kept in a file for the next time they are seen. It changes the time that training takes, and nothing
    /// else.
    #[serde(default)]
    cache: Cache,
    /// Whether training begins while the stage before it still runs, on the shards that it has committed. The first epoch is
    /// then in the order of the commits. Needs `steps`.
    #[serde(default = "follow")]
    follow: Located<bool>,
    /// Pairs of a step. Each image is told from all other captions of its batch: larger is harder and better.
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
    /// Each time an image is seen, a random square of at least this part of its area is cut out and resized; 1 sees
    /// images whole.
    #[serde(default = "random_crop")]
    random_crop: Located<f64>,
    /// Further random changes to each look at an image, for small data: `{ rotate = 10, hue = 0.1, ... }`.
    #[serde(skip_serializing_if = "Option::is_none")]
    augment: Option<Located<Augment>>,
    /// Steps between checkpoints: what a killed run does again.
    #[serde(default = "checkpoint_every")]
    checkpoint_every: u64,
    /// Checkpoints that are kept while training.
    #[serde(default = "keep_checkpoints")]
    keep_checkpoints: usize,
    /// Where it computes: `cpu`, `cuda:0` (a build with `--features cuda`), or `auto`: the first GPU where there is one.
    #[serde(default, skip_serializing_if = "Located::is_default")]
    device: Located<DeviceOption>,
    /// What matrix products are computed in: `f32`, or on a GPU `bf16` or `f16`. Weights and losses are f32.
    #[serde(default, skip_serializing_if = "Located::is_default")]
    precision: Located<Precision>,
}

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
    Located::nowhere("caption".into())
}
fn image() -> Located<String> {
    Located::nowhere("image".into())
}
fn follow() -> Located<bool> {
    Located::nowhere(false)
}
fn shuffle_bytes() -> u64 {
    256 << 20
}
fn batch_size() -> Located<usize> {
    Located::nowhere(128)
}
fn lr() -> Located<f64> {
    Located::nowhere(1e-3)
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
    Located::nowhere(0.9)
}
fn checkpoint_every() -> u64 {
    250
}
fn keep_checkpoints() -> usize {
    2
}

/// Batches made ahead take at most this many bytes, also where the run allows more.
const PREFETCH_BYTES: usize = 64 << 20;

impl Train {
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

    fn number_faults(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        let mut expect = |holds: bool, span: std::ops::Range<usize>, what: &str, label: &str| {
            if !holds {
                faults.push(Fault::at(span, what.to_owned()).label(label));
            }
        };
        match (&self.epochs, &self.steps) {
            (None, None) => expect(false, self.place(), "neither `epochs` nor `steps` is given", "how long?"),
            (Some(_), Some(steps)) => {
                expect(false, steps.span(), "`epochs` and `steps` are both given", "one of them")
            }
            (Some(epochs), None) => {
                let holds = epochs.value().is_finite() && **epochs > 0.0;
                expect(holds, epochs.span(), "`epochs` is no positive number", "more than 0");
            }
            (None, Some(steps)) => expect(**steps > 0, steps.span(), "`steps` is 0", "at least 1"),
        }
        match (&self.input, &self.inputs[..]) {
            (None, []) => expect(
                false,
                self.tokenizer.0.span(),
                "neither `input` nor `inputs` is given",
                "train on what?",
            ),
            (Some(input), [_, ..]) => {
                expect(false, input.0.span(), "`input` and `inputs` are both given", "one of them")
            }
            _ => {}
        }
        for Weighted { weight, .. } in &self.inputs {
            let holds = weight.is_finite() && **weight > 0.0;
            expect(holds, weight.span(), "`weight` is no positive number", "1 for each pair once an epoch");
        }
        if *self.follow {
            let stage =
                self.input.as_ref().is_some_and(|input| input.stage().is_some() && !inputs::is_files(input));
            expect(stage, self.follow.span(), "only one stage can be followed", "`input` is to name it");
            let label = "how many pairs there will be is not known when the training begins";
            expect(self.steps.is_some(), self.follow.span(), "`follow` needs `steps`", label);
        }
        expect(
            *self.batch_size >= 2,
            self.batch_size.span(),
            "a batch of one pair teaches nothing",
            "at least 2",
        );
        let lr = *self.lr;
        expect(lr > 0.0 && lr.is_finite(), self.lr.span(), "`lr` is no positive number", "for instance 1e-3");
        let crop = *self.random_crop;
        expect(
            crop > 0.0 && crop <= 1.0,
            self.random_crop.span(),
            "`random_crop` is a part of the area",
            "0.9, say",
        );
        if let Some(augment) = &self.augment
            && let Err(error) = augment.check()
        {
            faults.push(Fault::at(augment.span(), error.to_string()));
        }
        faults
    }

    /// The tokenizer's among all inputs, where it is one, and the pairs'.
    fn apart<'a, T>(&self, inputs: &'a [T]) -> (Option<&'a T>, &'a [T]) {
        match inputs.split_last() {
            Some((tokenizer, pairs)) if !inputs::is_folder(&self.tokenizer) => (Some(tokenizer), pairs),
            _ => (None, inputs),
        }
    }

    /// The tokenizer in a folder.
    async fn tokenizer_file(&self, cx: &RunContext) -> Result<PathBuf, RunError> {
        let (files, name) = (cx.files.clone(), self.tokenizer.name().to_owned());
        blocking(move || Ok(files.model(&name, &[&[TOKENIZER_FILE]])?.join(TOKENIZER_FILE))).await
    }

    /// Where a fault about all of it points: its first input.
    fn place(&self) -> std::ops::Range<usize> {
        self.pairs().first().map_or(self.tokenizer.0.span(), |(input, _)| input.0.span())
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
        TrainOptions {
            steps,
            batch_size: *self.batch_size,
            lr: *self.lr,
            warmup: self.warmup.min(steps / 2),
            adamw: AdamWOptions {
                beta1: self.beta1,
                beta2: self.beta2,
                eps: self.eps,
                weight_decay: self.weight_decay,
                clip_grad_norm: (self.clip_grad_norm > 0.0).then_some(self.clip_grad_norm),
            },
            checkpoint_every: self.checkpoint_every,
            seed: cx.seed_for("order"),
            crop_min_area: self.crop(),
            augment: self.augment.as_ref().map(|augment| augment.value().clone()),
            prefetch_bytes: cx.bytes_in_flight.min(PREFETCH_BYTES),
        }
    }

    fn crop(&self) -> Option<f64> {
        (*self.random_crop < 1.0).then_some(*self.random_crop)
    }
}

impl StageKind for Train {
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

impl Stage for Train {
    fn inputs(&self) -> Vec<Input> {
        let pairs = self.pairs().into_iter().map(|(input, _)| input).filter(|input| !inputs::is_files(input));
        pairs.chain((!inputs::is_folder(&self.tokenizer)).then(|| self.tokenizer.clone())).collect()
    }

    fn files(&self) -> Vec<Located<String>> {
        let files = self.pairs().into_iter().map(|(input, _)| input).filter(inputs::is_files);
        // What a name of the hub means does not change while it is in the cache.
        let folder = Some(&self.tokenizer)
            .filter(|tokenizer| inputs::is_folder(tokenizer) && !is_hub(tokenizer.name()));
        let tokenizer = folder.map(|folder| {
            let file = format!("{}/{TOKENIZER_FILE}", folder.name().trim_end_matches('/'));
            Located::new(file, folder.0.span())
        });
        files.map(|input| input.0).filter(|name| !is_hub(name)).chain(tokenizer).collect()
    }

    fn follows(&self) -> bool {
        *self.follow
    }

    fn tables(&self, _: &CheckContext, inputs: &[InputTables]) -> Result<Tables, Vec<Fault>> {
        let mut faults = self.number_faults();
        faults.extend(self.config().err());
        if let Err(error) = self.device.check(*self.precision) {
            let at = if self.device.is_default() { self.precision.span() } else { self.device.span() };
            faults.push(Fault::at(at, error.to_string()));
        }
        let (tokenizer, pairs) = self.apart(inputs);
        faults.extend(pairs.iter().flat_map(|tables| inputs::faults(tables, &self.caption, &self.image)));
        if let Some(kind) = tokenizer.and_then(|input| input.kind).filter(|kind| *kind != "tokenizer") {
            let fault = Fault::at(self.tokenizer.0.span(), format!("this is a `{kind}` stage"));
            faults.push(fault.label("expected a `tokenizer` stage"));
        }
        if faults.is_empty() { Ok(Tables::main(contracts::train_log())) } else { Err(faults) }
    }

    fn work(&self) -> Work<'_> {
        Work::Job(self)
    }
}

/// The log as a batch of the contract `train_log`.
fn log_batch(log: &[LogRow]) -> Result<RecordBatch, RunError> {
    let ints = |f: fn(&LogRow) -> u64| -> ArrayRef {
        Arc::new(Int64Array::from_iter_values(log.iter().map(|r| f(r) as i64)))
    };
    let floats = |f: fn(&LogRow) -> f64| -> ArrayRef {
        Arc::new(Float32Array::from_iter_values(log.iter().map(|r| f(r) as f32)))
    };
    let wall = TimestampMicrosecondArray::from_iter_values(log.iter().map(|r| r.wall)).with_timezone("UTC");
    let columns: Vec<ArrayRef> = vec![
        ints(|r| r.step),
        ints(|r| r.samples_seen),
        Arc::new(Float64Array::from_iter_values(log.iter().map(|r| r.epoch))),
        floats(|r| r.loss),
        floats(|r| r.lr),
        floats(|r| r.logit_scale),
        floats(|r| r.grad_norm),
        floats(|r| r.samples_per_second),
        Arc::new(wall),
    ];
    RecordBatch::try_new(contracts::train_log(), columns).map_err(engine)
}

/// One training, on a thread of its own.
struct Run {
    stage: Train,
    config: ClipConfig,
    cx: RunContext,
    pairs: Vec<InputData>,
    tokenizer: PathBuf,
    work: PathBuf,
}

impl Run {
    /// Trains, from the newest checkpoint on, and fills the split.
    fn run(mut self, mut split: SplitWriter) -> Result<SplitWriter, RunError> {
        let tokenizer = Tokenizer::load(&self.tokenizer).map_err(model_error)?;
        self.config.text.vocab = tokenizer.vocab_size();
        let data = self.data(&tokenizer)?;
        let options = self.stage.options(&self.cx, data.pairs());
        let device = self.stage.device.open(*self.stage.precision).map_err(model_error)?;
        let clip = Clip::new(self.config.clone(), self.cx.seed_for("weights"))
            .and_then(|clip| clip.on(&device, *self.stage.precision))
            .map_err(model_error)?;
        let run = self.identity(&options, &tokenizer)?;
        let checkpoints = self.work.join("checkpoints");
        let checkpoints =
            Checkpoints::new(&checkpoints, run, self.stage.keep_checkpoints).map_err(train_error)?;

        let cx = &self.cx;
        cx.progress.total(options.steps);
        let mut counted = 0;
        let mut observe = |row: &LogRow| {
            cx.progress.done(row.step - counted);
            counted = row.step;
            cx.progress.event(Event::TrainStep {
                stage: cx.stage.clone(),
                step: row.step,
                steps: options.steps,
                loss: row.loss as f32,
                lr: row.lr as f32,
                samples_per_second: row.samples_per_second as f32,
            });
            if cx.cancel.is_cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let now = || cx.clock.micros();
        let outcome = train(&clip, &data, &options, &checkpoints, &now, &mut observe).map_err(train_error)?;
        let Outcome::Finished(log) = outcome else { return Err(RunError::Interrupted) };
        split.write(MAIN, &log_batch(&log)?)?;
        data.write_refused(&cx.stage, |rows| write_rejects(&mut split, rows))?;
        self.write_model(&clip, &tokenizer, &mut split)?;
        Ok(split)
    }

    fn data(&self, tokenizer: &Tokenizer) -> Result<Data, RunError> {
        let (stage, cx) = (&self.stage, &self.cx);
        let columns = Columns {
            caption: stage.caption.to_string(),
            image: stage.image.to_string(),
            named: !stage.caption.span().is_empty(),
        };
        let inputs = inputs::places(cx, &stage.pairs(), &self.pairs, *stage.follow, &columns)?;
        let options = DataOptions {
            shuffle_bytes: stage.shuffle_bytes,
            decode_bytes: cx.bytes_in_flight,
            threads: cx.session.copied_config().target_partitions(),
            cache_bytes: stage.cache.bytes(),
        };
        let (context, work) = (self.config.text.context, self.work.join("data"));
        let data = Data::open(inputs, tokenizer, context, *stage.batch_size, options, &work, &cx.cancel);
        data.map_err(train_error)
    }

    /// What a checkpoint belongs to. The work folder goes with the stage's fingerprint, which covers options and inputs;
    /// this catches a folder that was moved.
    fn identity(&self, options: &TrainOptions, tokenizer: &Tokenizer) -> Result<String, RunError> {
        let tokenizer = tokenizer.hash().map_err(model_error)?;
        let shuffled = self.stage.shuffle_bytes;
        let identity = format!("{options:?}/{shuffled}/{:?}/{tokenizer}", self.config);
        Ok(Sha256::digest(identity).iter().map(|byte| format!("{byte:02x}")).collect())
    }

    fn write_model(
        &self,
        clip: &Clip,
        tokenizer: &Tokenizer,
        split: &mut SplitWriter,
    ) -> Result<(), RunError> {
        let folder = self.work.join("model");
        std::fs::create_dir_all(&folder).map_err(|error| RunError::io(&folder, error))?;
        clip.save(&folder).map_err(model_error)?;
        tokenizer.save(&folder.join(TOKENIZER_FILE)).map_err(model_error)?;
        for name in [CONFIG_FILE, WEIGHTS_FILE, TOKENIZER_FILE] {
            let (from, to) = (folder.join(name), split.artifact(name));
            std::fs::rename(&from, &to).map_err(|error| RunError::io(from, error))?;
        }
        Ok(())
    }
}

#[async_trait]
impl Job for Train {
    async fn run(&self, cx: &RunContext, inputs: &[InputData], output: &mut Output) -> Result<(), RunError> {
        let work = output.work_dir()?;
        if !output.is_done(0) {
            let (tokenizer, pairs) = self.apart(inputs);
            let run = Run {
                stage: self.clone(),
                config: self.config().map_err(|fault| RunError::Internal(fault.message))?,
                cx: cx.clone(),
                pairs: pairs.to_vec(),
                tokenizer: match tokenizer {
                    Some(stage) => stage.artifact(TOKENIZER_FILE)?,
                    None => self.tokenizer_file(cx).await?,
                },
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
