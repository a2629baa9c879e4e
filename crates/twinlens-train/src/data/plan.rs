//! Which pairs make up each batch: a function of the seed and of where the data are, and of nothing
//! else.
//!
//! An input is read as an endless row of epochs. In each, its blocks (pieces of shards) are put in
//! a new order; as many of them as fit into `shuffle_bytes` make a *window*, and the pairs of a
//! window are shuffled among each other. So memory holds a window, what is read is read in whole
//! blocks, and small data is shuffled as a whole. An input that is followed while it grows has its
//! blocks in the order of their commits in the first epoch: how fast they came changes nothing.
//!
//! Two pairs with the same caption in one batch would each count as the other's negative, wrongly:
//! the second is put off to a later batch. Only where captions repeat so often that [`PUT_OFF`]
//! batches of pairs wait do equal captions meet.
//!
//! The state after N batches is got by making N batches: no pixel is read for it.

use crate::error::{Result, TrainError};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use sha2::{Digest, Sha256};
use std::collections::{HashSet, VecDeque};

/// The random numbers of `seed / purpose / position`.
pub(crate) fn stream(seed: u64, purpose: &str, position: u64) -> ChaCha8Rng {
    ChaCha8Rng::from_seed(Sha256::digest(format!("{seed}/{purpose}/{position}")).into())
}

/// Rows that are read in one go: of one row group, or of one tar file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Block {
    /// The shard.
    pub(crate) shard: u32,
    /// The row group within the shard; of a tar file, 0.
    pub(crate) group: u32,
    /// Its first row within the row group (tar file).
    pub(crate) first: u32,
    /// Rows.
    pub(crate) rows: u32,
    /// Its first row within the input.
    pub(crate) start: u64,
    /// Bytes in memory, about.
    pub(crate) bytes: u64,
}

/// A caption's number: equal where captions are; below [`UNUSABLE`], why the row is no pair.
pub(crate) type Key = u64;
/// Smaller keys are those of rows that are no pairs.
pub(crate) const UNUSABLE: Key = 16;

/// What the plan must know of an input.
pub(crate) trait Blocks: Sync {
    /// Block `number`; `None` when there are no more. Waits for it where the input still grows.
    fn block(&self, number: usize) -> Result<Option<Block>>;
    /// Blocks of the whole input. Waits for the end where the input still grows.
    fn count(&self) -> Result<usize>;
    /// The keys of a block's rows.
    fn keys(&self, block: &Block) -> Result<Vec<Key>>;
}

/// A usable row of an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    /// Its number within the input.
    pub(crate) row: u64,
    /// Its caption's.
    pub(crate) key: Key,
}

/// Blocks that are in memory together.
#[derive(Clone, Debug, Default)]
pub(crate) struct Window {
    /// Counted over all epochs.
    pub(crate) number: u64,
    /// The epoch.
    pub(crate) epoch: u64,
    /// The blocks.
    pub(crate) blocks: Vec<Block>,
}

/// The windows of an input, one after another, without end.
#[derive(Clone, Debug)]
pub(crate) struct Windows {
    seed: u64,
    /// Most bytes of a window; one block is always taken.
    bytes: u64,
    /// Whether the first epoch is in the order of the commits.
    follow: bool,
    epoch: u64,
    number: u64,
    /// The order of this epoch's blocks, once it was drawn.
    order: Vec<u32>,
    next: usize,
}

impl Windows {
    pub(crate) fn new(seed: u64, bytes: u64, follow: bool) -> Self {
        Self { seed, bytes, follow, epoch: 0, number: 0, order: Vec::new(), next: 0 }
    }

    /// The block that comes next in this epoch.
    fn peek(&mut self, blocks: &dyn Blocks) -> Result<Option<Block>> {
        if self.follow && self.epoch == 0 {
            return blocks.block(self.next);
        }
        if self.order.is_empty() {
            self.order = (0..blocks.count()? as u32).collect();
            self.order.shuffle(&mut stream(self.seed, "blocks", self.epoch));
        }
        match self.order.get(self.next) {
            Some(number) => blocks.block(*number as usize),
            None => Ok(None),
        }
    }

    /// The next window; one without blocks where the input has none.
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

/// Batches of pairs that may wait because their captions are in a batch already.
const PUT_OFF: usize = 4;

/// One input on its way through its epochs.
pub(crate) struct Lane<'a> {
    blocks: &'a dyn Blocks,
    seed: u64,
    /// The windows after the open one.
    pub(crate) windows: Windows,
    /// The open one.
    pub(crate) window: Window,
    /// Its usable rows, shuffled.
    pub(crate) rows: Vec<Row>,
    next: usize,
    /// Rows that wait for a batch without their caption, first come first.
    pub(crate) put_off: VecDeque<Row>,
    /// Part of the slots of all batches.
    share: f64,
    taken: u64,
}

