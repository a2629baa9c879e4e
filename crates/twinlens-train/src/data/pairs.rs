//! One input of a training: shards of pairs, what is known of their rows, and their bytes.
//!
//! Before the first step the captions of all rows are read once, and nothing else: a number that is
//! equal where their tokens are is kept in a file. Images are read as they are needed. An input
//! that grows while it is read (`follow`) is looked through shard by shard as its manifest records
//! them.

use crate::data::numbers::Numbers;
use crate::data::parquet::ParquetShard;
use crate::data::plan::{Block, Blocks, Key, UNUSABLE};
use crate::data::webdataset::{Spans, TarShard, code_number};
use crate::error::{Result, TrainError};
use datafusion::arrow::array::{ArrayRef, RecordBatch, StringArray};
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use twinlens_dataset::storage::Location;
use twinlens_dataset::{Dataset, DatasetError, manifest};
use twinlens_model::Tokenizer;
use twinlens_pipeline::rejects::RESERVED;

/// Why a row is no pair, by its key: all of them smaller than [`UNUSABLE`].
pub(crate) const CODES: [&str; 6] =
    ["no_caption", "no_image", "malformed_json", "too_many_bytes", "damaged_archive", "truncated_archive"];
/// Bytes of a block, about: what is read in one go.
const BLOCK_BYTES: u64 = 8 << 20;
/// Rows of a block of a tar file at the most.
const TAR_ROWS: usize = 512;
/// How often a growing input is looked at.
const POLL: Duration = Duration::from_millis(200);

/// The columns of pairs (of tar files: the member of the JSON that is the caption).
#[derive(Clone, Debug)]
pub struct Columns {
    /// Captions.
    pub caption: String,
    /// Images: `struct<bytes, path>`, or binary.
    pub image: String,
    /// Whether the user named the captions, so that the JSON of a sample goes before its text.
    pub named: bool,
}

impl Default for Columns {
    fn default() -> Self {
        Self { caption: "caption".into(), image: "image".into(), named: false }
    }
}

/// Where pairs are.
#[derive(Clone, Debug)]
pub enum Place {
    /// Parquet files, or tar files (by the ending `.tar`).
    Files(Vec<Location>),
    /// A dataset of which this table's shards are committed while it is read.
    Growing(Location, String),
}

impl Place {
    /// A table of a finished dataset.
    pub fn table(dataset: &Dataset, table: &str) -> Self {
        Self::Files(dataset.shards(table).map(|shard| dataset.location().join(&shard.path)).collect())
    }
}

/// The bytes of a pair.
#[derive(Debug, Default)]
pub(crate) struct Encoded {
    pub(crate) caption: String,
    /// Empty where there is none.
    pub(crate) image: Vec<u8>,
}

/// One shard, open.
enum Shard {
    Parquet(ParquetShard),
    Tar(TarShard),
}

/// What is known of the shards.
#[derive(Default)]
struct Known {
    shards: Vec<Location>,
    blocks: Vec<Block>,
    rows: u64,
    usable: u64,
    /// Whether there will be no more.
    complete: bool,
    /// The shard that was opened last.
    open: Option<(u32, Arc<Shard>)>,
}

/// One input.
pub(crate) struct Pairs {
    place: Place,
    columns: Columns,
    tokenizer: Tokenizer,
    context: usize,
    /// Fewer pairs than this make no batch.
    least: usize,
    cancel: CancellationToken,
    keys: Numbers,
    spans: Numbers,
    known: Mutex<Known>,
}

