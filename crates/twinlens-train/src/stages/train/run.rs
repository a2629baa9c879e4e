//! Runs a training on its own thread: from options and inputs to a filled split.

use super::continued::Continued;
use super::options::TrainStageOptions;
use crate::checkpoint::Checkpoints;
use crate::continuation::Earlier;
use crate::data::{Data, DataContext, DataOptions, Input};
use crate::hooks::{Evaluate, Hooks, Outcome};
use crate::log::LogRow;
use crate::options::TrainOptions;
use crate::processes::Processes;
use crate::snapshot::CHECKPOINTS;
use crate::stages::errors::model_error;
use crate::stages::inputs::PairsInput;
use crate::stages::output::{ModelFiles, evaluations_batch, log_batch};
use crate::stages::start;
use crate::trainer::{follow, train};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::path::PathBuf;
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

/// What a rank trains.
struct Opened {
    /// On its device, before the first step.
    clip: Clip,
    data: Data,
    options: TrainOptions,
    tokenizer: Tokenizer,
    tokenizer_file: PathBuf,
}

impl<E> Run<E> {
    /// Trains, resuming from the newest checkpoint, and fills the split.
    pub(crate) fn run(self, mut split: SplitWriter) -> Result<SplitWriter, RunError> {
        let trained = self.open().and_then(|(opened, earlier)| {
            let checkpoints = self.checkpoints(&opened, earlier)?;
            Ok((self.train(&opened, &checkpoints)?, opened, checkpoints))
        });
        let (outcome, opened, checkpoints) = trained.inspect_err(|error| self.abort(error))?;
        let Outcome::Finished(output) = outcome else { return Err(RunError::Interrupted) };
        let Opened { clip, data, options, tokenizer, .. } = &opened;
        split.write(MAIN, &log_batch(&output.log, &output.changes)?)?;
        if self.training.evaluation.is_some() {
            split.write(EVALUATIONS, &evaluations_batch(&output.measurements, options)?)?;
        }
        data.write_rejects(&self.cx.stage, |rows| write_rejects(&mut split, rows))?;
        let (output, checkpoints) = (&output, &checkpoints);
        let model = ModelFiles { clip, output, best: options.keep_best, tokenizer, checkpoints };
        model.write(&self.work, &mut split)?;
        Ok(split)
    }

    /// The part of a process other than rank 0.
    pub(crate) fn follow(self) -> Result<(), RunError> {
        // The state of an earlier training comes from rank 0.
        let opened = self.open().map(|(opened, _)| opened);
        let followed = opened.and_then(|Opened { clip, data, options, .. }| {
            let missing = || RunError::Internal("a rank without others".into());
            let (processes, cancel) = (self.processes()?.ok_or_else(missing)?, &self.cx.cancel);
            Ok(follow(&clip, &data, &options, &processes, &|| cancel.is_cancelled())?)
        });
        let is_done = followed.inspect_err(|error| self.abort(error))?;
        if is_done { Ok(()) } else { Err(RunError::Interrupted) }
    }

    /// Tells other processes that this one fails while they wait for it.
    fn abort(&self, error: &RunError) {
        if let Some(ranks) = &self.cx.ranks {
            ranks.abort(error);
        }
    }

    /// Those of rank 0. The state of an earlier training becomes the first.
    fn checkpoints(
        &self,
        opened: &Opened,
        earlier: Option<(Continued, Earlier)>,
    ) -> Result<Checkpoints, RunError> {
        let Opened { clip, options, tokenizer, .. } = opened;
        let run = self.identity(options, tokenizer, clip.config())?;
        let folder = self.work.join(CHECKPOINTS);
        let checkpoints = Checkpoints::new(&folder, run, self.training.options.keep_checkpoints)?;
        // With these, a checkpoint is a model that others can read.
        clip.save_description(&folder).map_err(model_error)?;
        tokenizer.save(&folder.join(TOKENIZER_FILE)).map_err(model_error)?;
        if let Some((continued, earlier)) = earlier
            && checkpoints.is_empty()?
        {
            let change = continued.change(&self.training.written, &self.tables());
            earlier.begin(&checkpoints, clip, options.ema.is_some(), change)?;
        }
        Ok(checkpoints)
    }

    /// The processes that train with this one, if there are any.
    fn processes(&self) -> Result<Option<Processes>, RunError> {
        let Some(ranks) = &self.cx.ranks else { return Ok(None) };
        let size = ranks.collective.size();
        if let Some(count) = self.training.options.rank_count().filter(|count| *count != size) {
            let message = format!("`ranks = {count}`, but {size} processes were started");
            let hint = format!("start {count} processes, or remove the number from the pipeline file");
            return Err(RunError::user_with_hint(message, hint));
        }
        Ok(Some(Processes { ranks: ranks.collective.clone(), threads: ranks.threads }))
    }

    /// Opens the data and makes the model before the first step. With it, the training that this
    /// one continues, whose state is as large as that of this one.
    fn open(&self) -> Result<(Opened, Option<(Continued, Earlier)>), RunError> {
        let training = &self.training;
        let tokenizer_file = self.tokenizer_file()?;
        let tokenizer = Tokenizer::load(&tokenizer_file).map_err(model_error)?;
        let continued = self.continued()?;
        let earlier = continued.map(|of| of.state().map(|state| (of, state))).transpose()?;
        let clip = self.initial_model(&tokenizer)?;
        let data = self.data(&tokenizer, clip.config())?;
        let evaluate_every = training.evaluation.as_ref().map(|evaluation| evaluation.every());
        let batches = earlier.as_ref().map_or(Vec::new(), |(_, state)| state.batches());
        let options = training.options.train_options(&self.cx, data.pairs(), batches, evaluate_every)?;
        Ok((Opened { clip, data, options, tokenizer, tokenizer_file }, earlier))
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
        let local_rank = self.cx.ranks.as_ref().map_or(0, |ranks| ranks.local_rank);
        let device = options.device.open_for(local_rank, *options.precision).map_err(model_error)?;
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

    fn train(&self, opened: &Opened, checkpoints: &Checkpoints) -> Result<Outcome, RunError> {
        let Opened { clip, data, options, tokenizer_file, .. } = opened;
        let (cx, processes) = (&self.cx, self.processes()?);
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
            evaluation.map(|evaluation| evaluation.open(cx, &self.inputs, tokenizer_file)).transpose()?;
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
            processes: processes.as_ref(),
        };
        Ok(train(clip, data, options, checkpoints, hooks)?)
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
            threads: match &cx.ranks {
                Some(ranks) => ranks.threads,
                None => cx.session.copied_config().target_partitions(),
            },
            cache_bytes: stage.cache.bytes(),
        };
        let context = DataContext {
            tokenizer,
            context: config.text.context,
            batch: *stage.batch_size,
            work: &self.work.join("data"),
            cancel: &cx.cancel,
        };
        Ok(Data::open(inputs, options, &context)?)
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
        let options = TrainOptions {
            checkpoint_every: 0,
            prefetch_bytes: 0,
            keep_state: true,
            shard_optimizer: false,
            ..options.clone()
        };
        let shuffled = self.training.options.shuffle_bytes;
        let identity = format!("{options:?}/{shuffled}/{config:?}/{tokenizer}");
        Ok(hex::encode(Sha256::digest(identity)))
    }
}
