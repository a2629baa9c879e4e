//! Datasets out: in shards of a target size as Parquet, as Arrow IPC, or as tar files, with a card.
//!
//! An export is written by the protocol of every dataset: a shard (with the files beside it) is a
//! split, which appears whole under its final name and is then recorded by one line of
//! `manifest.jsonl`. `rows_in` of a split counts the rows of the source up to its last one, so that
//! an export that was killed goes on with the row after. The bytes depend on the source and the
//! options alone.

mod sink;
mod source;
mod tar;
mod webdataset;

use std::fs::{File, TryLockError};
use std::sync::Arc;

use datafusion::prelude::SessionContext;
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc::{Receiver, channel};

use self::sink::Sink;
use self::source::{Read, Rows, Source};
pub use self::webdataset::Ending;
use crate::card::{self, Card, Made};
use crate::dataset::Dataset;
use crate::error::DatasetError;
use crate::protocol::{Begin, FORMAT, State};
use crate::shard::ShardLimits;
use crate::storage::{self, Location, UNFINISHED, local};
use crate::writer::{DatasetWriter, SplitWriter};
use crate::{MAIN, contracts, manifest};

/// The kind that an export's manifest names.
pub const KIND: &str = "export";
/// The code of the rows that the predicate leaves out.
const FILTERED: &str = "filtered";
/// The version of what is written: another one is another export.
const VERSION: u32 = 1;

/// What the shards are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Parquet, as datasets have it.
    Parquet,
    /// Arrow IPC files.
    Arrow,
    /// Tar files of images and texts, as img2dataset writes them.
    WebDataset,
}

impl Format {
    /// Where the shards lie, as a pattern.
    pub fn pattern(self) -> &'static str {
        match self {
            Self::Parquet => "data/*.parquet",
            Self::Arrow => "data/*.arrow",
            Self::WebDataset => "*.tar",
        }
    }

    /// The name, as the Hugging Face `datasets` package has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Parquet => "parquet",
            Self::Arrow => "arrow",
            Self::WebDataset => "webdataset",
        }
    }
}

/// What to export, and how.
pub struct Export<'a> {
    /// A complete dataset; its main table is exported.
    pub dataset: &'a Dataset,
    /// The stages that made it, for the card.
    pub made_by: Vec<Made>,
    /// The name of the pipeline, where that is known.
    pub pipeline: Option<String>,
    /// What the shards are.
    pub format: Format,
    /// Which rows: a SQL predicate over the columns.
    pub predicate: Option<&'a str>,
    /// A shard is closed when it has this many bytes.
    pub shard_bytes: u64,
    /// Delete what an earlier export left.
    pub fresh: bool,
    /// Names what an image is.
    pub ending: Ending,
}

/// How an export ended.
#[derive(Debug)]
pub enum Outcome {
    /// It was there already.
    Unchanged(Dataset),
    /// It is there now.
    Written(Dataset),
    /// It was asked to stop; what was committed is kept.
    Interrupted,
}

/// What is told while it goes: the rows of the source that are done with, all of them, and the
/// bytes that are written.
pub type Observe = Arc<dyn Fn(u64, u64, u64) + Send + Sync>;

