//! Which examples make up each batch: a function of seed and epoch, so that a position in the data is a step number.
//!
//! Every epoch is a fresh shuffle in `examples / batch` full batches. Two pairs with the same caption in one batch would
//! each count as the other's negative, wrongly; the sampler puts the second off to a later batch. Only where captions
//! repeat so often that an epoch's last batches could not be filled otherwise do equal captions meet.

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use sha2::{Digest, Sha256};
use std::collections::HashSet;

/// The random numbers of `seed / purpose / position`.
pub fn stream(seed: u64, purpose: &str, position: u64) -> ChaCha8Rng {
    ChaCha8Rng::from_seed(Sha256::digest(format!("{seed}/{purpose}/{position}")).into())
}

/// Batches of example indices.
#[derive(Debug)]
pub struct Sampler {
    /// For each example a number that is equal where captions are.
    captions: Vec<u64>,
    batch: usize,
    seed: u64,
}

impl Sampler {
    /// Batches of `batch` out of `captions.len()` examples; `batch` is at most that, and at least 1.
    pub fn new(captions: Vec<u64>, batch: usize, seed: u64) -> Self {
        Self { captions, batch, seed }
    }

    /// Batches of an epoch; the examples beyond the last full batch sit this epoch out.
    pub fn batches_per_epoch(&self) -> u64 {
        (self.captions.len() / self.batch) as u64
    }

    /// All batches of an epoch, each `batch` distinct examples.
    pub fn epoch(&self, epoch: u64) -> Vec<Vec<u32>> {
        let mut rng = stream(self.seed, "order", epoch);
        let mut order: Vec<u32> = (0..self.captions.len() as u32).collect();
        order.shuffle(&mut rng);

        let mut fresh = order.into_iter();
        let mut put_off: Vec<u32> = Vec::new();
        let mut batches = Vec::new();
        for _ in 0..self.batches_per_epoch() {
            let mut seen = HashSet::with_capacity(self.batch);
            let mut batch = Vec::with_capacity(self.batch);
            let mut again = Vec::new();
            // Those put off first, so that none waits for ever.
            let waiting = std::mem::take(&mut put_off).into_iter();
            for example in waiting.chain(fresh.by_ref()) {
                if seen.insert(self.captions[example as usize]) {
                    batch.push(example);
                } else {
                    again.push(example);
                }
                if batch.len() == self.batch {
                    break;
                }
            }
            let missing = self.batch - batch.len();
            batch.extend(again.drain(..missing.min(again.len())));
            put_off = again;
            batches.push(batch);
        }
        batches
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn an_epoch_is_full_batches_of_distinct_examples(
            captions in prop::collection::vec(0u64..40, 1..300), batch in 1usize..40, seed: u64,
        ) {
            let batch = batch.min(captions.len());
            let sampler = Sampler::new(captions.clone(), batch, seed);
            let epoch = sampler.epoch(3);
            prop_assert_eq!(epoch.len() as u64, sampler.batches_per_epoch());
            let all: Vec<u32> = epoch.iter().flatten().copied().collect();
            prop_assert!(epoch.iter().all(|b| b.len() == batch));
            prop_assert_eq!(all.iter().collect::<HashSet<_>>().len(), all.len());
            prop_assert_eq!(&sampler.epoch(3), &epoch);
        }
    }

    #[test]
    fn equal_captions_meet_in_no_batch() {
        // 100 captions, each of 3 images.
        let sampler = Sampler::new((0..300).map(|i| i / 3).collect(), 20, 1);
        for epoch in 0..20 {
            for batch in sampler.epoch(epoch).iter().take(13) {
                let captions: HashSet<u32> = batch.iter().map(|i| i / 3).collect();
                assert_eq!(captions.len(), 20);
            }
        }
        assert_ne!(sampler.epoch(0), sampler.epoch(1));
    }

    #[test]
    fn one_caption_for_all_still_makes_batches() {
        let sampler = Sampler::new(vec![7; 10], 4, 1);
        assert_eq!(sampler.epoch(0).iter().map(Vec::len).collect::<Vec<_>>(), [4, 4]);
    }
}
