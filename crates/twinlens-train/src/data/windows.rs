//! Reads the windows of an input ahead of the batches that use them.

use crate::data::pair::EncodedPair;
use crate::data::pairs::Pairs;
use crate::data::sampler::{BatchSampler, Blocks, MIN_CAPTION_KEY, Sampler, Slot, Window, Windows};
use crate::error::Result;
use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::mpsc::{Receiver, SyncSender};

/// A window in memory: the rows that a batch may need, by number within the input.
pub(crate) struct LoadedWindow {
    number: u64,
    rows: HashMap<u64, EncodedPair>,
}

/// Reads the windows of one input in sequence.
pub(crate) struct WindowReader<'a> {
    pub(crate) pairs: &'a Pairs,
    pub(crate) blocks: &'a dyn Blocks,
    /// Whether a row need not be read.
    pub(crate) skips: &'a dyn Fn(u64) -> bool,
    /// Which rows are used; `None` for all.
    pub(crate) scout: Option<Scout<'a>>,
}

impl WindowReader<'_> {
    /// Reads windows, each after the previous one was received. `window` is the first.
    pub(crate) fn run(
        &mut self,
        window: Window,
        mut windows: Windows,
        send: &SyncSender<LoadedWindow>,
    ) -> Result<()> {
        let mut first = Some(window).filter(|window| !window.blocks.is_empty());
        loop {
            let window = match first.take() {
                Some(window) => window,
                None => windows.next(self.blocks)?,
            };
            let number = window.number;
            if send.send(LoadedWindow { number, rows: self.read(window)? }).is_err() {
                return Ok(());
            }
        }
    }

    fn read(&mut self, window: Window) -> Result<HashMap<u64, EncodedPair>> {
        if let Some(scout) = &mut self.scout {
            scout.pass(window.number)?;
        }
        let mut rows = HashMap::new();
        let mut blocks = window.blocks;
        blocks.sort_by_key(|block| block.start);
        for block in blocks {
            let usable = (block.start..).zip(self.blocks.keys(&block)?);
            let usable = usable.filter(|(_, key)| *key >= MIN_CAPTION_KEY).map(|(row, _)| row);
            let used = |row: &u64| self.scout.as_mut().is_none_or(|scout| scout.takes(*row));
            let selected: HashSet<u64> = usable.filter(used).filter(|row| !(self.skips)(*row)).collect();
            if !selected.is_empty() {
                rows.extend(self.pairs.read(&block, &|row| selected.contains(&row))?);
            }
        }
        Ok(rows)
    }
}

/// Samples ahead, to learn which rows of a window one rank uses. A row that is deferred beyond its
/// window is not among them: it is read alone when it is needed.
pub(crate) struct Scout<'a> {
    sampler: BatchSampler<'a>,
    input: usize,
    /// The places in a batch that are this rank's.
    places: Range<usize>,
    /// How often each row is used in the batches sampled so far, less the times it was read.
    uses: HashMap<u64, u32>,
}

impl<'a> Scout<'a> {
    /// `sampler` is at the first batch.
    pub(crate) fn new(sampler: BatchSampler<'a>, input: usize, places: Range<usize>) -> Self {
        Self { sampler, input, places, uses: HashMap::new() }
    }

    /// Samples until no batch takes new rows of the window.
    fn pass(&mut self, window: u64) -> Result<()> {
        while self.sampler.samplers[self.input].window.number <= window {
            let slots = self.sampler.next()?;
            for slot in slots[self.places.clone()].iter().filter(|slot| slot.input == self.input) {
                *self.uses.entry(slot.row.row).or_default() += 1;
            }
        }
        Ok(())
    }

    /// Whether a row is used; counts it as read.
    fn takes(&mut self, row: u64) -> bool {
        let Some(uses) = self.uses.get_mut(&row) else { return false };
        *uses -= 1;
        if *uses == 0 {
            self.uses.remove(&row);
        }
        true
    }
}

/// The rows of one input in memory.
pub(crate) struct InputBuffer {
    windows: Receiver<LoadedWindow>,
    /// The window received last.
    number: Option<u64>,
    pub(crate) rows: HashMap<u64, EncodedPair>,
}

impl InputBuffer {
    pub(crate) fn new(windows: Receiver<LoadedWindow>) -> Self {
        Self { windows, number: None, rows: HashMap::new() }
    }

    /// Receives windows up to the current one of `sampler`. Of earlier windows, keeps rows that are
    /// deferred or in this batch. False if the reader has ended.
    pub(crate) fn advance<'s>(
        &mut self,
        sampler: &Sampler<'_>,
        batch: impl Iterator<Item = &'s Slot>,
    ) -> bool {
        if self.number >= Some(sampler.window.number) {
            return true;
        }
        let deferred = sampler.deferred.iter().map(|row| row.row);
        let kept: HashSet<u64> = deferred.chain(batch.map(|slot| slot.row.row)).collect();
        while self.number < Some(sampler.window.number) {
            let Ok(LoadedWindow { number, rows }) = self.windows.recv() else { return false };
            self.rows.retain(|row, _| kept.contains(row));
            self.rows.extend(rows);
            self.number = Some(number);
        }
        true
    }
}
