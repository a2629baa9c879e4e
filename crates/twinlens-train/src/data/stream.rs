//! Batches for a training that another program runs: the data of a training without its model.

use crate::batch::{Batch, Part};
use crate::data::feed::Feed;
use crate::data::loader::{Data, DataOptions, Input};
use crate::data::pairs::DataContext;
use crate::error::{Result, TrainError};
use crate::options::TrainOptions;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::JoinHandle;
use twinlens_image::{Augment, Preprocess};

/// Batches that are made before they are asked for.
const AHEAD: usize = 2;

/// How batches are made. All of it affects them.
#[derive(Clone, Debug)]
pub struct BatchOptions {
    /// Pairs per batch, over all ranks.
    pub batch_size: usize,
    /// Seed of the order of the data and of crops.
    pub seed: u64,
    /// Minimum fraction of the area of random square crops; `None` for the central square.
    pub crop_min_area: Option<f64>,
    pub augment: Option<Augment>,
    pub preprocess: Preprocess,
}

/// The pairs of a training, opened.
pub struct PairSet {
    data: Data,
    options: TrainOptions,
    preprocess: Preprocess,
}

impl PairSet {
    /// Scans the inputs.
    ///
    /// # Errors
    /// Those of [`Data::open`].
    pub fn open(
        inputs: Vec<Input>,
        reading: DataOptions,
        batches: BatchOptions,
        cx: &DataContext<'_>,
    ) -> Result<Self> {
        let data = Data::open(inputs, reading, cx)?;
        let BatchOptions { batch_size, seed, crop_min_area, augment, preprocess } = batches;
        let options = TrainOptions { crop_min_area, augment, ..TrainOptions::of_batches(batch_size, seed) };
        Ok(Self { data, options, preprocess })
    }

    /// Pairs per epoch.
    pub fn pairs(&self) -> u64 {
        self.data.pairs()
    }

    /// Starts to make a part of the batches: of its steps every `every`th, beginning with the
    /// first.
    ///
    /// # Errors
    /// A thread cannot be started.
    pub fn stream(self: &Arc<Self>, part: Part, every: u64) -> Result<PairStream> {
        let (send, batches) = sync_channel(AHEAD);
        let set = self.clone();
        let work = move || Feed::new(&set.data, &set.options, &set.preprocess)?.every(every).run(part, &send);
        let worker = std::thread::Builder::new().name("batches".into()).spawn(work);
        let worker =
            worker.map_err(|error| TrainError::Options(format!("cannot start a thread: {error}")))?;
        Ok(PairStream { batches: Some(batches), worker: Some(worker) })
    }
}

/// Batches in the order of their steps.
pub struct PairStream {
    batches: Option<Receiver<Batch>>,
    worker: Option<JoinHandle<Result<()>>>,
}

impl PairStream {
    /// How the worker ended.
    fn end(&mut self) -> Result<()> {
        // A worker that waits to send ends.
        self.batches = None;
        match self.worker.take().map(JoinHandle::join) {
            Some(Ok(done)) => done,
            Some(Err(_)) => Err(TrainError::Panicked("data")),
            None => Ok(()),
        }
    }
}

impl Iterator for PairStream {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.batches.as_ref()?.recv() {
            Ok(batch) => Some(Ok(batch)),
            Err(_) => self.end().err().map(Err),
        }
    }
}

impl Drop for PairStream {
    fn drop(&mut self) {
        // Nobody is left to hear of an error.
        let _ = self.end();
    }
}
