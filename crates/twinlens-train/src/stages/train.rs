//! `train`: a CLIP model out of pairs.

use super::pairs::{IMAGE, Source};
use super::results::{log_batch, measured_batch, write_model};
use super::{blocking, column, model_error, start, text_column, train_error};
use crate::checkpoint::Checkpoints;
use crate::examples::{Examples, Record};
use crate::log::LogRow;
use crate::optimizer::AdamWOptions;
use crate::trainer::{Evaluate, Hooks, Outcome, TrainOptions, train};
use async_trait::async_trait;
use datafusion::arrow::datatypes::DataType;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::path::PathBuf;
use twinlens_dataset::{MAIN, SplitWriter, contracts};
use twinlens_model::{Clip, ClipConfig, Objective, TOKENIZER_FILE, Tokenizer};
use twinlens_pipeline::evaluation::{Evaluation, Measured, Never};
use twinlens_pipeline::run::events::Event;
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
    /// The pairs, with images.
    input: Input,
    /// The stage that made the tokenizer, or the path of a folder (`./models/b32`) with a tokenizer.json.
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
    /// The column of captions.
    #[serde(default = "caption")]
    caption: Located<String>,
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
    /// Steps between checkpoints: what a killed run does again.
    #[serde(default = "checkpoint_every")]
    checkpoint_every: u64,
    /// Checkpoints that are kept while training.
    #[serde(default = "keep_checkpoints")]
    keep_checkpoints: usize,
    /// Pairs of a forward pass, where a whole batch does not fit in memory. All pairs of the batch are compared all the
    /// same, for one more forward pass; a ResNet's batch norms see one micro-batch at a time. [default: the whole batch]
    #[serde(skip_serializing_if = "Option::is_none")]
    micro_batch: Option<Located<usize>>,
    /// Threads that each hold a replica of the model and take an equal part of each batch. [default: 1]
    #[serde(skip_serializing_if = "Option::is_none")]
    ranks: Option<Located<usize>>,
    /// Keep the input alone of each transformer block, and compute the rest again on the way back: about a tenth of the
    /// memory for a third more time. A ResNet keeps all. [default: false]
    #[serde(skip_serializing_if = "Option::is_none")]
    recompute: Option<bool>,
    /// The highest learning rate of the image tower, where it is another than `lr`.
    #[serde(skip_serializing_if = "Option::is_none")]
    image_lr: Option<Located<f64>>,
    /// The highest learning rate of the text tower, where it is another than `lr`.
    #[serde(skip_serializing_if = "Option::is_none")]
    text_lr: Option<Located<f64>>,
    /// The weights to start from: a `train` stage, or the path of a folder (`./models/b32`) as this program, Hugging Face
    /// or open_clip writes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<Input>,
    /// What of `from` is taken: `visual` and `text` are the towers, anything else is a variable's name up to a dot.
    /// [default: everything]
    #[serde(skip_serializing_if = "Option::is_none")]
    from_parts: Option<Located<Vec<Located<String>>>>,
    /// What is not trained, named as in `from_parts`: `freeze = ["visual"]` with `from` is LiT.
    #[serde(skip_serializing_if = "Option::is_none")]
    freeze: Option<Located<Vec<Located<String>>>>,
    /// How slowly a running mean of the weights forgets (0.999, say). With it, the mean is the model that is evaluated and
    /// left; the weights of the last step lie beside it in `last.safetensors`. [default: no mean]
    #[serde(skip_serializing_if = "Option::is_none")]
    ema: Option<Located<f64>>,
    /// Steps between weights that are left beside the model, as `step-0000000500.safetensors`. [default: none are]
    #[serde(skip_serializing_if = "Option::is_none")]
    keep_every: Option<Located<u64>>,
    /// Which weights are the model: of the last step, or of the best by the first metric of `evaluate`, or without it by
    /// the mean loss of 100 steps, looked at with each checkpoint. [default: last]
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
    Located::nowhere("caption".into())
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

    fn number_faults(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        let mut expect = |holds: bool, span: std::ops::Range<usize>, what: &str, label: &str| {
            if !holds {
                faults.push(Fault::at(span, what.to_owned()).label(label));
            }
        };
        match (&self.epochs, &self.steps) {
            (None, None) => {
                expect(false, self.input.0.span(), "neither `epochs` nor `steps` is given", "how long?")
            }
            (Some(_), Some(steps)) => {
                expect(false, steps.span(), "`epochs` and `steps` are both given", "one of them")
            }
            (Some(epochs), None) => {
                let holds = epochs.value().is_finite() && **epochs > 0.0;
                expect(holds, epochs.span(), "`epochs` is no positive number", "more than 0");
            }
            (None, Some(steps)) => expect(**steps > 0, steps.span(), "`steps` is 0", "at least 1"),
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
        for rate in self.image_lr.iter().chain(&self.text_lr) {
            let holds = **rate > 0.0 && rate.is_finite();
            expect(
                holds,
                rate.span(),
                "the learning rate is no positive number",
                "to hold a tower fast, `freeze` it",
            );
        }
        for count in self.micro_batch.iter().chain(&self.ranks) {
            expect(**count > 0, count.span(), "this is 0", "at least 1");
        }
        if let Some(ranks) = self.ranks.as_ref().filter(|ranks| ***ranks > 0) {
            let holds = self.batch_size.is_multiple_of(**ranks);
            expect(
                holds,
                ranks.span(),
                "the ranks do not share a batch equally",
                "a divisor of `batch_size`",
            );
        }
        if let Some(ema) = &self.ema {
            expect(**ema > 0.0 && **ema < 1.0, ema.span(), "`ema` is not between 0 and 1", "0.999, say");
        }
        if let Some(every) = &self.keep_every {
            expect(**every > 0, every.span(), "`keep_every` is 0", "at least 1");
        }
        faults
    }

    /// What is wrong with what it starts from and what it holds fast.
    fn start_faults(&self, config: &ClipConfig, inputs: &[InputTables]) -> Vec<Fault> {
        let lists = self.from_parts.iter().chain(&self.freeze);
        let mut faults: Vec<Fault> = lists.flat_map(|parts| start::faults(parts, config)).collect();
        if let (Some(parts), None) = (&self.from_parts, &self.from) {
            faults.push(Fault::at(parts.span(), "`from_parts` without `from`").label("parts of what?"));
        }
        if let Some(from) = &self.from {
            let found = inputs.iter().find(|input| input.input.name() == from.name());
            if let Some(kind) = found.and_then(|input| input.kind).filter(|kind| *kind != Self::KIND) {
                let fault =
                    Fault::at(from.0.span(), format!("this is a `{kind}` stage, which leaves no model"));
                faults.push(fault.label("expected a `train` stage or a folder"));
            }
        }
        faults
    }

    fn options(&self, cx: &RunContext, examples: usize) -> TrainOptions {
        let per_epoch = (examples / *self.batch_size).max(1) as f64;
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
            crop_min_area: self.crop(),
            prefetch_bytes: cx.bytes_in_flight.min(PREFETCH_BYTES),
        }
    }

    fn crop(&self) -> Option<f64> {
        (*self.random_crop < 1.0).then_some(*self.random_crop)
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
    const VERSION: u32 = 1;
}

