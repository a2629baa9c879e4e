//! `train`: a step of training on the CPU: forward, backward, optimiser.
//!
//!     cargo bench --workspace --bench train
//!
//! By default, the model is `vit-tiny-64` and the pixels are noise. With `TWINLENS_TRAIN=DIR`,
//! model and batches are those that `train_peer.py` wrote there (`config.json`,
//! `model.safetensors`, `batches.safetensors`), and the last line of output is JSON for it.
//! `TWINLENS_STEPS` is the number of steps. `TWINLENS_MICRO_BATCH` sets the micro-batch (forward
//! and backward are then measured as one), and `TWINLENS_RECOMPUTE=1` enables gradient
//! checkpointing.

use std::path::{Path, PathBuf};
use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use twinlens_model::{Clip, ClipConfig};
use twinlens_ranks::Local;
use twinlens_train::{AdamW, AdamWOptions, Batch, Gradients, Schedule, ScheduleKind, Stepper};

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// As in the program itself: it keeps pages for the next step.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// candle walks its graph recursively.
const STACK_BYTES: usize = 256 << 20;
const LR: f64 = 5e-4;
/// Steps that are not measured, because caches are cold.
const WARM: usize = 2;

/// A model and its batches, which are repeated: pixels `[batch, 3, size, size]` and ids `[batch,
/// context]`.
struct Setup {
    clip: Clip,
    batches: Vec<(Tensor, Tensor)>,
}

impl Setup {
    fn read(folder: &Path) -> Result<Self, Failure> {
        let tensors = candle_core::safetensors::load(folder.join("batches.safetensors"), &Device::Cpu)?;
        let (pixels, ids) = (&tensors["pixels"], tensors["ids"].to_dtype(DType::U32)?);
        let batch = |number| Ok((pixels.get(number)?.contiguous()?, ids.get(number)?.contiguous()?));
        let batches = (0..pixels.dim(0)?).map(batch).collect::<Result<_, Failure>>()?;
        Ok(Self { clip: Clip::load(folder)?, batches })
    }

    fn synthetic() -> Result<Self, Failure> {
        let config = ClipConfig::preset("vit-tiny-64")?;
        let (size, batch) = (config.vision.image_size(), 128);
        let pixels = Tensor::randn(0f32, 1.0, (batch, 3, size, size), &Device::Cpu)?;
        // Texts of 4 to 19 tokens, the end token last.
        let (context, end) = (config.text.context as u32, config.text.vocab as u32 - 1);
        let id = |text: u32, place: u32| match place.cmp(&(3 + text % 16)) {
            std::cmp::Ordering::Less => 1 + (text * 31 + place * 17) % (end - 1),
            std::cmp::Ordering::Equal => end,
            std::cmp::Ordering::Greater => 0,
        };
        let ids: Vec<u32> = (0..batch as u32)
            .flat_map(|text| (0..context).map(move |place| (text, place)))
            .map(|(text, place)| id(text, place))
            .collect();
        let ids = Tensor::from_vec(ids, (batch, context as usize), &Device::Cpu)?;
        Ok(Self { clip: Clip::new(config, 17)?, batches: vec![(pixels, ids)] })
    }
}

/// Seconds per phase of one step.
struct Times {
    forward: f64,
    backward: f64,
    optimizer: f64,
}

/// Makes steps in micro-batches.
fn train_in_micro_batches(
    setup: &Setup,
    steps: usize,
    micro_batch: usize,
) -> Result<(Vec<Times>, Vec<f32>), Failure> {
    let (clip, variables) = (&setup.clip, setup.clip.variables().clone());
    let schedule = Schedule { kind: ScheduleKind::Cosine, peak: LR, warmup: 0, steps: u64::MAX };
    let stepper = Stepper { clip, variables, ranks: &Local, micro_batch, schedule, stop: &|| false };
    let mut adam = AdamW::new(clip.variables(), AdamWOptions::default());
    let (mut times, mut losses) = (Vec::new(), Vec::new());
    for step in 0..steps {
        let (pixels, ids) = setup.batches[step % setup.batches.len()].clone();
        let start = Instant::now();
        let batch = Batch { pixels, ids, epoch: 0.0 };
        let step = stepper.step(&mut adam, &batch)?.ok_or("the step was abandoned")?;
        losses.push(step.loss as f32);
        times.push(Times { forward: 0.0, backward: start.elapsed().as_secs_f64(), optimizer: 0.0 });
    }
    Ok((times, losses))
}

