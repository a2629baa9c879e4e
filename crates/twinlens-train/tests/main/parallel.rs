//! Micro-batches and ranks give the same gradients and the same training as a whole batch, also
//! when a step is interrupted.

use crate::support::{COLOURS, config, options, resnet};
use candle_core::{DType, Tensor};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use twinlens_model::weights::Variables;
use twinlens_model::{Clip, ClipConfig, Objective, Pass};
use twinlens_ranks::{Collective, Local, Threads};
use twinlens_train::{
    Batch, Checkpoints, Gradients, Hooks, LogRow, Outcome, Schedule, ScheduleKind, Stepper, TrainError,
    TrainOptions, train,
};

const N: usize = 16;

/// Noise in pixels, and texts of one to four words.
fn batch(config: &ClipConfig) -> Batch {
    let side = config.vision.image_size();
    let mut state = 5u32;
    let mut noise = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    let pixels: Vec<f32> = (0..N * 3 * side * side).map(|_| noise()).collect();
    let id = |i: usize, t: usize| match t {
        0 => 62,
        t if t <= 1 + i % 4 => ((i * 7 + t * 13) % 60) as u32,
        t if t == 2 + i % 4 => 63,
        _ => 0,
    };
    let ids: Vec<u32> = (0..N).flat_map(|i| (0..6).map(move |t| id(i, t))).collect();
    let device = &candle_core::Device::Cpu;
    Batch {
        pixels: Tensor::from_vec(pixels, (N, 3, side, side), device).unwrap(),
        ids: Tensor::from_vec(ids, (N, 6), device).unwrap(),
        epoch: 1.0,
    }
}

fn stepper<'a>(clip: &'a Clip, micro_batch: usize, ranks: &'a dyn Collective) -> Stepper<'a> {
    let schedule = Schedule { kind: ScheduleKind::Cosine, peak: 1e-3, warmup: 0, steps: 10 };
    Stepper { clip, variables: clip.trainable(), ranks, micro_batch, schedule, stop: &|| false }
}

/// Loss and gradients of the batch on `ranks` ranks.
fn gradients(clip: &Clip, batch: &Batch, micro_batch: usize, ranks: usize) -> (f64, Gradients) {
    if ranks == 1 {
        return stepper(clip, micro_batch, &Local).gradients(batch).unwrap().unwrap();
    }
    let own = N / ranks;
    std::thread::scope(|scope| {
        let start = |rank: Threads| {
            let (clip, batch) = (clip.replica().unwrap(), batch.rows(rank.rank() * own, own).unwrap());
            scope.spawn(move || stepper(&clip, micro_batch, &rank).gradients(&batch).unwrap().unwrap())
        };
        let all: Vec<_> = Threads::new(ranks).into_iter().map(start).collect();
        let mut all: Vec<_> = all.into_iter().map(|rank| rank.join().unwrap()).collect();
        let first = all.swap_remove(0);
        for (loss, others) in all {
            let same = |name: &String| numbers(&first.1, name) == numbers(&others, name);
            assert!(loss == first.0 && clip.variables().keys().all(same), "all ranks hold the same bits");
        }
        first
    })
}

