//! Makes the sampled batches: one thread per input reads windows ahead, others decode, and batches
//! are sent in order.

use crate::batch::{Batch, BatchSource};
use crate::data::cache::{Cache, Example};
use crate::data::loader::Data;
use crate::data::pair::{EncodedPair, NO_IMAGE};
use crate::data::pairs::Pairs;
use crate::data::reject_log::RejectSummary;
use crate::data::sampler::{
    BatchSampler, Blocks, MIN_CAPTION_KEY, Row, Sampler, Slot, Window, Windows, random_stream,
};
use crate::data::transform::{Draws, ImageTransform};
use crate::error::{Result, TrainError};
use crate::options::TrainOptions;
use candle_core::{Device, Tensor};
use rand::Rng;
use rayon::prelude::*;
use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use twinlens_image::Preprocess;
use twinlens_pipeline::ByteBudget;

/// Other pairs to try in place of one that cannot be decoded.
const TRIES: usize = 1000;

/// A window in memory: the rows that are not cached, by number within the input.
struct LoadedWindow {
    number: u64,
    rows: HashMap<u64, EncodedPair>,
}

/// The rows of one input in memory.
struct InputBuffer {
    windows: Receiver<LoadedWindow>,
    /// The window received last.
    number: Option<u64>,
    rows: HashMap<u64, EncodedPair>,
}

/// A use of a row.
#[derive(Clone, Copy)]
struct Place {
    input: usize,
    row: u64,
    step: u64,
}

impl Place {
    fn new(slot: &Slot, step: u64) -> Self {
        Self { input: slot.input, row: slot.row.row, step }
    }

    /// One of the row's captions, which depends on nothing but the seed and this use.
    fn choose(&self, seed: u64, mut captions: Vec<Vec<u32>>) -> Vec<u32> {
        let number = match captions.len() {
            0 | 1 => 0,
            several => {
                let purpose = format!("caption/{}/{}", self.input, self.row);
                random_stream(seed, &purpose, self.step).random_range(0..several)
            }
        };
        if captions.is_empty() { Vec::new() } else { captions.swap_remove(number) }
    }
}

/// Makes batches.
pub(crate) struct Feed<'a> {
    data: &'a Data,
    options: &'a TrainOptions,
    size: usize,
    transform: ImageTransform,
    budget: ByteBudget,
    cache: Option<Cache>,
    pool: rayon::ThreadPool,
}

impl<'a> Feed<'a> {
    pub(crate) fn new(data: &'a Data, options: &'a TrainOptions, preprocess: &Preprocess) -> Result<Self> {
        let repeats = data.is_growing() || options.pairs_seen(options.steps) > data.pairs();
        let bytes = if repeats { data.options.cache_bytes } else { 0 };
        let cache = match bytes {
            0 => None,
            bytes => Some(Cache::create(&data.work.join("decoded"), data.context, bytes)?),
        };
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(data.options.threads.max(1))
            .thread_name(|number| format!("decode-{number}"))
            .build()
            .map_err(|error| TrainError::Options(format!("cannot start decoding threads: {error}")))?;
        let (transform, budget) = (
            ImageTransform::new(preprocess.clone(), options.crop_min_area, options.augment.clone()),
            ByteBudget::new(data.options.decode_bytes as u64),
        );
        let size = preprocess.size as usize;
        Ok(Self { data, options, size, transform, budget, cache, pool })
    }

    /// Sends the batches of `steps` until the receiver is dropped.
    pub(crate) fn run(&self, steps: Range<u64>, send: &SyncSender<Batch>) -> Result<()> {
        let stop = &self.data.stop;
        let layouts: Vec<_> = self.data.inputs.iter().map(|(pairs, _)| pairs.layout(stop)).collect();
        let mut sampler = BatchSampler::new(self.samplers(&layouts), self.options.batch_size);
        // Restores the position in the data, without reading images.
        for step in 0..steps.start {
            sampler.set_batch(self.options.batch_size_at(step));
            sampler.next()?;
        }
        sampler.set_batch(self.options.batch_size);
        std::thread::scope(|scope| {
            let (mut buffers, mut readers) = (Vec::new(), Vec::new());
            for (input, one) in sampler.samplers.iter().enumerate() {
                let (send, windows) = sync_channel(0);
                buffers.push(InputBuffer { windows, number: None, rows: HashMap::new() });
                let (window, next, blocks) = (one.window.clone(), one.windows.clone(), &layouts[input]);
                readers.push(scope.spawn(move || self.read(input, blocks, window, next, &send)));
            }
            let end = self.send_batches(&mut sampler, steps, &mut buffers, send);
            // Ends readers that wait to send a window or for more data.
            stop.store(true, Ordering::Relaxed);
            drop(buffers);
            let mut read = Ok(());
            for reader in readers {
                read = read.and(reader.join().map_err(|_| TrainError::Panicked("data"))?);
            }
            match end {
                Ok(FeedEnd::Done) => Ok(()),
                // The reader reports the cause.
                Ok(FeedEnd::ReaderEnded) => read.and(Err(TrainError::Panicked("data"))),
                Err(error) => Err(error),
            }
        })
    }

