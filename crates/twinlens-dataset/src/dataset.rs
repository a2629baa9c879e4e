//! Reads datasets: exactly what their manifests record.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use datafusion::config::TableParquetOptions;
use datafusion::dataframe::DataFrame;
use datafusion::datasource::file_format::parquet::ParquetFormat;
use datafusion::datasource::listing::{ListingOptions, ListingTable, ListingTableConfig, ListingTableUrl};
use datafusion::datasource::{MemTable, TableProvider};
use datafusion::prelude::SessionContext;
use object_store::path::Path as Key;
use sha2::{Digest, Sha256};
use url::Url;

use crate::contracts;
use crate::error::DatasetError;
use crate::foreign;
use crate::manifest;
use crate::protocol::MAIN;
use crate::protocol::{Begin, Commit, FileEntry, State, TOOK, WORK};
use crate::shard::is_shard;
use crate::split_records::is_record;
use crate::storage::recorded::RecordedStore;
use crate::storage::{Location, UNFINISHED, Verify, local};
use crate::types;

/// The committed part of a dataset.
#[derive(Debug, Clone)]
pub struct Dataset {
    location: Location,
    state: Arc<State>,
}

impl Dataset {
    /// Opens a dataset and checks that every recorded file has its recorded length.
    ///
    /// # Errors
    /// A missing or damaged manifest, a missing or truncated file, each with its name.
    pub fn open(location: impl Into<Location>) -> Result<Self, DatasetError> {
        let location = location.into();
        let state = manifest::read(&location)?.ok_or_else(|| DatasetError::NotReady {
            path: location.display_path(),
            why: "there is no dataset here".into(),
        })?;
        let dataset = Self::from_state(location, state);
        dataset.check_lengths()?;
        Ok(dataset)
    }

    /// Opens a single Parquet file as a dataset with one table.
    pub fn from_parquet(file: impl Into<Location>) -> Result<Self, DatasetError> {
        let location = file.into();
        let path = location.local_copy()?;
        let (file, metadata) = foreign::open_parquet(&path)?;
        foreign::check_pages(&path, &file, metadata.metadata())?;
        let bytes = file.metadata().map_err(|error| DatasetError::io(&path, error))?.len();
        let rows = metadata.metadata().file_metadata().num_rows() as u64;
        let begin = Begin {
            format: crate::protocol::FORMAT,
            position: 0,
            stage: path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default(),
            kind: "parquet".into(),
            fingerprint: String::new(),
            recipe: serde_json::Value::Null,
            fused: Vec::new(),
            variant: None,
            tables: [(MAIN.to_string(), contracts::memory_schema(metadata.schema()))].into(),
        };
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let file = FileEntry {
            table: Some(MAIN.into()),
            path: name,
            rows,
            bytes,
            sha256: String::new(),
            crc32: Default::default(),
        };
        let commit = Commit { files: vec![file], ..Commit::default() };
        let state = State { begin, commits: [(0, commit)].into(), complete: true, retries: 0 };
        Ok(Self::from_state(path.with_file_name("").into(), state))
    }

    /// Opens Parquet files with the same columns as a dataset with one table, in their order.
    ///
    /// # Errors
    /// There is none; or one has other columns than the first, with the names of both.
    pub fn from_parquet_files(files: &[Location]) -> Result<Self, DatasetError> {
        let parts = files.iter().map(Self::from_parquet).collect::<Result<Vec<_>, _>>()?;
        let none = || DatasetError::Protocol("a dataset of no Parquet file".into());
        let first = parts.first().ok_or_else(none)?;
        let mut folder = first.dir();
        while !parts.iter().all(|part| part.dir().starts_with(&folder)) && folder.pop() {}
        let mut commit = Commit::default();
        for (part, file) in parts.iter().zip(files) {
            same_columns(first, part, file)?;
            let below = part.dir().strip_prefix(&folder).map(Path::to_path_buf).unwrap_or_default();
            let name = |entry: &FileEntry| below.join(&entry.path).to_string_lossy().replace('\\', "/");
            let entries = part.state.files().map(|entry| FileEntry { path: name(entry), ..entry.clone() });
            commit.files.extend(entries);
        }
        let stage = folder.file_name().map(|name| name.to_string_lossy().into_owned());
        let begin = Begin { stage: stage.unwrap_or_default(), ..first.state.begin.clone() };
        let state = State { begin, commits: [(0, commit)].into(), complete: true, retries: 0 };
        Ok(Self::from_state(folder.into(), state))
    }

    /// The columns of a Parquet file, of which no more than the footer is read.
    ///
    /// # Errors
    /// A missing or damaged file.
    pub fn parquet_schema(file: &Location) -> Result<SchemaRef, DatasetError> {
        let (_, metadata) = foreign::open_parquet(&file.parquet_ends()?)?;
        Ok(contracts::memory_schema(metadata.schema()))
    }

    /// A dataset whose manifest has already been read.
    pub fn from_state(location: Location, state: State) -> Self {
        Self { location, state: Arc::new(state) }
    }