impl<E: Evaluation<Clip>> Stage for Train<E> {
    fn inputs(&self) -> Vec<Input> {
        let models = [Some(&self.tokenizer), self.from.as_ref()].into_iter().flatten();
        let models = models.filter(|input| !input.is_path()).cloned();
        let evaluated = self.evaluate.iter().flat_map(Evaluation::inputs);
        let mut seen = BTreeSet::new();
        let all = [self.input.clone()].into_iter().chain(models).chain(evaluated);
        all.filter(|input| seen.insert(input.name().to_owned())).collect()
    }

    fn files(&self) -> Vec<Located<String>> {
        let folders = [Some(&self.tokenizer), self.from.as_ref()].into_iter().flatten();
        let folders = folders.filter(|input| input.is_path());
        let named = |input: &Input| format!("{}/", input.name().trim_end_matches('/'));
        folders.map(|input| Located::new(named(input), input.0.span())).collect()
    }

    fn side_tables(&self) -> &'static [&'static str] {
        if self.evaluate.is_some() { &[EVALUATIONS] } else { &[] }
    }

    fn tables(&self, _: &CheckContext, inputs: &[InputTables]) -> Result<Tables, Vec<Fault>> {
        let mut faults = self.number_faults();
        match self.config() {
            Ok(config) => faults.extend(self.start_faults(&config, inputs)),
            Err(fault) => faults.push(fault),
        }
        faults.extend(self.evaluate.iter().flat_map(|evaluate| evaluate.faults(inputs)));
        let schema = inputs.first().and_then(|input| input.schema.clone()).unwrap_or_else(contracts::pairs);
        let at = || self.input.0.span();
        let caption_at = if self.caption.span().is_empty() { at() } else { self.caption.span() };
        faults.extend(text_column(&schema, &self.caption, caption_at).err());
        match column(&schema, IMAGE, at()) {
            Ok(DataType::Struct(fields)) if fields.find("bytes").is_some() => {}
            Ok(other) => {
                let fault = Fault::at(at(), format!("the column `{IMAGE}` is of type {other}"));
                faults.push(fault.label("expected struct<bytes, path>"));
            }
            Err(fault) => faults.push(fault.hint("put a `fetch` stage before this one")),
        }
        let tokenizer = inputs.iter().find(|input| input.input.name() == self.tokenizer.name());
        if let Some(kind) = tokenizer.and_then(|input| input.kind).filter(|kind| *kind != "tokenizer") {
            let fault = Fault::at(self.tokenizer.0.span(), format!("this is a `{kind}` stage"));
            faults.push(fault.label("expected a `tokenizer` stage"));
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        let tables = Tables::main(contracts::train_log());
        Ok(match self.evaluate {
            Some(_) => tables.with(EVALUATIONS, contracts::evaluations()),
            None => tables,
        })
    }

    fn work(&self) -> Work<'_> {
        Work::Job(self)
    }
}

