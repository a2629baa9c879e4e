//! A small model, and pairs that it can learn.

use std::path::Path;
use twinlens_model::{Activation, ClipConfig, Objective, ResNetConfig, TextConfig, VisionConfig, VitConfig};
use twinlens_train::{AdamWOptions, Examples, ExamplesWriter, Record, TrainOptions};

pub const PAIRS: u32 = 48;

pub fn config() -> ClipConfig {
    ClipConfig {
        embed: 16,
        vision: VisionConfig::Vit(VitConfig { image_size: 16, patch: 8, width: 32, layers: 2, heads: 2 }),
        text: TextConfig { context: 6, vocab: 64, width: 32, layers: 2, heads: 2 },
        activation: Activation::QuickGelu,
        objective: Objective::Contrastive,
    }
}

/// The same with a ResNet, whose running statistics a checkpoint has to hold.
pub fn resnet() -> ClipConfig {
    let tower = ResNetConfig { image_size: 32, width: 4, stages: [1, 1, 1, 1], heads: 4 };
    ClipConfig { vision: VisionConfig::ResNet(tower), ..config() }
}

pub fn options(steps: u64) -> TrainOptions {
    TrainOptions {
        steps,
        batch_size: 16,
        micro_batch: None,
        ranks: 1,
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
        prefetch_bytes: 100_000,
    }
}

/// Images of flat colours with a bright corner, each with a caption of two tokens of its own.
pub fn examples(path: &Path) -> Examples {
    let mut writer = ExamplesWriter::create(path, Record { side: 20, context: 6 }).unwrap();
    for i in 0..PAIRS {
        let colour = [(i * 5) as u8, 250 - (i * 4) as u8, (i % 7 * 36) as u8];
        let corner = (i % 4) as usize;
        let pixel = |p: usize| if p / 20 / 10 * 2 + p % 20 / 10 == corner { [255; 3] } else { colour };
        let pixels: Vec<u8> = (0..400).flat_map(pixel).collect();
        writer.push(&pixels, &[62, i + 1, 50 + i % 10, 63, 0, 0]).unwrap();
    }
    writer.finish().unwrap()
}