    /// One committed split as a dataset of its own.
    pub fn only_split(&self, split: u64) -> Self {
        let commits = self.state.commits.get(&split).map(|commit| (split, commit.clone()));
        let state = State { commits: commits.into_iter().collect(), ..State::clone(&self.state) };
        Self::from_state(self.location.clone(), state)
    }

    /// One shard as a dataset of its own.
    pub fn only_shard(&self, shard: &FileEntry) -> Self {
        let commit = Commit { files: vec![shard.clone()], ..Commit::default() };
        let begin = self.state.begin.clone();
        let state = State { begin, commits: [(0, commit)].into(), complete: true, retries: 0 };
        Self::from_state(self.location.clone(), state)
    }

    fn check_lengths(&self) -> Result<(), DatasetError> {
        let listed = match self.location.as_local() {
            // A few requests for all files instead of one round trip each.
            None => {
                let names = self.state.files().map(|file| file.path.as_str());
                Some(self.location.lengths_around(names)?)
            }
            Some(_) => None,
        };
        for file in self.state.files() {
            let location = self.location.join(&file.path);
            let length = match &listed {
                Some(listed) => listed.get(&file.path).copied(),
                None => location.stat()?.map(|(bytes, _)| bytes),
            };
            let why = match length {
                Some(bytes) if bytes == file.bytes => continue,
                Some(bytes) => format!("{bytes} bytes, but the manifest records {}", file.bytes),
                None => "it is missing, but the manifest records it".into(),
            };
            return Err(DatasetError::DamagedFile { path: location.display_path(), why });
        }
        Ok(())
    }

    /// A file or link in the folder that no writer of this dataset made. Its folder of work is the
    /// stage's, whatever it contains.
    pub fn foreign_file(&self) -> Result<Option<String>, DatasetError> {
        let recorded: HashSet<&str> = self.state.files().map(|file| file.path.as_str()).collect();
        let is_foreign = |name: &String| {
            // In an object store the manifest is a folder.
            name.split('/').next() != Some(manifest::FILE)
                && name != TOOK
                && !recorded.contains(name.as_str())
                && !name.ends_with(UNFINISHED)
                && !is_shard(name, self.state.begin.tables.keys())
                && !is_record(name)
        };
        Ok(self.location.own_files(WORK)?.into_iter().find(is_foreign))
    }

    /// The splits with files that are missing or not as recorded, and what is wrong with them.
    pub fn damaged_splits(&self) -> Result<BTreeMap<u64, Vec<DatasetError>>, DatasetError> {
        let mut damaged = BTreeMap::new();
        for &split in self.state.commits.keys() {
            let only = self.only_split(split);
            let faults = match only.check_lengths() {
                Ok(()) => only.verify()?,
                Err(error @ DatasetError::DamagedFile { .. }) => vec![error],
                Err(error) => return Err(error),
            };
            if !faults.is_empty() {
                damaged.insert(split, faults);
            }
        }
        Ok(damaged)
    }

    /// Compares every recorded file with its recorded hash; returns the mismatches.
    pub fn verify(&self) -> Result<Vec<DatasetError>, DatasetError> {
        let mut mismatches = Vec::new();
        for file in self.state.files() {
            let location = self.location.join(&file.path);
            let copy = location.as_local().is_none().then(|| location.local_path());
            // A copy from earlier would hide damage in the store, and copies of a whole dataset may
            // not fit on the disk.
            copy.iter().try_for_each(|copy| local::remove_file(copy))?;
            let sha256 = local::digest(&location.local_copy()?)?.sha256;
            copy.iter().try_for_each(|copy| local::remove_file(copy))?;
            if sha256 != file.sha256 {
                let why = format!("its SHA-256 is {sha256}, but the manifest records {}", file.sha256);
                mismatches.push(DatasetError::DamagedFile { path: location.display_path(), why });
            }
        }
        Ok(mismatches)
    }

    /// The folder of the dataset.
    pub fn location(&self) -> &Location {
        &self.location
    }

    /// One of its files: readers verify what they read.
    pub fn file(&self, entry: &FileEntry) -> Location {
        let recorded = |folder: &Location| folder.recorded(&entry.path, entry.bytes, &entry.crc32);
        if entry.table.is_some() {
            recorded(&self.location)
        } else {
            // One bit of a model changes every number that comes of it.
            recorded(&self.location.clone().verifying(Verify::Always))
        }
    }

    /// The local folder of the dataset. For a remote one, it holds the copies that
    /// [`Dataset::artifact`] makes.
    pub fn dir(&self) -> PathBuf {
        self.location.local_path()
    }

    /// The state by the manifest.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Names of its tables.
    pub fn tables(&self) -> impl Iterator<Item = &str> {
        self.state.begin.tables.keys().map(String::as_str)
    }

