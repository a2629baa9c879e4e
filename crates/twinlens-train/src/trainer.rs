//! The training loop: batches from a thread beside it, a step, a row of the log, now and then a
//! checkpoint.
//!
//! A training is a function of its options, its seed and its examples. Position in the data is the
//! step number, and a checkpoint holds the rest, so that a run cut off anywhere and taken up again
//! ends in the same bits. With several ranks, each has a replica of the model and makes the same
//! steps; rank 0 alone keeps a log, measures and saves.

use crate::checkpoint::{Checkpoints, State};
use crate::collective::{Collective, Local, Threads};
use crate::ema;
use crate::error::{Result, TrainError};
use crate::log::LogRow;
use crate::measure::{self, Measurement};
use crate::optimizer::{AdamW, AdamWOptions};
use crate::schedule::Schedule;
use crate::step::{Step, Stepper};
use crate::watch::{self, Watch};
use candle_core::Tensor;
use std::ops::Range;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{Builder, Scope, ScopedJoinHandle};
use std::time::Instant;
use twinlens_image::Augment;
use twinlens_model::{Clip, Objective};
use twinlens_pipeline::RunError;
use twinlens_pipeline::evaluation::Measured;

/// How long to train, and how.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainOptions {
    /// Steps in all.
    pub steps: u64,
    /// Pairs of a step, all ranks together: among these each is told from the others.
    pub batch_size: usize,
    /// Pairs of a forward pass; `None` for all that a rank has.
    pub micro_batch: Option<usize>,
    /// Threads that each hold a replica of the model and take an equal part of each batch.
    pub ranks: usize,
    /// The highest learning rate.
    pub lr: f64,
    /// Steps of linear warm-up.
    pub warmup: u64,
    /// The optimiser's constants.
    pub adamw: AdamWOptions,
    /// How slowly the running mean of the weights forgets; `None` for no mean.
    pub ema: Option<f64>,
    /// Steps between checkpoints.
    pub checkpoint_every: u64,
    /// Steps between weights that stay.
    pub keep_every: Option<u64>,
    /// Whether the weights of the best step are kept: by the evaluation, or else by the mean loss
    /// of 100 steps.
    pub keep_best: bool,
    /// Steps between evaluations.
    pub evaluate_every: Option<u64>,
    /// Where the order of the data comes from.
    pub seed: u64,
    /// Each time an image is seen, a random square of at least this part of its area is cut out of
    /// it and resized (the paper's only augmentation; 0.9 in open_clip). `None`: the image as it is
    /// stored.
    pub crop_min_area: Option<f64>,
    /// Further changes to each look at an image.
    pub augment: Option<Augment>,
    /// Bytes that batches made ahead may take; one batch is always made ahead.
    pub prefetch_bytes: usize,
}

/// What a finished training leaves, beside the weights of the last step in its model.
pub struct Trained {
    /// A row a step.
    pub log: Vec<LogRow>,
    /// What was measured on the way.
    pub measured: Vec<Measurement>,
    /// The running mean of the weights, where one was kept.
    pub ema: Option<Clip>,
}

/// How a training ended.
pub enum Outcome {
    /// All steps are done.
    Finished(Box<Trained>),
    /// The caller asked to stop, and a checkpoint was written.
    Stopped,
}

/// What measures a model after a step.
pub type Evaluate<'a> = dyn FnMut(&Clip, u64) -> Result<Vec<Measured>, RunError> + Send + 'a;

/// The caller's part.
pub struct Hooks<'a> {
    /// The time in microseconds since 1970.
    pub now: &'a (dyn Fn() -> i64 + Sync),
    /// Whether to stop; asked between steps and between micro-batches. A step that was begun is
    /// given up.
    pub stop: &'a (dyn Fn() -> bool + Sync),
    /// Called after each step.
    pub observe: &'a mut (dyn FnMut(&LogRow) + Send),
    /// Called every `evaluate_every` steps and after the last; [`RunError::Interrupted`] stops the
    /// training.
    pub evaluate: Option<&'a mut Evaluate<'a>>,
}

/// What a step is made on, or a rank's part of it.
pub struct Batch {
    /// Pixels `[batch, 3, size, size]`, normalised.
    pub pixels: Tensor,
    /// Token ids `[batch, context]`.
    pub ids: Tensor,
    /// Epochs done after it, with fractions where the number of pairs is known.
    pub epoch: f64,
}

