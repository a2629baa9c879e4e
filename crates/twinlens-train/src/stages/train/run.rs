//! Runs a training on its own thread: from options and inputs to a filled split.

use super::continued::Continued;
use super::options::TrainStageOptions;
use crate::checkpoint::Checkpoints;
use crate::continuation::Earlier;
use crate::data::{Data, DataContext, DataOptions, Input};
use crate::log::LogRow;
use crate::options::TrainOptions;
use crate::snapshot::CHECKPOINTS;
use crate::stages::errors::{model_error, train_error};
use crate::stages::inputs::PairsInput;
use crate::stages::output::{ModelFiles, evaluations_batch, log_batch};
use crate::stages::start;
use crate::trainer::{Evaluate, Hooks, Outcome, train};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use twinlens_dataset::{MAIN, SplitWriter};
use twinlens_model::weights::{FOLDER_FILES, directory_of};
use twinlens_model::{CONFIG_FILE, Clip, ClipConfig, TOKENIZER_FILE, Tokenizer, WEIGHTS_FILE};
use twinlens_pipeline::evaluation::{Measured, PlannedEvaluation};
use twinlens_pipeline::run::events::Event;
use twinlens_pipeline::run::output::write_rejects;
use twinlens_pipeline::{ArtifactInput, InputData, Inputs, RunContext, RunError};

/// The side table of evaluations during training.
pub(crate) const EVALUATIONS: &str = "evaluations";

/// What was checked.
pub(crate) struct Training<E> {
    pub(crate) options: TrainStageOptions<E>,
    /// The options as a recipe has them.
    pub(crate) written: Value,
    /// `None`: that of `from`.
    pub(crate) config: Option<ClipConfig>,
    /// The inputs of pairs, and their weights.
    pub(crate) pairs: Vec<(PairsInput, f64)>,
    /// `None`: that of `from`.
    pub(crate) tokenizer: Option<ArtifactInput>,
    pub(crate) from: Option<ArtifactInput>,
    pub(crate) evaluation: Option<Box<dyn PlannedEvaluation<Clip>>>,
}

/// A training that is about to run.
pub(crate) struct Run<E> {
    pub(crate) training: Arc<Training<E>>,
    pub(crate) cx: RunContext,
    pub(crate) inputs: Inputs,
    /// The stage's work directory, which survives a kill.
    pub(crate) work: PathBuf,
}

impl<E> Run<E> {
    /// Trains, resuming from the newest checkpoint, and fills the split.
    pub(crate) fn run(self, mut split: SplitWriter) -> Result<SplitWriter, RunError> {
        let training = self.training.clone();
        let file = self.tokenizer_file()?;
        let tokenizer = Tokenizer::load(&file).map_err(model_error)?;
        let continued = self.continued()?;
        let earlier = continued.as_ref().map(Continued::state).transpose()?;
        let clip = self.initial_model(&tokenizer)?;
        let data = self.data(&tokenizer, clip.config())?;
        let evaluate_every = training.evaluation.as_ref().map(|evaluation| evaluation.every());
        let batches = earlier.as_ref().map_or(Vec::new(), Earlier::batches);
        let options = training.options.train_options(&self.cx, data.pairs(), batches, evaluate_every)?;
        let run = self.identity(&options, &tokenizer, clip.config())?;
        let folder = self.work.join(CHECKPOINTS);
        let checkpoints =
            Checkpoints::new(&folder, run, training.options.keep_checkpoints).map_err(train_error)?;
        // With these, a checkpoint is a model that others can read.
        clip.save_description(&folder).map_err(model_error)?;
        tokenizer.save(&folder.join(TOKENIZER_FILE)).map_err(model_error)?;
        if let Some((continued, earlier)) = continued.zip(earlier)
            && checkpoints.is_empty().map_err(train_error)?
        {
            let change = continued.change(&training.written, &self.tables());
            earlier.begin(&checkpoints, &clip, options.ema.is_some(), change).map_err(train_error)?;
        }
        let outcome = self.train(&clip, &data, &file, &options, &checkpoints)?;
        let Outcome::Finished(output) = outcome else { return Err(RunError::Interrupted) };
        split.write(MAIN, &log_batch(&output.log, &output.changes)?)?;
        if training.evaluation.is_some() {
            split.write(EVALUATIONS, &evaluations_batch(&output.measurements, &options)?)?;
        }
        data.write_rejects(&self.cx.stage, |rows| write_rejects(&mut split, rows))?;
        let best = options.keep_best;
        let model = ModelFiles {
            clip: &clip,
            output: &output,
            best,
            tokenizer: &tokenizer,
            checkpoints: &checkpoints,
        };
        model.write(&self.work, &mut split)?;
        Ok(split)
    }

    /// The training that this one continues.
    fn continued(&self) -> Result<Option<Continued>, RunError> {
        let from = self.training.from.as_ref().filter(|_| *self.training.options.optimizer);
        from.map(|from| Continued::open(from, &self.cx, &self.inputs)).transpose()
    }

    /// The datasets of pairs.
    fn tables(&self) -> Vec<&InputData> {
        let tables = self.training.pairs.iter().filter_map(|(pairs, _)| match pairs {
            PairsInput::Table(table) => Some(self.inputs.get(table)),
            PairsInput::Files(_) => None,
        });
        tables.collect()
    }

