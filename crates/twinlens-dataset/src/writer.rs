//! Writes datasets split by split.
//!
//! The files of a split are written under unfinished names, fsynced, renamed, and recorded by one
//! line of the manifest: a killed writer leaves nothing that a reader can see.

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;

use crate::dataset::Dataset;
use crate::error::DatasetError;
use crate::manifest::{self, Manifest};
use crate::protocol::{Begin, Commit, Entry, FileEntry, Recovery, State, WORK};
use crate::shard::{ShardLimits, ShardNames, TableWriter, is_shard};
use crate::split_records::{self, SplitRecords, fingerprint_of_retry};
use crate::storage::{Held, Location, UNFINISHED, local, unfinished};

/// A dataset open for writing. The lock of the run directory ensures a single writer.
#[derive(Debug)]
pub struct DatasetWriter {
    dir: Location,
    folder: Held,
    manifest: Manifest,
    limits: ShardLimits,
    /// Its retry is 0 while splits are added.
    names: ShardNames,
}

impl DatasetWriter {
    /// Creates or resumes a dataset. A dataset with another fingerprint is deleted first, starting
    /// with its manifest, so that a kill in between leaves nothing that looks like a dataset.
    pub fn open(dir: impl Into<Location>, begin: Begin, limits: ShardLimits) -> Result<Self, DatasetError> {
        let writer = Self::create_or_resume(dir.into(), begin, limits)?;
        writer.delete_unrecorded()?;
        Ok(writer)
    }

    /// Like [`open`](Self::open), of a dataset of a run. In an object store, other processes may be
    /// making splits of it: files that are not recorded yet stay until all splits are, and the
    /// names of shards have hashes.
    pub fn open_of_run(
        dir: impl Into<Location>,
        begin: Begin,
        limits: ShardLimits,
    ) -> Result<Self, DatasetError> {
        let writer = Self::create_or_resume(dir.into(), begin, limits)?;
        if !writer.is_shared() {
            writer.delete_unrecorded()?;
            return Ok(writer);
        }
        writer.dir.delete_scratch(WORK)?;
        Ok(Self { names: ShardNames { has_hash: true, ..writer.names }, ..writer })
    }

    fn create_or_resume(dir: Location, begin: Begin, limits: ShardLimits) -> Result<Self, DatasetError> {
        let resumes = |state: &State| {
            matches!(State::recovery(Some(state), &begin.fingerprint), Recovery::Resume | Recovery::Reuse)
        };
        let manifest = match Manifest::resume_if(&dir, resumes)? {
            Some(manifest) => manifest,
            None => {
                dir.clear(manifest::FILE)?;
                Manifest::begin(&dir, begin)?
            }
        };
        Self::with(dir, manifest, limits, ShardNames::default())
    }

    fn with(
        dir: Location,
        manifest: Manifest,
        limits: ShardLimits,
        names: ShardNames,
    ) -> Result<Self, DatasetError> {
        local::create_dir(&dir.local_path())?;
        Ok(Self { folder: Held::open(&dir)?, dir, manifest, limits, names })
    }

    /// Whether other processes can see the folder, too.
    fn is_shared(&self) -> bool {
        self.dir.as_local().is_none()
    }

    /// Opens a complete dataset to replace splits.
    pub fn open_to_retry(location: impl Into<Location>, limits: ShardLimits) -> Result<Self, DatasetError> {
        let dir = location.into();
        let manifest = Manifest::resume(&dir)?;
        let names = ShardNames { retry: manifest.state().retries + 1, has_hash: dir.as_local().is_none() };
        let writer = Self::with(dir, manifest, limits, names)?;
        writer.delete_unrecorded()?;
        Ok(writer)
    }

    /// Takes back the commits of splits whose files are damaged: the next run makes them again.
    pub fn take_back(location: impl Into<Location>, splits: Vec<u64>) -> Result<(), DatasetError> {
        let location = location.into();
        let mut manifest = Manifest::resume(&location)?;
        // Their records name the damaged files.
        SplitRecords::new(&location, &manifest.state().begin.fingerprint).delete(&splits)?;
        manifest.append(Entry::Damaged { splits })
    }

