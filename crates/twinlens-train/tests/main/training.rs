//! Trainings of a small model: they learn, resume after an interruption, and report failures.

use crate::support::{COLOURS, Synthetic, config, options, resnet};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use twinlens_model::{Clip, ClipConfig, Objective};
use twinlens_train::{
    AdamW, BatchSource, Checkpoints, Hooks, LogRow, Outcome, TrainError, TrainOptions, TrainState, train,
};

/// All images are equal, so captions cannot be matched.
const BLANK: Synthetic = Synthetic(|_, _, _| 0.5);

fn run(dir: &Path, options: &TrainOptions, cuts: &[u64]) -> (Vec<LogRow>, String) {
    run_model(&config(), dir, options, cuts)
}

/// Runs a training, stopping after step `stop_after`.
fn run_until(
    clip: &Clip,
    data: &dyn BatchSource,
    options: &TrainOptions,
    checkpoints: &Checkpoints,
    stop_after: Option<u64>,
) -> Result<Outcome, TrainError> {
    let stop = AtomicBool::new(false);
    let mut observe = |row: &LogRow| {
        if stop_after == Some(row.step) {
            stop.store(true, Relaxed);
        }
    };
    let hooks = Hooks {
        now: &|| 7,
        note: &|_| (),
        stop: &|| stop.load(Relaxed),
        observe: &mut observe,
        evaluate: None,
        processes: None,
    };
    train(clip, data, options, checkpoints, hooks)
}

/// Trains in `dir`, interrupted after the steps in `cuts` and resumed with a new model each time.
/// Returns the log and a hash of the weights.
fn run_model(config: &ClipConfig, dir: &Path, options: &TrainOptions, cuts: &[u64]) -> (Vec<LogRow>, String) {
    let mut cuts = cuts.iter().copied();
    loop {
        let clip = Clip::new(config.clone(), 3).unwrap();
        let checkpoints = Checkpoints::new(&dir.join("checkpoints"), "test".into(), 2).unwrap();
        match run_until(&clip, &COLOURS, options, &checkpoints, cuts.next()).unwrap() {
            Outcome::Finished(trained) => return (trained.log, clip.weights_hash()),
            Outcome::Stopped => assert!(std::fs::read_dir(dir.join("checkpoints")).unwrap().count() <= 2),
        }
    }
}

#[test]
fn an_interrupted_training_ends_in_the_same_bits() {
    let whole = tempfile::tempdir().unwrap();
    let (log, weights) = run(whole.path(), &options(20), &[]);
    assert_eq!(log.iter().map(|row| row.step).collect::<Vec<_>>(), (1..=20).collect::<Vec<_>>());
    // 3 batches per epoch: interrupted within an epoch, at its end, several times in a row, at a
    // checkpoint, and just before the end.
    for cuts in [&[1][..], &[3], &[4, 5, 6], &[7, 16], &[19]] {
        let dir = tempfile::tempdir().unwrap();
        let (cut_log, cut_weights) = run(dir.path(), &options(20), cuts);
        assert_eq!(cut_weights, weights, "cut after {cuts:?}");
        let timeless = |log: &[LogRow]| -> Vec<_> {
            log.iter().map(|row| LogRow { samples_per_second: 0.0, ..*row }).collect()
        };
        assert_eq!(timeless(&cut_log), timeless(&log), "cut after {cuts:?}");
    }
    let dir = tempfile::tempdir().unwrap();
    let other = run(dir.path(), &TrainOptions { seed: 12, ..options(20) }, &[]);
    assert_ne!(other.1, weights, "the seed decides the order");
}

#[test]
fn an_interrupted_resnet_ends_in_the_same_bits() {
    let (whole, cut) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (_, weights) = run_model(&resnet(), whole.path(), &options(9), &[]);
    assert_eq!(run_model(&resnet(), cut.path(), &options(9), &[2, 6]).1, weights);
}

#[test]
fn a_killed_training_resumes_from_the_last_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let (_, weights) = run(dir.path(), &options(14), &[]);
    // The state after a kill at step 14: the checkpoint of step 12 and a partial file that was
    // never renamed.
    std::fs::write(dir.path().join("checkpoints/step-0000000014.safetensors.unfinished"), b"half").unwrap();
    let (log, again) = run(dir.path(), &options(14), &[]);
    assert_eq!((log.len(), again), (14, weights));
}

