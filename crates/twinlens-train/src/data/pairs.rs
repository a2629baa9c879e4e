//! One input of a training: its shards, an index of their rows, and access to the pairs.
//!
//! Before the first step only the captions of all rows are read, and a hash of each caption's
//! tokens is kept in a file. Images are read when they are needed. An input that grows while it is
//! read (`follow`) is indexed shard by shard as its manifest records them.

use crate::data::disk_vec::DiskVec;
use crate::data::pair::{CODES, Columns, EncodedPair, NO_CAPTION, code_key};
use crate::data::parquet::ParquetShard;
use crate::data::reject_log::RejectSummary;
use crate::data::sampler::{Block, Blocks, Key, MIN_CAPTION_KEY};
use crate::data::webdataset::{Spans, TarShard};
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

/// Approximate bytes of a block, which is read at once.
const BLOCK_BYTES: u64 = 8 << 20;
/// Maximum rows per block of a tar file.
const TAR_ROWS: usize = 512;
/// How often a growing input is polled.
const POLL: Duration = Duration::from_millis(200);

/// What the inputs of a training are read for.
#[derive(Clone, Copy)]
pub struct DataContext<'a> {
    pub tokenizer: &'a Tokenizer,
    /// Tokens per caption.
    pub context: usize,
    /// Pairs per batch.
    pub batch: usize,
    /// A directory of this training that survives a kill.
    pub work: &'a Path,
    pub cancel: &'a CancellationToken,
}

/// A source of pairs.
#[derive(Clone, Debug)]
pub enum Source {
    /// Parquet or (with the extension `.tar`) tar files.
    Files(Vec<Location>),
    /// A table of a dataset whose shards are still being committed.
    Growing(Location, String),
}

impl Source {
    /// A table of a finished dataset.
    pub fn table(dataset: &Dataset, table: &str) -> Self {
        Self::Files(dataset.shards(table).map(|shard| dataset.file(shard)).collect())
    }
}

/// An open shard.
enum Shard {
    Parquet(ParquetShard),
    Tar(TarShard),
}

/// The index of the shards read so far.
#[derive(Default)]
struct Index {
    shards: Vec<Location>,
    blocks: Vec<Block>,
    rows: u64,
    usable: u64,
    /// Whether there will be no more shards.
    complete: bool,
    /// The most recently opened shard.
    open: Option<(u32, Arc<Shard>)>,
}

/// One input.
pub(crate) struct Pairs {
    source: Source,
    columns: Columns,
    tokenizer: Tokenizer,
    context: usize,
    min_pairs: usize,
    cancel: CancellationToken,
    keys: DiskVec,
    spans: DiskVec,
    index: Mutex<Index>,
}