    /// Deletes unfinished files and unrecorded shards, which a killed writer or a retry left
    /// behind. Other files are somebody else's, or will be written again.
    pub fn delete_unrecorded(&self) -> Result<(), DatasetError> {
        let tables = &self.state().begin.tables;
        self.delete_unrecorded_of(&|name| is_shard(name, tables.keys()) || split_records::is_record(name))
    }

    /// Like [`delete_unrecorded`](Self::delete_unrecorded), of a writer whose files have the names
    /// that `is_own` knows.
    pub(crate) fn delete_unrecorded_of(&self, is_own: &dyn Fn(&str) -> bool) -> Result<(), DatasetError> {
        let recorded: HashSet<&str> = self.state().files().map(|file| file.path.as_str()).collect();
        let is_left = |name: &str| (name.ends_with(UNFINISHED) || is_own(name)) && !recorded.contains(name);
        self.dir.delete_where(WORK, &is_left)
    }

    /// The recorded state.
    pub fn state(&self) -> &State {
        self.manifest.state()
    }

    /// Whether a split is committed.
    pub fn is_done(&self, split: u64) -> bool {
        self.state().commits.contains_key(&split)
    }

    /// The folder of the dataset.
    pub fn dir(&self) -> &Location {
        &self.dir
    }

    /// The local folder for the stage's own state; created on first use.
    pub fn work_dir(&self) -> Result<PathBuf, DatasetError> {
        let work = self.dir.local_path().join(WORK);
        local::create_dir(&work)?;
        Ok(work)
    }

    /// The committed part, for reading.
    pub fn dataset(&self) -> Dataset {
        Dataset::from_state(self.dir.clone(), self.state().clone())
    }

    /// Starts a split. Several may be open at a time.
    pub fn split(&self, split: u64, label: impl Into<String>) -> SplitWriter {
        self.splits().start(split, label)
    }

    /// Starts splits independently of the writer that records them, for concurrent splits.
    pub fn splits(&self) -> SplitStarter {
        let tables = self.state().begin.tables.clone();
        let (dir, folder) = (self.dir.clone(), self.folder.clone());
        SplitStarter { dir, folder, tables, limits: self.limits, names: self.names }
    }

    /// Records a published split.
    pub fn commit(&mut self, split: PublishedSplit) -> Result<(), DatasetError> {
        self.commit_all(vec![split])
    }

    /// Records published splits together: in an object store, by one request.
    pub fn commit_all(&mut self, splits: Vec<PublishedSplit>) -> Result<(), DatasetError> {
        self.folder.check()?;
        let is_retry = self.names.retry > 0;
        let entry =
            |split: PublishedSplit| if is_retry { Entry::Retry(split.0) } else { Entry::Commit(split.0) };
        self.manifest.append_all(splits.into_iter().map(entry))
    }

    /// The number of the retry that this writer is open for; 0 while splits are added.
    pub fn retry(&self) -> u64 {
        self.names.retry
    }

    /// Where processes that make splits say so before the manifest has them; `None` where this
    /// process makes them all.
    pub fn records(&self) -> Option<SplitRecords> {
        let fingerprint = fingerprint_of_retry(&self.state().begin.fingerprint, self.names.retry);
        self.is_shared().then(|| SplitRecords::new(&self.dir, &fingerprint))
    }

    /// Records that every split is committed.
    pub fn complete(&mut self) -> Result<(), DatasetError> {
        self.folder.check()?;
        if self.names.has_hash {
            // Of attempts that lost, and the records of those that won.
            self.delete_unrecorded()?;
        }
        let splits = self.state().commits.len() as u64;
        self.manifest.append(Entry::Complete { splits })
    }
}

/// Starts splits of one dataset.
#[derive(Debug, Clone)]
pub struct SplitStarter {
    dir: Location,
    folder: Held,
    tables: BTreeMap<String, SchemaRef>,
    limits: ShardLimits,
    names: ShardNames,
}

impl SplitStarter {
    /// Starts splits of a dataset in an object store of which another process writes the manifest;
    /// of a retry, if its number is not 0.
    pub fn elsewhere(dir: &Location, tables: BTreeMap<String, SchemaRef>, retry: u64) -> Self {
        let names = ShardNames { retry, has_hash: true };
        let (dir, folder) = (dir.clone(), Held::default());
        Self { dir, folder, tables, limits: ShardLimits::default(), names }
    }

