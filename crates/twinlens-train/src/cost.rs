//! What a training step costs, before it is run: memory, arithmetic, traffic between ranks, time.
//!
//! The formulas are those of this trainer: f32 weights and sums, gradient caching in micro-batches,
//! sums by pieces in the order of the ranks. Sources: Korthikanti et al. 2022 ("Reducing activation
//! recomputation in large transformer models", eq. 1, without dropout) for what a transformer keeps
//! for its backward pass; Kaplan et al. 2020 (appendix B) for a backward pass of twice the forward
//! arithmetic; Patarasuk and Yuan 2009 for `2 (n - 1) / n` of the data in an all-reduce;
//! Rajbhandari et al. 2020 (ZeRO, section 5) for moments that are divided among ranks.

use twinlens_model::{ClipConfig, Precision};

/// How a model is trained, as far as it costs.
#[derive(Clone, Debug)]
pub struct CostQuery {
    pub config: ClipConfig,
    /// Pairs per step over all ranks.
    pub batch: usize,
    pub ranks: usize,
    /// Pairs per forward pass; `None` for all of the rank.
    pub micro_batch: Option<usize>,
    pub precision: Precision,
    /// Whether the backward pass computes the transformers' insides again.
    pub recompute: bool,
    /// Whether the moments are divided among the ranks.
    pub shard_optimizer: bool,
}

/// Bytes of a rank, by kind.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MemoryCost {
    pub weights: f64,
    pub gradients: f64,
    /// Both moments of the optimiser.
    pub moments: f64,
    /// The copy of the gradients that is summed over ranks.
    pub sums: f64,
    /// What the forward pass of a micro-batch keeps.
    pub activations: f64,
    /// The features of all pairs of the batch.
    pub features: f64,
    /// The rank's pixels.
    pub pixels: f64,
}

impl MemoryCost {
    pub fn total(&self) -> f64 {
        let Self { weights, gradients, moments, sums, activations, features, pixels } = self;
        weights + gradients + moments + sums + activations + features + pixels
    }
}

/// What one rank does in a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepCost {
    /// Pairs of the rank.
    pub pairs: usize,
    pub memory: MemoryCost,
    /// Operations of the towers.
    pub tower_flops: f64,
    /// Operations of the comparison of all pairs.
    pub loss_flops: f64,
    /// Operations of the text tower's last backward pass, during which the gradients of the image
    /// tower are summed.
    pub overlap_flops: f64,
    /// Bytes that the rank sends to gather features and their sums.
    pub gather_bytes: f64,
    /// Bytes that the rank sends to sum the gradients, by tower: image, text.
    pub reduce_bytes: [f64; 2],
    /// Bytes of weights that the rank sends if moments are divided.
    pub weight_bytes: f64,
    /// Bytes of features that move between the device and the host, if these differ.
    pub feature_copies: f64,
    /// Bytes of gradients that do, by tower: image, text.
    pub gradient_copies: [f64; 2],
}

/// How fast a rank is.
#[derive(Clone, Copy, Debug)]
pub struct RankSpeed {
    /// Achieved (not peak) operations per second of the towers.
    pub flops: f64,
    /// Bytes per second that a rank sends while it receives as much.
    pub network: f64,
    /// Bytes per second between the device and the host; `None` if they are the same.
    pub host: Option<f64>,
}

/// Seconds of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepTime {
    pub towers: f64,
    pub loss: f64,
    pub copies: f64,
    pub gather: f64,
    pub reduce: f64,
    /// Of copies and sums, what happens while the towers compute.
    pub overlap: f64,
}

impl StepTime {
    pub fn total(&self) -> f64 {
        self.towers + self.loss + self.copies + self.gather + self.reduce - self.overlap
    }

    /// The fraction of the step in which the towers compute.
    pub fn efficiency(&self) -> f64 {
        self.towers / self.total()
    }
}

/// Bytes of an f32.
const F32: f64 = 4.0;

