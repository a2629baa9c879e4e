//! Exports datasets as shards of a target size in Parquet, Arrow IPC or tar files, with a card.
//!
//! An export follows the commit protocol of datasets: a shard (with its companion files) is a
//! split, which appears whole under its final name and is then recorded by one line of
//! `manifest.jsonl`. `rows_in` of a split counts the rows of the source up to its last one, so a
//! killed export resumes with the next row. The bytes depend only on the source and the options.

mod card;
mod format;
mod sink;
mod source;
mod tar;
mod webdataset;

use std::fs::{File, TryLockError};
use std::sync::Arc;

use datafusion::prelude::SessionContext;
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc::{Receiver, channel};

use self::card::Card;
pub use self::card::{FILE as CARD_FILE, StageSummary, thousands};
pub use self::format::{Format, KIND};
use self::sink::Sink;
use self::source::{ReadEnd, Rows, Source};
pub use self::webdataset::ImageExtension;
use crate::blocking::blocking;
use crate::dataset::Dataset;
use crate::error::DatasetError;
use crate::protocol::{Begin, FORMAT, MAIN, State};
use crate::shard::ShardLimits;
use crate::storage::{Location, UNFINISHED, local};
use crate::writer::{DatasetWriter, SplitWriter};
use crate::{contracts, manifest};

/// The reject code of rows that do not match the predicate.
const FILTERED: &str = "filtered";
/// The version of the output, part of the fingerprint.
const VERSION: u32 = 1;

/// An export of a dataset.
pub struct Export<'a> {
    /// A complete dataset; its main table is exported.
    pub dataset: &'a Dataset,
    /// The stages that made it, for the card.
    pub made_by: Vec<StageSummary>,
    /// The name of the pipeline, if known.
    pub pipeline: Option<String>,
    /// The format of the shards.
    pub format: Format,
    /// A SQL predicate that selects rows.
    pub predicate: Option<&'a str>,
    /// A shard is closed when it has this many bytes.
    pub shard_bytes: u64,
    /// Whether to replace an earlier export.
    pub fresh: bool,
    /// Returns the file extension of an encoded image.
    pub image_extension: ImageExtension,
}

/// How an export ended.
#[derive(Debug)]
pub enum Outcome {
    /// It already exists.
    Unchanged(Dataset),
    /// It was written.
    Written(Dataset),
    /// It was stopped on request; committed shards are kept.
    Interrupted,
}

/// Receives the processed rows of the source, all rows of the source, and the bytes written.
pub type ProgressFn = Arc<dyn Fn(u64, u64, u64) + Send + Sync>;