    /// Starts a split.
    pub fn start(&self, split: u64, label: impl Into<String>) -> SplitWriter {
        SplitWriter {
            dir: self.dir.clone(),
            folder: self.folder.clone(),
            tables: self.tables.clone(),
            limits: self.limits,
            names: self.names,
            open: BTreeMap::new(),
            written: BTreeMap::new(),
            artifacts: Vec::new(),
            commit: Commit { split, label: label.into(), ..Commit::default() },
        }
    }
}

/// A split whose files are durable under their final names but not yet recorded.
#[derive(Debug)]
pub struct PublishedSplit(Commit);

impl PublishedSplit {
    /// A split that another process published.
    pub fn made_elsewhere(commit: Commit) -> Self {
        Self(commit)
    }

    /// The entry that will be recorded.
    pub fn commit(&self) -> &Commit {
        &self.0
    }
}

/// A split open for writing.
#[derive(Debug)]
pub struct SplitWriter {
    dir: Location,
    folder: Held,
    tables: BTreeMap<String, SchemaRef>,
    limits: ShardLimits,
    names: ShardNames,
    open: BTreeMap<String, TableWriter>,
    written: BTreeMap<String, u64>,
    artifacts: Vec<String>,
    commit: Commit,
}

impl SplitWriter {
    /// Writes rows of a table, with the columns that it declares ([`crate::conform`]). The rows of
    /// a ledger may lack some.
    pub fn write(&mut self, table: &str, batch: &RecordBatch) -> Result<(), DatasetError> {
        if !self.open.contains_key(table) {
            let schema = self.tables.get(table).cloned().ok_or_else(|| DatasetError::Unknown {
                path: self.dir.display_path(),
                what: "table",
                name: table.into(),
                known: self.tables.keys().cloned().collect::<Vec<_>>().join(", "),
            })?;
            let writer =
                TableWriter::new(&self.dir.local_path(), table, schema, self.commit.split, self.limits);
            self.open.insert(table.into(), writer.with_names(self.names));
        }
        *self.written.entry(table.into()).or_default() += batch.num_rows() as u64;
        match self.open.get_mut(table) {
            Some(writer) => writer.write(batch).map_err(|error| self.folder.explain(error)),
            None => Err(DatasetError::Protocol(format!("the writer of table {table} is gone"))),
        }
    }

    /// The schema of a table.
    pub fn schema(&self, table: &str) -> Option<&SchemaRef> {
        self.tables.get(table)
    }

    /// Counts input rows.
    pub fn count_rows_in(&mut self, rows: u64) {
        *self.commit.rows_in.get_or_insert(0) += rows;
    }

    /// Counts rejected rows.
    pub fn count_rejects(&mut self, stage: &str, code: &str, rows: u64) {
        *self.commit.rejects.entry(stage.into()).or_default().entry(code.into()).or_default() += rows;
    }

    /// Rows of a table written so far.
    pub fn rows(&self, table: &str) -> u64 {
        self.written.get(table).copied().unwrap_or(0)
    }

    /// Approximate bytes of a table's open shard.
    pub(crate) fn open_bytes(&self, table: &str) -> usize {
        self.open.get(table).map_or(0, TableWriter::open_bytes)
    }

    /// The counts so far.
    pub fn counts(&self) -> &Commit {
        &self.commit
    }

    /// Registers an artifact (a file that is not a table) and returns the path to write it to
    /// before the split is published.
    pub fn artifact(&mut self, name: &str) -> PathBuf {
        self.artifacts.push(name.into());
        unfinished(&self.dir.local_path().join(name))
    }

    /// Closes, fsyncs and renames the files. Record the result with [`DatasetWriter::commit`].
    pub fn publish(self) -> Result<PublishedSplit, DatasetError> {
        let folder = self.folder.clone();
        self.publish_files().map_err(|error| folder.explain(error))
    }

    fn publish_files(mut self) -> Result<PublishedSplit, DatasetError> {
        let mut files = Vec::new();
        for writer in std::mem::take(&mut self.open).into_values() {
            files.extend(writer.finish()?);
        }
        for name in &self.artifacts {
            let digest = local::digest(&unfinished(&self.dir.local_path().join(name)))?;
            files.push(FileEntry::new(None, name.clone(), 0, digest));
        }
        self.folder.check()?;
        for file in &files {
            self.dir.join(&file.path).publish()?;
        }
        self.commit.files = files;
        Ok(PublishedSplit(self.commit))
    }
}
