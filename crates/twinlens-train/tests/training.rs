//! Whole trainings of a small model: they learn, they go on where they were cut off, and they say when they fail.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::ops::{ControlFlow, Range};
use std::path::Path;
use std::sync::mpsc::SyncSender;

use candle_core::{Device, Tensor};
use twinlens_model::{
    Activation, Clip, ClipConfig, Objective, ResNetConfig, TextConfig, VisionConfig, VitConfig,
};
use twinlens_train::{
    AdamWOptions, Batch, Batches, Checkpoints, LogRow, Outcome, Result, TrainError, TrainOptions, train,
};

const PAIRS: u32 = 48;

fn config() -> ClipConfig {
    ClipConfig {
        embed: 16,
        vision: VisionConfig::Vit(VitConfig { image_size: 16, patch: 8, width: 32, layers: 2, heads: 2 }),
        text: TextConfig { context: 6, vocab: 64, width: 32, layers: 2, heads: 2 },
        activation: Activation::QuickGelu,
        objective: Objective::Contrastive,
    }
}

/// The same with a ResNet, whose running statistics a checkpoint has to hold.
fn resnet() -> ClipConfig {
    let tower = ResNetConfig { image_size: 32, width: 4, stages: [1, 1, 1, 1], heads: 4 };
    ClipConfig { vision: VisionConfig::ResNet(tower), ..config() }
}

fn options(steps: u64) -> TrainOptions {
    TrainOptions {
        steps,
        batch_size: 16,
        lr: 3e-3,
        warmup: 5,
        adamw: AdamWOptions {
            beta1: 0.9,
            beta2: 0.98,
            eps: 1e-6,
            weight_decay: 0.2,
            clip_grad_norm: Some(1.0),
        },
        checkpoint_every: 4,
        seed: 11,
        crop_min_area: Some(0.8),
        augment: None,
        prefetch_bytes: 100_000,
    }
}

/// Pairs in memory: pixel (index of pair, place in `[size, size]`, channel) and two tokens of their own. Every batch is drawn anew.
struct Drawn(fn(u32, usize, usize) -> f32);

impl Batches for Drawn {
    fn context(&self) -> usize {
        6
    }

    fn run(
        &self,
        options: &TrainOptions,
        size: usize,
        steps: Range<u64>,
        send: &SyncSender<Batch>,
    ) -> Result<()> {
        let n = options.batch_size;
        for step in steps {
            // Consecutive pairs from a place that the step and the seed decide: distinct captions.
            let first = (step * 29 + options.seed * 7) as u32;
            let pairs: Vec<u32> = (0..n as u32).map(|k| (first + k * 5) % PAIRS).collect();
            let pixel =
                |pair: u32, at: usize| (self.0)(pair, at % (size * size) * 100 / size, at / (size * size));
            let pixels: Vec<f32> = (pairs.iter())
                .flat_map(|pair| (0..3 * size * size).map(move |at| pixel(*pair, at)))
                .collect();
            let ids: Vec<u32> = pairs.iter().flat_map(|i| [62, i + 1, 50 + i % 10, 63, 0, 0]).collect();
            let batch = Batch {
                pixels: Tensor::from_vec(pixels, (n, 3, size, size), &Device::Cpu)?,
                ids: Tensor::from_vec(ids, (n, 6), &Device::Cpu)?,
                epoch: (step + 1) as f64 * n as f64 / f64::from(PAIRS),
            };
            if send.send(batch).is_err() {
                return Ok(());
            }
        }
        Ok(())
    }
}

/// Images of flat colours with a bright part.
const COLOURS: Drawn = Drawn(|pair, at, channel| {
    let colour = [pair * 5, 250 - pair * 4, pair % 7 * 36][channel] as f32 / 64.0 - 2.0;
    if at as u32 / 400 == pair % 4 { 2.0 } else { colour }
});
/// Every image the same: nothing tells which caption is whose.
const BLANK: Drawn = Drawn(|_, _, _| 0.5);

fn run(dir: &Path, options: &TrainOptions, cuts: &[u64]) -> (Vec<LogRow>, String) {
    run_model(&config(), dir, options, cuts)
}