impl Pairs {
    /// Indexes an input; of a growing one, the shards so far. `work` is a directory for the index.
    pub(crate) fn open(
        source: Source,
        columns: Columns,
        min_pairs: usize,
        work: &Path,
        cx: &DataContext<'_>,
    ) -> Result<Self> {
        std::fs::create_dir_all(work).map_err(TrainError::io(work))?;
        let pairs = Self {
            source,
            columns,
            tokenizer: cx.tokenizer.clone(),
            context: cx.context,
            min_pairs,
            cancel: cx.cancel.clone(),
            keys: DiskVec::create(&work.join("keys"))?,
            spans: DiskVec::create(&work.join("spans"))?,
            index: Mutex::default(),
        };
        pairs.index_new_shards(&mut pairs.index())?;
        Ok(pairs)
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Usable rows so far.
    pub(crate) fn usable(&self) -> u64 {
        self.index().usable
    }

    /// Whether it is followed while it grows.
    pub(crate) fn is_growing(&self) -> bool {
        matches!(self.source, Source::Growing(..))
    }

    /// In words, with a checksum of the captions, what a complete input is.
    pub(crate) fn identity(&self) -> Result<String> {
        if self.is_growing() {
            return Ok("a growing input".into());
        }
        let mut hash = crc32fast::Hasher::new();
        for block in self.all_blocks()? {
            hash.update(&block.bytes.to_le_bytes());
            self.keys(&block)?.iter().for_each(|key| hash.update(&key.to_le_bytes()));
        }
        let index = self.index();
        Ok(format!("{} pairs in {} rows ({:08x})", index.usable, index.rows, hash.finalize()))
    }

    fn index_new_shards(&self, index: &mut Index) -> Result<()> {
        if index.complete {
            return Ok(());
        }
        let (shards, complete) = match &self.source {
            Source::Files(files) => (files.clone(), true),
            Source::Growing(location, table) => match manifest::read(location)? {
                None => (Vec::new(), false),
                Some(state) => {
                    let complete = state.complete;
                    let dataset = Dataset::from_state(location.clone(), state);
                    let shards = dataset.shards(table).map(|shard| dataset.file(shard)).collect();
                    (shards, complete)
                }
            },
        };
        let same = |(a, b): (&Location, &Location)| a.display_path() == b.display_path();
        if shards.len() < index.shards.len() || !index.shards.iter().zip(&shards).all(same) {
            return Err(TrainError::Options(
                "an input was rebuilt or its shards changed order while it was followed; run the stage again"
                    .into(),
            ));
        }
        for shard in shards.into_iter().skip(index.shards.len()) {
            if self.cancel.is_cancelled() {
                return Err(TrainError::Interrupted);
            }
            self.index_shard(index, shard)?;
        }
        index.complete = complete;
        Ok(())
    }

    /// Waits until `find` returns something, or the input is complete (`None`), or `stop` is set.
    fn wait<T>(&self, find: impl Fn(&Index) -> Option<T>, stop: &AtomicBool) -> Result<Option<T>> {
        loop {
            let mut index = self.index();
            if let Some(found) = find(&index) {
                return Ok(Some(found));
            }
            if index.complete {
                return Ok(None);
            }
            let before = index.shards.len();
            self.index_new_shards(&mut index)?;
            if before == index.shards.len() && !index.complete {
                drop(index);
                std::thread::sleep(POLL);
            }
            if self.cancel.is_cancelled() || stop.load(Ordering::Relaxed) {
                return Err(TrainError::Interrupted);
            }
        }
    }

    fn open_shard(&self, location: &Location) -> Result<Shard> {
        Ok(if location.name().ends_with(".tar") {
            Shard::Tar(TarShard::open(location, &self.columns)?)
        } else {
            Shard::Parquet(ParquetShard::open(location, &self.columns)?)
        })
    }

    /// The shard of a block.
    fn shard(&self, block: &Block) -> Result<Arc<Shard>> {
        let index = self.index();
        if let Some((number, shard)) = &index.open
            && *number == block.shard
        {
            return Ok(shard.clone());
        }
        let location = index.shards[block.shard as usize].clone();
        drop(index);
        let shard = Arc::new(self.open_shard(&location)?);
        self.index().open = Some((block.shard, shard.clone()));
        Ok(shard)
    }

    /// Reads the captions of a shard.
    fn index_shard(&self, index: &mut Index, location: Location) -> Result<()> {
        match self.open_shard(&location)? {
            Shard::Parquet(shard) => {
                shard.check()?;
                self.index_parquet(index, &shard)?;
            }
            Shard::Tar(shard) => self.index_tar(index, &shard)?,
        }
        index.shards.push(location);
        Ok(())
    }

    fn index_parquet(&self, index: &mut Index, shard: &ParquetShard) -> Result<()> {
        for (group, (rows, bytes)) in shard.sizes().into_iter().enumerate() {
            let captions = shard.captions(group, rows as usize)?;
            let usable =
                |captions: Vec<String>| if captions.is_empty() { Err(NO_CAPTION) } else { Ok(captions) };
            let captions: Vec<_> = captions.into_iter().map(usable).collect();
            self.push_keys(index, &captions)?;
            let pieces = bytes.div_ceil(BLOCK_BYTES).clamp(1, rows.max(1));
            let ends = (0..=pieces).map(|piece| rows * piece / pieces);
            for (first, end) in ends.clone().zip(ends.skip(1)).filter(|(first, end)| first < end) {
                index.blocks.push(Block {
                    shard: index.shards.len() as u32,
                    group: group as u32,
                    first: first as u32,
                    rows: (end - first) as u32,
                    start: index.rows + first,
                    bytes: bytes / pieces,
                });
            }
            index.rows += rows;
        }
        Ok(())
    }

    fn index_tar(&self, index: &mut Index, shard: &TarShard) -> Result<()> {
        let samples = shard.samples()?;
        let mut first = 0;
        while first < samples.len() {
            let (mut end, mut bytes) = (first, 0);
            while end < samples.len() && end - first < TAR_ROWS && bytes < BLOCK_BYTES {
                bytes += samples[end].spans[1] + (samples[end].spans[3] >> 1);
                end += 1;
            }
            index.blocks.push(Block {
                shard: index.shards.len() as u32,
                group: 0,
                first: first as u32,
                rows: (end - first) as u32,
                start: index.rows + first as u64,
                bytes,
            });
            first = end;
        }
        // Spans are indexed by the input's rows, so Parquet rows before this shard are padded.
        self.spans.pad_to(4 * index.rows)?;
        self.spans.push(&samples.iter().flat_map(|sample| sample.spans).collect::<Vec<_>>())?;
        let captions: Vec<_> = samples.into_iter().map(|sample| sample.captions).collect();
        self.push_keys(index, &captions)?;
        index.rows += captions.len() as u64;
        Ok(())
    }

    fn push_keys(
        &self,
        index: &mut Index,
        captions: &[std::result::Result<Vec<String>, &'static str>],
    ) -> Result<()> {
        let encode = |caption: &String| self.tokenizer.encode(caption, self.context);
        let key = |captions: &std::result::Result<Vec<String>, &'static str>| match captions {
            Ok(captions) => captions_key(captions.iter().map(encode)),
            Err(code) => code_key(code),
        };
        let keys: Vec<Key> = captions.par_iter().map(key).collect();
        index.usable += keys.iter().filter(|key| **key >= MIN_CAPTION_KEY).count() as u64;
        self.keys.push(&keys)
    }

    /// The selected rows of a block.
    pub(crate) fn read(
        &self,
        block: &Block,
        selected: &dyn Fn(u64) -> bool,
    ) -> Result<Vec<(u64, EncodedPair)>> {
        match &*self.shard(block)? {
            Shard::Parquet(shard) => shard.read(block, selected),
            Shard::Tar(shard) => {
                let spans = self.spans.read(4 * block.start, 4 * block.rows as usize)?;
                let spans: Vec<Spans> = spans.chunks_exact(4).map(|s| [s[0], s[1], s[2], s[3]]).collect();
                shard.read(block, &spans, selected)
            }
        }
    }

    pub(crate) fn read_row(&self, row: u64) -> Result<EncodedPair> {
        let index = self.index();
        let after = index.blocks.partition_point(|block| block.start <= row);
        let found = index.blocks[..after].last().copied();
        drop(index);
        let missing =
            || TrainError::Options(format!("row {row} of an input is missing: did its files change?"));
        let block = found.ok_or_else(missing)?;
        Ok(self.read(&block, &|other| other == row)?.pop().ok_or_else(missing)?.1)
    }

    /// The shard of a row and its row in it, counted from 0.
    fn location(&self, row: u64) -> String {
        let index = self.index();
        let after = index.blocks.partition_point(|block| block.start <= row);
        let Some(block) = index.blocks[..after].last() else { return format!("row {row}") };
        let first = index.blocks.iter().find(|other| other.shard == block.shard).unwrap_or(block);
        let shard = &index.shards[block.shard as usize];
        format!("{} row {}", shard.name(), row - first.start)
    }

    /// The keys of a block's rows.
    pub(crate) fn keys(&self, block: &Block) -> Result<Vec<Key>> {
        self.keys.read(block.start, block.rows as usize)
    }

    /// All blocks, once the input is complete.
    pub(crate) fn all_blocks(&self) -> Result<Vec<Block>> {
        self.wait(|index| index.complete.then_some(()), &AtomicBool::new(false))?;
        Ok(self.index().blocks.clone())
    }

    /// The layout of this input, which waits for more data until `stop` is set.
    pub(crate) fn layout<'a>(&'a self, stop: &'a AtomicBool) -> Layout<'a> {
        Layout { pairs: self, stop }
    }

    /// Rejected rows of a block for the ledger.
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
                let join = |(place, detail): (String, String)| {
                    if detail.is_empty() { place } else { format!("{place}: {detail}") }
                };
                shard.places(block, rows)?.into_iter().zip(details).map(join).collect::<Vec<_>>()
            }
        };
        let columns = [stages, codes, details].map(|c| Arc::new(StringArray::from(c)) as ArrayRef);
        RecordBatch::try_from_iter(RESERVED.into_iter().zip(columns))
            .map_err(|source| DatasetError::Schema { table: "rejects".into(), source }.into())
    }
}

