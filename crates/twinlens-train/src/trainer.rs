//! The training loop: batches from another thread, steps, a log, evaluations and checkpoints.
//!
//! A training is a function of its options, its seed and its data. The position in the data is the
//! step number, and a checkpoint holds the rest, so that an interrupted and resumed run ends in the
//! same bits. Each rank has a replica of the model and makes the same steps; only rank 0 logs,
//! evaluates and saves.

use crate::batch::{Batch, BatchSource};
use crate::checkpoint::{Checkpoints, TrainState};
use crate::continuation;
use crate::ema;
use crate::error::{Result, TrainError};
use crate::log::LogRow;
use crate::measure::{self, Measurement};
use crate::monitor::{self, Monitor};
use crate::optimizer::AdamW;
use crate::options::TrainOptions;
use crate::schedule::Schedule;
use crate::step::{Step, Stepper};
use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{Builder, Scope, ScopedJoinHandle};
use std::time::Instant;
use twinlens_model::Clip;
use twinlens_pipeline::RunError;
use twinlens_pipeline::evaluation::Measured;
use twinlens_ranks::{Collective, Local, RankError, Threads};

/// The result of a finished training, besides the weights of the last step in the model.
pub struct TrainOutput {
    /// One row per step.
    pub log: Vec<LogRow>,
    pub measurements: Vec<Measurement>,
    /// The moving average of the weights, if enabled.
    pub ema: Option<Clip>,
    /// The content of a file with which the training can be continued, if enabled.
    pub state: Option<Vec<u8>>,
    /// What changed when the training was continued, by the first step after it.
    pub changes: BTreeMap<u64, String>,
}

/// How a training ended.
pub enum Outcome {
    Finished(Box<TrainOutput>),
    /// Stopped by [`Hooks::stop`], after writing a checkpoint.
    Stopped,
}

/// Evaluates a model after a step.
pub type Evaluate<'a> = dyn FnMut(&Clip, u64) -> Result<Vec<Measured>, RunError> + Send + 'a;

/// The caller's callbacks.
pub struct Hooks<'a> {
    /// Returns the time in microseconds since 1970.
    pub now: &'a (dyn Fn() -> i64 + Sync),
    /// Whether to stop, checked between steps and between micro-batches. A step in progress is
    /// abandoned.
    pub stop: &'a (dyn Fn() -> bool + Sync),
    /// Shows a message.
    pub note: &'a (dyn Fn(String) + Sync),
    /// Called after each step.
    pub observe: &'a mut (dyn FnMut(&LogRow) + Send),
    /// Called every `evaluate_every` steps and after the last step; [`RunError::Interrupted`] stops
    /// the training.
    pub evaluate: Option<&'a mut Evaluate<'a>>,
}

/// candle walks its graph recursively, which needs more than the default stack.
const STACK_BYTES: usize = 256 << 20;

/// Trains `clip` on `data`, resuming from the newest checkpoint if there is one.
///
/// # Errors
/// `NotFinite`, `NotConverging` or `Diverged` if training fails, `Checkpoint` or `Io` for files,
/// `Options` if the options do not fit together or the data.
pub fn train(
    clip: &Clip,
    data: &dyn BatchSource,
    options: &TrainOptions,
    checkpoints: &Checkpoints,
    hooks: Hooks<'_>,
) -> Result<Outcome> {
    check(clip, data, options)?;
    let mut state = TrainState {
        adam: AdamW::new(&clip.trainable(), options.adamw),
        ema: options.ema.map(|_| clip.replica()).transpose()?,
        log: Vec::new(),
        measurements: Vec::new(),
        changes: BTreeMap::new(),
    };
    for error in checkpoints.restore(clip, &mut state)? {
        (hooks.note)(format!("{error}; resuming from an older checkpoint"));
    }
    let (preprocess, size) = (clip.preprocess(), clip.config().vision.image_size());
    let batch_bytes = options.batch_size * (3 * size * size + data.context()) * 4;
    let ahead = (options.prefetch_bytes / batch_bytes).clamp(1, 64);
    std::thread::scope(|scope| {
        let (send, receive) = sync_channel(ahead - 1);
        let first = state.adam.step;
        let producer = scope.spawn(move || data.run(options, preprocess, first..options.steps, &send));
        let outcome = train_on_ranks(clip, receive, options, checkpoints, state, hooks);
        // The receiver is dropped, so the producer ends too.
        data.stop();
        let produced = producer.join().map_err(|_| TrainError::Panicked("data"))?;
        match outcome? {
            Some(outcome) => Ok(outcome),
            // The data ended early: the producer reports the cause.
            None => produced.and(Err(TrainError::Panicked("data"))),
        }
    })
}