/// Trains in `dir`, stopping after the steps in `cuts`, each time with a fresh model; log and weights at the end.
fn run_model(config: &ClipConfig, dir: &Path, options: &TrainOptions, cuts: &[u64]) -> (Vec<LogRow>, String) {
    let mut cuts = cuts.to_vec();
    loop {
        let clip = Clip::new(config.clone(), 3).unwrap();
        let checkpoints = Checkpoints::new(&dir.join("checkpoints"), "test".into(), 2).unwrap();
        let mut observe = |row: &LogRow| {
            if cuts.first() == Some(&row.step) {
                cuts.remove(0);
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        };
        match train(&clip, &COLOURS, options, &checkpoints, &|| 7, &mut observe).unwrap() {
            Outcome::Finished(log) => return (log, clip.weights_hash()),
            Outcome::Stopped => assert!(std::fs::read_dir(dir.join("checkpoints")).unwrap().count() <= 2),
        }
    }
}

#[test]
fn a_training_cut_off_anywhere_ends_in_the_same_bits() {
    let whole = tempfile::tempdir().unwrap();
    let (log, weights) = run(whole.path(), &options(20), &[]);
    assert_eq!(log.iter().map(|row| row.step).collect::<Vec<_>>(), (1..=20).collect::<Vec<_>>());
    // 3 batches an epoch: cuts within an epoch, at its end, twice in a row, at a checkpoint, just before the end.
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
fn a_resnet_cut_off_ends_in_the_same_bits() {
    let (whole, cut) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (_, weights) = run_model(&resnet(), whole.path(), &options(9), &[]);
    assert_eq!(run_model(&resnet(), cut.path(), &options(9), &[2, 6]).1, weights);
}

#[test]
fn a_kill_between_checkpoints_loses_only_the_steps_since() {
    let dir = tempfile::tempdir().unwrap();
    let (_, weights) = run(dir.path(), &options(14), &[]);
    // What a kill after step 14 leaves: the checkpoint of step 12, and a half-written one that was never renamed.
    std::fs::write(dir.path().join("checkpoints/step-0000000014.part"), b"half").unwrap();
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
fn every_objective_is_learned_and_goes_on_where_it_was_cut_off() {
    for objective in Objective::ALL {
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

fn failure(dir: &Path, options: &TrainOptions, data: &dyn Batches) -> TrainError {
    let clip = Clip::new(config(), 3).unwrap();
    let checkpoints = Checkpoints::new(&dir.join("checkpoints"), "test".into(), 2).unwrap();
    train(&clip, data, options, &checkpoints, &|| 7, &mut |_| ControlFlow::Continue(())).unwrap_err()
}

#[test]
fn failures_say_what_was_seen() {
    let dir = tempfile::tempdir().unwrap();
    let wild = TrainOptions { lr: 1e30, warmup: 0, ..options(20) };
    assert!(matches!(failure(dir.path(), &wild, &COLOURS), TrainError::Diverged { step, .. } if step < 20));

    let slow = TrainOptions { checkpoint_every: 10_000, ..options(700) };
    let error = failure(dir.path(), &slow, &BLANK);
    assert!(matches!(error, TrainError::Stuck { step: 600, .. }), "{error}");

    let none = TrainOptions { batch_size: 1, ..options(1) };
    let error = failure(dir.path(), &none, &COLOURS).to_string();
    assert!(error.contains("batch_size (1)"), "{error}");
}

#[test]
fn a_checkpoint_that_is_damaged_or_of_another_training_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = run(dir.path(), &options(6), &[]);
    assert_eq!(log.len(), 6);
    let path = dir.path().join("checkpoints/step-0000000004.safetensors");
    let checkpoints = Checkpoints::new(&dir.path().join("checkpoints"), "other".into(), 2).unwrap();
    let clip = Clip::new(config(), 3).unwrap();
    let mut adam = twinlens_train::AdamW::new(clip.variables(), options(1).adamw);
    let error = checkpoints.restore(&clip, &mut adam).unwrap_err().to_string();
    assert!(error.contains("step-0000000004") && error.contains("other options"), "{error}");

    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    let checkpoints = Checkpoints::new(&dir.path().join("checkpoints"), "test".into(), 2).unwrap();
    let error = checkpoints.restore(&clip, &mut adam).unwrap_err().to_string();
    assert!(error.contains("step-0000000004") && error.contains("delete it"), "{error}");
}
