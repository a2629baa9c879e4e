//! The loop of rank 0: steps, a log, evaluations and checkpoints.

use crate::batch::BatchSource;
use crate::checkpoint::{Checkpoints, TrainState};
use crate::continuation;
use crate::ema;
use crate::error::{Result, TrainError};
use crate::hooks::{Hooks, Outcome, TrainOutput};
use crate::log::LogRow;
use crate::measure::{self, Measurement};
use crate::moments::Moments;
use crate::monitor::{self, Monitor};
use crate::options::TrainOptions;
use crate::step::{Step, Stepper};
use crate::thread_ranks::BatchSplitter;
use std::collections::BTreeMap;
use std::time::Instant;
use twinlens_model::Clip;
use twinlens_pipeline::RunError;

/// The state of the trainer's thread.
pub(crate) struct Training<'a, 'h> {
    pub(crate) stepper: Stepper<'a>,
    pub(crate) options: &'a TrainOptions,
    pub(crate) data: &'a dyn BatchSource,
    pub(crate) checkpoints: &'a Checkpoints,
    pub(crate) state: TrainState,
    pub(crate) batches: BatchSplitter,
    pub(crate) hooks: Hooks<'h>,
}

/// Whether something that happens every `every` steps is due after `step`.
pub(crate) fn is_due(step: u64, every: Option<u64>) -> bool {
    step > 0 && every.is_some_and(|every| step.is_multiple_of(every.max(1)))
}

/// Whether an evaluation is due after `step`.
pub(crate) fn evaluation_is_due(step: u64, options: &TrainOptions) -> bool {
    let every = options.evaluate_every;
    is_due(step, every) || (every.is_some() && step == options.steps)
}

impl Training<'_, '_> {
    /// `None` if the data ends before the steps do.
    pub(crate) fn run(mut self) -> Result<Option<Outcome>> {
        // The step of the newest checkpoint; step 0 need not be saved.
        let mut saved = self.state.adam.step;
        loop {
            let step = self.state.adam.step;
            let interrupted = !self.evaluate(step)?;
            let is_last = step == self.options.steps;
            if self.any(interrupted || (!is_last && (self.hooks.stop)()))? {
                return self.stop(saved);
            }
            self.keep_weights(step)?;
            if is_last {
                self.exchange_rejects()?;
                return Ok(Some(Outcome::Finished(Box::new(self.finish()?))));
            }
            if is_due(step, Some(self.options.checkpoint_every)) {
                if let Some(processes) = self.hooks.processes {
                    processes.check_replicas(self.stepper.clip)?;
                }
                self.exchange_rejects()?;
                self.save(&mut saved)?;
            }
            let started = Instant::now();
            let Some(batch) = self.batches.next()? else {
                // A later run may continue with more data. Other processes do not know of it, and
                // send no part of the moments.
                if self.hooks.processes.is_none() || !self.state.adam.is_divided() {
                    self.save(&mut saved)?;
                }
                return Ok(None);
            };
            let step = self.stepper.step(&mut self.state.adam, &batch);
            let step = step.map_err(|error| self.with_previous_loss(error))?;
            let Some(step) = step else { return self.stop(saved) };
            self.record(step, batch.epoch, started)?;
        }
    }

    fn finish(mut self) -> Result<TrainOutput> {
        let state = match self.options.keep_state {
            true => Some(self.with_moments(|this, moments| {
                continuation::to_bytes(this.stepper.clip, &this.state, moments)
            })?),
            false => None,
        };
        let TrainState { log, measurements, ema, changes, .. } = self.state;
        Ok(TrainOutput { log, measurements, ema, state, changes })
    }

    /// Whether any process says so. Threads ask rank 0 alone.
    fn any(&self, flag: bool) -> Result<bool> {
        Ok(match self.hooks.processes {
            Some(processes) => processes.ranks.any(flag)?,
            None => flag,
        })
    }

    fn exchange_rejects(&self) -> Result<()> {
        self.hooks.processes.map_or(Ok(()), |processes| processes.exchange_rejects(self.data))
    }

    /// Calls `f` with the moments of all variables, to which the other ranks send theirs.
    fn with_moments<T>(
        &mut self,
        f: impl FnOnce(&Self, &BTreeMap<String, Moments>) -> Result<T>,
    ) -> Result<T> {
        if self.state.adam.is_divided() {
            self.batches.gather();
        }
        self.state.adam.copy_from_device()?;
        let moments = self.state.adam.whole(self.stepper.ranks)?;
        f(self, &moments)
    }

    /// Writes a checkpoint unless the newest, of step `saved`, is of this step.
    fn save(&mut self, saved: &mut u64) -> Result<()> {
        let step = self.state.adam.step;
        if step != *saved {
            self.with_moments(|this, moments| {
                this.checkpoints.save(this.stepper.clip, &this.state, moments)
            })?;
            *saved = step;
        }
        Ok(())
    }

    fn stop(mut self, mut saved: u64) -> Result<Option<Outcome>> {
        self.exchange_rejects()?;
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

    /// Evaluates the model if due, while other processes sleep. False if asked to stop.
    fn evaluate(&mut self, step: u64) -> Result<bool> {
        let due = evaluation_is_due(step, self.options);
        let evaluated = self.evaluate_if(due, step);
        if let (Some(processes), true) = (self.hooks.processes, due && evaluated.is_ok()) {
            processes.ranks.wake()?;
        }
        evaluated
    }

    fn evaluate_if(&mut self, due: bool, step: u64) -> Result<bool> {
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