impl Batch {
    /// `len` of its rows, from `first` on.
    ///
    /// # Errors
    /// When there are fewer.
    pub fn rows(&self, first: usize, len: usize) -> Result<Self> {
        let part = |tensor: &Tensor| tensor.narrow(0, first, len);
        Ok(Self { pixels: part(&self.pixels)?, ids: part(&self.ids)?, epoch: self.epoch })
    }
}

/// Where batches come from. The batch of a step is a function of the step, however often a training
/// was interrupted.
pub trait Batches: Sync {
    /// Token ids of a caption.
    fn context(&self) -> usize;

    /// Makes the batches of `steps`, for towers of `size` pixels, until nobody takes them.
    ///
    /// # Errors
    /// Whatever is wrong with the data; `Interrupted`.
    fn run(
        &self,
        options: &TrainOptions,
        size: usize,
        steps: Range<u64>,
        send: &SyncSender<Batch>,
    ) -> Result<()>;

    /// Ends a [`run`](Self::run) that waits for data, since nobody will take its batches.
    fn stop(&self) {}
}

/// candle walks its graph recursively, deeper than a thread's usual stack goes.
const STACK_BYTES: usize = 256 << 20;

/// Trains `clip` on `data`, from the newest checkpoint on if there is one.
///
/// # Errors
/// `Diverged`, `Stuck` or `Relapsed` when training fails, `Checkpoint` or `Io` when files do,
/// `Options` when the options fit no training on these examples.
pub fn train(
    clip: &Clip,
    data: &dyn Batches,
    options: &TrainOptions,
    checkpoints: &Checkpoints,
    hooks: Hooks<'_>,
) -> Result<Outcome> {
    check(clip, data, options)?;
    let mut state = State {
        adam: AdamW::new(&clip.trainable(), options.adamw),
        ema: options.ema.map(|_| clip.replica()).transpose()?,
        log: Vec::new(),
        measured: Vec::new(),
    };
    checkpoints.restore(clip, &mut state)?;
    let size = clip.config().vision.image_size();
    let batch_bytes = options.batch_size * (3 * size * size + data.context()) * 4;
    let ahead = (options.prefetch_bytes / batch_bytes).clamp(1, 64);
    std::thread::scope(|scope| {
        let (send, receive) = sync_channel(ahead - 1);
        let first = state.adam.step;
        let producer = scope.spawn(move || data.run(options, size, first..options.steps, &send));
        let outcome = on_ranks(clip, receive, options, checkpoints, state, hooks);
        // Nobody takes batches any more: the producer ends too.
        data.stop();
        let produced = producer.join().map_err(|_| TrainError::Panicked("data"))?;
        match outcome? {
            Some(outcome) => Ok(outcome),
            // The data ended early: the reason is the producer's.
            None => produced.and(Err(TrainError::Panicked("data"))),
        }
    })
}

/// Trains on all ranks, until they are done, or the data end (`None`).
fn on_ranks(
    clip: &Clip,
    batches: Receiver<Batch>,
    options: &TrainOptions,
    checkpoints: &Checkpoints,
    state: State,
    hooks: Hooks<'_>,
) -> Result<Option<Outcome>> {
    std::thread::scope(|scope| {
        let mut ends = ends(options.ranks).into_iter();
        let own = ends.next().ok_or(TrainError::Lost)?;
        let (mut followers, mut others) = (Vec::new(), Vec::new());
        for end in ends {
            let (share, shares) = sync_channel(1);
            others.push(share);
            followers.push(follower(scope, clip.replica()?, state.adam.clone(), options, end, shares)?);
        }
        let feed = Feed { batches, others };
        let trainer = Builder::new().name("trainer".into()).stack_size(STACK_BYTES);
        let trainer = trainer.spawn_scoped(scope, move || {
            let stepper = stepper(clip, options, &*own, hooks.stop);
            Training { stepper, options, checkpoints, state, hooks }.run(feed)
        });
        // The trainer ends first: it drops its ends of all channels, and the other ranks then end
        // too.
        let trainer = trainer.map_err(TrainError::io("trainer thread"))?;
        let outcome = trainer.join().map_err(|_| TrainError::Panicked("training"))?;
        let followed: Result<Vec<()>> =
            followers.into_iter().map(|f| f.join().map_err(|_| TrainError::Panicked("training"))?).collect();
        match outcome {
            // The one that is lost knows why.
            Err(TrainError::Lost) => followed.and(Err(TrainError::Lost)),
            outcome => outcome,
        }
    })
}