impl Pairs {
    /// Looks through an input: what is there of one that grows, all of another. `work` is a folder
    /// for what is found.
    pub(crate) fn open(
        place: Place,
        columns: Columns,
        tokenizer: &Tokenizer,
        context: usize,
        least: usize,
        work: &Path,
        cancel: CancellationToken,
    ) -> Result<Self> {
        std::fs::create_dir_all(work).map_err(TrainError::io(work))?;
        let pairs = Self {
            place,
            columns,
            tokenizer: tokenizer.clone(),
            context,
            least,
            cancel,
            keys: Numbers::create(&work.join("keys"))?,
            spans: Numbers::create(&work.join("spans"))?,
            known: Mutex::default(),
        };
        pairs.look(&mut pairs.known())?;
        Ok(pairs)
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Usable rows so far.
    pub(crate) fn usable(&self) -> u64 {
        self.known().usable
    }

    /// Whether it still grows by its nature.
    pub(crate) fn follows(&self) -> bool {
        matches!(self.place, Place::Growing(..))
    }

    /// Looks through shards that are new.
    fn look(&self, known: &mut Known) -> Result<()> {
        if known.complete {
            return Ok(());
        }
        let (shards, complete) = match &self.place {
            Place::Files(files) => (files.clone(), true),
            Place::Growing(location, table) => match manifest::read(location)? {
                None => (Vec::new(), false),
                Some(state) => {
                    let complete = state.complete;
                    let dataset = Dataset::from_state(location.clone(), state);
                    let shards = dataset.shards(table).map(|shard| location.join(&shard.path)).collect();
                    (shards, complete)
                }
            },
        };
        let same = |(a, b): (&Location, &Location)| a.display_path() == b.display_path();
        if shards.len() < known.shards.len() || !known.shards.iter().zip(&shards).all(same) {
            return Err(TrainError::Options(
                "an input was made anew, or not in its order: it cannot be followed".into(),
            ));
        }
        for shard in shards.into_iter().skip(known.shards.len()) {
            if self.cancel.is_cancelled() {
                return Err(TrainError::Interrupted);
            }
            self.add(known, shard)?;
        }
        known.complete = complete;
        Ok(())
    }

    /// Waits until there is something that `found` finds, or the input is complete; or nobody wants
    /// it any more.
    fn wait<T>(&self, found: impl Fn(&Known) -> Option<T>, stop: &AtomicBool) -> Result<Option<T>> {
        loop {
            let mut known = self.known();
            if let Some(found) = found(&known) {
                return Ok(Some(found));
            }
            if known.complete {
                return Ok(None);
            }
            let before = known.shards.len();
            self.look(&mut known)?;
            if before == known.shards.len() && !known.complete {
                drop(known);
                std::thread::sleep(POLL);
            }
            if self.cancel.is_cancelled() || stop.load(Ordering::Relaxed) {
                return Err(TrainError::Interrupted);
            }
        }
    }

    fn open_shard(&self, location: &Location) -> Result<Shard> {
        Ok(match location.name().ends_with(".tar") {
            true => Shard::Tar(TarShard::open(location, &self.columns)?),
            false => Shard::Parquet(ParquetShard::open(location, &self.columns)?),
        })
    }

    /// The shard of a block.
    fn shard(&self, block: &Block) -> Result<Arc<Shard>> {
        let mut known = self.known();
        if let Some((number, shard)) = &known.open
            && *number == block.shard
        {
            return Ok(shard.clone());
        }
        let location = known.shards[block.shard as usize].clone();
        drop(known);
        let shard = Arc::new(self.open_shard(&location)?);
        known = self.known();
        known.open = Some((block.shard, shard.clone()));
        Ok(shard)
    }

    /// Reads the captions of a shard.
    fn add(&self, known: &mut Known, location: Location) -> Result<()> {
        let number = known.shards.len() as u32;
        match self.open_shard(&location)? {
            Shard::Parquet(shard) => {
                for (group, (rows, bytes)) in shard.sizes().into_iter().enumerate() {
                    let captions = shard.captions(group, rows as usize)?;
                    let captions: Vec<_> = captions.into_iter().map(|c| c.ok_or(CODES[0])).collect();
                    self.push(known, &captions)?;
                    let pieces = bytes.div_ceil(BLOCK_BYTES).clamp(1, rows.max(1));
                    let ends = (0..=pieces).map(|piece| rows * piece / pieces);
                    for (first, end) in ends.clone().zip(ends.skip(1)).filter(|(first, end)| first < end) {
                        known.blocks.push(Block {
                            shard: number,
                            group: group as u32,
                            first: first as u32,
                            rows: (end - first) as u32,
                            start: known.rows + first,
                            bytes: bytes / pieces,
                        });
                    }
                    known.rows += rows;
                }
            }
            Shard::Tar(shard) => {
                let samples = shard.samples()?;
                let mut first = 0;
                while first < samples.len() {
                    let (mut end, mut bytes) = (first, 0);
                    while end < samples.len() && end - first < TAR_ROWS && bytes < BLOCK_BYTES {
                        bytes += samples[end].spans[1] + (samples[end].spans[3] >> 1);
                        end += 1;
                    }
                    known.blocks.push(Block {
                        shard: number,
                        group: 0,
                        first: first as u32,
                        rows: (end - first) as u32,
                        start: known.rows + first as u64,
                        bytes,
                    });
                    first = end;
                }
                // The spans of an input's rows are in the order of its rows, so one of several
                // formats has some of no use.
                let rows = known.rows;
                self.spans.skip_to(4 * rows)?;
                self.spans.push(&samples.iter().flat_map(|sample| sample.spans).collect::<Vec<_>>())?;
                let captions: Vec<_> = samples.into_iter().map(|sample| sample.caption).collect();
                self.push(known, &captions)?;
                known.rows += captions.len() as u64;
            }
        }
        known.shards.push(location);
        Ok(())
    }

    fn push(&self, known: &mut Known, captions: &[std::result::Result<String, &'static str>]) -> Result<()> {
        let key = |caption: &std::result::Result<String, &'static str>| match caption {
            Ok(caption) => caption_key(&self.tokenizer.encode(caption, self.context)),
            Err(code) => code_number(code),
        };
        let keys: Vec<Key> = captions.par_iter().map(key).collect();
        known.usable += keys.iter().filter(|key| **key >= UNUSABLE).count() as u64;
        self.keys.push(&keys)
    }

    /// The wanted rows of a block.
    pub(crate) fn read(&self, block: &Block, wanted: &dyn Fn(u64) -> bool) -> Result<Vec<(u64, Encoded)>> {
        match &*self.shard(block)? {
            Shard::Parquet(shard) => shard.read(block, wanted),
            Shard::Tar(shard) => {
                let spans = self.spans.read(4 * block.start, 4 * block.rows as usize)?;
                let spans: Vec<Spans> = spans.chunks_exact(4).map(|s| [s[0], s[1], s[2], s[3]]).collect();
                shard.read(block, &spans, wanted)
            }
        }
    }

    /// One row.
    pub(crate) fn read_row(&self, row: u64) -> Result<Encoded> {
        let known = self.known();
        let after = known.blocks.partition_point(|block| block.start <= row);
        let found = known.blocks[..after].last().copied();
        drop(known);
        let missing = || TrainError::Options(format!("row {row} of an input is gone: was it changed?"));
        let block = found.ok_or_else(missing)?;
        Ok(self.read(&block, &|other| other == row)?.pop().ok_or_else(missing)?.1)
    }

    /// The keys of a block's rows.
    pub(crate) fn keys(&self, block: &Block) -> Result<Vec<Key>> {
        self.keys.read(block.start, block.rows as usize)
    }

    /// All blocks, once the input is complete.
    pub(crate) fn all_blocks(&self) -> Result<Vec<Block>> {
        self.wait(|known| known.complete.then_some(()), &AtomicBool::new(false))?;
        Ok(self.known().blocks.clone())
    }

    /// What a plan sees of it, until `stop` is set.
    pub(crate) fn until<'a>(&'a self, stop: &'a AtomicBool) -> Until<'a> {
        Until { pairs: self, stop }
    }

    /// Refused rows of a block for the ledger: `codes` and `details` of `rows`, by the stage
    /// `stage`.
    pub(crate) fn ledger(
        &self,
        block: &Block,
        rows: &[u64],
        [stages, codes, details]: [Vec<String>; 3],
    ) -> Result<RecordBatch> {
        let details = match &*self.shard(block)? {
            Shard::Parquet(shard) => {
                let columns = RESERVED.into_iter().zip([stages, codes, details].map(StringArray::from));
                return shard.ledger(block, rows, columns.collect());
            }
            Shard::Tar(shard) => {
                let told = |(place, detail): (String, String)| match detail.is_empty() {
                    true => place,
                    false => format!("{place}: {detail}"),
                };
                shard.places(block, rows)?.into_iter().zip(details).map(told).collect::<Vec<_>>()
            }
        };
        let columns = [stages, codes, details].map(|c| Arc::new(StringArray::from(c)) as ArrayRef);
        RecordBatch::try_from_iter(RESERVED.into_iter().zip(columns))
            .map_err(|source| DatasetError::Schema { table: "rejects".into(), source }.into())
    }
}

/// An input as long as somebody wants it.
pub(crate) struct Until<'a> {
    pairs: &'a Pairs,
    stop: &'a AtomicBool,
}

