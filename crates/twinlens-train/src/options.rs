//! The options of a training.

use crate::optimizer::AdamWOptions;
use twinlens_image::Augment;

#[derive(Clone, Debug, PartialEq)]
pub struct TrainOptions {
    pub steps: u64,
    /// Pairs per step over all ranks; the other captions of the batch are the negatives.
    pub batch_size: usize,
    /// Pairs per forward pass; `None` for all pairs of the rank.
    pub micro_batch: Option<usize>,
    /// Threads, each with a replica of the model and an equal part of each batch.
    pub ranks: usize,
    /// The highest learning rate.
    pub lr: f64,
    /// Steps of linear warm-up.
    pub warmup: u64,
    pub adamw: AdamWOptions,
    /// Decay of the moving average of the weights; `None` for no average.
    pub ema: Option<f64>,
    /// Steps between checkpoints.
    pub checkpoint_every: u64,
    /// Steps between weights that are kept permanently.
    pub keep_every: Option<u64>,
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