/// The ends of all ranks.
fn ends(ranks: usize) -> Vec<Box<dyn Collective>> {
    if ranks == 1 {
        return vec![Box::new(Local)];
    }
    Threads::new(ranks).into_iter().map(|end| Box::new(end) as Box<dyn Collective>).collect()
}

fn stepper<'a>(
    clip: &'a Clip,
    options: &TrainOptions,
    ranks: &'a dyn Collective,
    stop: &'a (dyn Fn() -> bool + Sync),
) -> Stepper<'a> {
    let &TrainOptions { lr: peak, warmup, steps, batch_size, .. } = options;
    Stepper {
        clip,
        variables: clip.trainable(),
        ranks,
        micro_batch: options.micro_batch.unwrap_or(batch_size),
        schedule: Schedule { peak, warmup, steps },
        stop,
    }
}

/// A rank other than 0: makes the steps that rank 0 makes.
fn follower<'scope, 'env>(
    scope: &'scope Scope<'scope, 'env>,
    clip: Clip,
    mut adam: AdamW,
    options: &'env TrainOptions,
    end: Box<dyn Collective>,
    shares: Receiver<Batch>,
) -> Result<ScopedJoinHandle<'scope, Result<()>>> {
    let run = move || {
        let stepper = stepper(&clip, options, &*end, &|| false);
        while let Ok(share) = shares.recv() {
            if stepper.step(&mut adam, &share)?.is_none() {
                break;
            }
        }
        Ok(())
    };
    let follower = Builder::new().name("rank".into()).stack_size(STACK_BYTES);
    follower.spawn_scoped(scope, run).map_err(TrainError::io("rank thread"))
}

fn check(clip: &Clip, data: &dyn Batches, options: &TrainOptions) -> Result<()> {
    let context = clip.config().text.context;
    let (batch, ranks) = (options.batch_size, options.ranks);
    let problem = if batch < 2 || options.steps == 0 {
        format!("batch_size ({batch}) is at least 2 and steps ({}) at least 1", options.steps)
    } else if ranks == 0 || !batch.is_multiple_of(ranks) || options.micro_batch == Some(0) {
        format!("batch_size ({batch}) is a multiple of ranks ({ranks}), and micro_batch at least 1")
    } else if data.context() != context {
        format!("captions of {} tokens for a model of {context}", data.context())
    } else if !(options.lr > 0.0 && options.lr.is_finite()) {
        format!("lr is {}", options.lr)
    } else {
        return Ok(());
    };
    Err(TrainError::Options(problem))
}

/// Batches on their way to the ranks.
struct Feed {
    batches: Receiver<Batch>,
    /// To ranks 1, 2, and so on.
    others: Vec<SyncSender<Batch>>,
}

impl Feed {
    /// Rank 0's rows of the next batch; the others get theirs. `None` when the data ends.
    fn next(&self) -> Result<Option<Batch>> {
        let Ok(batch) = self.batches.recv() else { return Ok(None) };
        let rows = batch.ids.dim(0)? / (self.others.len() + 1);
        for (index, other) in self.others.iter().enumerate() {
            // One that is gone is missed in the step.
            let _ = other.send(batch.rows((index + 1) * rows, rows)?);
        }
        batch.rows(0, rows).map(Some)
    }
}

/// What the trainer's thread owns.
struct Training<'a, 'h> {
    stepper: Stepper<'a>,
    options: &'a TrainOptions,
    checkpoints: &'a Checkpoints,
    state: State,
    hooks: Hooks<'h>,
}

/// Whether something that is done every so many steps is due after `step`.
fn due(step: u64, every: Option<u64>) -> bool {
    step > 0 && every.is_some_and(|every| step.is_multiple_of(every.max(1)))
}