impl Blocks for Until<'_> {
    fn block(&self, number: usize) -> Result<Option<Block>> {
        self.pairs.wait(|known| known.blocks.get(number).copied(), self.stop)
    }

    fn count(&self) -> Result<usize> {
        self.pairs.wait(|known| known.complete.then_some(()), self.stop)?;
        let (usable, least) = (self.pairs.usable(), self.pairs.least);
        if usable < least as u64 {
            return Err(too_few(usable, least));
        }
        Ok(self.pairs.known().blocks.len())
    }

    fn keys(&self, block: &Block) -> Result<Vec<Key>> {
        self.pairs.keys(block)
    }
}

/// The error of too few pairs for a batch.
pub(crate) fn too_few(pairs: u64, batch: usize) -> TrainError {
    TrainError::Options(format!(
        "there are {pairs} pairs and a batch is {batch}: lower batch_size, or look at why so few pairs are left"
    ))
}

/// A number that is equal where captions are.
fn caption_key(ids: &[u32]) -> Key {
    let mut hash = Sha256::new();
    ids.iter().for_each(|id| hash.update(id.to_le_bytes()));
    let digest = hash.finalize();
    let mut first = [0; 8];
    first.copy_from_slice(&digest[..8]);
    u64::from_le_bytes(first).max(UNUSABLE)
}