#[test]
fn pairs_are_learned() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = run(dir.path(), &TrainOptions { checkpoint_every: 1000, ..options(300) }, &[]);
    let mean = |rows: &[LogRow]| rows.iter().map(|row| row.loss).sum::<f64>() / rows.len() as f64;
    assert!(mean(&log[290..]) < 0.5 * 16f64.ln(), "{}", mean(&log[290..]));
    assert!(log.iter().all(|row| (0.0..=100f64.ln() + 1e-6).contains(&row.logit_scale)));
    assert_eq!((log[2].epoch, log[2].samples_seen), (1.0, 48));
}

#[test]
fn every_objective_is_learned_and_resumes() {
    for &objective in Objective::ALL {
        let (whole, cut) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let config = ClipConfig { objective, ..config() };
        let options = TrainOptions { checkpoint_every: 50, ..options(120) };
        let (log, weights) = run_model(&config, whole.path(), &options, &[]);
        let mean = |rows: &[LogRow]| rows.iter().map(|row| row.loss).sum::<f64>() / rows.len() as f64;
        let (first, last) = (mean(&log[..10]), mean(&log[110..]));
        assert!(last < 0.8 * first, "{objective:?}: {first} to {last}");
        assert_eq!(run_model(&config, cut.path(), &options, &[70]).1, weights, "{objective:?}");
    }
}

fn failure(dir: &Path, options: &TrainOptions, data: &dyn BatchSource) -> TrainError {
    let clip = Clip::new(config(), 3).unwrap();
    let checkpoints = Checkpoints::new(&dir.join("checkpoints"), "test".into(), 2).unwrap();
    run_until(&clip, data, options, &checkpoints, None).err().unwrap()
}

#[test]
fn failures_are_detected() {
    let dir = tempfile::tempdir().unwrap();
    let wild = TrainOptions { lr: 1e30, warmup: 0, ..options(20) };
    assert!(matches!(failure(dir.path(), &wild, &COLOURS), TrainError::NotFinite { step, .. } if step < 20));

    let slow = TrainOptions { checkpoint_every: 10_000, ..options(700) };
    let error = failure(dir.path(), &slow, &BLANK);
    assert!(matches!(error, TrainError::NotConverging { step: 600, .. }), "{error}");

    let none = TrainOptions { batch_size: 1, ..options(1) };
    let error = failure(dir.path(), &none, &COLOURS).to_string();
    assert!(error.contains("batch_size (1)"), "{error}");
}

#[test]
fn an_unusable_checkpoint_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = run(dir.path(), &options(10), &[]);
    assert_eq!(log.len(), 10);
    let files = std::fs::read_dir(dir.path().join("checkpoints")).unwrap();
    let mut files: Vec<_> = files.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let checkpoints = Checkpoints::new(&dir.path().join("checkpoints"), "other".into(), 2).unwrap();
    let clip = Clip::new(config(), 3).unwrap();
    let adam = AdamW::new(clip.variables(), options(1).adamw);
    let mut state =
        TrainState { adam, ema: None, log: vec![], measurements: vec![], changes: Default::default() };
    let error = checkpoints.restore(&clip, &mut state).unwrap_err().to_string();
    assert!(error.contains("step-0000000008") && error.contains("other options"), "{error}");

    // A flip in the newest: the one before it is taken; then none is sound.
    let checkpoints = Checkpoints::new(&dir.path().join("checkpoints"), "test".into(), 2).unwrap();
    let flip = |path: &Path| {
        let mut bytes = std::fs::read(path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 4;
        std::fs::write(path, bytes).unwrap();
    };
    let [older, newest] = &files[..] else { panic!("{files:?}") };
    flip(newest);
    let skipped = checkpoints.restore(&clip, &mut state).unwrap();
    assert_eq!((skipped.len(), state.adam.step), (1, 4));
    assert!(skipped[0].to_string().contains("step-0000000008"), "{}", skipped[0]);
    flip(older);
    let error = checkpoints.restore(&clip, &mut state).unwrap_err().to_string();
    assert!(error.contains("step-0000000008") && error.contains("delete it"), "{error}");
}