impl Training<'_, '_> {
    /// `None` when the data ends before the steps do.
    fn run(mut self, feed: Feed) -> Result<Option<Outcome>> {
        // The step of the newest checkpoint; before the first step there is nothing to save.
        let mut saved = self.state.adam.step;
        loop {
            let step = self.state.adam.step;
            if !self.measure(step)? {
                return self.stopped(saved);
            }
            self.keep(step)?;
            if step == self.options.steps {
                let State { log, measured, ema, .. } = self.state;
                return Ok(Some(Outcome::Finished(Box::new(Trained { log, measured, ema }))));
            }
            if due(step, Some(self.options.checkpoint_every)) {
                self.save(&mut saved)?;
            }
            if (self.hooks.stop)() {
                return self.stopped(saved);
            }
            let started = Instant::now();
            let Some(batch) = feed.next()? else {
                // The data may be waited for again: what was learned of what came is kept.
                self.save(&mut saved)?;
                return Ok(None);
            };
            let made = self.stepper.step(&mut self.state.adam, &batch);
            let Some(made) = made.map_err(|error| self.explained(error))? else { return self.stopped(saved) };
            self.done(made, batch.epoch, started)?;
        }
    }

    /// Writes a checkpoint where the newest, of step `saved`, is older.
    fn save(&mut self, saved: &mut u64) -> Result<()> {
        let step = self.state.adam.step;
        if step != *saved {
            self.state.adam.gather()?;
            self.checkpoints.save(self.stepper.clip, &self.state)?;
            *saved = step;
        }
        Ok(())
    }

    fn stopped(mut self, mut saved: u64) -> Result<Option<Outcome>> {
        self.save(&mut saved)?;
        Ok(Some(Outcome::Stopped))
    }

    /// An error with what the log knows of it.
    fn explained(&self, mut error: TrainError) -> TrainError {
        if let (TrainError::Diverged { before, .. }, Some(row)) = (&mut error, self.state.log.last()) {
            *before = row.loss;
        }
        error
    }

    /// Writes a step down, and looks at how the training goes.
    fn done(&mut self, Step { loss, lr, grad_norm }: Step, epoch: f64, started: Instant) -> Result<()> {
        let (step, batch) = (self.state.adam.step, self.options.batch_size);
        let clip = self.stepper.clip;
        if let (Some(ema), Some(decay)) = (&self.state.ema, self.options.ema) {
            ema::follow(ema, clip, decay, step)?;
        }
        let row = LogRow {
            step,
            samples_seen: step * batch as u64,
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
        // What chance gives is known of the contrastive loss alone.
        let known = clip.config().objective == Objective::Contrastive && batch >= 16;
        let chance = known.then(|| (batch as f64).ln());
        Watch { warmup: self.options.warmup, chance }.check(&self.state.log)
    }

    /// The model that is measured and left: the running mean of the weights, where there is one.
    fn model(&self) -> &Clip {
        self.state.ema.as_ref().unwrap_or(self.stepper.clip)
    }

    /// Measures the model where that is due; false when it was asked to stop.
    fn measure(&mut self, step: u64) -> Result<bool> {
        let every = self.options.evaluate_every;
        let due = due(step, every) || (every.is_some() && step == self.options.steps);
        let model = self.state.ema.as_ref().unwrap_or(self.stepper.clip);
        let (Some(evaluate), true) = (&mut self.hooks.evaluate, due) else { return Ok(true) };
        if self.state.measured.last().is_some_and(|m| m.step == step) {
            return Ok(true);
        }
        match evaluate(model, step) {
            Ok(found) => {
                self.state.measured.extend(found.into_iter().map(|what| Measurement { step, what }));
                Ok(true)
            }
            Err(RunError::Interrupted) => Ok(false),
            Err(error) => Err(TrainError::Evaluation(Box::new(error))),
        }
    }

    /// Keeps weights that are to stay. Does the same again when the training goes on from this very
    /// step.
    fn keep(&self, step: u64) -> Result<()> {
        if due(step, self.options.keep_every) {
            self.checkpoints.save_kept(self.model(), step)?;
        }
        if self.options.keep_best && step > 0 && self.is_best(step) {
            self.checkpoints.save_best(self.model())?;
        }
        Ok(())
    }

    /// Whether this step is better than all before it: by the first metric of the evaluation, or
    /// else by the loss.
    fn is_best(&self, step: u64) -> bool {
        if self.options.evaluate_every.is_some() {
            let mut before = f64::NEG_INFINITY;
            for (at, value) in measure::by_step(&self.state.measured) {
                if at == step {
                    return value > before;
                }
                before = before.max(value);
            }
            return false;
        }
        let every = Some(self.options.checkpoint_every);
        let loss = |step: u64| watch::recent_loss(&self.state.log[..step as usize]);
        let better = |before: u64| loss(step) < loss(before);
        (due(step, every) || step == self.options.steps) && (1..step).filter(|s| due(*s, every)).all(better)
    }
}
