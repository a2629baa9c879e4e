//! The training loop: batches from a thread beside it, a step, a row of the log, now and then a checkpoint.
//!
//! A training is a function of its options, its seed and its examples. Position in the data is the step number, and a
//! checkpoint holds the rest, so that a run cut off anywhere and taken up again ends in the same bits.

use crate::checkpoint::Checkpoints;
use crate::error::{Result, TrainError};
use crate::log::LogRow;
use crate::optimizer::{AdamW, AdamWOptions, StepError};
use crate::schedule::Schedule;
use candle_core::Tensor;
use std::ops::{ControlFlow, Range};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Instant;
use twinlens_image::Augment;
use twinlens_model::{Clip, Objective};

/// How long to train, and how.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainOptions {
    /// Steps in all.
    pub steps: u64,
    /// Pairs of a step.
    pub batch_size: usize,
    /// The highest learning rate.
    pub lr: f64,
    /// Steps of linear warm-up.
    pub warmup: u64,
    /// The optimiser's constants.
    pub adamw: AdamWOptions,
    /// Steps between checkpoints.
    pub checkpoint_every: u64,
    /// Where the order of the data comes from.
    pub seed: u64,
    /// Each time an image is seen, a random square of at least this part of its area is cut out of it and resized (the
    /// paper's only augmentation; 0.9 in open_clip). `None`: the image as it is stored.
    pub crop_min_area: Option<f64>,
    /// Further changes to each look at an image.
    pub augment: Option<Augment>,
    /// Bytes that batches made ahead may take; one batch is always made ahead.
    pub prefetch_bytes: usize,
}

/// How a training ended.
#[derive(Debug, PartialEq)]
pub enum Outcome {
    /// All steps are done; here is the log.
    Finished(Vec<LogRow>),
    /// The caller asked to stop, and a checkpoint was written.
    Stopped,
}

/// What a step is made on.
pub struct Batch {
    /// Pixels `[batch, 3, size, size]`, normalised.
    pub pixels: Tensor,
    /// Token ids `[batch, context]`.
    pub ids: Tensor,
    /// Epochs done after it, with fractions where the number of pairs is known.
    pub epoch: f64,
}

/// Where batches come from. The batch of a step is a function of the step, however often a training was interrupted.
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
/// `observe` is called after each step, and stops the training (after a checkpoint) by breaking. `now` tells the time in
/// microseconds since 1970.
///
/// # Errors
/// `Diverged` or `Stuck` when training fails, `Checkpoint` or `Io` when files do, `Options` when the options fit no
/// training on these examples.
pub fn train(
    clip: &Clip,
    data: &dyn Batches,
    options: &TrainOptions,
    checkpoints: &Checkpoints,
    now: &(dyn Fn() -> i64 + Sync),
    observe: &mut (dyn FnMut(&LogRow) -> ControlFlow<()> + Send),
) -> Result<Outcome> {
    check(clip, data, options)?;
    let mut adam = AdamW::new(clip.variables(), options.adamw);
    let log = checkpoints.restore(clip, &mut adam)?;
    let size = clip.config().vision.image_size();
    let batch_bytes = options.batch_size * (3 * size * size + data.context()) * 4;
    let ahead = (options.prefetch_bytes / batch_bytes).clamp(1, 64);
    std::thread::scope(|scope| {
        let (send, receive) = sync_channel(ahead - 1);
        let first = adam.step;
        let producer = scope.spawn(move || data.run(options, size, first..options.steps, &send));
        let mut training = Training { clip, options, checkpoints, adam, log, now };
        let trainer = std::thread::Builder::new()
            .name("trainer".into())
            .stack_size(STACK_BYTES)
            .spawn_scoped(scope, move || training.run(receive, observe))
            .map_err(TrainError::io("trainer thread"))?;
        // The trainer ends first: it drops its end of the channel, and the producer then ends too.
        let outcome = trainer.join().map_err(|_| TrainError::Panicked("training"));
        data.stop();
        let produced = producer.join().map_err(|_| TrainError::Panicked("data"))?;
        match outcome?? {
            Some(outcome) => Ok(outcome),
            // The data ended early: the reason is the producer's.
            None => produced.and(Err(TrainError::Panicked("data"))),
        }
    })
}

