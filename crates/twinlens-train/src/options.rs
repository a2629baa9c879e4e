//! The options of a training.

use crate::optimizer::AdamWOptions;
use crate::schedule::ScheduleKind;
use twinlens_image::Augment;

/// Steps in batches of one size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batches {
    pub steps: u64,
    /// Pairs per step.
    pub size: usize,
}

#[derive(Clone, Debug, PartialEq)]
pub struct TrainOptions {
    /// All steps, those of `earlier` included.
    pub steps: u64,
    /// The steps of the training that this one continues.
    pub earlier: Vec<Batches>,
    /// Pairs per step over all ranks; the other captions of the batch are the negatives.
    pub batch_size: usize,
    /// Pairs per forward pass; `None` for all pairs of the rank.
    pub micro_batch: Option<usize>,
    /// Threads, each with a replica of the model and an equal part of each batch.
    pub ranks: usize,
    /// Whether each rank has a part of the optimiser's moments alone.
    pub shard_optimizer: bool,
    /// The highest learning rate.
    pub lr: f64,
    pub schedule: ScheduleKind,
    /// Steps of linear warm-up.
    pub warmup: u64,
    pub adamw: AdamWOptions,
    /// Decay of the moving average of the weights; `None` for no average.
    pub ema: Option<f64>,
    /// Steps between checkpoints.
    pub checkpoint_every: u64,
    /// Steps between weights that are kept permanently.
    pub keep_every: Option<u64>,
    /// Whether the state at the end is kept, so that the training can be continued.
    pub keep_state: bool,
    /// Whether to keep the weights of the best step: by the first metric of the evaluation, or else
    /// by the mean loss of 100 steps.
    pub keep_best: bool,
    /// Steps between evaluations.
    pub evaluate_every: Option<u64>,
    /// Seed of the order of the data and of crops.
    pub seed: u64,
    /// Minimum fraction of the area of random square crops (the paper's only augmentation; 0.9 in
    /// open_clip). `None`: the central square.
    pub crop_min_area: Option<f64>,
    pub augment: Option<Augment>,
    /// Maximum size of prefetched batches, in bytes; at least one batch is prefetched.
    pub prefetch_bytes: usize,
}

impl TrainOptions {
    /// Options that matter only to how batches are made: for a training elsewhere.
    pub(crate) fn of_batches(batch_size: usize, seed: u64) -> Self {
        Self {
            steps: u64::MAX / (batch_size as u64).max(1),
            earlier: Vec::new(),
            batch_size,
            micro_batch: None,
            ranks: 1,
            shard_optimizer: false,
            lr: 0.0,
            schedule: ScheduleKind::default(),
            warmup: 0,
            adamw: AdamWOptions::default(),
            ema: None,
            checkpoint_every: u64::MAX,
            keep_every: None,
            keep_state: false,
            keep_best: false,
            evaluate_every: None,
            seed,
            crop_min_area: None,
            augment: None,
            prefetch_bytes: 0,
        }
    }

    /// The steps of the training that this one continues.
    pub fn first_step(&self) -> u64 {
        self.earlier.iter().map(|batches| batches.steps).sum()
    }

    /// Pairs in step `step`, counted from 0.
    pub(crate) fn batch_size_at(&self, step: u64) -> usize {
        let mut end = 0;
        let part = self.earlier.iter().find(|batches| {
            end += batches.steps;
            step < end
        });
        part.map_or(self.batch_size, |batches| batches.size)
    }

    /// Pairs seen in the first `steps` steps.
    pub fn pairs_seen(&self, steps: u64) -> u64 {
        let (mut left, mut pairs) = (steps, 0);
        for batches in &self.earlier {
            let own = batches.steps.min(left);
            pairs += own * batches.size as u64;
            left -= own;
        }
        pairs + left * self.batch_size as u64
    }
}