impl Export<'_> {
    /// Writes the export to a folder, or goes on with it. `session` has the functions of the
    /// predicate.
    ///
    /// # Errors
    /// The user's: an unfinished dataset, a predicate that does not fit, a folder that holds other
    /// things; and what the system says.
    pub async fn run(
        &self,
        session: &SessionContext,
        to: &Location,
        observe: Observe,
        stop: &(dyn Fn() -> bool + Sync),
    ) -> Result<Outcome, DatasetError> {
        let state = self.dataset.state();
        if !state.complete {
            let why = format!("the dataset of `{}` is not complete", state.begin.stage);
            return Err(refused(self.dataset.location(), why, "run its pipeline to the end first"));
        }
        let source = Source::new(self.dataset, session, self.predicate).await?;
        let schema = contracts::with_hub_features(self.dataset.schema(MAIN)?);
        let sink = Sink::new(self.format, to, &schema, self.shard_bytes, self.ending)
            .map_err(|(why, hint)| refused(self.dataset.location(), why, hint))?;
        let begin = self.begin(schema)?;

        local::create_dir(&to.folder())?;
        let _lock = lock(to)?;
        if let Some(done) = self.prepare(to, &begin.fingerprint)? {
            return Ok(Outcome::Unchanged(done));
        }
        // The writer closes shards where the sink says so.
        let limits = ShardLimits { shard_bytes: usize::MAX, ..ShardLimits::default() };
        let writer = DatasetWriter::open(to, begin, limits)?;
        let shards = ShardWriter::new(writer, sink, self.dataset.rows(MAIN), observe);
        let start = shards.position;
        let (send, receive) = channel(1);
        let writing = tokio::task::spawn_blocking(move || shards.write_all(receive));
        let read = source.read(start, &send, stop).await;
        drop(send);
        // What went wrong while writing stopped the reading too.
        let shards = writing.await.map_err(crashed)??;
        if read? == Read::Stopped {
            return Ok(Outcome::Interrupted);
        }
        let mut writer = tokio::task::spawn_blocking(move || shards.end()).await.map_err(crashed)??;
        self.write_card(&source, to, writer.state()).await?;
        writer.complete()?;
        Ok(Outcome::Written(Dataset::open(to)?))
    }

    fn begin(&self, schema: arrow::datatypes::SchemaRef) -> Result<Begin, DatasetError> {
        let source = &self.dataset.state().begin;
        let mut files = Sha256::new();
        for file in self.dataset.shards(MAIN) {
            files.update(match file.sha256.is_empty() {
                true => local::digest(&self.dataset.location().join(&file.path).local_copy()?)?.1,
                false => file.sha256.clone(),
            });
        }
        let what = json!({
            "version": VERSION,
            "format": self.format,
            "where": self.predicate,
            "shard_bytes": self.shard_bytes,
            "source": {
                "stage": source.stage,
                "kind": source.kind,
                "fingerprint": source.fingerprint,
                "files": storage::hex(&files.finalize()),
            },
        });
        let fingerprint = storage::hex(&Sha256::digest(what.to_string())[..16]);
        let tables = match self.format {
            Format::Parquet => [(MAIN.to_string(), schema)].into(),
            Format::Arrow | Format::WebDataset => Default::default(),
        };
        Ok(Begin {
            format: FORMAT,
            position: 0,
            stage: source.stage.clone(),
            kind: KIND.into(),
            fingerprint,
            recipe: json!({ "kind": KIND, "options": what, "pipeline": self.pipeline, "made_by": self.made_by }),
            fused: Vec::new(),
            variant: None,
            tables,
        })
    }

    /// Looks at what is in the folder, and empties it for a fresh export. The export, if it is
    /// there already.
    fn prepare(&self, to: &Location, fingerprint: &str) -> Result<Option<Dataset>, DatasetError> {
        let state = manifest::read(to)?;
        if let Some(state) = state.as_ref().filter(|state| state.begin.kind != KIND) {
            let why = format!("it holds the dataset of a stage, `{}`", state.begin.stage);
            return Err(refused(to, why, "choose an empty or new folder"));
        }
        if let Some(name) = foreign(to, state.as_ref())? {
            let why = format!("it holds `{name}`, which is no part of an export");
            return Err(refused(to, why, "choose an empty or new folder, or move that file away"));
        }
        if self.fresh {
            to.clear(manifest::FILE)?;
            return Ok(None);
        }
        match state {
            Some(state) if state.begin.fingerprint != fingerprint => {
                let why = "it holds another export: of other rows, or with other options".to_string();
                Err(refused(to, why, "choose another folder, or replace it with --fresh"))
            }
            Some(state) if state.complete => Dataset::open(to).map(Some),
            _ => Ok(None),
        }
    }

    async fn write_card(
        &self,
        source: &Source<'_>,
        to: &Location,
        state: &State,
    ) -> Result<(), DatasetError> {
        let counts = card::counts(source.frame().await?).await?;
        let schema = self.dataset.schema(MAIN)?;
        let card = Card {
            pipeline: self.pipeline.as_deref(),
            source: &self.dataset.state().begin,
            schema: &schema,
            format: self.format,
            made_by: &self.made_by,
            export: state,
            counts: &counts,
        };
        to.join(card::FILE).write(card.text().as_bytes())
    }
}

/// What is not as an export claims: files that are not those that its manifest records, and a card
/// that says other things of them. Reads all of it.
pub fn check(export: &Dataset) -> Result<Vec<String>, DatasetError> {
    let mut wrong: Vec<String> = export.verify()?.iter().map(ToString::to_string).collect();
    if export.state().begin.kind == KIND {
        let file = export.location().join(card::FILE);
        let text = file.read()?.map(|text| String::from_utf8_lossy(&text).into_owned());
        match text {
            None => wrong.push(format!("{file}: it is missing")),
            Some(text) => wrong.extend(
                card::unclaimed(&text, export.state())
                    .iter()
                    .map(|claim| format!("{file}: it does not say `{}`", claim.trim())),
            ),
        }
    }
    Ok(wrong)
}

/// The user's mistake, with what to do about it.
fn refused(path: &Location, why: impl Into<String>, hint: impl Into<String>) -> DatasetError {
    DatasetError::Refused { path: path.shown(), why: why.into(), hint: hint.into() }
}

/// A thread that panicked, after its message.
fn crashed(error: tokio::task::JoinError) -> DatasetError {
    DatasetError::Protocol(error.to_string())
}

