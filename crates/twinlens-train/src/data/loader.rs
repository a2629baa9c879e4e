//! The inputs of a training, opened.

use crate::data::pair::{CODES, Columns};
use crate::data::pairs::{DataContext, Pairs, Source, too_few};
use crate::data::reject_log::RejectLog;
use crate::error::{Result, TrainError};
use datafusion::arrow::array::RecordBatch;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use twinlens_model::Tokenizer;

/// One input of a training.
#[derive(Clone, Debug)]
pub struct Input {
    pub source: Source,
    pub columns: Columns,
    /// How often each pair is seen per epoch.
    pub weight: f64,
}

impl Input {
    /// An input with the default columns and weight 1.
    pub fn new(source: Source) -> Self {
        Self { source, columns: Columns::default(), weight: 1.0 }
    }
}

/// Options for reading. Only `shuffle_bytes` affects the batches.
#[derive(Clone, Debug)]
pub struct DataOptions {
    /// Size of the shuffle window, in bytes of encoded images.
    pub shuffle_bytes: u64,
    /// Memory limit for decoding, in bytes.
    pub decode_bytes: usize,
    /// Decoding threads.
    pub threads: usize,
    /// Maximum size of the cache of decoded images, in bytes; 0 for no cache.
    pub cache_bytes: u64,
}

/// The data of one training.
pub struct Data {
    /// Inputs with their weights.
    pub(crate) inputs: Vec<(Pairs, f64)>,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) context: usize,
    pub(crate) options: DataOptions,
    pub(crate) rejects: RejectLog,
    pub(crate) work: PathBuf,
    /// Whether no more batches are needed.
    pub(crate) stop: AtomicBool,
}

impl Data {
    /// Scans the inputs.
    ///
    /// # Errors
    /// `Options` if columns are missing or there are fewer pairs than a batch; `Data` or `Io` if
    /// files cannot be read; `Interrupted`.
    pub fn open(inputs: Vec<Input>, options: DataOptions, cx: &DataContext<'_>) -> Result<Self> {
        let DataContext { tokenizer, context, batch, work, .. } = *cx;
        std::fs::create_dir_all(work).map_err(TrainError::io(work))?;
        // One of several inputs may be smaller than a batch.
        let min_pairs = if inputs.len() == 1 { batch } else { 1 };
        let mut opened = Vec::new();
        for (number, input) in inputs.into_iter().enumerate() {
            let work = work.join(format!("input-{number}"));
            let Input { source, columns, weight } = input;
            let pairs = Pairs::open(source, columns, min_pairs, &work, cx)?;
            opened.push((pairs, weight));
        }
        let rejects = RejectLog::open(&work.join("refused.jsonl"))?;
        let (tokenizer, work) = (tokenizer.clone(), work.to_owned());
        let stop = AtomicBool::new(false);
        let data = Self { inputs: opened, tokenizer, context, options, rejects, work, stop };
        let usable: u64 = data.inputs.iter().map(|(pairs, _)| pairs.usable()).sum();
        if usable < batch as u64 && !data.is_growing() {
            let inputs: Vec<&Pairs> = data.inputs.iter().map(|(pairs, _)| pairs).collect();
            return Err(too_few(batch, &inputs)?);
        }
        Ok(data)
    }

    pub(crate) fn is_growing(&self) -> bool {
        self.inputs.iter().any(|(pairs, _)| pairs.is_growing())
    }

    /// Pairs per epoch: the sum over inputs of pairs times weight. For growing inputs, so far.
    pub fn pairs(&self) -> u64 {
        self.inputs.iter().map(|(pairs, weight)| pairs.usable() as f64 * weight).sum::<f64>().round() as u64
    }

    /// Passes the rejected rows to `write`, in the order of the inputs, with the reserved columns
    /// for the stage `stage`. Waits until growing inputs are complete.
    ///
    /// # Errors
    /// Those of reading, and of `write`.
    pub fn write_rejects<E: From<TrainError>>(
        &self,
        stage: &str,
        mut write: impl FnMut(&RecordBatch) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        let logged = self.rejects.rows();
        for (input, (pairs, _)) in self.inputs.iter().enumerate() {
            for block in pairs.all_blocks()? {
                let end = block.start + u64::from(block.rows);
                let mut rejects: BTreeMap<u64, (String, String)> = logged
                    .range((input, block.start)..(input, end))
                    .map(|((_, row), reject)| (*row, reject.clone()))
                    .collect();
                for (row, key) in (block.start..).zip(pairs.keys(&block)?) {
                    if let Some((code, meaning)) = CODES.get(key as usize) {
                        rejects.insert(row, ((*code).into(), (*meaning).into()));
                    }
                }
                if rejects.is_empty() {
                    continue;
                }
                let rows: Vec<u64> = rejects.keys().copied().collect();
                let stages = vec![stage.to_owned(); rows.len()];
                let (codes, details) = rejects.into_values().unzip();
                write(&pairs.ledger(&block, &rows, [stages, codes, details])?)?;
            }
        }
        Ok(())
    }
}