    /// The model that `from` names: its directory, or its file of weights. Of a training that is
    /// continued, a directory that describes it.
    fn from(&self) -> Result<Option<PathBuf>, RunError> {
        let Some(from) = &self.training.from else { return Ok(None) };
        if let Some(continued) = self.continued()? {
            return continued.description().map(Some);
        }
        let files = [CONFIG_FILE, WEIGHTS_FILE, TOKENIZER_FILE];
        from.folder(&self.cx, &self.inputs, &files, &FOLDER_FILES).map(Some)
    }

    fn tokenizer_file(&self) -> Result<PathBuf, RunError> {
        let files = [TOKENIZER_FILE];
        let folder = match (&self.training.tokenizer, self.from()?) {
            (Some(own), _) => own.folder(&self.cx, &self.inputs, &files, &[(&[&files], &[])])?,
            (None, Some(from)) => directory_of(&from).into(),
            (None, None) => return Err(RunError::Internal("a training without a tokenizer".into())),
        };
        let file = folder.join(TOKENIZER_FILE);
        if self.training.tokenizer.is_none() && !file.exists() {
            let message = format!("{} has no {TOKENIZER_FILE}", folder.display());
            return Err(RunError::user_with_hint(message, "set `tokenizer`"));
        }
        Ok(file)
    }

    /// The model before the first step, on its device.
    fn initial_model(&self, tokenizer: &Tokenizer) -> Result<Clip, RunError> {
        let (training, options) = (&self.training, &self.training.options);
        let device = options.device.open(*options.precision).map_err(model_error)?;
        let from = self.from()?;
        let mut config = match (&training.config, &from) {
            (Some(config), _) => config.clone(),
            (None, Some(from)) => {
                let (config, _) = Clip::describe(from).map_err(model_error)?;
                ClipConfig { objective: options.objective.unwrap_or(config.objective), ..config }
            }
            (None, None) => return Err(RunError::Internal("a training without a model".into())),
        };
        config.text.vocab = tokenizer.vocab_size();
        let mut clip = Clip::new(config, self.cx.seed_for("weights")).map_err(model_error)?;
        match from {
            // It brings its weights with its state.
            Some(from) if *options.optimizer => {
                clip.set_preprocess(Clip::describe_preprocess(&from).map_err(model_error)?);
                start::check_tokenizer(tokenizer, &from.join(TOKENIZER_FILE))?;
            }
            Some(from) => {
                let parts = options.from_parts.as_ref().map(start::names);
                start::from_folder(&mut clip, tokenizer, &from, parts.as_deref())?;
            }
            None => {}
        }
        if let Some(freeze) = &options.freeze {
            clip.freeze(&start::names(freeze)).map_err(model_error)?;
        }
        clip.set_recompute(options.recompute == Some(true));
        clip.to_device(&device, *options.precision).map_err(model_error)
    }

    /// `tokenizer` is the path of its file.
    fn train(
        &self,
        clip: &Clip,
        data: &Data,
        tokenizer: &Path,
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
                logit_scale: row.logit_scale as f32,
                grad_norm: row.grad_norm as f32,
            });
        };
        let evaluation = self.training.evaluation.as_ref();
        let mut evaluator =
            evaluation.map(|evaluation| evaluation.open(cx, &self.inputs, tokenizer)).transpose()?;
        let mut evaluate = evaluator.as_mut().map(|evaluator| {
            move |clip: &Clip, step: u64| -> Result<Vec<Measured>, RunError> {
                let found = evaluator.evaluate(clip, step)?;
                for m in &found {
                    cx.progress.event(Event::Evaluated {
                        stage: cx.stage.clone(),
                        step,
                        set: m.set.clone(),
                        prompts: m.prompts.clone(),
                        metric: m.metric.clone(),
                        value: m.value,
                        chance: m.chance,
                        n: m.n,
                    });
                }
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
            note: &|message| cx.progress.note(message),
            observe: &mut observe,
            evaluate: evaluate.as_mut().map(|evaluate| evaluate as &mut Evaluate<'_>),
        };
        train(clip, data, options, checkpoints, hooks).map_err(train_error)
    }

    fn data(&self, tokenizer: &Tokenizer, config: &ClipConfig) -> Result<Data, RunError> {
        let (stage, cx) = (&self.training.options, &self.cx);
        let mut inputs = Vec::new();
        for (input, weight) in &self.training.pairs {
            let source = input.source(cx, &self.inputs, *stage.follow)?;
            inputs.push(Input { source, columns: stage.columns(), weight: *weight });
        }
        let options = DataOptions {
            shuffle_bytes: stage.shuffle_bytes,
            decode_bytes: cx.bytes_in_flight,
            threads: cx.session.copied_config().target_partitions(),
            cache_bytes: stage.cache.bytes(),
        };
        let context = DataContext {
            tokenizer,
            context: config.text.context,
            batch: *stage.batch_size,
            work: &self.work.join("data"),
            cancel: &cx.cancel,
        };
        Data::open(inputs, options, &context).map_err(train_error)
    }

    /// Identifies the training that checkpoints belong to. The work directory already belongs to
    /// the stage's fingerprint, which covers options and inputs; this detects a directory that was
    /// moved.
    fn identity(
        &self,
        options: &TrainOptions,
        tokenizer: &Tokenizer,
        config: &ClipConfig,
    ) -> Result<String, RunError> {
        let tokenizer = tokenizer.hash().map_err(model_error)?;
        // What changes no result may change before a training resumes.
        let options =
            TrainOptions { checkpoint_every: 0, prefetch_bytes: 0, keep_state: true, ..options.clone() };
        let shuffled = self.training.options.shuffle_bytes;
        let identity = format!("{options:?}/{shuffled}/{config:?}/{tokenizer}");
        Ok(hex::encode(Sha256::digest(identity)))
    }
}
