//! Writes a dataset split by split.
//!
//! A split's files are written under unfinished names, fsynced, renamed, and then recorded by one
//! line of the manifest: a killed writer leaves nothing that a reader could see.

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;

use crate::dataset::Dataset;
use crate::error::DatasetError;
use crate::manifest::{self, Manifest};
use crate::protocol::{Begin, Commit, Entry, FileEntry, Recovery, State};
use crate::shard::{ShardLimits, TableWriter};
use crate::storage::{self, Location, local};

/// The folder of a stage's own state (checkpoints): survives a kill, goes with the dataset.
pub const WORK: &str = "work";

/// A dataset that is being made. There is one writer at a time: the run directory's lock sees to
/// it.
#[derive(Debug)]
pub struct DatasetWriter {
    dir: Location,
    manifest: Manifest,
    limits: ShardLimits,
    /// Splits are replaced, under this number, instead of added; 0 while the dataset is made.
    retry: u64,
}

impl DatasetWriter {
    /// Opens a dataset to make it or to go on making it. One of another fingerprint is deleted
    /// first: its manifest before all else, so that a kill in between leaves nothing that could be
    /// taken for a dataset.
    pub fn open(dir: impl Into<Location>, begin: Begin, limits: ShardLimits) -> Result<Self, DatasetError> {
        let dir = dir.into();
        let state = manifest::read(&dir)?;
        let manifest = match State::recovery(state.as_ref(), &begin.fingerprint) {
            Recovery::Start | Recovery::Replace => {
                dir.clear(manifest::FILE)?;
                Manifest::begin(&dir, begin)?
            }
            Recovery::Resume | Recovery::Reuse => Manifest::resume(&dir)?,
        };
        local::create_dir(&dir.folder())?;
        let writer = Self { dir, manifest, limits, retry: 0 };
        writer.delete_unrecorded()?;
        Ok(writer)
    }

    /// Opens a complete dataset to replace splits of it.
    pub fn open_to_retry(location: impl Into<Location>, limits: ShardLimits) -> Result<Self, DatasetError> {
        let dir = location.into();
        let manifest = Manifest::resume(&dir)?;
        local::create_dir(&dir.folder())?;
        let retry = manifest.state().retries + 1;
        let writer = Self { dir, manifest, limits, retry };
        writer.delete_unrecorded()?;
        Ok(writer)
    }

    /// Deletes what a killed writer left, and what was replaced: unfinished files, and finished
    /// ones that are not recorded.
    pub fn delete_unrecorded(&self) -> Result<(), DatasetError> {
        let recorded: HashSet<&str> = self.state().files().map(|file| file.path.as_str()).collect();
        let kept = |name: &str| {
            // In an object store the manifest is a folder.
            name.split('/').next() == Some(manifest::FILE) || recorded.contains(name)
        };
        storage::keep_only(&self.dir, WORK, &kept)
    }

    /// What is recorded so far.
    pub fn state(&self) -> &State {
        self.manifest.state()
    }

    /// Whether a split is committed.
    pub fn is_done(&self, split: u64) -> bool {
        self.state().commits.contains_key(&split)
    }

    /// Where the dataset lies.
    pub fn dir(&self) -> &Location {
        &self.dir
    }

    /// The local folder for the stage's own state; made when it is first asked for.
    pub fn work_dir(&self) -> Result<PathBuf, DatasetError> {
        let work = self.dir.folder().join(WORK);
        local::create_dir(&work)?;
        Ok(work)
    }

    /// What is committed so far, to read.
    pub fn dataset(&self) -> Dataset {
        Dataset::from_state(self.dir.clone(), self.state().clone())
    }

    /// Starts a split. Several may be open at a time.
    pub fn split(&self, split: u64, label: impl Into<String>) -> SplitWriter {
        self.splits().start(split, label)
    }

    /// What starts splits, apart from the writer that records them: for several splits in flight.
    pub fn splits(&self) -> SplitStarter {
        let tables = self.state().begin.tables.clone();
        SplitStarter { dir: self.dir.clone(), tables, limits: self.limits, retry: self.retry }
    }

    /// Records a finished split.
    pub fn commit(&mut self, split: PublishedSplit) -> Result<(), DatasetError> {
        self.manifest.append(if self.retry == 0 { Entry::Commit(split.0) } else { Entry::Retry(split.0) })
    }