impl CostQuery {
    /// The cost of a step of a model that compares pairs.
    pub fn step(&self) -> StepCost {
        let Self { config, batch, ranks, .. } = self;
        let profile = config.profile();
        let pairs = batch / ranks;
        let micro = self.micro_batch.unwrap_or(pairs).min(pairs);
        let (rows, all, n) = (pairs as f64, *batch as f64, *ranks as f64);
        let (parameters, embed) = (profile.parameters() as f64, config.embed as f64);
        // A batch in one part on one rank keeps one graph; all else compares features first.
        let is_whole = micro == pairs && *ranks == 1;
        let forward = profile.flops() as f64;
        let again = if self.recompute { forward } else { 0.0 };
        let tower_flops = rows * (3.0 * forward + again) + (rows - micro as f64) * forward;
        let other_ranks = (n - 1.0) / n;
        let features = 2.0 * all * embed * F32;
        let is_shared = *ranks > 1;
        let has_host = is_shared && !self.precision.is_f32();
        let by_tower = [profile.image_parameters, profile.text_parameters].map(|tower| F32 * tower as f64);
        StepCost {
            pairs,
            memory: MemoryCost {
                weights: F32 * parameters,
                gradients: F32 * parameters,
                moments: 2.0 * F32 * parameters / if self.shard_optimizer { n } else { 1.0 },
                sums: if is_shared { F32 * parameters } else { 0.0 },
                activations: micro as f64 * self.kept_bytes(),
                features: if is_whole { 0.0 } else { features },
                pixels: rows * 3.0 * (config.vision.image_size() as f64).powi(2) * F32,
            },
            tower_flops,
            // Logits of the rank's images over all texts, and the other way round; then the same
            // with the gradients of both. A whole batch computes its logits once.
            loss_flops: if is_whole { 6.0 * all * all * embed } else { 12.0 * rows * all * embed },
            overlap_flops: if is_shared { 2.0 * micro as f64 * profile.text_flops as f64 } else { 0.0 },
            gather_bytes: other_ranks * (features + 2.0 * all * F32),
            reduce_bytes: by_tower.map(|tower| 2.0 * other_ranks * tower),
            weight_bytes: if self.shard_optimizer { other_ranks * F32 * parameters } else { 0.0 },
            feature_copies: if has_host { features * (1.0 + 1.0 / n) } else { 0.0 },
            gradient_copies: by_tower.map(|tower| if has_host { 2.0 * tower } else { 0.0 }),
        }
    }

    /// Bytes that the backward pass of one pair needs of the forward pass.
    fn kept_bytes(&self) -> f64 {
        let profile = self.config.profile();
        let (image, text) = (profile.image_kept, profile.text_kept);
        let kept = if self.recompute { image.recomputed + text.recomputed } else { image.all + text.all };
        kept as f64 * if self.precision.is_f32() { F32 } else { 2.0 }
    }
}

impl StepCost {
    /// How long the step takes at this speed.
    pub fn time(&self, speed: &RankSpeed) -> StepTime {
        let copies = |bytes: f64| speed.host.map_or(0.0, |host| bytes / host);
        let [image, text] = [0, 1]
            .map(|tower| (copies(self.gradient_copies[tower]), self.reduce_bytes[tower] / speed.network));
        StepTime {
            towers: self.tower_flops / speed.flops,
            loss: self.loss_flops / speed.flops,
            copies: copies(self.feature_copies) + image.0 + text.0,
            gather: self.gather_bytes / speed.network,
            reduce: image.1 + text.1 + self.weight_bytes / speed.network,
            overlap: (image.0 + image.1).min(self.overlap_flops / speed.flops),
        }
    }

    /// Bytes that the rank sends to sum gradients and to share weights.
    pub fn sent_for_weights(&self) -> f64 {
        self.reduce_bytes.iter().sum::<f64>() + self.weight_bytes
    }