/// The layout of an input.
pub(crate) struct Layout<'a> {
    pairs: &'a Pairs,
    stop: &'a AtomicBool,
}

impl Blocks for Layout<'_> {
    fn block(&self, number: usize) -> Result<Option<Block>> {
        self.pairs.wait(|index| index.blocks.get(number).copied(), self.stop)
    }

    fn count(&self) -> Result<usize> {
        self.pairs.wait(|index| index.complete.then_some(()), self.stop)?;
        let (usable, min_pairs) = (self.pairs.usable(), self.pairs.min_pairs);
        if usable < min_pairs as u64 {
            return Err(too_few(min_pairs, &[self.pairs])?);
        }
        Ok(self.pairs.index().blocks.len())
    }

    fn keys(&self, block: &Block) -> Result<Vec<Key>> {
        self.pairs.keys(block)
    }
}

/// The error that inputs have fewer pairs than a batch, which says why rows are not pairs.
pub(crate) fn too_few(batch: usize, inputs: &[&Pairs]) -> Result<TrainError> {
    let (mut rows, mut usable, mut rejects) = (0, 0, RejectSummary::default());
    for pairs in inputs {
        rows += pairs.index().rows;
        usable += pairs.usable();
        for block in pairs.all_blocks()? {
            for (row, key) in (block.start..).zip(pairs.keys(&block)?) {
                if let Some((code, meaning)) = CODES.get(key as usize) {
                    rejects.add(code, || format!("{} {meaning}", pairs.location(row)).trim().into());
                }
            }
        }
    }
    let why = if rows == usable { String::new() } else { format!(" ({rejects})") };
    Ok(TrainError::Options(format!(
        "{usable} pairs in {rows} rows are fewer than a batch of {batch}{why}: lower `batch_size`, or look why so few \
         rows are pairs"
    )))
}

/// A hash of the tokens of the captions of a row.
fn captions_key(captions: impl Iterator<Item = Vec<u32>>) -> Key {
    let mut hash = Sha256::new();
    captions.flatten().for_each(|id| hash.update(id.to_le_bytes()));
    let digest = hash.finalize();
    let mut first = [0; 8];
    first.copy_from_slice(&digest[..8]);
    u64::from_le_bytes(first).max(MIN_CAPTION_KEY)
}