    /// The schema of a table.
    pub fn schema(&self, table: &str) -> Result<SchemaRef, DatasetError> {
        self.state.begin.tables.get(table).cloned().ok_or_else(|| DatasetError::Unknown {
            path: self.location.display_path(),
            what: "table",
            name: table.into(),
            known: self.tables().collect::<Vec<_>>().join(", "),
        })
    }

    /// Rows of a table.
    pub fn rows(&self, table: &str) -> u64 {
        self.state.rows(table)
    }

    /// The shards of a table, in order.
    pub fn shards(&self, table: &str) -> impl Iterator<Item = &FileEntry> {
        self.state.files().filter(move |file| file.table.as_deref() == Some(table))
    }

    /// The local path of an artifact; a remote one is copied first.
    pub fn artifact(&self, name: &str) -> Result<PathBuf, DatasetError> {
        let artifacts = || self.state.files().filter(|file| file.table.is_none());
        // The last wins: a training commits its weights repeatedly.
        match artifacts().filter(|file| file.path == name).last() {
            Some(file) => {
                let location = self.file(file);
                location.verify()?;
                location.local_copy()
            }
            None => Err(DatasetError::Unknown {
                path: self.location.display_path(),
                what: "artifact",
                name: name.into(),
                known: artifacts().map(|file| file.path.as_str()).collect::<Vec<_>>().join(", "),
            }),
        }
    }

    /// A table for SQL that reads only the recorded shards.
    pub fn provider(
        &self,
        session: &SessionContext,
        table: &str,
    ) -> Result<Arc<dyn TableProvider>, DatasetError> {
        let schema = self.schema(table)?;
        let store = self.register_files(session)?;
        let url = |shard: &FileEntry| {
            Ok::<_, DatasetError>(ListingTableUrl::parse(if shard.crc32.is_empty() {
                self.location.join(&shard.path).register(session)?
            } else {
                format!("{store}{}", shard.path)
            })?)
        };
        let urls = self.shards(table).map(url).collect::<Result<Vec<_>, _>>()?;
        if urls.is_empty() {
            return Ok(Arc::new(MemTable::try_new(schema, vec![vec![]])?));
        }
        // The statistics of others' files leave NaN out; ours have none of floats (`shard`).
        let is_ours = self.shards(table).all(|shard| !shard.crc32.is_empty());
        let has_floats = schema.fields().iter().any(|field| field.data_type().is_floating());
        let mut parquet = TableParquetOptions::default();
        parquet.global.pruning = is_ours || !has_floats;
        parquet.global.enable_page_index = is_ours || !has_floats;
        let options = ListingOptions::new(Arc::new(ParquetFormat::default().with_options(parquet)));
        let config =
            ListingTableConfig::new_with_multi_paths(urls).with_listing_options(options).with_schema(schema);
        Ok(Arc::new(ListingTable::try_new(config)?))
    }

    /// Registers a store that verifies the recorded files; returns its URL.
    fn register_files(&self, session: &SessionContext) -> Result<Url, DatasetError> {
        let mut name = Sha256::new();
        name.update(self.location.to_string());
        // A part of the dataset has a store of its own, which must not replace that of the whole.
        self.state.files().for_each(|file| name.update(&file.sha256));
        let text = format!("recorded://{}/", hex::encode(&name.finalize()[..16]));
        let url = Url::parse(&text).map_err(|error| DatasetError::Protocol(error.to_string()))?;
        let files = self
            .state
            .files()
            .filter_map(|file| Some((Key::from(file.path.as_str()), self.file(file).into_recorded()?)));
        let store = RecordedStore { inner: self.location.object_store()?, files: files.collect() };
        session.register_object_store(&url, Arc::new(store));
        Ok(url)
    }

    /// A table as a plan; the order of rows is unspecified.
    pub async fn frame(&self, session: &SessionContext, table: &str) -> Result<DataFrame, DatasetError> {
        Ok(session.read_table(self.provider(session, table)?)?)
    }
}

/// Checks that the columns of the only tables of two Parquet files are the same.
fn same_columns(first: &Dataset, other: &Dataset, file: &Location) -> Result<(), DatasetError> {
    let (expected, found) = (first.schema(MAIN)?, other.schema(MAIN)?);
    let columns = |schema: &SchemaRef| -> Vec<String> {
        let column = |field: &arrow::datatypes::FieldRef| {
            format!("{}: {}", field.name(), types::name(field.data_type()))
        };
        schema.fields().iter().map(column).collect()
    };
    let (expected, found) = (columns(&expected), columns(&found));
    let differs =
        expected.iter().zip(&found).find(|(a, b)| a != b).map(|(a, b)| format!("`{b}` instead of `{a}`"));
    let why = match differs {
        None if expected.len() == found.len() => return Ok(()),
        None => format!("{} columns instead of {}", found.len(), expected.len()),
        Some(differs) => differs,
    };
    let name = first.shards(MAIN).next().map_or("the first", |shard| shard.path.as_str());
    let why = format!("its columns are not those of {name}: {why}");
    Err(DatasetError::refused(file.display_path(), why, "name only files with the same columns"))
}