impl<'a> Lane<'a> {
    /// `share` is this input's part of all slots, in 0..=1.
    pub(crate) fn new(blocks: &'a dyn Blocks, windows: Windows, share: f64) -> Self {
        let seed = windows.seed;
        let (window, rows, put_off) = (Window::default(), Vec::new(), VecDeque::new());
        Self { blocks, seed, windows, window, rows, next: 0, put_off, share, taken: 0 }
    }

    /// The next row of the epoch, out of the next window where the open one has no more.
    fn fresh(&mut self) -> Result<Row> {
        let mut empty_since = None;
        while self.next == self.rows.len() {
            self.window = self.windows.next(self.blocks)?;
            self.rows.clear();
            for block in &self.window.blocks {
                let keys = self.blocks.keys(block)?;
                let rows = (block.start..).zip(keys).filter(|(_, key)| *key >= UNUSABLE);
                self.rows.extend(rows.map(|(row, key)| Row { row, key }));
            }
            self.rows.shuffle(&mut stream(self.seed, "rows", self.window.number));
            self.next = 0;
            if self.window.epoch > *empty_since.get_or_insert(self.window.epoch) + 1 {
                return Err(TrainError::Options("there is no pair to train on".into()));
            }
        }
        self.next += 1;
        Ok(self.rows[self.next - 1])
    }

    /// Takes `count` rows whose captions are not in `seen`.
    fn take(&mut self, count: usize, most: usize, seen: &mut HashSet<Key>) -> Result<Vec<Row>> {
        let mut taken = Vec::with_capacity(count);
        let mut again = VecDeque::new();
        // Those put off first, so that none waits for ever.
        while taken.len() < count {
            let row = match self.put_off.pop_front() {
                Some(row) => row,
                None if again.len() < most => self.fresh()?,
                None => break,
            };
            if seen.insert(row.key) { taken.push(row) } else { again.push_back(row) }
        }
        let missing = count - taken.len();
        taken.extend(again.drain(..missing.min(again.len())));
        again.append(&mut self.put_off);
        self.put_off = again;
        self.taken += count as u64;
        Ok(taken)
    }
}

/// One place in a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slot {
    /// Which input.
    pub(crate) lane: usize,
    /// Which of its rows.
    pub(crate) row: Row,
}

/// All batches, one after another.
pub(crate) struct Plan<'a> {
    /// The inputs.
    pub(crate) lanes: Vec<Lane<'a>>,
    batch: usize,
    /// Batches made so far.
    pub(crate) step: u64,
}

impl<'a> Plan<'a> {
    /// Batches of `batch` rows out of `lanes`, whose shares add up to 1.
    pub(crate) fn new(lanes: Vec<Lane<'a>>, batch: usize) -> Self {
        Self { lanes, batch, step: 0 }
    }

    /// The next batch.
    ///
    /// # Errors
    /// `Options` where an input has no pair; what [`Blocks`] gives.
    pub(crate) fn next(&mut self) -> Result<Vec<Slot>> {
        let counts = self.counts();
        let mut seen = HashSet::with_capacity(self.batch);
        let mut slots = Vec::with_capacity(self.batch);
        for (lane, count) in counts.into_iter().enumerate() {
            let rows = self.lanes[lane].take(count, PUT_OFF * self.batch, &mut seen)?;
            slots.extend(rows.into_iter().map(|row| Slot { lane, row }));
        }
        self.step += 1;
        Ok(slots)
    }

