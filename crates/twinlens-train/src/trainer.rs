//! Trainings: batches from another thread, and the ranks that make steps of them.
//!
//! A training is a function of its options, its seed and its data. The position in the data is the
//! step number, and a checkpoint holds the rest, so that an interrupted and resumed run ends in the
//! same bits. Each rank has a replica of the model and makes the same steps; only rank 0 logs,
//! evaluates and saves. Ranks are threads or processes: the numbers are the same.

use crate::batch::{Batch, BatchSource, Part};
use crate::checkpoint::{Checkpoints, TrainState};
use crate::error::{Result, TrainError};
use crate::hooks::{Hooks, Outcome};
use crate::optimizer::AdamW;
use crate::options::TrainOptions;
use crate::processes::Processes;
use crate::thread_ranks::{BatchSplitter, STACK_BYTES, collectives, spawn_rank, stepper};
use crate::training::{Training, evaluation_is_due, is_due};
use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::Builder;
use twinlens_model::Clip;
use twinlens_ranks::RankError;

/// Trains `clip` on `data`, resuming from the newest checkpoint if there is one.
///
/// # Errors
/// `NotFinite`, `NotConverging` or `Diverged` if training fails, `Checkpoint` or `Io` for files,
/// `Options` if the options do not fit together or the data, `Ranks` if another process exits.
pub fn train(
    clip: &Clip,
    data: &dyn BatchSource,
    options: &TrainOptions,
    checkpoints: &Checkpoints,
    hooks: Hooks<'_>,
) -> Result<Outcome> {
    check(clip, data, options, hooks.processes)?;
    let mut state = TrainState {
        adam: AdamW::new(&clip.trainable(), options.adamw).with_kernels(clip.kernels()),
        ema: options.ema.map(|_| clip.replica()).transpose()?,
        log: Vec::new(),
        measurements: Vec::new(),
        changes: BTreeMap::new(),
    };
    for error in checkpoints.restore(clip, &mut state)? {
        (hooks.note)(format!("{error}; resuming from an older checkpoint"));
    }
    if let Some(processes) = hooks.processes {
        processes.begin((clip, &mut state.adam), options, data)?;
    }
    let (steps, processes) = (state.adam.step..options.steps, hooks.processes);
    let trainer = Trainer { clip, data, options };
    trainer
        .with_batches(part(steps, processes), |batches| trainer.on_ranks(batches, state, checkpoints, hooks))
}

/// Makes the steps of a rank that is a process other than rank 0. False if the training is not
/// over, since any rank was asked to stop.
///
/// # Errors
/// As [`train`]; `Interrupted` if this rank was stopped while the others wait for it.
pub fn follow(
    clip: &Clip,
    data: &dyn BatchSource,
    options: &TrainOptions,
    processes: &Processes,
    stop: &(dyn Fn() -> bool + Sync),
) -> Result<bool> {
    check(clip, data, options, Some(processes))?;
    let mut adam = AdamW::new(&clip.trainable(), options.adamw).with_kernels(clip.kernels());
    processes.begin((clip, &mut adam), options, data)?;
    let trainer = Trainer { clip, data, options };
    let part = part(adam.step..options.steps, Some(processes));
    trainer.with_batches(part, |batches| {
        on_large_stack(Some(processes), move || trainer.follow(&batches, &mut adam, processes, stop))
    })
}

/// What a process needs of the batches.
fn part(steps: std::ops::Range<u64>, processes: Option<&Processes>) -> Part {
    match processes {
        Some(Processes { ranks, .. }) => Part { steps, rank: ranks.rank(), ranks: ranks.size() },
        None => Part::whole(steps),
    }
}

fn check(
    clip: &Clip,
    data: &dyn BatchSource,
    options: &TrainOptions,
    processes: Option<&Processes>,
) -> Result<()> {
    let context = clip.config().text.context;
    let (batch, ranks) =
        (options.batch_size, processes.map_or(options.ranks, |processes| processes.ranks.size()));
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

/// What all ranks of a training have.
#[derive(Clone, Copy)]
struct Trainer<'a> {
    clip: &'a Clip,
    data: &'a dyn BatchSource,
    options: &'a TrainOptions,
}