/// Keeps other processes out for as long as it lives, however this one ends. (In an object store,
/// the manifest refuses them.)
fn lock(to: &Location) -> Result<File, DatasetError> {
    let folder = to.folder();
    let fail = |error| DatasetError::io(&folder, error);
    let handle = File::open(&folder).map_err(fail)?;
    match handle.try_lock() {
        Ok(()) => Ok(handle),
        Err(TryLockError::WouldBlock) => Err(DatasetError::Taken { path: to.shown() }),
        Err(TryLockError::Error(error)) => Err(fail(error)),
    }
}

/// The first file of a folder that no export with this state can have left there.
fn foreign(to: &Location, state: Option<&State>) -> Result<Option<String>, DatasetError> {
    let recorded: std::collections::HashSet<&str> =
        state.iter().flat_map(|state| state.files()).map(|file| file.path.as_str()).collect();
    let ours = |name: &str| {
        name.ends_with(UNFINISHED)
            // In an object store the manifest is a folder.
            || name.split('/').next() == Some(manifest::FILE)
            || recorded.contains(name)
            || state.is_some() && (name == card::FILE || is_shard(name))
    };
    Ok(to.files("")?.into_keys().find(|name| !ours(name)))
}

/// Whether a name is that of a shard, or of what lies beside one: published, and not recorded
/// before a kill.
fn is_shard(name: &str) -> bool {
    let name = name.strip_prefix("data/").unwrap_or(name);
    let digits = name.trim_start_matches(|c: char| c.is_ascii_digit() || c == '-');
    digits.len() < name.len() && [".tar", ".parquet", ".arrow", "_stats.json"].contains(&digits)
}

/// Rows to shards, on a thread where waiting for the disk is no harm.
struct ShardWriter {
    writer: DatasetWriter,
    sink: Sink,
    /// Rows of the source that are committed, and all of them.
    position: u64,
    total: u64,
    bytes: u64,
    open: Option<OpenShard>,
    observe: Observe,
}

struct OpenShard {
    split: SplitWriter,
    rows: u64,
    /// The place after its last row.
    end: u64,
}

impl ShardWriter {
    fn new(writer: DatasetWriter, sink: Sink, total: u64, observe: Observe) -> Self {
        let position = writer.state().rows_in().unwrap_or(0);
        let bytes = writer.state().files().map(|file| file.bytes).sum();
        observe(position, total, bytes);
        Self { writer, sink, position, total, bytes, open: None, observe }
    }

    /// Writes the rows that come.
    fn write_all(mut self, mut rows: Receiver<Rows>) -> Result<Self, DatasetError> {
        while let Some(mut rows) = rows.blocking_recv() {
            while !rows.places.is_empty() {
                rows = rows.after(self.write(&rows)?);
            }
        }
        Ok(self)
    }

    fn write(&mut self, rows: &Rows) -> Result<usize, DatasetError> {
        let number = self.writer.state().commits.len() as u64;
        let position = self.position;
        let writer = &self.writer;
        let open = self.open.get_or_insert_with(|| OpenShard {
            split: writer.split(number, format!("from row {position}")),
            rows: 0,
            end: position,
        });
        let taken = self.sink.write(&mut open.split, &rows.batch)?;
        open.rows += taken as u64;
        open.end = taken.checked_sub(1).map_or(open.end, |last| rows.places[last] + 1);
        (self.observe)(open.end, self.total, self.bytes);
        if self.sink.is_full(&open.split)? {
            let end = open.end;
            self.close(end)?;
        }
        Ok(taken)
    }

    /// Commits the open shard; the rows of the source up to `end` are done with.
    fn close(&mut self, end: u64) -> Result<(), DatasetError> {
        let Some(mut open) = self.open.take() else { return Ok(()) };
        let rows_in = end - self.position;
        open.split.count_rows_in(rows_in);
        if rows_in > open.rows {
            open.split.count_rejects(KIND, FILTERED, rows_in - open.rows);
        }
        self.sink.finish()?;
        let published = open.split.publish()?;
        self.bytes += published.commit().files.iter().map(|file| file.bytes).sum::<u64>();
        self.writer.commit(published)?;
        self.position = end;
        (self.observe)(end, self.total, self.bytes);
        Ok(())
    }

    /// After the last row: what is left of the source was not picked.
    fn end(mut self) -> Result<DatasetWriter, DatasetError> {
        if self.open.is_none() && self.position < self.total {
            let split = self.writer.split(self.writer.state().commits.len() as u64, "no more rows");
            self.open = Some(OpenShard { split, rows: 0, end: self.position });
        }
        self.close(self.total)?;
        Ok(self.writer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_shards_are_known() {
        for name in
            ["00000.tar", "123456_stats.json", "00000.parquet", "data/000000-000.parquet", "data/00001.arrow"]
        {
            assert!(is_shard(name), "{name}");
        }
        for name in ["notes.tar", ".tar", "0a.tar", "00000.tar.gz", "data/x/00000.arrow", "README.md"] {
            assert!(!is_shard(name), "{name}");
        }
    }
}