impl Export<'_> {
    /// Writes the export to a folder, or resumes it. `session` provides the functions of the
    /// predicate.
    ///
    /// # Errors
    /// An incomplete dataset, an invalid predicate, a folder with other contents, and I/O errors.
    pub async fn run(
        &self,
        session: &SessionContext,
        to: &Location,
        on_progress: ProgressFn,
        stop: &(dyn Fn() -> bool + Sync),
    ) -> Result<Outcome, DatasetError> {
        let state = self.dataset.state();
        if !state.complete {
            let why = format!("the dataset of `{}` is not complete", state.begin.stage);
            return Err(DatasetError::refused(
                self.dataset.location(),
                why,
                "run its pipeline to the end first",
            ));
        }
        let source = Source::new(self.dataset, session, self.predicate).await?;
        let schema = contracts::with_hub_features(self.dataset.schema(MAIN)?);
        let sink = Sink::new(self.format, to, &schema, self.shard_bytes, self.image_extension)
            .map_err(|(why, hint)| DatasetError::refused(self.dataset.location(), why, hint))?;
        let begin = self.begin(schema)?;

        local::create_dir(&to.local_path())?;
        let _lock = lock(to)?;
        if let Some(done) = self.prepare(to, &begin.fingerprint)? {
            return Ok(Outcome::Unchanged(done));
        }
        // The sink decides when a shard is full.
        let limits = ShardLimits { shard_bytes: usize::MAX, ..ShardLimits::default() };
        let writer = DatasetWriter::open(to, begin, limits)?;
        writer.delete_unrecorded_of(&is_shard)?;
        let shards = ShardWriter::new(writer, sink, self.dataset.rows(MAIN), on_progress);
        let start = shards.position;
        let (send, receive) = channel(1);
        let writing = blocking(move || shards.write_all(receive));
        let read = source.read(start, &send, stop).await;
        drop(send);
        // An error while writing also stops reading, so it is the cause.
        let shards = writing.await??;
        if read? == ReadEnd::Stopped {
            return Ok(Outcome::Interrupted);
        }
        let mut writer = blocking(move || shards.finish()).await??;
        self.write_card(&source, to, writer.state()).await?;
        writer.complete()?;
        Ok(Outcome::Written(Dataset::open(to)?))
    }

    fn begin(&self, schema: arrow::datatypes::SchemaRef) -> Result<Begin, DatasetError> {
        let source = &self.dataset.state().begin;
        let mut files = Sha256::new();
        for file in self.dataset.shards(MAIN) {
            files.update(if file.sha256.is_empty() {
                local::digest(&self.dataset.location().join(&file.path).local_copy()?)?.sha256
            } else {
                file.sha256.clone()
            });
        }
        let options = json!({
            "version": VERSION,
            "format": self.format,
            "where": self.predicate,
            "shard_bytes": self.shard_bytes,
            "source": {
                "stage": source.stage,
                "kind": source.kind,
                "fingerprint": source.fingerprint,
                "files": hex::encode(files.finalize()),
            },
        });
        let fingerprint = hex::encode(&Sha256::digest(options.to_string())[..16]);
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
            recipe: json!({ "kind": KIND, "options": options, "pipeline": self.pipeline, "made_by": self.made_by }),
            fused: Vec::new(),
            variant: None,
            tables,
        })
    }

    /// Checks the contents of the folder, and clears it for a fresh export. Returns the export if
    /// it is already complete.
    fn prepare(&self, to: &Location, fingerprint: &str) -> Result<Option<Dataset>, DatasetError> {
        let state = manifest::read(to)?;
        if let Some(state) = state.as_ref().filter(|state| state.begin.kind != KIND) {
            let why = format!("it contains the dataset of the stage `{}`", state.begin.stage);
            return Err(DatasetError::refused(to, why, "choose an empty or new folder"));
        }
        if let Some(name) = foreign_file(to, state.as_ref())? {
            let why = format!("it contains `{name}`, which is not part of an export");
            return Err(DatasetError::refused(
                to,
                why,
                "choose an empty or new folder, or move that file away",
            ));
        }
        if self.fresh {
            to.clear(manifest::FILE)?;
            return Ok(None);
        }
        match state {
            Some(state) if state.begin.fingerprint != fingerprint => {
                let why = "it contains an export of other rows or with other options".to_string();
                Err(DatasetError::refused(to, why, "choose another folder, or replace it with --fresh"))
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

/// Verifies all files of an export against its manifest and its card; returns the mismatches.
pub fn check(export: &Dataset) -> Result<Vec<String>, DatasetError> {
    let mut mismatches: Vec<String> = export.verify()?.iter().map(ToString::to_string).collect();
    if export.state().begin.kind == KIND {
        let file = export.location().join(card::FILE);
        let text = file.read()?.map(|text| String::from_utf8_lossy(&text).into_owned());
        match text {
            None => mismatches.push(format!("{file}: it is missing")),
            Some(text) => mismatches.extend(
                card::missing_facts(&text, export.state())
                    .iter()
                    .map(|fact| format!("{file}: it does not say `{}`", fact.trim())),
            ),
        }
    }
    Ok(mismatches)
}

/// Locks the folder against other processes while the handle lives. (In an object store, the
/// manifest refuses a second writer.)
fn lock(to: &Location) -> Result<File, DatasetError> {
    let folder = to.local_path();
    let fail = |error| DatasetError::io(&folder, error);
    let handle = File::open(&folder).map_err(fail)?;
    match handle.try_lock() {
        Ok(()) => Ok(handle),
        Err(TryLockError::WouldBlock) => Err(DatasetError::Locked { path: to.display_path() }),
        Err(TryLockError::Error(error)) => Err(fail(error)),
    }
}

/// The first file of a folder that an export with this state cannot have written.
fn foreign_file(to: &Location, state: Option<&State>) -> Result<Option<String>, DatasetError> {
    let recorded: std::collections::HashSet<&str> =
        state.iter().flat_map(|state| state.files()).map(|file| file.path.as_str()).collect();
    let is_own = |name: &str| {
        name.ends_with(UNFINISHED)
            // In an object store the manifest is a folder.
            || name.split('/').next() == Some(manifest::FILE)
            || recorded.contains(name)
            || state.is_some() && (name == card::FILE || is_shard(name))
    };
    Ok(to.own_files("")?.into_iter().find(|name| !is_own(name)))
}

/// Whether a file is a shard or its companion: a kill may leave some published but unrecorded.
fn is_shard(name: &str) -> bool {
    let name = name.strip_prefix("data/").unwrap_or(name);
    let suffix = name.trim_start_matches(|c: char| c.is_ascii_digit() || c == '-');
    suffix.len() < name.len() && [".tar", ".parquet", ".arrow", "_stats.json"].contains(&suffix)
}

/// Writes rows to shards, on a thread that may block.
struct ShardWriter {
    writer: DatasetWriter,
    sink: Sink,
    /// Committed rows of the source.
    position: u64,
    /// All rows of the source.
    total: u64,
    bytes: u64,
    open: Option<OpenShard>,
    on_progress: ProgressFn,
}

struct OpenShard {
    split: SplitWriter,
    rows: u64,
    /// Index after its last row.
    end: u64,
}

impl ShardWriter {
    fn new(writer: DatasetWriter, sink: Sink, total: u64, on_progress: ProgressFn) -> Self {
        let position = writer.state().rows_in().unwrap_or(0);
        let bytes = writer.state().files().map(|file| file.bytes).sum();
        on_progress(position, total, bytes);
        Self { writer, sink, position, total, bytes, open: None, on_progress }
    }

    fn write_all(mut self, mut rows: Receiver<Rows>) -> Result<Self, DatasetError> {
        while let Some(mut rows) = rows.blocking_recv() {
            while !rows.indices.is_empty() {
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
        open.end = taken.checked_sub(1).map_or(open.end, |last| rows.indices[last] + 1);
        (self.on_progress)(open.end, self.total, self.bytes);
        if self.sink.is_full(&open.split)? {
            let end = open.end;
            self.close(end)?;
        }
        Ok(taken)
    }

    /// Commits the open shard, which accounts for the rows of the source up to `end`.
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
        (self.on_progress)(end, self.total, self.bytes);
        Ok(())
    }

    /// Commits the last shard; the remaining rows of the source did not match.
    fn finish(mut self) -> Result<DatasetWriter, DatasetError> {
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
    fn shards_are_recognised_by_name() {
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