    fn samplers<'b, B: Blocks>(&self, layouts: &'b [B]) -> Vec<Sampler<'b>> {
        let weighted = |(pairs, weight): &(Pairs, f64)| pairs.usable() as f64 * weight;
        let total: f64 = self.data.inputs.iter().map(weighted).sum();
        let sampler = |(number, (blocks, input)): (usize, (&'b B, &(Pairs, f64)))| {
            let share = if self.data.inputs.len() == 1 { 1.0 } else { weighted(input) / total };
            let bytes = (self.data.options.shuffle_bytes as f64 * share) as u64;
            // Each input has its own random stream.
            let seed: u64 = random_stream(self.options.seed, "input", number as u64).random();
            Sampler::new(blocks as &dyn Blocks, Windows::new(seed, bytes, input.0.is_growing()), share)
        };
        layouts.iter().zip(&self.data.inputs).enumerate().map(sampler).collect()
    }

    /// Reads windows in sequence, each after the previous one was received. `window` is the first.
    fn read(
        &self,
        input: usize,
        blocks: &dyn Blocks,
        window: Window,
        mut windows: Windows,
        send: &SyncSender<LoadedWindow>,
    ) -> Result<()> {
        let pairs = &self.data.inputs[input].0;
        let mut first = Some(window).filter(|window| !window.blocks.is_empty());
        loop {
            let window = match first.take() {
                Some(window) => window,
                None => windows.next(blocks)?,
            };
            let mut rows = HashMap::new();
            let mut blocks_by_row = window.blocks;
            blocks_by_row.sort_by_key(|block| block.start);
            for block in blocks_by_row {
                let keys = blocks.keys(&block)?;
                let selected = |row: u64| {
                    let usable =
                        keys.get((row - block.start) as usize).is_some_and(|key| *key >= MIN_CAPTION_KEY);
                    usable && !self.needs_no_read(input, row)
                };
                if (block.start..).take(keys.len()).any(selected) {
                    rows.extend(pairs.read(&block, &selected)?);
                }
            }
            if send.send(LoadedWindow { number: window.number, rows }).is_err() {
                return Ok(());
            }
        }
    }

    /// Whether a row is cached or rejected.
    fn needs_no_read(&self, input: usize, row: u64) -> bool {
        let is_cached = self.cache.as_ref().is_some_and(|cache| cache.contains(input, row));
        is_cached || self.data.rejects.contains(input, row)
    }

    fn send_batches(
        &self,
        sampler: &mut BatchSampler<'_>,
        steps: Range<u64>,
        buffers: &mut [InputBuffer],
        send: &SyncSender<Batch>,
    ) -> Result<FeedEnd> {
        for step in steps {
            let slots = sampler.next()?;
            for (input, one) in sampler.samplers.iter().enumerate() {
                if !buffers[input].advance(one, slots.iter().filter(|slot| slot.input == input)) {
                    return Ok(FeedEnd::ReaderEnded);
                }
            }
            let batch = self.batch(step, sampler, &slots, buffers)?;
            if send.send(batch).is_err() {
                break;
            }
        }
        Ok(FeedEnd::Done)
    }

    fn batch(
        &self,
        step: u64,
        sampler: &BatchSampler<'_>,
        slots: &[Slot],
        buffers: &mut [InputBuffer],
    ) -> Result<Batch> {
        let (values, context) = (self.transform.values(), self.data.context);
        let mut draws = random_stream(self.options.seed, "crop", step);
        let draws: Vec<Draws> = slots.iter().map(|_| std::array::from_fn(|_| draws.random())).collect();
        let bytes: Vec<Option<EncodedPair>> =
            slots.iter().map(|slot| buffers[slot.input].rows.remove(&slot.row.row)).collect();
        let mut pixels = vec![0.0; slots.len() * values];
        let examples: Vec<Option<Vec<u32>>> = self.pool.install(|| {
            let jobs = slots.par_iter().zip(bytes).zip(&draws).zip(pixels.par_chunks_exact_mut(values));
            jobs.with_max_len(1)
                .map(|(((slot, bytes), draws), out)| self.make(Place::new(slot, step), bytes, *draws, out))
                .collect::<Result<_>>()
        })?;
        let mut substitutes = random_stream(self.options.seed, "substitute", step);
        let mut seen: HashSet<u64> = slots.iter().map(|slot| slot.row.key).collect();
        let mut ids = Vec::with_capacity(slots.len() * context);
        for (place, example) in examples.into_iter().enumerate() {
            ids.extend(match example {
                Some(ids) => ids,
                None => {
                    let (slot, out) = (slots[place], &mut pixels[place * values..][..values]);
                    let rows = &sampler.samplers[slot.input].rows;
                    let (place, draws) = (Place::new(&slot, step), (draws[place], &mut substitutes));
                    self.substitute(place, rows, draws, &mut seen, out)?
                }
            });
        }
        let n = slots.len();
        let seen = self.options.pairs_seen(step + 1) as f64;
        Ok(Batch {
            pixels: Tensor::from_vec(pixels, (n, 3, self.size, self.size), &Device::Cpu)?,
            ids: Tensor::from_vec(ids, (n, context), &Device::Cpu)?,
            // The final number of pairs of a growing input is unknown, so only whole epochs count.
            epoch: if self.data.is_growing() {
                sampler.samplers[0].window.epoch as f64
            } else {
                seen / self.data.pairs() as f64
            },
        })
    }

    /// Makes another pair of the window in place of a rejected one.
    fn substitute(
        &self,
        Place { input, step, .. }: Place,
        rows: &[Row],
        (crop, draws): (Draws, &mut impl Rng),
        seen: &mut HashSet<u64>,
        out: &mut [f32],
    ) -> Result<Vec<u32>> {
        let mut tried_rows = HashSet::new();
        for tried in 0..if rows.is_empty() { 0 } else { TRIES } {
            let row = rows[draws.random_range(0..rows.len())];
            tried_rows.insert(row.row);
            // If every caption of the window is in the batch, repeat one.
            if seen.contains(&row.key) && tried < TRIES / 2 {
                continue;
            }
            let place = Place { input, row: row.row, step };
            if let Some(ids) = self.make(place, None, crop, out)? {
                seen.insert(row.key);
                return Ok(ids);
            }
        }
        let mut rejects = RejectSummary::default();
        for (code, detail) in self.data.rejects.rows().into_values() {
            rejects.add(&code, || detail);
        }
        Err(TrainError::Options(format!(
            "none of the {} pairs that were tried in place of one that cannot be used can be: {rejects}",
            tried_rows.len()
        )))
    }

    /// Writes the pixels of a row to `out` and returns its token ids. `None` if the row is
    /// rejected, which is recorded.
    fn make(
        &self,
        place: Place,
        bytes: Option<EncodedPair>,
        draws: Draws,
        out: &mut [f32],
    ) -> Result<Option<Vec<u32>>> {
        let (data, Place { input, row, .. }) = (self.data, place);
        if data.rejects.contains(input, row) {
            return Ok(None);
        }
        let cached = self.cache.as_ref().map_or(Ok(None), |cache| cache.get(input, row))?;
        let example = match cached {
            Some(example) => example,
            None => {
                let EncodedPair { captions, image } = match bytes {
                    Some(bytes) => bytes,
                    None => data.inputs[input].0.read_row(row)?,
                };
                if image.is_empty() {
                    data.rejects.add(input, row, NO_IMAGE, "there is no image")?;
                    return Ok(None);
                }
                let image = match self.transform.decode(&image, &self.budget) {
                    Ok(image) => image,
                    Err(error) => {
                        data.rejects.add(input, row, error.code(), &error.to_string())?;
                        return Ok(None);
                    }
                };
                let encode = |caption: &String| data.tokenizer.encode(caption, data.context);
                let example = Example { image, ids: captions.iter().map(encode).collect() };
                if let Some(cache) = &self.cache {
                    cache.put(input, row, &example)?;
                }
                example
            }
        };
        let cropped = self.transform.crop_into(&example.image, draws, out);
        cropped.map_err(|error| TrainError::Options(error.to_string()))?;
        Ok(Some(place.choose(self.options.seed, example.ids)))
    }
}

impl BatchSource for Data {
    fn context(&self) -> usize {
        self.context
    }

    fn run(
        &self,
        options: &TrainOptions,
        preprocess: &Preprocess,
        steps: Range<u64>,
        send: &SyncSender<Batch>,
    ) -> Result<()> {
        Feed::new(self, options, preprocess)?.run(steps, send)
    }

    fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// How the feed ended.
enum FeedEnd {
    /// All batches were sent, or the receiver was dropped.
    Done,
    /// A reader sent no more windows.
    ReaderEnded,
}

impl InputBuffer {
    /// Receives windows up to the current one of `sampler`. Of earlier windows, keeps rows that are
    /// deferred or in this batch. False if the reader has ended.
    fn advance<'s>(&mut self, sampler: &Sampler<'_>, batch: impl Iterator<Item = &'s Slot>) -> bool {
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