    /// Bytes that move between the device and the host.
    pub fn copied(&self) -> f64 {
        self.gradient_copies.iter().sum::<f64>() + self.feature_copies
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(model: &str, batch: usize, ranks: usize) -> CostQuery {
        CostQuery {
            config: ClipConfig::preset(model).unwrap(),
            batch,
            ranks,
            micro_batch: None,
            precision: Precision::Bf16,
            recompute: false,
            shard_optimizer: false,
        }
    }

    /// Relative difference below a thousandth.
    #[track_caller]
    fn close(got: f64, by_hand: f64) {
        assert!((got - by_hand).abs() <= 1e-3 * by_hand.abs(), "{got:e}, not {by_hand:e}");
    }

    /// ViT-B/16 has 149.62 M parameters and needs 41.09 GFLOP per pair (open_clip's profile). A
    /// layer of its image tower keeps 16 * 197 * 768 + 12 * 197^2 numbers, one of its text tower 16
    /// * 77 * 512 + 8 * 77^2.
    #[test]
    fn vit_b_16_on_64_ranks_costs_what_a_hand_computes() {
        let cost = query("vit-b-16", 32_768, 64).step();
        assert_eq!(cost.pairs, 512);
        let MemoryCost { weights, gradients, moments, sums, activations, features, pixels } = cost.memory;
        for got in [weights, gradients, sums] {
            close(got, 598.5e6);
        }
        close(moments, 1_197.0e6);
        close(activations, 512.0 * 12.0 * (2_886_444.0 + 678_216.0) * 2.0);
        close(features, 2.0 * 32_768.0 * 512.0 * 4.0);
        close(pixels, 512.0 * 150_528.0 * 4.0);
        close(cost.memory.total(), 3.0 * 598.5e6 + 1_197.0e6 + 43.80e9 + 134.2e6 + 308.3e6);
        close(cost.tower_flops, 3.0 * 512.0 * 41.09e9);
        close(cost.loss_flops, 12.0 * 512.0 * 32_768.0 * 512.0);
        close(cost.gather_bytes, 63.0 / 64.0 * (134.2e6 + 0.262e6));
        close(cost.sent_for_weights(), 2.0 * 63.0 / 64.0 * 598.5e6);
        // 86.19 M parameters are the image tower's.
        close(cost.reduce_bytes[0], 2.0 * 63.0 / 64.0 * 4.0 * 86.19e6);
        close(cost.copied(), 1_197.0e6 + 134.2e6 * 65.0 / 64.0);
        close(cost.overlap_flops, 2.0 * 512.0 * 5.96e9);
    }

    #[test]
    fn options_change_what_they_are_for() {
        let plain = query("vit-b-32", 32_768, 64);
        let cost = plain.step();
        let sharded = CostQuery { shard_optimizer: true, ..plain.clone() }.step();
        close(sharded.memory.moments, cost.memory.moments / 64.0);
        close(sharded.sent_for_weights(), cost.sent_for_weights() * 1.5);
        let micro = CostQuery { micro_batch: Some(128), ..plain.clone() }.step();
        close(micro.memory.activations, cost.memory.activations / 4.0);
        // Three of four parts have a second forward pass: of 3 + 3/4 passes.
        close(micro.tower_flops, cost.tower_flops * 3.75 / 3.0);
        let recomputed = CostQuery { recompute: true, ..plain.clone() }.step();
        close(recomputed.tower_flops, cost.tower_flops * 4.0 / 3.0);
        assert!(recomputed.memory.activations < 0.2 * cost.memory.activations);
        let alone = CostQuery { batch: 512, ranks: 1, precision: Precision::F32, ..plain }.step();
        close(alone.memory.activations, 2.0 * cost.memory.activations);
        assert_eq!((alone.gather_bytes, alone.sent_for_weights(), alone.copied()), (0.0, 0.0, 0.0));
        assert_eq!(alone.overlap_flops, 0.0);
        assert_eq!((alone.memory.sums, alone.memory.features), (0.0, 0.0));
        close(alone.loss_flops, 6.0 * 512.0 * 512.0 * 512.0);
    }

    #[test]
    fn times_add_up() {
        let cost = query("vit-b-32", 32_768, 64).step();
        let speed = RankSpeed { flops: 150e12, network: 25e9, host: Some(20e9) };
        let time = cost.time(&speed);
        // 14.78 GFLOP per pair and 151.28 M parameters, of which 87.85 M are the image tower's.
        close(time.towers, 3.0 * 512.0 * 14.78e9 / 150e12);
        close(time.loss, 103.1e9 / 150e12);
        close(time.copies, (2.0 * 605.1e6 + 134.2e6 * 65.0 / 64.0) / 20e9);
        close(time.gather, 63.0 / 64.0 * 134.48e6 / 25e9);
        close(time.reduce, 2.0 * 63.0 / 64.0 * 605.1e6 / 25e9);
        // The text tower's backward pass takes less than the image tower's sums.
        close(time.overlap, 2.0 * 512.0 * 5.96e9 / 150e12);
        let all = time.towers + time.loss + time.copies + time.gather + time.reduce;
        close(time.total(), all - time.overlap);
        close(time.efficiency(), time.towers / time.total());
        let fast = cost.time(&RankSpeed { network: 1e15, host: None, ..speed });
        close(fast.overlap, 2.0 * 63.0 / 64.0 * 4.0 * 87.85e6 / 1e15);
    }
}