    /// Records that every split is committed.
    pub fn complete(&mut self) -> Result<(), DatasetError> {
        let splits = self.state().commits.len() as u64;
        self.manifest.append(Entry::Complete { splits })
    }
}

/// Starts splits of one dataset.
#[derive(Debug, Clone)]
pub struct SplitStarter {
    dir: Location,
    tables: BTreeMap<String, SchemaRef>,
    limits: ShardLimits,
    retry: u64,
}

impl SplitStarter {
    /// Starts a split.
    pub fn start(&self, split: u64, label: impl Into<String>) -> SplitWriter {
        SplitWriter {
            dir: self.dir.clone(),
            tables: self.tables.clone(),
            limits: self.limits,
            retry: self.retry,
            open: BTreeMap::new(),
            written: BTreeMap::new(),
            artifacts: Vec::new(),
            commit: Commit { split, label: label.into(), ..Commit::default() },
        }
    }
}

/// A split whose files are durable under their final names, but not recorded yet.
#[derive(Debug)]
pub struct PublishedSplit(Commit);

impl PublishedSplit {
    /// What will be recorded.
    pub fn commit(&self) -> &Commit {
        &self.0
    }
}

/// One split that is being written.
#[derive(Debug)]
pub struct SplitWriter {
    dir: Location,
    tables: BTreeMap<String, SchemaRef>,
    limits: ShardLimits,
    retry: u64,
    open: BTreeMap<String, TableWriter>,
    written: BTreeMap<String, u64>,
    artifacts: Vec<String>,
    commit: Commit,
}

impl SplitWriter {
    /// Writes rows of a table; columns are taken by name, cast, or null when missing.
    pub fn write(&mut self, table: &str, batch: &RecordBatch) -> Result<(), DatasetError> {
        if !self.open.contains_key(table) {
            let schema = self.tables.get(table).cloned().ok_or_else(|| DatasetError::Unknown {
                path: self.dir.shown(),
                what: "table",
                name: table.into(),
                known: self.tables.keys().cloned().collect::<Vec<_>>().join(", "),
            })?;
            let writer = TableWriter::new(&self.dir.folder(), table, schema, self.commit.split, self.limits);
            self.open.insert(table.into(), writer.retry(self.retry));
        }
        *self.written.entry(table.into()).or_default() += batch.num_rows() as u64;
        match self.open.get_mut(table) {
            Some(writer) => writer.write(batch),
            None => Err(DatasetError::Protocol(format!("the writer of table {table} is gone"))),
        }
    }

    /// The schema of a table.
    pub fn schema(&self, table: &str) -> Option<&SchemaRef> {
        self.tables.get(table)
    }

    /// Counts the rows that came in.
    pub fn count_rows_in(&mut self, rows: u64) {
        *self.commit.rows_in.get_or_insert(0) += rows;
    }

    /// Counts a reject.
    pub fn count_rejects(&mut self, stage: &str, code: &str, rows: u64) {
        *self.commit.rejects.entry(stage.into()).or_default().entry(code.into()).or_default() += rows;
    }

    /// Rows of a table that were written so far.
    pub fn rows(&self, table: &str) -> u64 {
        self.written.get(table).copied().unwrap_or(0)
    }

    /// Bytes of a table's open shard, about.
    pub fn open_bytes(&self, table: &str) -> usize {
        self.open.get(table).map_or(0, TableWriter::open_bytes)
    }

    /// What will be recorded, so far as it is counted.
    pub fn counts(&self) -> &Commit {
        &self.commit
    }

    /// A path to which the caller writes an artifact (a file that is no table) before the split is
    /// published.
    pub fn artifact(&mut self, name: &str) -> PathBuf {
        self.artifacts.push(name.into());
        storage::unfinished(&self.dir.folder().join(name))
    }

    /// Closes, fsyncs and renames the files. Record the result with [`DatasetWriter::commit`].
    pub fn publish(mut self) -> Result<PublishedSplit, DatasetError> {
        let mut files = Vec::new();
        for writer in std::mem::take(&mut self.open).into_values() {
            files.extend(writer.finish()?);
        }
        for name in &self.artifacts {
            let (bytes, sha256) = local::digest(&storage::unfinished(&self.dir.folder().join(name)))?;
            files.push(FileEntry { table: None, path: name.clone(), rows: 0, bytes, sha256 });
        }
        for file in &files {
            self.dir.join(&file.path).publish()?;
        }
        self.commit.files = files;
        Ok(PublishedSplit(self.commit))
    }
}
