//! Ranks that are processes (here: threads that know each other by TCP alone) make the training of
//! ranks that are threads, bit for bit.

use crate::support::{COLOURS, config, options, resnet};
use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;
use twinlens_model::{Clip, ClipConfig, Objective};
use twinlens_pipeline::RunError;
use twinlens_pipeline::evaluation::Measured;
use twinlens_ranks::{Launch, Meeting, RankError};
use twinlens_train::{
    Batches, Checkpoints, Earlier, Hooks, LogRow, Outcome, Processes, TrainError, TrainOptions, follow, train,
};

/// A model, what is frozen of it, and how it is trained.
struct Case {
    config: ClipConfig,
    freeze: &'static [&'static str],
    options: TrainOptions,
}

impl Case {
    fn clip(&self) -> Clip {
        let mut clip = Clip::new(self.config.clone(), 3).unwrap();
        clip.freeze(&self.freeze.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap();
        clip
    }
}

/// What a training leaves: its log without speeds, its evaluations, its weights and their mean.
#[derive(Debug, PartialEq)]
struct Trained {
    log: Vec<LogRow>,
    measured: Vec<(u64, Measured)>,
    weights: String,
    mean: Option<String>,
}

/// The largest weight, as an evaluation.
fn measure(clip: &Clip) -> Vec<Measured> {
    let value = f64::from(clip.logit_scale());
    let (set, prompts, metric) = ("set".into(), "{}".into(), "scale".into());
    vec![Measured { set, prompts, metric, value, ci_low: 0.0, ci_high: 9.0, chance: 0.0, n: 1 }]
}

fn checkpoints(dir: &Path) -> Checkpoints {
    Checkpoints::new(&dir.join("checkpoints"), "test".into(), 2).unwrap()
}

/// Trains as rank 0, or with threads. `None` if it was stopped.
fn lead(
    case: &Case,
    dir: &Path,
    processes: Option<&Processes>,
    stop: &(dyn Fn() -> bool + Sync),
) -> Result<Option<Trained>, TrainError> {
    let clip = case.clip();
    let mut evaluate = |clip: &Clip, _: u64| -> Result<Vec<Measured>, RunError> { Ok(measure(clip)) };
    let hooks = Hooks {
        now: &|| 7,
        note: &|_| (),
        stop,
        observe: &mut |_| (),
        evaluate: case.options.evaluate_every.map(|_| &mut evaluate as _),
        processes,
    };
    let Outcome::Finished(output) = train(&clip, &COLOURS, &case.options, &checkpoints(dir), hooks)? else {
        return Ok(None);
    };
    let log = output.log.into_iter().map(|row| LogRow { samples_per_second: 0.0, ..row }).collect();
    let measured = output.measurements.into_iter().map(|m| (m.step, m.measured)).collect();
    let mean = output.ema.as_ref().map(Clip::weights_hash);
    Ok(Some(Trained { log, measured, weights: clip.weights_hash(), mean }))
}

fn join(port: u16, rank: usize, size: usize) -> Processes {
    let master = Some("127.0.0.1".into());
    let launch = Launch { rank, size, local_rank: rank, local_size: Some(size), master, port };
    let wait = Duration::from_secs(30);
    let ranks =
        Meeting { launch, token: None, build: "test".into(), wait, shares_memory: true }.join().unwrap();
    Processes { ranks: Arc::new(ranks), threads: 1 }
}

/// Trains on `size` processes. `stops(rank)` is asked as often as a rank looks whether to stop.
fn on_processes(
    case: &Case,
    dir: &Path,
    size: usize,
    stops: &(dyn Fn(usize) -> bool + Sync),
) -> Result<Option<Trained>, TrainError> {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    std::thread::scope(|scope| {
        for rank in 1..size {
            scope.spawn(move || {
                let processes = join(port, rank, size);
                let done = follow(&case.clip(), &COLOURS, &case.options, &processes, &|| stops(rank));
                if let Err(error) = done {
                    processes.ranks.abort(1, &error.to_string());
                }
            });
        }
        let processes = join(port, 0, size);
        let done = lead(case, dir, Some(&processes), &|| stops(0));
        if let Err(error) = &done {
            processes.ranks.abort(1, &error.to_string());
        }
        done
    })
}

/// The newest files of the checkpoints by name, without the log, which has speeds.
fn last_checkpoint(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let files = std::fs::read_dir(dir.join("checkpoints")).unwrap().map(|entry| entry.unwrap().path());
    let newest = files.max().unwrap();
    let bytes = std::fs::read(newest).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let kept = tensors.tensors().into_iter().filter(|(name, _)| name != "log");
    kept.map(|(name, tensor)| (name, tensor.data().to_vec())).collect()
}

fn cases() -> [Case; 6] {
    let all = TrainOptions { ema: Some(0.9), evaluate_every: Some(3), ..options(7) };
    [
        Case { config: config(), freeze: &[], options: TrainOptions { micro_batch: Some(2), ..all.clone() } },
        Case { config: config(), freeze: &["visual"], options: all.clone() },
        Case { config: resnet(), freeze: &[], options: TrainOptions { micro_batch: Some(2), ..options(5) } },
        Case {
            config: config(),
            freeze: &[],
            options: TrainOptions { shard_optimizer: true, micro_batch: Some(2), ..all },
        },
        // Features pass by in a ring.
        Case {
            config: ClipConfig { objective: Objective::SIGMOID, ..config() },
            freeze: &[],
            options: TrainOptions { micro_batch: Some(2), ..options(5) },
        },
        Case {
            config: ClipConfig { objective: Objective::CAPTION, ..config() },
            freeze: &[],
            options: TrainOptions { micro_batch: Some(3), ..options(5) },
        },
    ]
}

#[test]
fn processes_make_the_training_of_threads() {
    for case in cases() {
        for size in [1, 2, 4] {
            let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            let options = TrainOptions { ranks: size, ..case.options.clone() };
            let threads = Case { config: case.config.clone(), freeze: case.freeze, options };
            let by_threads = lead(&threads, dir.path(), None, &|| false).unwrap();
            let by_processes = on_processes(&threads, other.path(), size, &|_| false).unwrap();
            assert_eq!(by_processes, by_threads, "{size} ranks: {:?}", threads.options);
            assert!(last_checkpoint(other.path()) == last_checkpoint(dir.path()), "{size} ranks");
        }
    }
}

/// Any rank may be asked to stop, between steps or within one; the next run goes on.
#[test]
fn an_interrupt_of_any_rank_is_a_checkpoint() {
    let [case, .., divided, _, _] = cases();
    let dir = tempfile::tempdir().unwrap();
    let whole = on_processes(&case, dir.path(), 2, &|_| false).unwrap();
    for case in [case, divided] {
        let dir = tempfile::tempdir().unwrap();
        for (rank, look) in [(1, 4), (0, 7), (1, 9)] {
            let looks = AtomicUsize::new(0);
            let stops = |asked: usize| asked == rank && looks.fetch_add(1, Relaxed) == look;
            let stopped = on_processes(&case, dir.path(), 2, &stops).unwrap();
            assert!(stopped.is_none(), "rank {rank} at look {look}");
        }
        assert_eq!(on_processes(&case, dir.path(), 2, &|_| false).unwrap(), whole);
    }
}

/// The sums of another number of ranks round otherwise; all else is the same.
#[test]
fn a_checkpoint_of_some_ranks_resumes_on_others() {
    let [case, ..] = cases();
    let dir = tempfile::tempdir().unwrap();
    let whole = on_processes(&case, dir.path(), 4, &|_| false).unwrap().unwrap();
    let dir = tempfile::tempdir().unwrap();
    for size in [4, 1, 2] {
        let looks = AtomicUsize::new(0);
        let stops = |rank: usize| rank == 0 && looks.fetch_add(1, Relaxed) == 17 / size;
        assert!(on_processes(&case, dir.path(), size, &stops).unwrap().is_none());
    }
    let resumed = on_processes(&case, dir.path(), 4, &|_| false).unwrap().unwrap();
    assert_eq!(resumed.log.len(), whole.log.len());
    for (row, expected) in resumed.log.iter().zip(&whole.log) {
        assert_eq!(
            (row.step, row.epoch, row.samples_seen),
            (expected.step, expected.epoch, expected.samples_seen)
        );
        assert!((row.loss - expected.loss).abs() < 1e-5, "{row:?} {expected:?}");
    }
}

/// A training goes on with other batches, from the state that only rank 0 has.
#[test]
fn processes_continue_a_training() {
    let [case, ..] = cases();
    let before = tempfile::tempdir().unwrap();
    lead(&case, before.path(), None, &|| false).unwrap();
    // Its only checkpoint is that of step 4.
    let earlier = || Earlier::unfinished(&before.path().join("checkpoints")).unwrap().unwrap();
    let batches = earlier().batches();
    assert_eq!(batches, [Batches { steps: 4, size: 16 }]);
    let options =
        TrainOptions { earlier: batches, batch_size: 8, steps: 9, ranks: 2, ..case.options.clone() };
    let case = Case { options, ..case };
    let [dir, other] = [(), ()].map(|()| tempfile::tempdir().unwrap());
    for dir in [&dir, &other] {
        earlier().begin(&checkpoints(dir.path()), &case.clip(), true, None).unwrap();
    }
    let by_threads = lead(&case, dir.path(), None, &|| false).unwrap();
    assert_eq!(on_processes(&case, other.path(), 2, &|_| false).unwrap(), by_threads);
    let log = by_threads.unwrap().log;
    assert_eq!([log[3].samples_seen, log[8].samples_seen], [64, 104]);
}

#[test]
fn ranks_that_differ_are_named() {
    let [case, ..] = cases();
    let dir = tempfile::tempdir().unwrap();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let options = TrainOptions { seed: 99, ..case.options.clone() };
    let other = Case { options, config: case.config.clone(), freeze: case.freeze };
    let (first, second) = std::thread::scope(|scope| {
        let second = scope.spawn(|| {
            let processes = join(port, 1, 2);
            follow(&other.clip(), &COLOURS, &other.options, &processes, &|| false).unwrap_err()
        });
        let first = lead(&case, dir.path(), Some(&join(port, 0, 2)), &|| false).unwrap_err();
        (first, second.join().unwrap())
    });
    for error in [first, second] {
        let TrainError::Ranks(RankError::Setup { message, .. }) = &error else { panic!("{error}") };
        assert!(
            message.starts_with("rank 1 has other options: ") && message.contains("seed: 99"),
            "{message}"
        );
    }
    // A batch that cannot be divided.
    let odd = Case { options: TrainOptions { batch_size: 15, ..case.options.clone() }, ..case };
    let error = on_processes(&odd, dir.path(), 2, &|_| false).unwrap_err().to_string();
    assert!(error.contains("batch_size (15) must be a multiple of ranks (2)"), "{error}");
}

/// A rank whose step fails ends all of them, with its error.
#[test]
fn a_training_that_diverges_ends_all_ranks() {
    let [case, ..] = cases();
    let wild = TrainOptions { lr: 1e30, warmup: 0, ..case.options.clone() };
    let dir = tempfile::tempdir().unwrap();
    let error = on_processes(&Case { options: wild, ..case }, dir.path(), 4, &|_| false).unwrap_err();
    assert!(matches!(error, TrainError::NotFinite { .. }), "{error}");
}