/// One training, on a thread of its own.
struct Run<E> {
    stage: Train<E>,
    config: ClipConfig,
    cx: RunContext,
    pairs: InputData,
    /// All inputs of the stage.
    inputs: Vec<InputData>,
    tokenizer: PathBuf,
    /// The folder of the model to start from.
    from: Option<PathBuf>,
    work: PathBuf,
}

impl<E: Evaluation<Clip>> Run<E> {
    /// Trains, from the newest checkpoint on, and fills the split.
    fn run(mut self, mut split: SplitWriter) -> Result<SplitWriter, RunError> {
        let tokenizer = Tokenizer::load(&self.tokenizer).map_err(model_error)?;
        self.config.text.vocab = tokenizer.vocab_size();
        // Crops are cut from images stored a little larger, so that cutting does not blur.
        let size = self.config.vision.image_size();
        let side = if self.stage.crop().is_some() { size * 8 / 7 } else { size };
        let source = Source {
            dataset: self.pairs.dataset.clone(),
            table: self.pairs.table.clone(),
            caption: self.stage.caption.to_string(),
            tokenizer: tokenizer.clone(),
            record: Record { side, context: self.config.text.context },
            stage: self.cx.stage.clone(),
            cancel: self.cx.cancel.clone(),
        };
        let examples = source.write(&self.work.join("examples"), &mut split)?;
        let options = self.stage.options(&self.cx, examples.len());
        let clip = self.start(&tokenizer)?;
        let run = self.identity(&options, &tokenizer)?;
        let checkpoints = self.work.join("checkpoints");
        let checkpoints =
            Checkpoints::new(&checkpoints, run, self.stage.keep_checkpoints).map_err(train_error)?;
        let outcome = self.train(&clip, &examples, &options, &checkpoints)?;
        let Outcome::Finished(trained) = outcome else { return Err(RunError::Interrupted) };
        split.write(MAIN, &log_batch(&trained.log)?)?;
        if self.stage.evaluate.is_some() {
            split.write(EVALUATIONS, &measured_batch(&trained.measured, options.batch_size)?)?;
        }
        let best = options.keep_best;
        write_model(&clip, &trained, best, &tokenizer, &checkpoints, &self.work, &mut split)?;
        Ok(split)
    }