/// Trains on all ranks. `None` if the data ends before the steps do.
fn train_on_ranks(
    clip: &Clip,
    batches: Receiver<Batch>,
    options: &TrainOptions,
    checkpoints: &Checkpoints,
    state: TrainState,
    hooks: Hooks<'_>,
) -> Result<Option<Outcome>> {
    std::thread::scope(|scope| {
        let mut collectives = collectives(options.ranks).into_iter();
        let rank_0 = collectives.next().ok_or(RankError::Exited)?;
        let (mut ranks, mut others) = (Vec::new(), Vec::new());
        for rank in collectives {
            let (send, receive) = sync_channel(1);
            others.push(send);
            ranks.push(spawn_rank(scope, clip.replica()?, state.adam.clone(), options, rank, receive)?);
        }
        let batches = BatchSplitter { batches, others };
        let trainer = Builder::new().name("trainer".into()).stack_size(STACK_BYTES);
        let trainer = trainer.spawn_scoped(scope, move || {
            let stepper = stepper(clip, options, &*rank_0, hooks.stop);
            Training { stepper, options, checkpoints, state, hooks }.run(batches)
        });
        // The trainer ends first and drops its channels, which ends the other ranks.
        let trainer = trainer.map_err(TrainError::io("trainer thread"))?;
        let outcome = trainer.join().map_err(|_| TrainError::Panicked("training"))?;
        let ranks: Result<Vec<()>> =
            ranks.into_iter().map(|r| r.join().map_err(|_| TrainError::Panicked("training"))?).collect();
        match outcome {
            // The failing rank reports the cause.
            Err(error @ TrainError::Ranks(RankError::Exited)) => ranks.and(Err(error)),
            outcome => outcome,
        }
    })
}

fn collectives(ranks: usize) -> Vec<Box<dyn Collective>> {
    if ranks == 1 {
        return vec![Box::new(Local)];
    }
    Threads::new(ranks).into_iter().map(|rank| Box::new(rank) as Box<dyn Collective>).collect()
}

fn stepper<'a>(
    clip: &'a Clip,
    options: &TrainOptions,
    ranks: &'a dyn Collective,
    stop: &'a (dyn Fn() -> bool + Sync),
) -> Stepper<'a> {
    let &TrainOptions { schedule: kind, lr: peak, warmup, steps, batch_size, .. } = options;
    Stepper {
        clip,
        variables: clip.trainable(),
        ranks,
        micro_batch: options.micro_batch.unwrap_or(batch_size),
        schedule: Schedule { kind, peak, warmup, steps },
        stop,
    }
}

/// Starts a rank other than 0, which makes the same steps as rank 0.
fn spawn_rank<'scope, 'env>(
    scope: &'scope Scope<'scope, 'env>,
    clip: Clip,
    mut adam: AdamW,
    options: &'env TrainOptions,
    rank: Box<dyn Collective>,
    batches: Receiver<Batch>,
) -> Result<ScopedJoinHandle<'scope, Result<()>>> {
    let run = move || {
        let stepper = stepper(&clip, options, &*rank, &|| false);
        while let Ok(batch) = batches.recv() {
            if stepper.step(&mut adam, &batch)?.is_none() {
                break;
            }
        }
        Ok(())
    };
    let thread = Builder::new().name("rank".into()).stack_size(STACK_BYTES);
    thread.spawn_scoped(scope, run).map_err(TrainError::io("rank thread"))
}

