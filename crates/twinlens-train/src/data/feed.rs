//! Makes the sampled batches: one thread per input reads windows ahead, others decode, and batches
//! are sent in order.

use crate::batch::{Batch, BatchSource, Part};
use crate::data::buffers::{Buffers, Pixels};
use crate::data::cache::{Cache, Example};
use crate::data::loader::Data;
use crate::data::pair::{EncodedPair, NO_IMAGE};
use crate::data::pairs::Pairs;
use crate::data::reject_log::RejectSummary;
use crate::data::sampler::{BatchSampler, Blocks, Row, Sampler, Slot, Windows, random_stream};
use crate::data::transform::{Draws, ImageTransform};
use crate::data::windows::{InputBuffer, Scout, WindowReader};
use crate::error::{Result, TrainError};
use crate::options::TrainOptions;
use candle_core::{Device, Tensor};
use rand::Rng;
use rayon::prelude::*;
use std::collections::HashSet;
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{SyncSender, sync_channel};
use twinlens_image::Preprocess;
use twinlens_pipeline::ByteBudget;

/// Other pairs to try in place of one that cannot be decoded.
const TRIES: usize = 1000;

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

/// The batch of a step, of which a rank makes some places.
struct BatchPlan<'a> {
    step: u64,
    /// All places of the batch.
    slots: &'a [Slot],
    /// Those of the rank.
    places: Range<usize>,
}

/// The numbers of a batch, or of a rank's part of it.
pub struct RawBatch {
    /// Pixels `[rows, 3, size, size]`, normalised.
    pub pixels: Pixels,
    /// Token ids `[rows, context]`.
    pub ids: Vec<u32>,
    /// Pairs.
    pub rows: usize,
    /// Epochs after this batch.
    epoch: f64,
}

