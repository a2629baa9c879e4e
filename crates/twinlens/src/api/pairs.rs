//! Batches of pairs for a training elsewhere, such as in PyTorch.

use std::num::NonZero;
use std::path::PathBuf;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use serde::Deserialize;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use twinlens_dataset::{Dataset, MAIN, manifest};
use twinlens_image::{Augment, Preprocess};
use twinlens_model::Tokenizer;
use twinlens_pipeline::RunError;
use twinlens_pipeline::files::Files;
use twinlens_train::data::{
    BatchOptions, Captions, Columns, DataContext, DataOptions, Input, PairSet, PairStream, Source,
};
pub use twinlens_train::data::{Pixels, RawBatch};
use twinlens_train::{Part, TrainError};

use super::error::{Error, catch};
use crate::errors::Failure;
use crate::{env, hub, models, runtime};

/// What is read, and how batches are made of it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PairOptions {
    /// Datasets of runs (`runs/NAME/STAGE`), Parquet or tar files, patterns of these, or
    /// `hf://datasets/org/name`.
    pub inputs: Vec<String>,
    /// A model's directory or `tokenizer.json`, or a model of the Hub.
    pub tokenizer: String,
    /// Side of the images in pixels.
    pub size: u32,
    /// Token ids per caption.
    pub context: usize,
    /// Pairs per batch, over all ranks.
    pub batch_size: usize,
    /// Of the order and the crops.
    pub seed: u64,
    /// Minimum fraction of the area of random square crops; `None` for the central square.
    pub crop: Option<f64>,
    /// Further augmentation, as the option of `train`.
    pub augment: Option<Augment>,
    /// Of the channels in 0..1; `None` for CLIP's.
    pub mean: Option<[f32; 3]>,
    /// Of the channels in 0..1; `None` for CLIP's.
    pub std: Option<[f32; 3]>,
    /// The column of captions.
    pub caption: String,
    /// The column of images.
    pub image: String,
    /// Which caption of a list is used.
    pub captions: Option<Captions>,
    /// Size of the shuffle window, in bytes of encoded images.
    pub shuffle_bytes: u64,
    /// Bytes of decoded images that are kept in a file.
    pub cache_bytes: u64,
    /// Threads that decode; `None` for one per core.
    pub threads: Option<NonZero<u16>>,
}

/// Pairs that are read in batches, in any order of steps that the seed gives.
pub struct Pairs {
    set: Arc<PairSet>,
    batch_size: usize,
    work: Arc<TempDir>,
}

impl Pairs {
    /// Opens the inputs, and indexes their captions, unless `cancel` is cancelled.
    ///
    /// # Errors
    /// Inputs or columns do not exist; there are fewer pairs than a batch.
    pub fn open(options: PairOptions, cancel: &CancellationToken) -> Result<Self, Error> {
        catch(|| Ok(open(options, cancel)?))
    }

    /// Pairs per epoch.
    pub fn pairs(&self) -> u64 {
        self.set.pairs()
    }

    /// What the data are, in words, with a checksum of the captions.
    ///
    /// # Errors
    /// The index cannot be read.
    pub fn identity(&self) -> Result<String, Error> {
        catch(|| self.set.identity().map_err(error))
    }

    /// Starts to make a part of the batches, of its steps every `every`th.
    ///
    /// # Errors
    /// The part does not exist, or a thread cannot be started.
    pub fn batches(&self, part: Part, every: u64) -> Result<Batches, Error> {
        if part.rank >= part.ranks || !self.batch_size.is_multiple_of(part.ranks) || every == 0 {
            let Part { rank, ranks, .. } = part;
            let message = format!("batches of {} have no part {rank} of {ranks}", self.batch_size);
            return Err(Error::user(message));
        }
        let stream = self.set.stream(part, every).map_err(error)?;
        Ok(Batches { stream, _work: self.work.clone() })
    }
}

/// Batches in the order of their steps.
pub struct Batches {
    stream: PairStream,
    /// The index of the rows, deleted with the last reader.
    _work: Arc<TempDir>,
}

impl Batches {
    /// The next batch, if it is ready within `timeout`; `None` after the last one.
    ///
    /// # Errors
    /// Data cannot be read; no image of a window can be decoded.
    pub fn poll(&mut self, timeout: Duration) -> Poll<Option<Result<RawBatch, Error>>> {
        self.stream.poll(timeout).map_err(error)
    }
}

fn open(options: PairOptions, cancel: &CancellationToken) -> Result<Pairs, Failure> {
    if options.size == 0 || options.batch_size == 0 || options.context < 2 {
        return Err(Failure::user("`size` and `batch_size` must be at least 1, and `context` at least 2"));
    }
    let work = TempDir::with_prefix("twinlens-pairs-");
    let work = work.map_err(|error| Failure::io(std::env::temp_dir(), error))?;
    let tokenizer = tokenizer(&options.tokenizer)?;
    let columns = Columns {
        caption: options.caption.clone(),
        image: options.image.clone(),
        captions: options.captions,
        caption_is_explicit: options.caption != Columns::default().caption,
    };
    let files = Files { base: PathBuf::new(), scratch: env::cache_dir(), hub: hub::open() };
    let mut inputs = Vec::new();
    for name in &options.inputs {
        inputs.push(Input { source: source(&files, name)?, columns: columns.clone(), weight: 1.0 });
    }
    if inputs.is_empty() {
        return Err(Failure::user("there are no inputs"));
    }
    let reading = DataOptions {
        shuffle_bytes: options.shuffle_bytes,
        decode_bytes: 512 << 20,
        threads: options.threads.map_or_else(runtime::cores, |threads| usize::from(threads.get())),
        cache_bytes: options.cache_bytes,
    };
    let clip = Preprocess::clip(options.size);
    let (mean, std) = (options.mean.unwrap_or(clip.mean), options.std.unwrap_or(clip.std));
    let batches = BatchOptions {
        batch_size: options.batch_size,
        seed: options.seed,
        crop_min_area: options.crop,
        augment: options.augment,
        preprocess: Preprocess { mean, std, ..clip },
    };
    let context = DataContext {
        tokenizer: &tokenizer,
        context: options.context,
        batch: options.batch_size,
        work: work.path(),
        cancel,
    };
    // On threads of its own: a process that is forked has none of the global pool's.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(reading.threads).build();
    let pool = pool.map_err(|error| Failure::user(format!("cannot start threads: {error}")))?;
    let set = pool.install(|| PairSet::open(inputs, reading, batches, &context));
    let set = set.map_err(|error| Failure::from(RunError::from(error)))?;
    Ok(Pairs { set: Arc::new(set), batch_size: options.batch_size, work: Arc::new(work) })
}

fn tokenizer(name: &str) -> Result<Tokenizer, Failure> {
    Tokenizer::load(&models::tokenizer_file(name)?).map_err(|error| Failure::user(error.to_string()))
}

/// The files of an input: of a dataset those that its manifest lists.
fn source(files: &Files, name: &str) -> Result<Source, Failure> {
    if !name.contains(['*', '?', '{']) && !twinlens_pipeline::hub::is_hub_name(name) {
        let location = crate::location::parse_location(name)?;
        if manifest::exists(&location)? {
            return Ok(Source::table(&Dataset::open(location)?, MAIN));
        }
    }
    Ok(Source::Files(files.expand(name)?))
}

fn error(error: TrainError) -> Error {
    RunError::from(error).into()
}