fn check(clip: &Clip, data: &dyn BatchSource, options: &TrainOptions) -> Result<()> {
    let context = clip.config().text.context;
    let (batch, ranks) = (options.batch_size, options.ranks);
    let problem = if batch < 2 || options.steps == 0 {
        format!("batch_size ({batch}) must be at least 2 and steps ({}) at least 1", options.steps)
    } else if ranks == 0 || !batch.is_multiple_of(ranks) || options.micro_batch == Some(0) {
        format!("batch_size ({batch}) must be a multiple of ranks ({ranks}), and micro_batch at least 1")
    } else if data.context() != context {
        format!("captions have {} tokens, but the model takes {context}", data.context())
    } else if !(options.lr > 0.0 && options.lr.is_finite()) {
        format!("lr must be a positive number, not {}", options.lr)
    } else {
        return Ok(());
    };
    Err(TrainError::Options(problem))
}

/// Splits batches between the ranks.
struct BatchSplitter {
    batches: Receiver<Batch>,
    /// Of ranks 1, 2, and so on.
    others: Vec<SyncSender<Batch>>,
}

impl BatchSplitter {
    /// Returns rank 0's rows of the next batch and sends the others theirs. `None` when the data
    /// ends.
    fn next(&self) -> Result<Option<Batch>> {
        let Ok(batch) = self.batches.recv() else { return Ok(None) };
        let rows = batch.ids.dim(0)? / (self.others.len() + 1);
        for (index, other) in self.others.iter().enumerate() {
            // The step fails if the rank has exited.
            let _ = other.send(batch.rows((index + 1) * rows, rows)?);
        }
        batch.rows(0, rows).map(Some)
    }
}

/// The state of the trainer's thread.
struct Training<'a, 'h> {
    stepper: Stepper<'a>,
    options: &'a TrainOptions,
    checkpoints: &'a Checkpoints,
    state: TrainState,
    hooks: Hooks<'h>,
}

/// Whether something that happens every `every` steps is due after `step`.
fn is_due(step: u64, every: Option<u64>) -> bool {
    step > 0 && every.is_some_and(|every| step.is_multiple_of(every.max(1)))
}

impl Training<'_, '_> {
    /// `None` if the data ends before the steps do.
    fn run(mut self, batches: BatchSplitter) -> Result<Option<Outcome>> {
        // The step of the newest checkpoint; step 0 need not be saved.
        let mut saved = self.state.adam.step;
        loop {
            let step = self.state.adam.step;
            if !self.evaluate(step)? {
                return self.stop(saved);
            }
            self.keep_weights(step)?;
            if step == self.options.steps {
                return Ok(Some(Outcome::Finished(Box::new(self.finish()?))));
            }
            if is_due(step, Some(self.options.checkpoint_every)) {
                self.save(&mut saved)?;
            }
            if (self.hooks.stop)() {
                return self.stop(saved);
            }
            let started = Instant::now();
            let Some(batch) = batches.next()? else {
                // A later run may continue with more data.
                self.save(&mut saved)?;
                return Ok(None);
            };
            let step = self.stepper.step(&mut self.state.adam, &batch);
            let step = step.map_err(|error| self.with_previous_loss(error))?;
            let Some(step) = step else { return self.stop(saved) };
            self.record(step, batch.epoch, started)?;
        }
    }

    fn finish(mut self) -> Result<TrainOutput> {
        self.state.adam.gather()?;
        let state = || continuation::to_bytes(self.stepper.clip, &self.state);
        let state = self.options.keep_state.then(state).transpose()?;
        let TrainState { log, measurements, ema, changes, .. } = self.state;
        Ok(TrainOutput { log, measurements, ema, state, changes })
    }

    /// Writes a checkpoint unless the newest, of step `saved`, is of this step.
    fn save(&mut self, saved: &mut u64) -> Result<()> {
        let step = self.state.adam.step;
        if step != *saved {
            self.state.adam.gather()?;
            self.checkpoints.save(self.stepper.clip, &self.state)?;
            *saved = step;
        }
        Ok(())
    }