/// Makes batches.
pub(crate) struct Feed<'a> {
    data: &'a Data,
    options: &'a TrainOptions,
    size: usize,
    transform: ImageTransform,
    budget: ByteBudget,
    cache: Option<Cache>,
    buffers: Buffers,
    pool: rayon::ThreadPool,
    /// Only every such step is made, counted from the first.
    every: u64,
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
        Ok(Self {
            data,
            options,
            size,
            transform,
            budget,
            cache,
            buffers: Buffers::default(),
            pool,
            every: 1,
        })
    }

    /// Makes of the steps, beginning with the first, only every `every`th.
    pub(crate) fn every(self, every: u64) -> Self {
        Self { every: every.max(1), ..self }
    }

    /// Gives a rank's part of the batches to `send` until it returns false.
    pub(crate) fn run(&self, part: Part, send: &dyn Fn(RawBatch) -> Result<bool>) -> Result<()> {
        let stop = &self.data.stop;
        let layouts: Vec<_> = self.data.inputs.iter().map(|(pairs, _)| pairs.layout(stop)).collect();
        let mut sampler = BatchSampler::new(self.samplers(&layouts), self.options.batch_size);
        // Restores the position in the data, without reading images.
        for step in 0..part.steps.start {
            sampler.set_batch(self.options.batch_size_at(step));
            sampler.next()?;
        }
        sampler.set_batch(self.options.batch_size);
        std::thread::scope(|scope| {
            let (mut buffers, mut readers) = (Vec::new(), Vec::new());
            for (input, one) in sampler.samplers.iter().enumerate() {
                let (send, windows) = sync_channel(0);
                buffers.push(InputBuffer::new(windows));
                let (window, next, blocks) = (one.window.clone(), one.windows.clone(), &layouts[input]);
                let places = part.rows(self.options.batch_size);
                let scout = (part.ranks > 1).then(|| Scout::new(sampler.clone(), input, places));
                readers.push(scope.spawn(move || {
                    let (pairs, skips) = (&self.data.inputs[input].0, &|row| self.needs_no_read(input, row));
                    WindowReader { pairs, blocks, skips, scout }.run(window, next, &send)
                }));
            }
            let end = self.send_batches(&mut sampler, part, &mut buffers, send);
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

    /// Whether a row is cached or rejected.
    fn needs_no_read(&self, input: usize, row: u64) -> bool {
        let is_cached = self.cache.as_ref().is_some_and(|cache| cache.contains(input, row));
        is_cached || self.data.rejects.contains(input, row)
    }

    fn send_batches(
        &self,
        sampler: &mut BatchSampler<'_>,
        part: Part,
        buffers: &mut [InputBuffer],
        send: &dyn Fn(RawBatch) -> Result<bool>,
    ) -> Result<FeedEnd> {
        let places = part.rows(self.options.batch_size);
        let first = part.steps.start;
        for step in part.steps {
            let slots = sampler.next()?;
            for (input, one) in sampler.samplers.iter().enumerate() {
                let own = slots[places.clone()].iter().filter(|slot| slot.input == input);
                if !buffers[input].advance(one, own) {
                    return Ok(FeedEnd::ReaderEnded);
                }
            }
            if !(step - first).is_multiple_of(self.every) {
                continue;
            }
            let plan = BatchPlan { step, slots: &slots, places: places.clone() };
            let batch = self.batch(&plan, sampler, buffers)?;
            if !send(batch)? {
                break;
            }
        }
        Ok(FeedEnd::Done)
    }

    fn batch(
        &self,
        plan: &BatchPlan<'_>,
        sampler: &BatchSampler<'_>,
        buffers: &mut [InputBuffer],
    ) -> Result<RawBatch> {
        let (values, context, step) = (self.transform.values(), self.data.context, plan.step);
        let mut draws = random_stream(self.options.seed, "crop", step);
        let draws: Vec<Draws> = plan.slots.iter().map(|_| std::array::from_fn(|_| draws.random())).collect();
        let (slots, draws) = (&plan.slots[plan.places.clone()], &draws[plan.places.clone()]);
        let bytes: Vec<Option<EncodedPair>> =
            slots.iter().map(|slot| buffers[slot.input].rows.remove(&slot.row.row)).collect();
        // What an earlier batch left is overwritten.
        let mut pixels = self.buffers.take(slots.len() * values);
        let examples: Vec<Option<Vec<u32>>> = self.pool.install(|| {
            let jobs = slots.par_iter().zip(bytes).zip(draws).zip(pixels.par_chunks_exact_mut(values));
            jobs.with_max_len(1)
                .map(|(((slot, bytes), draws), out)| self.make(Place::new(slot, step), bytes, *draws, out))
                .collect::<Result<_>>()
        })?;
        let mut ids = Vec::with_capacity(slots.len() * context);
        for (number, example) in examples.into_iter().enumerate() {
            ids.extend(match example {
                Some(ids) => ids,
                None => {
                    let out = &mut pixels[number * values..][..values];
                    let rows = &sampler.samplers[slots[number].input].rows;
                    self.substitute(plan, number, (rows, draws[number]), out)?
                }
            });
        }
        let seen = self.options.pairs_seen(step + 1) as f64;
        Ok(RawBatch {
            pixels,
            ids,
            rows: slots.len(),
            // The final number of pairs of a growing input is unknown, so only whole epochs count.
            epoch: if self.data.is_growing() {
                sampler.samplers[0].window.epoch as f64
            } else {
                seen / self.data.pairs() as f64
            },
        })
    }

    fn tensors(&self, batch: RawBatch) -> Result<Batch> {
        let RawBatch { pixels, ids, rows, epoch } = batch;
        Ok(Batch {
            pixels: Tensor::from_vec(pixels.into_vec(), (rows, 3, self.size, self.size), &Device::Cpu)?,
            ids: Tensor::from_vec(ids, (rows, self.data.context), &Device::Cpu)?,
            epoch,
        })
    }

    /// Makes another pair of the window in place of the rejected one at place `number` of the
    /// rank's part. It depends on no other place of the batch, since other ranks make those; places
    /// try different rows as long as the window has enough.
    fn substitute(
        &self,
        plan: &BatchPlan<'_>,
        number: usize,
        (rows, crop): (&[Row], Draws),
        out: &mut [f32],
    ) -> Result<Vec<u32>> {
        let (step, batch, place) = (plan.step, plan.slots.len(), plan.places.start + number);
        let input = plan.slots[place].input;
        let seen: HashSet<u64> = plan.slots.iter().map(|slot| slot.row.key).collect();
        let mut tried_rows = HashSet::new();
        let count = rows.len();
        let start = random_stream(self.options.seed, "substitute", step).random_range(0..count.max(1));
        for tried in 0..if rows.is_empty() { 0 } else { TRIES } {
            let turn = place + tried * batch;
            let row = rows[(start + turn + turn / count) % count];
            tried_rows.insert(row.row);
            // If every caption of the window is in the batch, repeat one.
            if seen.contains(&row.key) && tried < TRIES / 2 {
                continue;
            }
            if let Some(ids) = self.make(Place { input, row: row.row, step }, None, crop, out)? {
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
        part: Part,
        send: &SyncSender<Batch>,
    ) -> Result<()> {
        let feed = Feed::new(self, options, preprocess)?;
        feed.run(part, &|batch| Ok(send.send(feed.tensors(batch)?).is_ok()))
    }

    fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    fn identity(&self) -> Result<String> {
        let inputs =
            self.inputs.iter().map(|(pairs, weight)| Ok(format!("{} x {weight}", pairs.identity()?)));
        Ok(inputs.collect::<Result<Vec<_>>>()?.join(", "))
    }

    fn take_rejects(&self) -> Result<Vec<u8>> {
        Ok(self.rejects.take_new())
    }

    fn merge_rejects(&self, lines: &[u8]) -> Result<()> {
        self.rejects.merge(lines)
    }
}

/// How the feed ended.
enum FeedEnd {
    /// All batches were sent, or the receiver was dropped.
    Done,
    /// A reader sent no more windows.
    ReaderEnded,
}