    /// The model before the first step.
    fn start(&self, tokenizer: &Tokenizer) -> Result<Clip, RunError> {
        let mut clip = Clip::new(self.config.clone(), self.cx.seed_for("weights")).map_err(model_error)?;
        if let Some(folder) = &self.from {
            let parts = self.stage.from_parts.as_ref().map(start::names);
            start::from_folder(&clip, tokenizer, folder, parts.as_deref())?;
        }
        if let Some(freeze) = &self.stage.freeze {
            clip.freeze(&start::names(freeze)).map_err(model_error)?;
        }
        clip.recompute(self.stage.recompute == Some(true));
        Ok(clip)
    }

    fn train(
        &self,
        clip: &Clip,
        examples: &Examples,
        options: &TrainOptions,
        checkpoints: &Checkpoints,
    ) -> Result<Outcome, RunError> {
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
        };
        let open = |evaluate: &E| evaluate.open(cx, &self.inputs, &self.tokenizer);
        let mut evaluator = self.stage.evaluate.as_ref().map(open).transpose()?;
        let mut evaluate = evaluator.as_mut().map(|evaluator| {
            move |clip: &Clip, step: u64| -> Result<Vec<Measured>, RunError> {
                let found = evaluator.evaluate(clip, step)?;
                if let Some(m) = found.first() {
                    let (value, chance) = (100.0 * m.value, 100.0 * m.chance);
                    cx.progress.note(format!(
                        "step {step}: {}, {}: {} {value:.1} %, chance {chance:.1} %, n {}",
                        m.set, m.prompts, m.metric, m.n
                    ));
                }
                Ok(found)
            }
        });
        let hooks = Hooks {
            now: &|| cx.clock.micros(),
            stop: &|| cx.cancel.is_cancelled(),
            observe: &mut observe,
            evaluate: evaluate.as_mut().map(|evaluate| evaluate as &mut Evaluate<'_>),
        };
        train(clip, examples, options, checkpoints, hooks).map_err(train_error)
    }

    /// What a checkpoint belongs to. The work folder goes with the stage's fingerprint, which covers options and inputs;
    /// this catches a folder that was moved.
    fn identity(&self, options: &TrainOptions, tokenizer: &Tokenizer) -> Result<String, RunError> {
        let tokenizer = tokenizer.hash().map_err(model_error)?;
        let identity = format!("{options:?}/{:?}/{tokenizer}", self.config);
        Ok(Sha256::digest(identity).iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

#[async_trait]
impl<E: Evaluation<Clip>> Job for Train<E> {
    async fn run(&self, cx: &RunContext, inputs: &[InputData], output: &mut Output) -> Result<(), RunError> {
        let work = output.work_dir()?;
        if !output.is_done(0) {
            let named = |wanted: &Input| {
                let found = inputs.iter().find(|input| input.name == wanted.name());
                found.ok_or_else(|| {
                    RunError::Internal(format!("the input `{}` was not passed", wanted.name()))
                })
            };
            let folder = |model: &Input| match model.is_path() {
                true => Ok::<_, RunError>(cx.path(model.name())),
                false => Ok(named(model)?.dataset.dir()),
            };
            let tokenizer = match self.tokenizer.is_path() {
                true => folder(&self.tokenizer)?.join(TOKENIZER_FILE),
                false => named(&self.tokenizer)?.artifact(TOKENIZER_FILE)?,
            };
            let run = Run {
                stage: self.clone(),
                config: self.config().map_err(|fault| RunError::Internal(fault.message))?,
                cx: cx.clone(),
                pairs: named(&self.input)?.clone(),
                inputs: inputs.to_vec(),
                tokenizer,
                from: self.from.as_ref().map(folder).transpose()?,
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