fn check(clip: &Clip, data: &dyn Batches, options: &TrainOptions) -> Result<()> {
    let context = clip.config().text.context;
    let problem = if options.batch_size < 2 || options.steps == 0 {
        format!("batch_size ({}) is at least 2 and steps ({}) at least 1", options.batch_size, options.steps)
    } else if data.context() != context {
        format!("captions of {} tokens for a model of {context}", data.context())
    } else if !(options.lr > 0.0 && options.lr.is_finite()) {
        format!("lr is {}", options.lr)
    } else {
        return Ok(());
    };
    Err(TrainError::Options(problem))
}

/// What the trainer's thread owns.
struct Training<'a> {
    clip: &'a Clip,
    options: &'a TrainOptions,
    checkpoints: &'a Checkpoints,
    adam: AdamW,
    log: Vec<LogRow>,
    now: &'a (dyn Fn() -> i64 + Sync),
}

/// Steps over which a loss that does not fall is averaged.
const WINDOW: usize = 100;

impl Training<'_> {
    /// `None` when the data ends before the steps do.
    fn run(
        &mut self,
        batches: Receiver<Batch>,
        observe: &mut (dyn FnMut(&LogRow) -> ControlFlow<()> + Send),
    ) -> Result<Option<Outcome>> {
        while self.adam.step < self.options.steps {
            let started = Instant::now();
            let Ok(batch) = batches.recv() else {
                // The data may be waited for again: what was learned of what came is kept.
                self.checkpoints.save(self.clip, &self.adam, &self.log)?;
                return Ok(None);
            };
            let (loss, lr, grad_norm) = self.step(&batch)?;
            let step = self.adam.step;
            let samples_seen = step * self.options.batch_size as u64;
            let row = LogRow {
                step,
                samples_seen,
                epoch: batch.epoch,
                loss,
                lr,
                logit_scale: f64::from(self.clip.logit_scale()),
                grad_norm,
                samples_per_second: self.options.batch_size as f64 / started.elapsed().as_secs_f64(),
                wall: (self.now)(),
            };
            self.log.push(row);
            self.check_progress()?;
            let stop = observe(&row).is_break();
            let due = step.is_multiple_of(self.options.checkpoint_every.max(1)) && step < self.options.steps;
            if stop || due {
                self.adam.gather()?;
                self.checkpoints.save(self.clip, &self.adam, &self.log)?;
            }
            if stop && step < self.options.steps {
                return Ok(Some(Outcome::Stopped));
            }
        }
        Ok(Some(Outcome::Finished(std::mem::take(&mut self.log))))
    }

    /// Loss, learning rate and gradient norm of one step.
    fn step(&mut self, batch: &Batch) -> Result<(f64, f64, f64)> {
        let step = self.adam.step;
        let (warmup, steps, peak) = (self.options.warmup, self.options.steps, self.options.lr);
        let lr = Schedule { peak, warmup, steps }.rate(step);
        let diverged = |what: String, value: f64| TrainError::Diverged {
            step: step + 1,
            what,
            value,
            before: self.log.last().map_or(f64::NAN, |row| row.loss),
            lr,
            logit_scale: f64::from(self.clip.logit_scale()),
        };
        let loss = self.clip.loss(&batch.pixels, &batch.ids)?;
        let value = f64::from(loss.to_scalar::<f32>()?);
        if !value.is_finite() {
            return Err(diverged("the loss".into(), value));
        }
        let gradients = loss.backward()?;
        // The graph holds every activation: let go of it before the step.
        drop(loss);
        let norm = match self.adam.step(self.clip.variables(), &gradients, lr) {
            Ok(norm) => norm,
            Err(StepError::NotFinite { variable, value }) => {
                return Err(diverged(format!("the gradient of {variable}"), value));
            }
            Err(StepError::Tensor(error)) => return Err(error.into()),
        };
        self.clip.clamp_logit_scale()?;
        Ok((value, lr, norm))
    }

    /// Whether anything was learned, looked at once, when there was time to.
    fn check_progress(&self) -> Result<()> {
        let (step, batch) = (self.adam.step, self.options.batch_size);
        let chance = (batch as f64).ln();
        // What chance gives is known of the contrastive loss alone.
        let known = self.clip.config().objective == Objective::Contrastive && batch >= 16;
        if !known || step != self.options.warmup.max(400) + 2 * WINDOW as u64 {
            return Ok(());
        }
        let last = &self.log[self.log.len().saturating_sub(WINDOW)..];
        let loss = last.iter().map(|row| row.loss).sum::<f64>() / last.len() as f64;
        if loss > 0.99 * chance {
            return Err(TrainError::Stuck { step, window: last.len(), loss, chance });
        }
        Ok(())
    }
}
