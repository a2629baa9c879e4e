//! Chooses the pairs of each batch. The choice depends only on the seed and the layout of the data.
//!
//! An input is read in an endless sequence of epochs. Each epoch shuffles the input's blocks
//! (pieces of shards). As many blocks as fit into `shuffle_bytes` make a *window*, whose pairs are
//! shuffled. So memory holds one window, reads are whole blocks, and small data is shuffled as a
//! whole. The first epoch of an input that is followed while it grows keeps the order of commits,
//! so that their timing has no effect.
//!
//! Two pairs with equal captions in a batch would wrongly be negatives of each other, so the second
//! is deferred to a later batch. Equal captions only meet if captions repeat so often that
//! [`MAX_DEFERRED_BATCHES`] batches of pairs are deferred.
//!
//! The state after N batches is restored by sampling N batches, without reading images.

use crate::error::{Result, TrainError};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use sha2::{Digest, Sha256};
use std::collections::{HashSet, VecDeque};

/// The random stream for `seed / purpose / position`.
pub(crate) fn random_stream(seed: u64, purpose: &str, position: u64) -> ChaCha8Rng {
    ChaCha8Rng::from_seed(Sha256::digest(format!("{seed}/{purpose}/{position}")).into())
}

/// Rows that are read at once, from one row group or one tar file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Block {
    pub(crate) shard: u32,
    /// The row group within the shard; 0 for a tar file.
    pub(crate) group: u32,
    /// First row within the row group (tar file).
    pub(crate) first: u32,
    pub(crate) rows: u32,
    /// First row within the input.
    pub(crate) start: u64,
    /// Approximate bytes in memory.
    pub(crate) bytes: u64,
}

/// A hash of a row's caption, or a reject code if it is less than [`MIN_CAPTION_KEY`].
pub(crate) type Key = u64;
/// Smaller keys are reject codes.
pub(crate) const MIN_CAPTION_KEY: Key = 16;

/// The layout of an input.
pub(crate) trait Blocks: Sync {
    /// Block `number`; `None` if there are no more. Waits if the input still grows.
    fn block(&self, number: usize) -> Result<Option<Block>>;
    /// The number of blocks of the complete input. Waits if the input still grows.
    fn count(&self) -> Result<usize>;
    /// The keys of a block's rows.
    fn keys(&self, block: &Block) -> Result<Vec<Key>>;
}

/// A usable row of an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    /// Its number within the input.
    pub(crate) row: u64,
    pub(crate) key: Key,
}

/// Blocks that are in memory together.
#[derive(Clone, Debug, Default)]
pub(crate) struct Window {
    /// Counted over all epochs.
    pub(crate) number: u64,
    pub(crate) epoch: u64,
    pub(crate) blocks: Vec<Block>,
}

/// The endless sequence of windows of an input.
#[derive(Clone, Debug)]
pub(crate) struct Windows {
    seed: u64,
    /// Maximum bytes of a window, which has at least one block.
    bytes: u64,
    /// Whether the first epoch keeps the order of commits.
    follow: bool,
    epoch: u64,
    number: u64,
    /// The order of this epoch's blocks, empty before it is drawn.
    order: Vec<u32>,
    next: usize,
}

impl Windows {
    pub(crate) fn new(seed: u64, bytes: u64, follow: bool) -> Self {
        Self { seed, bytes, follow, epoch: 0, number: 0, order: Vec::new(), next: 0 }
    }

    /// The next block of this epoch.
    fn peek(&mut self, blocks: &dyn Blocks) -> Result<Option<Block>> {
        if self.follow && self.epoch == 0 {
            return blocks.block(self.next);
        }
        if self.order.is_empty() {
            self.order = (0..blocks.count()? as u32).collect();
            self.order.shuffle(&mut random_stream(self.seed, "blocks", self.epoch));
        }
        match self.order.get(self.next) {
            Some(number) => blocks.block(*number as usize),
            None => Ok(None),
        }
    }