fn numbers(gradients: &Gradients, name: &str) -> Vec<f64> {
    let gradient = gradients.get(name).unwrap_or_else(|| panic!("{name} has no gradient"));
    gradient.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn norm(x: &[f64]) -> f64 {
    x.iter().map(|x| x * x).sum::<f64>().sqrt()
}

/// |a - b| / |b| of all gradients as one vector, and the largest of any variable (norms below 1e-2 are
/// rounding noise).
fn distance(variables: &Variables, got: &Gradients, want: &Gradients) -> (f64, (f64, String)) {
    let (mut differences, mut all, mut largest) = (Vec::new(), Vec::new(), (0.0, String::new()));
    for name in variables.keys() {
        let (got, want) = (numbers(got, name), numbers(want, name));
        assert!(got.iter().all(|x| x.is_finite()) && got.iter().any(|x| *x != 0.0), "{name}");
        let own: Vec<f64> = got.iter().zip(&want).map(|(a, b)| a - b).collect();
        let relative = norm(&own) / norm(&want).max(1e-2);
        if relative > largest.0 {
            largest = (relative, name.clone());
        }
        differences.extend(own);
        all.extend(want);
    }
    (norm(&differences) / norm(&all), largest)
}

const CUTS: [(usize, usize); 8] = [(8, 1), (5, 1), (1, 1), (16, 2), (16, 4), (3, 2), (2, 4), (1, 4)];

/// Gradient caching gives the gradients of the whole batch, for every objective and variable.
#[test]
fn micro_batches_and_ranks_give_the_gradients_of_the_whole_batch() {
    for &objective in Objective::ALL {
        let clip = Clip::new(ClipConfig { objective, ..config() }, 3).unwrap();
        let batch = batch(clip.config());
        let (loss, whole) = gradients(&clip, &batch, N, 1);
        for (micro_batch, ranks) in CUTS {
            let (other, parts) = gradients(&clip, &batch, micro_batch, ranks);
            let what = format!("{objective:?}: {micro_batch} at a time, {ranks} ranks");
            assert!((other - loss).abs() < 1e-6 * loss, "{what}: loss {other}, not {loss}");
            let (d, (largest, name)) = distance(clip.variables(), &parts, &whole);
            assert!(d < 1e-6 && largest < 2e-6, "{what}: {d:e}, {name} {largest:e}");
        }
    }
}

/// With batch norm, the reference is the graph of all micro-batches, each normalised separately.
#[test]
fn micro_batches_of_a_resnet_are_normalised_separately() {
    let (clip, reference) = (Clip::new(resnet(), 3).unwrap(), Clip::new(resnet(), 3).unwrap());
    // Initially the last gain of each block is 0, and with it much of the gradient.
    for model in [&clip, &reference] {
        for (_, gain) in model.variables().iter().filter(|(name, _)| name.ends_with("bn3.weight")) {
            gain.set(&gain.ones_like().unwrap()).unwrap();
        }
    }
    let batch = batch(clip.config());
    let (loss, cached) = gradients(&clip, &batch, 6, 1);
    let parts: Vec<Batch> =
        [(0, 6), (6, 6), (12, 4)].into_iter().map(|(at, len)| batch.rows(at, len).unwrap()).collect();
    let image: Vec<_> =
        parts.iter().map(|p| reference.image_features(&p.pixels, Pass::Train).unwrap()).collect();
    let text = reference.text_features(&batch.ids, Pass::Train).unwrap();
    let whole = reference.loss_of_features(&Tensor::cat(&image, 0).unwrap(), &text).unwrap();
    assert!((f64::from(whole.to_scalar::<f32>().unwrap()) - loss).abs() < 1e-6 * loss);
    let whole = Gradients::from_store(reference.variables(), &whole.backward().unwrap()).unwrap();
    let (d, (largest, name)) = distance(clip.variables(), &cached, &whole);
    // Gradients of the attention pool's queries are small differences of large numbers.
    assert!(d < 2e-6 && largest < 3e-5, "{d:e}, {name} {largest:e}");
    // Running statistics were updated by the same micro-batches in the same order.
    for (name, running) in clip.buffers() {
        assert_eq!(
            running.to_vec1::<f32>().unwrap(),
            reference.buffers()[name].to_vec1::<f32>().unwrap(),
            "{name}"
        );
    }
}

/// Trains in a new directory, interrupted at the calls of `stop` numbered in `cuts` and resumed
/// with a new model each time.
fn run_training(
    config: &ClipConfig,
    freeze: &[&str],
    options: &TrainOptions,
    cuts: &[usize],
) -> (Vec<LogRow>, [String; 2]) {
    let dir = tempfile::tempdir().unwrap();
    let mut cuts = cuts.iter();
    loop {
        let mut clip = Clip::new(config.clone(), 3).unwrap();
        clip.freeze(&freeze.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap();
        let checkpoints = Checkpoints::new(&dir.path().join("checkpoints"), "test".into(), 2).unwrap();
        let (calls, cut) = (AtomicUsize::new(1), cuts.next().copied());
        let stop = || Some(calls.fetch_add(1, Relaxed)) == cut;
        let hooks = Hooks {
            now: &|| 7,
            note: &|_| (),
            stop: &stop,
            observe: &mut |_| (),
            evaluate: None,
            processes: None,
        };
        match train(&clip, &COLOURS, options, &checkpoints, hooks).unwrap() {
            Outcome::Finished(output) => {
                assert!(cuts.next().is_none(), "not every interruption happened");
                let mean = output.ema.as_ref().map_or_else(String::new, Clip::weights_hash);
                let log = output.log.into_iter().map(|row| LogRow { samples_per_second: 0.0, ..row });
                return (log.collect(), [clip.weights_hash(), mean]);
            }
            Outcome::Stopped => {}
        }
    }
}

#[test]
fn ranks_and_micro_batches_give_the_same_training() {
    let (whole, _) = run_training(&config(), &[], &options(8), &[]);
    for (micro_batch, ranks) in [(16, 2), (16, 4), (5, 1), (3, 2)] {
        let options = TrainOptions { micro_batch: Some(micro_batch), ranks, ..options(8) };
        let (log, _) = run_training(&config(), &[], &options, &[]);
        for (row, want) in log.iter().zip(&whole) {
            let close = |a: f64, b: f64| (a - b).abs() < 1e-6 * b.abs().max(1.0);
            let fits = close(row.loss, want.loss) && close(row.logit_scale, want.logit_scale);
            assert!(fits, "{micro_batch} {ranks}: {row:?} {want:?}");
        }
    }
}

/// Each rank has a part of the moments, and nothing else changes: not a bit, not in a checkpoint,
/// and not when a training that was stopped is resumed.
#[test]
fn divided_moments_give_the_same_bits() {
    for (config, micro_batch, ranks) in [(config(), 16, 4), (config(), 3, 2), (resnet(), 4, 2)] {
        let whole = TrainOptions { micro_batch: Some(micro_batch), ranks, ema: Some(0.9), ..options(8) };
        let divided = TrainOptions { shard_optimizer: true, ..whole.clone() };
        let expected = run_training(&config, &[], &whole, &[]);
        assert!(run_training(&config, &[], &divided, &[]) == expected);
        assert!(run_training(&config, &[], &divided, &[3, 5]) == expected);
        let frozen = run_training(&config, &["visual"], &whole, &[]);
        assert!(run_training(&config, &["visual"], &divided, &[2]) == frozen);
    }
}

/// Steps are abandoned between micro-batches and repeated: with ranks, with a moving average of the
/// weights, with a frozen tower, with running statistics.
#[test]
fn an_abandoned_step_has_no_side_effects() {
    let cases: [(ClipConfig, &[&str], TrainOptions); 5] = [
        (config(), &[], TrainOptions { micro_batch: Some(4), ema: Some(0.9), ..options(6) }),
        (
            config(),
            &["visual"],
            TrainOptions { micro_batch: Some(2), ranks: 2, ema: Some(0.5), ..options(6) },
        ),
        (resnet(), &[], TrainOptions { micro_batch: Some(4), ema: Some(0.9), ..options(5) }),
        (resnet(), &[], TrainOptions { micro_batch: Some(2), ranks: 2, ..options(5) }),
        (
            ClipConfig { objective: Objective::CAPTION, ..config() },
            &[],
            TrainOptions { micro_batch: Some(3), ranks: 2, ..options(5) },
        ),
    ];
    for (config, freeze, options) in cases {
        let (log, weights) = run_training(&config, freeze, &options, &[]);
        // `stop` is called between micro-batches and between steps.
        let (cut_log, cut_weights) = run_training(&config, freeze, &options, &[3, 8, 13, 1, 6]);
        assert_eq!(cut_weights, weights, "{options:?}");
        assert_eq!(cut_log, log, "{options:?}");
        assert_eq!(options.ema.is_some(), weights[0] != weights[1] && !weights[1].is_empty());
    }
}

#[test]
fn frozen_parts_do_not_change() {
    let fresh = Clip::new(config(), 3).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut clip = Clip::new(config(), 3).unwrap();
    clip.freeze(&["visual".into(), "transformer.resblocks.0".into()]).unwrap();
    let checkpoints = Checkpoints::new(&dir.path().join("checkpoints"), "test".into(), 2).unwrap();
    let hooks = Hooks {
        now: &|| 7,
        note: &|_| (),
        stop: &|| false,
        observe: &mut |_| (),
        evaluate: None,
        processes: None,
    };
    let options = TrainOptions { micro_batch: Some(7), ..options(6) };
    assert!(matches!(train(&clip, &COLOURS, &options, &checkpoints, hooks), Ok(Outcome::Finished(_))));
    let bits = |clip: &Clip, name: &str| -> Vec<u32> {
        let numbers = clip.variables()[name].flatten_all().unwrap().to_vec1::<f32>().unwrap();
        numbers.into_iter().map(f32::to_bits).collect()
    };
    for name in clip.variables().keys() {
        let frozen = name.starts_with("visual.") || name.starts_with("transformer.resblocks.0.");
        assert_eq!(bits(&clip, name) == bits(&fresh, name), frozen, "{name}");
    }
}

/// A failing rank ends the training with its own error, and no rank keeps waiting.
#[test]
fn a_failing_rank_reports_its_error() {
    let dir = tempfile::tempdir().unwrap();
    let clip = Clip::new(config(), 3).unwrap();
    let checkpoints = Checkpoints::new(&dir.path().join("checkpoints"), "test".into(), 2).unwrap();
    let run = |options: TrainOptions| {
        let hooks = Hooks {
            now: &|| 7,
            note: &|_| (),
            stop: &|| false,
            observe: &mut |_| (),
            evaluate: None,
            processes: None,
        };
        train(&clip, &COLOURS, &options, &checkpoints, hooks).err().unwrap()
    };
    let wild = TrainOptions { lr: 1e30, warmup: 0, ranks: 4, ..options(20) };
    let error = run(wild);
    assert!(matches!(error, TrainError::NotFinite { .. }), "{error}");
    let error = run(TrainOptions { ranks: 3, ..options(20) });
    assert!(matches!(error, TrainError::Options(_)), "{error}");
}
