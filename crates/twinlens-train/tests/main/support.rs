//! A small model, and synthetic pairs that it can learn.

use candle_core::{Device, Tensor};
use std::sync::mpsc::SyncSender;
use twinlens_image::Preprocess;
use twinlens_model::{Activation, ClipConfig, Objective, ResNetConfig, TextConfig, VitConfig};
use twinlens_train::{AdamWOptions, Batch, BatchSource, Part, Result, ScheduleKind, TrainOptions};

const PAIRS: u32 = 48;

pub(crate) fn config() -> ClipConfig {
    ClipConfig {
        embed: 16,
        vision: VitConfig { image_size: 16, patch: 8, width: 32, layers: 2, heads: 2 }.into(),
        text: TextConfig { context: 6, vocab: 64, width: 32, layers: 2, heads: 2 },
        activation: Activation::QuickGelu,
        objective: Objective::CONTRASTIVE,
    }
}

/// The same model with a ResNet, whose running statistics belong in checkpoints.
pub(crate) fn resnet() -> ClipConfig {
    let tower = ResNetConfig { image_size: 32, width: 4, stages: [1, 1, 1, 1], heads: 4 };
    ClipConfig { vision: tower.into(), ..config() }
}

pub(crate) fn options(steps: u64) -> TrainOptions {
    TrainOptions {
        earlier: Vec::new(),
        schedule: ScheduleKind::Cosine,
        keep_state: true,
        steps,
        batch_size: 16,
        micro_batch: None,
        ranks: 1,
        shard_optimizer: false,
        lr: 3e-3,
        warmup: 5,
        adamw: AdamWOptions { clip_grad_norm: Some(1.0), ..AdamWOptions::default() },
        ema: None,
        checkpoint_every: 4,
        keep_every: None,
        keep_best: false,
        evaluate_every: None,
        seed: 11,
        crop_min_area: Some(0.8),
        augment: None,
        prefetch_bytes: 100_000,
    }
}

/// Synthetic pairs: pixels as a function of (pair, position in `[size, size]`, channel), and
/// captions of two tokens.
pub(crate) struct Synthetic(pub fn(u32, usize, usize) -> f32);

impl BatchSource for Synthetic {
    fn context(&self) -> usize {
        6
    }

    fn run(
        &self,
        options: &TrainOptions,
        preprocess: &Preprocess,
        part: Part,
        send: &SyncSender<Batch>,
    ) -> Result<()> {
        let (n, size) = (options.batch_size, preprocess.size as usize);
        let own = part.rows(n);
        for step in part.steps {
            // Distinct pairs, starting at one that depends on step and seed.
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
            if send.send(batch.rows(own.start, own.len())?).is_err() {
                return Ok(());
            }
        }
        Ok(())
    }
}

/// Images of flat colours with a bright part.
pub(crate) const COLOURS: Synthetic = Synthetic(|pair, at, channel| {
    let colour = [pair * 5, 250 - pair * 4, pair % 7 * 36][channel] as f32 / 64.0 - 2.0;
    if at as u32 / 400 == pair % 4 { 2.0 } else { colour }
});