    /// The next window, without blocks if the input has none.
    pub(crate) fn next(&mut self, blocks: &dyn Blocks) -> Result<Window> {
        let mut window = Window { number: self.number, epoch: self.epoch, blocks: Vec::new() };
        let (mut bytes, mut ended) = (0, true);
        while let Some(block) = self.peek(blocks)? {
            if !window.blocks.is_empty() && bytes + block.bytes > self.bytes {
                ended = false;
                break;
            }
            bytes += block.bytes;
            window.blocks.push(block);
            self.next += 1;
        }
        self.number += 1;
        if ended {
            (self.epoch, self.next) = (self.epoch + 1, 0);
            self.order.clear();
        }
        Ok(window)
    }
}

/// Maximum number of deferred pairs, in batches.
const MAX_DEFERRED_BATCHES: usize = 4;

/// Samples the rows of one input.
#[derive(Clone)]
pub(crate) struct Sampler<'a> {
    blocks: &'a dyn Blocks,
    seed: u64,
    /// The windows after the current one.
    pub(crate) windows: Windows,
    /// The current window.
    pub(crate) window: Window,
    /// Its usable rows, shuffled.
    pub(crate) rows: Vec<Row>,
    next: usize,
    /// Rows that wait for a batch without their caption, oldest first.
    pub(crate) deferred: VecDeque<Row>,
    /// Fraction of the slots of all batches.
    share: f64,
    taken: u64,
}

impl<'a> Sampler<'a> {
    /// `share` is this input's fraction of all slots, in 0..=1.
    pub(crate) fn new(blocks: &'a dyn Blocks, windows: Windows, share: f64) -> Self {
        let seed = windows.seed;
        let (window, rows, deferred) = (Window::default(), Vec::new(), VecDeque::new());
        Self { blocks, seed, windows, window, rows, next: 0, deferred, share, taken: 0 }
    }

    /// The next row, from the next window if the current one is used up.
    fn next_row(&mut self) -> Result<Row> {
        let mut empty_since = None;
        while self.next == self.rows.len() {
            self.window = self.windows.next(self.blocks)?;
            self.rows.clear();
            for block in &self.window.blocks {
                let keys = self.blocks.keys(block)?;
                let rows = (block.start..).zip(keys).filter(|(_, key)| *key >= MIN_CAPTION_KEY);
                self.rows.extend(rows.map(|(row, key)| Row { row, key }));
            }
            self.rows.shuffle(&mut random_stream(self.seed, "rows", self.window.number));
            self.next = 0;
            if self.window.epoch > *empty_since.get_or_insert(self.window.epoch) + 1 {
                return Err(TrainError::Options("there are no pairs to train on".into()));
            }
        }
        self.next += 1;
        Ok(self.rows[self.next - 1])
    }

    /// Takes `count` rows whose captions are not in `seen`, deferring at most `max_deferred`.
    fn take(&mut self, count: usize, max_deferred: usize, seen: &mut HashSet<Key>) -> Result<Vec<Row>> {
        let mut taken = Vec::with_capacity(count);
        let mut deferred = VecDeque::new();
        // Deferred rows come first, so that none waits forever.
        while taken.len() < count {
            let row = match self.deferred.pop_front() {
                Some(row) => row,
                None if deferred.len() < max_deferred => self.next_row()?,
                None => break,
            };
            if seen.insert(row.key) { taken.push(row) } else { deferred.push_back(row) }
        }
        let missing = count - taken.len();
        taken.extend(deferred.drain(..missing.min(deferred.len())));
        deferred.append(&mut self.deferred);
        self.deferred = deferred;
        self.taken += count as u64;
        Ok(taken)
    }
}

/// One place in a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slot {
    /// The number of the input.
    pub(crate) input: usize,
    pub(crate) row: Row,
}

/// Samples batches from all inputs.
#[derive(Clone)]
pub(crate) struct BatchSampler<'a> {
    /// One per input.
    pub(crate) samplers: Vec<Sampler<'a>>,
    batch: usize,
    /// Slots of the batches so far.
    slots: u64,
}