    fn stop(mut self, mut saved: u64) -> Result<Option<Outcome>> {
        self.save(&mut saved)?;
        Ok(Some(Outcome::Stopped))
    }

    fn with_previous_loss(&self, mut error: TrainError) -> TrainError {
        if let (TrainError::NotFinite { previous_loss, .. }, Some(row)) = (&mut error, self.state.log.last())
        {
            *previous_loss = row.loss;
        }
        error
    }

    /// Logs a step and checks convergence.
    fn record(&mut self, Step { loss, lr, grad_norm }: Step, epoch: f64, started: Instant) -> Result<()> {
        let (step, batch) = (self.state.adam.step, self.options.batch_size);
        let clip = self.stepper.clip;
        if let (Some(ema), Some(decay)) = (&self.state.ema, self.options.ema) {
            ema::update(ema, clip, decay, step)?;
        }
        let row = LogRow {
            step,
            samples_seen: self.options.pairs_seen(step),
            epoch,
            loss,
            lr,
            logit_scale: f64::from(clip.logit_scale()),
            grad_norm,
            samples_per_second: batch as f64 / started.elapsed().as_secs_f64(),
            wall: (self.hooks.now)(),
        };
        self.state.log.push(row);
        (self.hooks.observe)(&row);
        let chance = clip.config().objective.chance_loss(batch).filter(|_| batch >= 16);
        Monitor { warmup: self.options.warmup, chance }.check(&self.state.log)
    }

    /// The model to evaluate and keep: the moving average of the weights if enabled.
    fn model(&self) -> &Clip {
        self.state.ema.as_ref().unwrap_or(self.stepper.clip)
    }

    /// Evaluates the model if due. False if asked to stop.
    fn evaluate(&mut self, step: u64) -> Result<bool> {
        let every = self.options.evaluate_every;
        let due = is_due(step, every) || (every.is_some() && step == self.options.steps);
        let model = self.state.ema.as_ref().unwrap_or(self.stepper.clip);
        let (Some(evaluate), true) = (&mut self.hooks.evaluate, due) else { return Ok(true) };
        if self.state.measurements.last().is_some_and(|m| m.step == step) {
            return Ok(true);
        }
        match evaluate(model, step) {
            Ok(metrics) => {
                let measurements = metrics.into_iter().map(|measured| Measurement { step, measured });
                self.state.measurements.extend(measurements);
                Ok(true)
            }
            Err(RunError::Interrupted) => Ok(false),
            Err(error) => Err(TrainError::Evaluation(Box::new(error))),
        }
    }

    /// Saves the weights of this step if they are to be kept. Harmless when repeated after a
    /// resume.
    fn keep_weights(&self, step: u64) -> Result<()> {
        if is_due(step, self.options.keep_every) {
            self.checkpoints.save_kept(self.model(), step)?;
        }
        if self.options.keep_best && step > self.options.first_step() && self.is_best(step) {
            self.checkpoints.save_best(self.model(), step)?;
        }
        Ok(())
    }

    /// Whether this step is better than all previous ones of this training, by the first metric of
    /// the evaluation or else by the loss.
    fn is_best(&self, step: u64) -> bool {
        let first = self.options.first_step();
        if self.options.evaluate_every.is_some() {
            let mut best = f64::NEG_INFINITY;
            let own = measure::by_step(&self.state.measurements).filter(|(at, _)| *at > first);
            for (at, value) in own {
                if at == step {
                    return value > best;
                }
                best = best.max(value);
            }
            return false;
        }
        // Not the interval of checkpoints, which must change no result.
        let every = Some(monitor::WINDOW as u64);
        let loss = |step: u64| monitor::recent_loss(&self.state.log[..step as usize]);
        let is_better = |other: u64| loss(step) < loss(other);
        let due = is_due(step, every) || step == self.options.steps;
        due && (first + 1..step).filter(|s| is_due(*s, every)).all(is_better)
    }
}