impl Trainer<'_> {
    /// Runs `consume`, while another thread makes batches. `consume` returns `None` if the data end
    /// before the steps do.
    fn with_batches<T>(
        &self,
        part: Part,
        consume: impl FnOnce(Receiver<Batch>) -> Result<Option<T>>,
    ) -> Result<T> {
        let Self { clip, data, options } = *self;
        let (preprocess, size) = (clip.preprocess(), clip.config().vision.image_size());
        let rows = part.rows(options.batch_size).len();
        let batch_bytes = rows * (3 * size * size + data.context()) * 4;
        let ahead = (options.prefetch_bytes / batch_bytes).clamp(1, 64);
        std::thread::scope(|scope| {
            let (send, receive) = sync_channel(ahead - 1);
            let producer = scope.spawn(move || data.run(options, preprocess, part, &send));
            let outcome = consume(receive);
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

    /// Trains on all ranks of this process. `None` if the data ends before the steps do.
    fn on_ranks(
        &self,
        batches: Receiver<Batch>,
        mut state: TrainState,
        checkpoints: &Checkpoints,
        hooks: Hooks<'_>,
    ) -> Result<Option<Outcome>> {
        let Self { clip, data, options } = *self;
        std::thread::scope(|scope| {
            let collectives = match hooks.processes {
                Some(processes) => vec![processes.ranks.clone()],
                None => collectives(options.ranks),
            };
            let mut collectives = collectives.into_iter();
            let rank_0 = collectives.next().ok_or(RankError::Exited)?;
            let (mut ranks, mut others) = (Vec::new(), Vec::new());
            for rank in collectives {
                let (send, receive) = sync_channel(1);
                others.push(send);
                let mut adam = state.adam.clone();
                if options.shard_optimizer {
                    adam.divide((rank.rank(), rank.size()));
                }
                ranks.push(spawn_rank(scope, (clip.replica()?, adam), options, rank, receive)?);
            }
            if options.shard_optimizer {
                state.adam.divide((0, rank_0.size()));
            }
            let batches = BatchSplitter { batches, others };
            // The trainer ends first and drops its channels, which ends the other ranks.
            let outcome = on_large_stack(hooks.processes, move || {
                let stepper = stepper(clip, options, &*rank_0, hooks.stop);
                Training { stepper, options, data, checkpoints, state, batches, hooks }.run()
            });
            let joined = ranks.into_iter().map(|r| r.join().map_err(|_| TrainError::Panicked("training"))?);
            let joined: Result<Vec<()>> = joined.collect();
            match outcome {
                // The failing rank reports the cause.
                Err(error @ TrainError::Ranks(RankError::Exited)) => joined.and(Err(error)),
                outcome => outcome,
            }
        })
    }

    /// The steps of a process other than rank 0, which passes through the points of
    /// [`Training::run`]. `None` if the data ends before the steps do.
    fn follow(
        &self,
        batches: &Receiver<Batch>,
        adam: &mut AdamW,
        processes: &Processes,
        stop: &(dyn Fn() -> bool + Sync),
    ) -> Result<Option<bool>> {
        let Self { clip, data, options } = *self;
        let stepper = stepper(clip, options, &*processes.ranks, stop);
        if options.shard_optimizer {
            adam.divide((processes.ranks.rank(), processes.ranks.size()));
        }
        // The step of rank 0's newest checkpoint.
        let mut saved = adam.step;
        let mut save = |adam: &mut AdamW| -> Result<()> {
            if adam.step != saved {
                saved = adam.step;
                adam.copy_from_device()?;
                adam.whole(&*processes.ranks)?;
            }
            Ok(())
        };
        loop {
            let step = adam.step;
            let is_last = step == options.steps;
            if evaluation_is_due(step, options) {
                processes.ranks.sleep()?;
            }
            if processes.ranks.any(!is_last && stop())? {
                break;
            }
            if is_last {
                processes.exchange_rejects(data)?;
                if options.keep_state {
                    adam.copy_from_device()?;
                    adam.whole(&*processes.ranks)?;
                }
                return Ok(Some(true));
            }
            if is_due(step, Some(options.checkpoint_every)) {
                processes.check_replicas(clip)?;
                processes.exchange_rejects(data)?;
                save(adam)?;
            }
            let Ok(batch) = batches.recv() else { return Ok(None) };
            if stepper.step(adam, &batch)?.is_none() {
                break;
            }
        }
        processes.exchange_rejects(data)?;
        save(adam)?;
        Ok(Some(false))
    }
}

/// Runs `f` on a thread with a large stack; for a process, on its share of the machine's threads.
fn on_large_stack<T: Send>(processes: Option<&Processes>, f: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let panicked = |_| TrainError::Panicked("training");
    if let Some(processes) = processes {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(processes.threads.max(1));
        let pool = pool.stack_size(STACK_BYTES).thread_name(|number| format!("trainer-{number}"));
        let pool =
            pool.build().map_err(|error| TrainError::Options(format!("cannot start threads: {error}")))?;
        return std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| pool.install(f)))
            .map_err(panicked)?;
    }
    std::thread::scope(|scope| {
        let trainer = Builder::new().name("trainer".into()).stack_size(STACK_BYTES);
        let trainer = trainer.spawn_scoped(scope, f).map_err(TrainError::io("trainer thread"))?;
        trainer.join().map_err(panicked)?
    })
}
