//! The data of a training: batches out of shards, made beside the step.
//!
//! Which pairs make a batch follows from the seed and from where the data are ([`plan`]); threads,
//! budgets and the cache change when a batch is ready, not what is in it. A position in the data is
//! a step number.
//!
//! Memory holds at most two windows of encoded images (`shuffle_bytes` each), the pairs that were
//! put off, the batches that are made ahead, and what is being decoded, which is reserved before.
//!
//! A pair whose image cannot be decoded is found when it is first wanted. It is written down once
//! ([`refused`]), and its place in every batch is taken by another pair of the same window, so that
//! the other places stay as they are. At the end all rows that were refused go to the ledger: rows
//! in = pairs trained on + rejects.

mod budget;
mod cache;
mod example;
mod feed;
mod numbers;
mod pairs;
mod parquet;
pub(crate) mod plan;
mod refused;
mod webdataset;

use crate::error::{Result, TrainError};
use crate::trainer::{Batch, Batches, TrainOptions};
use datafusion::arrow::array::RecordBatch;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;
use tokio_util::sync::CancellationToken;
use twinlens_model::Tokenizer;

use pairs::{CODES, Pairs, too_few};
pub use pairs::{Columns, Place};
use refused::Refused;

/// One input of a training.
#[derive(Clone, Debug)]
pub struct Input {
    /// Where it is.
    pub place: Place,
    /// Its columns.
    pub columns: Columns,
    /// How often its pairs are seen in one epoch of the whole.
    pub weight: f64,
}

impl Input {
    /// Pairs with the usual columns, each once an epoch.
    pub fn new(place: Place) -> Self {
        Self { place, columns: Columns::default(), weight: 1.0 }
    }
}

/// How data are read. None but `shuffle_bytes` changes what comes out.
#[derive(Clone, Debug)]
pub struct DataOptions {
    /// Bytes of encoded images that are shuffled among each other.
    pub shuffle_bytes: u64,
    /// Bytes that decoding may hold.
    pub decode_bytes: usize,
    /// Threads that decode.
    pub threads: usize,
    /// Most bytes of the file of decoded images; 0: none.
    pub cache_bytes: u64,
}

/// The data of one training.
pub struct Data {
    lanes: Vec<(Pairs, f64)>,
    tokenizer: Tokenizer,
    context: usize,
    options: DataOptions,
    refused: Refused,
    work: PathBuf,
    /// Whether nobody wants batches any more.
    stop: AtomicBool,
}

impl Data {
    /// Looks through the inputs for batches of `batch` pairs with captions of `context` tokens.
    /// `work` is a folder of the training's own that survives a kill.
    ///
    /// # Errors
    /// `Options` where columns are missing or there are fewer pairs than a batch; `Data` or `Io`
    /// where files cannot be read; `Interrupted`.
    pub fn open(
        inputs: Vec<Input>,
        tokenizer: &Tokenizer,
        context: usize,
        batch: usize,
        options: DataOptions,
        work: &Path,
        cancel: &CancellationToken,
    ) -> Result<Self> {
        std::fs::create_dir_all(work).map_err(TrainError::io(work))?;
        // Of several inputs, one may be small.
        let least = if inputs.len() == 1 { batch } else { 1 };
        let mut lanes = Vec::new();
        for (lane, input) in inputs.into_iter().enumerate() {
            let work = work.join(format!("input-{lane}"));
            let Input { place, columns, weight } = input;
            let pairs = Pairs::open(place, columns, tokenizer, context, least, &work, cancel.clone())?;
            lanes.push((pairs, weight));
        }
        let refused = Refused::open(&work.join("refused.jsonl"))?;
        let (tokenizer, work) = (tokenizer.clone(), work.to_owned());
        let stop = AtomicBool::new(false);
        let data = Self { lanes, tokenizer, context, options, refused, work, stop };
        let usable: u64 = data.lanes.iter().map(|(pairs, _)| pairs.usable()).sum();
        if usable < batch as u64 && !data.follows() {
            return Err(too_few(usable, batch));
        }
        Ok(data)
    }

    fn follows(&self) -> bool {
        self.lanes.iter().any(|(pairs, _)| pairs.follows())
    }

    /// Pairs of an epoch: those of each input times its weight. Of inputs that grow, those so far.
    pub fn pairs(&self) -> u64 {
        self.lanes.iter().map(|(pairs, weight)| pairs.usable() as f64 * weight).sum::<f64>().round() as u64
    }

    /// Gives `write` the rows that were refused, by the stage `stage`, in the order of the inputs,
    /// with the reserved columns. Waits for the end of an input that grows.
    ///
    /// # Errors
    /// Those of reading, and of `write`.
    pub fn write_refused<E: From<TrainError>>(
        &self,
        stage: &str,
        mut write: impl FnMut(&RecordBatch) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        let late = self.refused.rows();
        for (lane, (pairs, _)) in self.lanes.iter().enumerate() {
            for block in pairs.all_blocks()? {
                let end = block.start + u64::from(block.rows);
                let mut refused: BTreeMap<u64, (String, String)> = late
                    .range((lane, block.start)..(lane, end))
                    .map(|((_, row), why)| (*row, why.clone()))
                    .collect();
                for (row, key) in (block.start..).zip(pairs.keys(&block)?) {
                    if let Some(code) = CODES.get(key as usize) {
                        refused.insert(row, ((*code).into(), String::new()));
                    }
                }
                if refused.is_empty() {
                    continue;
                }
                let rows: Vec<u64> = refused.keys().copied().collect();
                let stages = vec![stage.to_owned(); rows.len()];
                let (codes, details) = refused.into_values().unzip();
                write(&pairs.ledger(&block, &rows, [stages, codes, details])?)?;
            }
        }
        Ok(())
    }
}

impl Batches for Data {
    fn context(&self) -> usize {
        self.context
    }

    fn run(
        &self,
        options: &TrainOptions,
        size: usize,
        steps: Range<u64>,
        send: &SyncSender<Batch>,
    ) -> Result<()> {
        feed::Feed::new(self, options, size)?.run(steps, send)
    }

    fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
