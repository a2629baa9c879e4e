//! Makes the batches of a plan: a thread an input reads windows ahead, others decode, and batches
//! go out in order.

use crate::data::Data;
use crate::data::budget::Budget;
use crate::data::cache::{Cache, Example};
use crate::data::example::{Draws, Maker};
use crate::data::pairs::{Encoded, Pairs};
use crate::data::plan::{Blocks, Lane, Plan, Row, Slot, UNUSABLE, Window, Windows, stream};
use crate::error::{Result, TrainError};
use crate::trainer::{Batch, TrainOptions};
use candle_core::{Device, Tensor};
use rand::Rng;
use rayon::prelude::*;
use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

/// Other pairs that are tried in place of one that cannot be decoded.
const TRIES: usize = 1000;

/// A window in memory: what was not to be had without reading. Rows by their number within the
/// input.
struct Loaded {
    number: u64,
    rows: HashMap<u64, Encoded>,
}

/// What a feed holds of one input.
struct Held {
    windows: Receiver<Loaded>,
    /// The window that was received last.
    number: Option<u64>,
    rows: HashMap<u64, Encoded>,
}

/// The makers of batches.
pub(crate) struct Feed<'a> {
    data: &'a Data,
    options: &'a TrainOptions,
    size: usize,
    maker: Maker,
    budget: Budget,
    cache: Option<Cache>,
    pool: rayon::ThreadPool,
}

impl<'a> Feed<'a> {
    pub(crate) fn new(data: &'a Data, options: &'a TrainOptions, size: usize) -> Result<Self> {
        let slots = options.steps.saturating_mul(options.batch_size as u64);
        let again = data.follows() || slots > data.pairs();
        let bytes = if again { data.options.cache_bytes } else { 0 };
        let cache = match bytes {
            0 => None,
            bytes => Some(Cache::create(&data.work.join("decoded"), data.context, bytes)?),
        };
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(data.options.threads.max(1))
            .thread_name(|number| format!("decode-{number}"))
            .build()
            .map_err(|error| TrainError::Options(format!("threads for decoding: {error}")))?;
        let (maker, budget) = (
            Maker::new(size, options.crop_min_area, options.augment.clone()),
            Budget::new(data.options.decode_bytes),
        );
        Ok(Self { data, options, size, maker, budget, cache, pool })
    }

    /// Makes the batches of `steps` until nobody takes them.
    pub(crate) fn run(&self, steps: Range<u64>, send: &SyncSender<Batch>) -> Result<()> {
        let stop = &self.data.stop;
        let inputs: Vec<_> = self.data.lanes.iter().map(|(pairs, _)| pairs.until(stop)).collect();
        let mut plan = Plan::new(self.lanes(&inputs), self.options.batch_size);
        // The position in the data is made anew: rows are counted, none is read.
        for _ in 0..steps.start {
            plan.next()?;
        }
        std::thread::scope(|scope| {
            let (mut held, mut readers) = (Vec::new(), Vec::new());
            for (number, lane) in plan.lanes.iter().enumerate() {
                let (send, windows) = sync_channel(0);
                held.push(Held { windows, number: None, rows: HashMap::new() });
                let (open, next, blocks) = (lane.window.clone(), lane.windows.clone(), &inputs[number]);
                readers.push(scope.spawn(move || self.read(number, blocks, open, next, &send)));
            }
            let made = self.make_all(&mut plan, steps, &mut held, send);
            // Readers that wait for somebody to take a window, or for data to come, end.
            stop.store(true, Ordering::Relaxed);
            drop(held);
            let mut read = Ok(());
            for reader in readers {
                read = read.and(reader.join().map_err(|_| TrainError::Panicked("data"))?);
            }
            match made {
                Ok(Made::All) => Ok(()),
                // A reader ended first: the reason is its.
                Ok(Made::NoWindow) => read.and(Err(TrainError::Panicked("data"))),
                Err(error) => Err(error),
            }
        })
    }