    /// Rows of the next batch by lane: after each batch every lane has had its share of all slots,
    /// to one or two rows.
    fn counts(&self) -> Vec<usize> {
        let slots = (self.step + 1) as f64 * self.batch as f64;
        let due: Vec<f64> =
            self.lanes.iter().map(|lane| (lane.share * slots - lane.taken as f64).max(0.0)).collect();
        let mut counts: Vec<usize> = due.iter().map(|due| due.floor() as usize).collect();
        let mut largest: Vec<usize> = (0..counts.len()).collect();
        largest.sort_by(|a, b| (due[*b] - due[*b].floor()).total_cmp(&(due[*a] - due[*a].floor())));
        // The sums differ by rounding alone; one turn over the lanes is nearly always enough.
        while counts.iter().sum::<usize>() != self.batch {
            for lane in &largest {
                match counts.iter().sum::<usize>().cmp(&self.batch) {
                    std::cmp::Ordering::Less => counts[*lane] += 1,
                    std::cmp::Ordering::Greater => counts[*lane] = counts[*lane].saturating_sub(1),
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
    struct Made(Vec<Vec<Key>>);

    impl Blocks for Made {
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

    fn plan<'a>(inputs: &[(&'a Made, f64)], batch: usize, seed: u64, bytes: u64, follow: bool) -> Plan<'a> {
        let lane = |(made, share): &(&'a Made, f64)| {
            Lane::new(*made as &dyn Blocks, Windows::new(seed, bytes, follow), *share)
        };
        Plan::new(inputs.iter().map(lane).collect(), batch)
    }

    fn rows(plan: &mut Plan<'_>, batches: u64) -> Vec<Vec<u64>> {
        (0..batches).map(|_| plan.next().unwrap().iter().map(|slot| slot.row.row).collect()).collect()
    }

    proptest! {
        #[test]
        fn every_epoch_has_every_usable_row_once(
            keys in prop::collection::vec(prop::collection::vec(0u64..60, 0..30), 1..12),
            batch in 1usize..40, seed: u64, bytes in 1u64..2000, follow: bool,
        ) {
            let made = Made(keys);
            let usable = made.0.iter().flatten().filter(|key| **key >= UNUSABLE).count();
            prop_assume!(usable > 0);
            let mut windows = plan(&[(&made, 1.0)], batch, seed, bytes, follow);
            let lane = &mut windows.lanes[0];
            for epoch in 0..3 {
                let mut seen: Vec<u64> = (0..usable).map(|_| lane.fresh().unwrap().row).collect();
                prop_assert_eq!(lane.window.epoch, epoch);
                seen.sort_unstable();
                let numbers = made.0.iter().flatten().zip(0..);
                let all: Vec<u64> = numbers.filter(|(key, _)| **key >= UNUSABLE).map(|(_, row)| row).collect();
                prop_assert_eq!(seen, all);
            }
            // Batches are full, and the same again.
            let batches = rows(&mut plan(&[(&made, 1.0)], batch, seed, bytes, follow), 20);
            prop_assert!(batches.iter().all(|rows| rows.len() == batch));
            prop_assert_eq!(rows(&mut plan(&[(&made, 1.0)], batch, seed, bytes, follow), 20), batches);
        }

        #[test]
        fn shares_are_kept(batch in 1usize..50, weights in prop::collection::vec(0.01f64..10.0, 1..5)) {
            let made = Made(vec![(16..200).collect()]);
            let total: f64 = weights.iter().sum();
            let lanes: Vec<_> = weights.iter().map(|weight| (&made, weight / total)).collect();
            let mut plan = plan(&lanes, batch, 1, 1000, false);
            for step in 1..40u64 {
                prop_assert_eq!(plan.next().unwrap().len(), batch);
                for lane in &plan.lanes {
                    let due = lane.share * (step * batch as u64) as f64;
                    prop_assert!((lane.taken as f64 - due).abs() <= 2.0, "{} for {}", lane.taken, due);
                }
            }
        }
    }

    #[test]
    fn equal_captions_meet_in_no_batch_unless_all_are_equal() {
        // 100 captions, each of 3 images, in blocks of 30: many epochs.
        let thrice: Vec<Key> = (0..300).map(|row| UNUSABLE + row % 100).collect();
        let made = Made(thrice.chunks(30).map(<[Key]>::to_vec).collect());
        let mut batches = plan(&[(&made, 0.5), (&made, 0.5)], 20, 1, 900, false);
        for _ in 0..300 {
            let keys: HashSet<Key> = batches.next().unwrap().iter().map(|slot| slot.row.key).collect();
            assert_eq!(keys.len(), 20);
        }
        let equal = Made(vec![vec![77; 10]]);
        assert!(rows(&mut plan(&[(&equal, 1.0)], 4, 1, 900, false), 50).iter().all(|rows| rows.len() == 4));
        let none = Made(vec![vec![0, 1], vec![]]);
        assert!(plan(&[(&none, 1.0)], 4, 1, 900, false).next().is_err());
    }

    #[test]
    fn what_is_followed_comes_in_the_order_of_its_commits_within_a_window() {
        let made = Made((0..10).map(|block| (100 * block + 16..100 * block + 26).collect()).collect());
        let mut plan = plan(&[(&made, 1.0)], 10, 5, 200, true);
        // Windows of two blocks of ten rows.
        let first = rows(&mut plan, 10);
        for (window, pair) in first.chunks(2).enumerate() {
            let mut seen = pair.concat();
            assert!(!seen.is_sorted());
            seen.sort_unstable();
            assert_eq!(seen, (20 * window as u64..20 * window as u64 + 20).collect::<Vec<_>>());
        }
        let second = rows(&mut plan, 10);
        assert!(
            !(0..20).all(|row| second[..2].concat().contains(&row)),
            "the next epochs are shuffled whole"
        );
    }
}
