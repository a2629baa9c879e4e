//! Ranks that are threads of this process, each with a replica of the model.

use crate::batch::Batch;
use crate::error::{Result, TrainError};
use crate::optimizer::AdamW;
use crate::options::TrainOptions;
use crate::schedule::Schedule;
use crate::step::Stepper;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender};
use std::thread::{Builder, Scope, ScopedJoinHandle};
use twinlens_model::Clip;
use twinlens_ranks::{Collective, Local, Threads};

/// candle walks its graph recursively, which needs more than the default stack.
pub(crate) const STACK_BYTES: usize = 256 << 20;

pub(crate) fn collectives(ranks: usize) -> Vec<Arc<dyn Collective>> {
    if ranks == 1 {
        return vec![Arc::new(Local)];
    }
    Threads::new(ranks).into_iter().map(|rank| Arc::new(rank) as Arc<dyn Collective>).collect()
}

pub(crate) fn stepper<'a>(
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

/// What rank 0 tells the others to do with it.
pub(crate) enum Task {
    /// Make a step on these rows of a batch.
    Step(Batch),
    /// Send the moments of this rank's part.
    Gather,
}

/// Starts a rank other than 0, which makes the same steps as rank 0.
pub(crate) fn spawn_rank<'scope, 'env>(
    scope: &'scope Scope<'scope, 'env>,
    (clip, mut adam): (Clip, AdamW),
    options: &'env TrainOptions,
    rank: Arc<dyn Collective>,
    tasks: Receiver<Task>,
) -> Result<ScopedJoinHandle<'scope, Result<()>>> {
    let run = move || {
        let stepper = stepper(&clip, options, &*rank, &|| false);
        while let Ok(task) = tasks.recv() {
            match task {
                Task::Step(batch) => drop(stepper.step(&mut adam, &batch)?),
                Task::Gather => {
                    adam.copy_from_device()?;
                    adam.whole(&*rank)?;
                }
            }
        }
        Ok(())
    };
    let thread = Builder::new().name("rank".into()).stack_size(STACK_BYTES);
    thread.spawn_scoped(scope, run).map_err(TrainError::io("rank thread"))
}

/// Splits batches between ranks that are threads.
pub(crate) struct BatchSplitter {
    pub(crate) batches: Receiver<Batch>,
    /// Of ranks 1, 2, and so on.
    pub(crate) others: Vec<SyncSender<Task>>,
}

impl BatchSplitter {
    /// Returns rank 0's rows of the next batch and sends the others theirs. `None` when the data
    /// ends.
    pub(crate) fn next(&self) -> Result<Option<Batch>> {
        let Ok(batch) = self.batches.recv() else { return Ok(None) };
        let rows = batch.ids.dim(0)? / (self.others.len() + 1);
        for (index, other) in self.others.iter().enumerate() {
            // The step fails if the rank has exited.
            let _ = other.send(Task::Step(batch.rows((index + 1) * rows, rows)?));
        }
        batch.rows(0, rows).map(Some)
    }

    /// Tells the others to send their moments.
    pub(crate) fn gather(&self) {
        for other in &self.others {
            // The gathering fails if the rank has exited.
            let _ = other.send(Task::Gather);
        }
    }
}