fn train(setup: &Setup, steps: usize) -> Result<(Vec<Times>, Vec<f32>), Failure> {
    let clip = &setup.clip;
    let mut adam = AdamW::new(clip.variables(), AdamWOptions::default());
    let (mut times, mut losses) = (Vec::new(), Vec::new());
    for step in 0..steps {
        let (pixels, ids) = &setup.batches[step % setup.batches.len()];
        let start = Instant::now();
        let loss = clip.loss(pixels, ids)?;
        losses.push(loss.to_scalar::<f32>()?);
        let forward = start.elapsed().as_secs_f64();
        let gradients = Gradients::from_store(clip.variables(), &loss.backward()?)?;
        drop(loss);
        let backward = start.elapsed().as_secs_f64();
        adam.step(clip.variables(), &gradients, LR).map_err(|error| format!("{error:?}"))?;
        clip.clamp_logit_scale()?;
        let optimizer = start.elapsed().as_secs_f64();
        times.push(Times { forward, backward: backward - forward, optimizer: optimizer - backward });
    }
    Ok((times, losses))
}

fn median(times: &[Times], of: impl Fn(&Times) -> f64) -> f64 {
    let mut values: Vec<f64> = times.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The speed of a matrix product on this machine, in GFLOP/s: the upper limit for a step.
fn matmul_gflops() -> Result<f64, Failure> {
    const SIDE: usize = 1536;
    let matrix = Tensor::randn(0f32, 1.0, (SIDE, SIDE), &Device::Cpu)?;
    let time = |_| {
        let start = Instant::now();
        matrix.matmul(&matrix)?;
        Ok(start.elapsed().as_secs_f64())
    };
    let times = (0..8).map(time).collect::<Result<Vec<f64>, Failure>>()?;
    Ok(2.0 * (SIDE as f64).powi(3) / times.into_iter().fold(f64::INFINITY, f64::min) / 1e9)
}

/// Peak resident memory in MiB; NaN without /proc.
fn peak_mib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse::<f64>().ok());
    kilobytes.map_or(f64::NAN, |kilobytes| kilobytes / 1024.0)
}

fn run() -> Result<(), Failure> {
    let folder = std::env::var_os("TWINLENS_TRAIN").map(PathBuf::from);
    let steps: usize = std::env::var("TWINLENS_STEPS").map_or(Ok(20), |steps| steps.parse())?;
    let mut setup = folder.as_deref().map_or_else(Setup::synthetic, Setup::read)?;
    setup.clip.set_recompute(std::env::var_os("TWINLENS_RECOMPUTE").is_some_and(|value| value == "1"));
    let steps = steps.max(WARM + 1);
    let (times, losses) = match std::env::var("TWINLENS_MICRO_BATCH") {
        Ok(micro_batch) => train_in_micro_batches(&setup, steps, micro_batch.parse()?)?,
        Err(_) => train(&setup, steps)?,
    };
    let peak = peak_mib();
    let times = &times[WARM..];
    let [forward, backward, optimizer, step] = [
        median(times, |t| t.forward),
        median(times, |t| t.backward),
        median(times, |t| t.optimizer),
        median(times, |t| t.forward + t.backward + t.optimizer),
    ]
    .map(|seconds| 1000.0 * seconds);
    let gflops = matmul_gflops()?;
    println!(
        "forward {forward:.1} ms, backward {backward:.1} ms, optimiser {optimizer:.1} ms, step {step:.1} ms; \
         peak memory {peak:.0} MiB; matrix product {gflops:.0} GFLOP/s"
    );
    if folder.is_some() {
        let losses: Vec<String> = losses.iter().map(f32::to_string).collect();
        println!(
            r#"{{"forward_ms": {forward}, "backward_ms": {backward}, "optimizer_ms": {optimizer}, "step_ms": {step}, "peak_mib": {peak}, "matmul_gflops": {gflops}, "losses": [{}]}}"#,
            losses.join(", ")
        );
    }
    Ok(())
}

fn main() -> Result<(), Failure> {
    let trainer = std::thread::Builder::new().stack_size(STACK_BYTES).spawn(run)?;
    trainer.join().map_err(|_| "the training panicked")?
}