impl<'a> BatchSampler<'a> {
    /// Samples batches of `batch` rows. The shares of `samplers` must add up to 1.
    pub(crate) fn new(samplers: Vec<Sampler<'a>>, batch: usize) -> Self {
        Self { samplers, batch, slots: 0 }
    }

    /// Samples batches of another size from now on.
    pub(crate) fn set_batch(&mut self, batch: usize) {
        self.batch = batch;
    }

    /// The next batch.
    ///
    /// # Errors
    /// `Options` if an input has no pairs; errors of [`Blocks`].
    pub(crate) fn next(&mut self) -> Result<Vec<Slot>> {
        let counts = self.counts();
        let mut seen = HashSet::with_capacity(self.batch);
        let mut slots = Vec::with_capacity(self.batch);
        for (input, count) in counts.into_iter().enumerate() {
            let rows = self.samplers[input].take(count, MAX_DEFERRED_BATCHES * self.batch, &mut seen)?;
            slots.extend(rows.into_iter().map(|row| Slot { input, row }));
        }
        self.slots += self.batch as u64;
        Ok(slots)
    }

    /// Rows of the next batch from each input: after each batch, every input has had its share of
    /// all slots, give or take two rows.
    fn counts(&self) -> Vec<usize> {
        let slots = (self.slots + self.batch as u64) as f64;
        let due: Vec<f64> =
            self.samplers.iter().map(|s| (s.share * slots - s.taken as f64).max(0.0)).collect();
        let mut counts: Vec<usize> = due.iter().map(|due| due.floor() as usize).collect();
        let mut largest: Vec<usize> = (0..counts.len()).collect();
        largest.sort_by(|a, b| (due[*b] - due[*b].floor()).total_cmp(&(due[*a] - due[*a].floor())));
        // The sums differ only by rounding; one pass over the inputs is nearly always enough.
        while counts.iter().sum::<usize>() != self.batch {
            for input in &largest {
                match counts.iter().sum::<usize>().cmp(&self.batch) {
                    std::cmp::Ordering::Less => counts[*input] += 1,
                    std::cmp::Ordering::Greater => counts[*input] = counts[*input].saturating_sub(1),
                    std::cmp::Ordering::Equal => break,
                }
            }
        }
        counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// An input in memory: the keys of each block's rows.
    struct MemoryBlocks(Vec<Vec<Key>>);

    impl Blocks for MemoryBlocks {
        fn block(&self, number: usize) -> Result<Option<Block>> {
            let start: usize = self.0.iter().take(number).map(Vec::len).sum();
            Ok(self.0.get(number).map(|keys| Block {
                shard: number as u32,
                group: 0,
                first: 0,
                rows: keys.len() as u32,
                start: start as u64,
                bytes: 10 * keys.len() as u64,
            }))
        }

        fn count(&self) -> Result<usize> {
            Ok(self.0.len())
        }

        fn keys(&self, block: &Block) -> Result<Vec<Key>> {
            Ok(self.0[block.shard as usize].clone())
        }
    }

    fn sampler<'a>(
        inputs: &[(&'a MemoryBlocks, f64)],
        batch: usize,
        seed: u64,
        bytes: u64,
        follow: bool,
    ) -> BatchSampler<'a> {
        let one = |(blocks, share): &(&'a MemoryBlocks, f64)| {
            Sampler::new(*blocks as &dyn Blocks, Windows::new(seed, bytes, follow), *share)
        };
        BatchSampler::new(inputs.iter().map(one).collect(), batch)
    }

    fn rows(sampler: &mut BatchSampler<'_>, batches: u64) -> Vec<Vec<u64>> {
        (0..batches).map(|_| sampler.next().unwrap().iter().map(|slot| slot.row.row).collect()).collect()
    }

    proptest! {
        #[test]
        fn every_epoch_has_each_usable_row_once(
            keys in prop::collection::vec(prop::collection::vec(0u64..60, 0..30), 1..12),
            batch in 1usize..40, seed: u64, bytes in 1u64..2000, follow: bool,
        ) {
            let blocks = MemoryBlocks(keys);
            let usable = blocks.0.iter().flatten().filter(|key| **key >= MIN_CAPTION_KEY).count();
            prop_assume!(usable > 0);
            let mut first = sampler(&[(&blocks, 1.0)], batch, seed, bytes, follow);
            let input = &mut first.samplers[0];
            for epoch in 0..3 {
                let mut seen: Vec<u64> = (0..usable).map(|_| input.next_row().unwrap().row).collect();
                prop_assert_eq!(input.window.epoch, epoch);
                seen.sort_unstable();
                let numbers = blocks.0.iter().flatten().zip(0..);
                let all: Vec<u64> = numbers.filter(|(key, _)| **key >= MIN_CAPTION_KEY).map(|(_, row)| row).collect();
                prop_assert_eq!(seen, all);
            }
            // Batches are full and reproducible.
            let batches = rows(&mut sampler(&[(&blocks, 1.0)], batch, seed, bytes, follow), 20);
            prop_assert!(batches.iter().all(|rows| rows.len() == batch));
            prop_assert_eq!(rows(&mut sampler(&[(&blocks, 1.0)], batch, seed, bytes, follow), 20), batches);
        }

        #[test]
        fn shares_are_kept(batch in 1usize..50, weights in prop::collection::vec(0.01f64..10.0, 1..5)) {
            let blocks = MemoryBlocks(vec![(16..200).collect()]);
            let total: f64 = weights.iter().sum();
            let inputs: Vec<_> = weights.iter().map(|weight| (&blocks, weight / total)).collect();
            let mut sampler = sampler(&inputs, batch, 1, 1000, false);
            for step in 1..40u64 {
                prop_assert_eq!(sampler.next().unwrap().len(), batch);
                for input in &sampler.samplers {
                    let due = input.share * (step * batch as u64) as f64;
                    prop_assert!((input.taken as f64 - due).abs() <= 2.0, "{} for {}", input.taken, due);
                }
            }
        }
    }

    #[test]
    fn captions_of_a_batch_differ_unless_all_are_equal() {
        // 100 captions, each of 3 images, in blocks of 30: many epochs.
        let thrice: Vec<Key> = (0..300).map(|row| MIN_CAPTION_KEY + row % 100).collect();
        let blocks = MemoryBlocks(thrice.chunks(30).map(<[Key]>::to_vec).collect());
        let mut batches = sampler(&[(&blocks, 0.5), (&blocks, 0.5)], 20, 1, 900, false);
        for _ in 0..300 {
            let keys: HashSet<Key> = batches.next().unwrap().iter().map(|slot| slot.row.key).collect();
            assert_eq!(keys.len(), 20);
        }
        let equal = MemoryBlocks(vec![vec![77; 10]]);
        assert!(
            rows(&mut sampler(&[(&equal, 1.0)], 4, 1, 900, false), 50).iter().all(|rows| rows.len() == 4)
        );
        let none = MemoryBlocks(vec![vec![0, 1], vec![]]);
        assert!(sampler(&[(&none, 1.0)], 4, 1, 900, false).next().is_err());
    }

    #[test]
    fn a_followed_input_keeps_the_order_of_commits_between_windows() {
        let blocks =
            MemoryBlocks((0..10).map(|block| (100 * block + 16..100 * block + 26).collect()).collect());
        let mut sampler = sampler(&[(&blocks, 1.0)], 10, 5, 200, true);
        // Windows of two blocks of ten rows.
        let first = rows(&mut sampler, 10);
        for (window, pair) in first.chunks(2).enumerate() {
            let mut seen = pair.concat();
            assert!(!seen.is_sorted());
            seen.sort_unstable();
            assert_eq!(seen, (20 * window as u64..20 * window as u64 + 20).collect::<Vec<_>>());
        }
        let second = rows(&mut sampler, 10);
        assert!(
            !(0..20).all(|row| second[..2].concat().contains(&row)),
            "the next epochs are shuffled as a whole"
        );
    }
}