    fn lanes<'b, B: Blocks>(&self, inputs: &'b [B]) -> Vec<Lane<'b>> {
        let weighted = |(pairs, weight): &(Pairs, f64)| pairs.usable() as f64 * weight;
        let total: f64 = self.data.lanes.iter().map(weighted).sum();
        let lane = |(number, (blocks, input)): (usize, (&'b B, &(Pairs, f64)))| {
            let share = if self.data.lanes.len() == 1 { 1.0 } else { weighted(input) / total };
            let bytes = (self.data.options.shuffle_bytes as f64 * share) as u64;
            // Each input has random numbers of its own.
            let seed: u64 = stream(self.options.seed, "input", number as u64).random();
            Lane::new(blocks as &dyn Blocks, Windows::new(seed, bytes, input.0.follows()), share)
        };
        inputs.iter().zip(&self.data.lanes).enumerate().map(lane).collect()
    }

    /// Reads windows one after another, each when the one before it was taken.
    fn read(
        &self,
        lane: usize,
        blocks: &dyn Blocks,
        open: Window,
        mut windows: Windows,
        send: &SyncSender<Loaded>,
    ) -> Result<()> {
        let pairs = &self.data.lanes[lane].0;
        let mut open = Some(open).filter(|window| !window.blocks.is_empty());
        loop {
            let window = match open.take() {
                Some(window) => window,
                None => windows.next(blocks)?,
            };
            let mut rows = HashMap::new();
            let mut in_order = window.blocks;
            in_order.sort_by_key(|block| block.start);
            for block in in_order {
                let keys = blocks.keys(&block)?;
                let wanted = |row: u64| {
                    let usable = keys.get((row - block.start) as usize).is_some_and(|key| *key >= UNUSABLE);
                    usable && !self.is_known(lane, row)
                };
                if (block.start..).take(keys.len()).any(wanted) {
                    rows.extend(pairs.read(&block, &wanted)?);
                }
            }
            if send.send(Loaded { number: window.number, rows }).is_err() {
                return Ok(());
            }
        }
    }

    /// Whether a row can be made without its bytes, or not at all.
    fn is_known(&self, lane: usize, row: u64) -> bool {
        self.cache.as_ref().is_some_and(|cache| cache.has(lane, row)) || self.data.refused.has(lane, row)
    }

    fn make_all(
        &self,
        plan: &mut Plan<'_>,
        steps: Range<u64>,
        held: &mut [Held],
        send: &SyncSender<Batch>,
    ) -> Result<Made> {
        for step in steps {
            let slots = plan.next()?;
            for (number, lane) in plan.lanes.iter().enumerate() {
                if !held[number].up_to(lane, slots.iter().filter(|slot| slot.lane == number)) {
                    return Ok(Made::NoWindow);
                }
            }
            let batch = self.batch(step, plan, &slots, held)?;
            if send.send(batch).is_err() {
                break;
            }
        }
        Ok(Made::All)
    }

    fn batch(&self, step: u64, plan: &Plan<'_>, slots: &[Slot], held: &mut [Held]) -> Result<Batch> {
        let (values, context) = (self.maker.values(), self.data.context);
        let mut draws = stream(self.options.seed, "crop", step);
        let draws: Vec<Draws> = slots.iter().map(|_| std::array::from_fn(|_| draws.random())).collect();
        let bytes: Vec<Option<Encoded>> =
            slots.iter().map(|slot| held[slot.lane].rows.remove(&slot.row.row)).collect();
        let mut pixels = vec![0.0; slots.len() * values];
        let made: Vec<Option<Vec<u32>>> = self.pool.install(|| {
            let jobs = slots.par_iter().zip(bytes).zip(&draws).zip(pixels.par_chunks_exact_mut(values));
            jobs.with_max_len(1)
                .map(|(((slot, bytes), draws), out)| self.make(slot.lane, slot.row.row, bytes, *draws, out))
                .collect::<Result<_>>()
        })?;
        let mut substitutes = stream(self.options.seed, "substitute", step);
        let mut seen: HashSet<u64> = slots.iter().map(|slot| slot.row.key).collect();
        let mut ids = Vec::with_capacity(slots.len() * context);
        for (place, made) in made.into_iter().enumerate() {
            ids.extend(match made {
                Some(made) => made,
                None => {
                    let (lane, out) = (slots[place].lane, &mut pixels[place * values..][..values]);
                    let rows = &plan.lanes[lane].rows;
                    self.substitute(lane, rows, &mut substitutes, &mut seen, draws[place], out)?
                }
            });
        }
        let n = slots.len();
        let seen = (step + 1) as f64 * n as f64;
        Ok(Batch {
            pixels: Tensor::from_vec(pixels, (n, 3, self.size, self.size), &Device::Cpu)?,
            ids: Tensor::from_vec(ids, (n, context), &Device::Cpu)?,
            // How many pairs there will be of an input that grows is not known: whole epochs are
            // counted.
            epoch: match self.data.follows() {
                true => plan.lanes[0].window.epoch as f64,
                false => seen / self.data.pairs() as f64,
            },
        })
    }

    /// Makes another pair of the window in place of one that cannot be.
    fn substitute(
        &self,
        lane: usize,
        rows: &[Row],
        draws: &mut impl Rng,
        seen: &mut HashSet<u64>,
        crop: Draws,
        out: &mut [f32],
    ) -> Result<Vec<u32>> {
        for tried in 0..if rows.is_empty() { 0 } else { TRIES } {
            let row = rows[draws.random_range(0..rows.len())];
            // Where every caption of the window is in the batch, equal ones meet.
            if seen.contains(&row.key) && tried < TRIES / 2 {
                continue;
            }
            if let Some(ids) = self.make(lane, row.row, None, crop, out)? {
                seen.insert(row.key);
                return Ok(ids);
            }
        }
        let (_, (code, detail)) = self.data.refused.rows().pop_first().unwrap_or_default();
        Err(TrainError::Options(format!(
            "none of {TRIES} images could be decoded; the first refused was so for {code}: {detail}"
        )))
    }

    /// The pixels of a row into `out`, and its token ids. `None` where the row is no pair, which is
    /// then written down.
    fn make(
        &self,
        lane: usize,
        row: u64,
        bytes: Option<Encoded>,
        draws: Draws,
        out: &mut [f32],
    ) -> Result<Option<Vec<u32>>> {
        let data = self.data;
        if data.refused.has(lane, row) {
            return Ok(None);
        }
        let cached = self.cache.as_ref().map_or(Ok(None), |cache| cache.get(lane, row))?;
        let example = match cached {
            Some(example) => example,
            None => {
                let Encoded { caption, image } = match bytes {
                    Some(bytes) => bytes,
                    None => data.lanes[lane].0.read_row(row)?,
                };
                if image.is_empty() {
                    data.refused.add(lane, row, "no_image", "")?;
                    return Ok(None);
                }
                let image = match self.maker.shrink(&image, &self.budget) {
                    Ok(image) => image,
                    Err(error) => {
                        data.refused.add(lane, row, error.code(), &error.to_string())?;
                        return Ok(None);
                    }
                };
                let example = Example { image, ids: data.tokenizer.encode(&caption, data.context) };
                if let Some(cache) = &self.cache {
                    cache.put(lane, row, &example)?;
                }
                example
            }
        };
        let filled = self.maker.fill(&example.image, draws, out);
        filled.map_err(|error| TrainError::Options(error.to_string()))?;
        Ok(Some(example.ids))
    }
}

/// How the making of batches ended.
enum Made {
    /// All were made, or nobody took them any more.
    All,
    /// A reader gave no more windows.
    NoWindow,
}

impl Held {
    /// Receives windows up to the one that `lane` has open; keeps of those before it what waits, or
    /// is in this batch. False when no more come.
    fn up_to<'s>(&mut self, lane: &Lane<'_>, batch: impl Iterator<Item = &'s Slot>) -> bool {
        if self.number >= Some(lane.window.number) {
            return true;
        }
        let waiting = lane.put_off.iter().map(|row| row.row);
        let kept: HashSet<u64> = waiting.chain(batch.map(|slot| slot.row.row)).collect();
        while self.number < Some(lane.window.number) {
            let Ok(Loaded { number, rows }) = self.windows.recv() else { return false };
            self.rows.retain(|row, _| kept.contains(row));
            self.rows.extend(rows);
            self.number = Some(number);
        }
        true
    }
}
