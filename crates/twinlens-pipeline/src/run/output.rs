//! What a stage writes to: splits of its dataset, each committed whole.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use datafusion::arrow::array::{Array, AsArray, BooleanArray, Int32Array, RecordBatch, StringArray};
use datafusion::arrow::compute::kernels::zip::zip;
use datafusion::arrow::compute::{filter_record_batch, is_not_null, not};
use datafusion::arrow::datatypes::{DataType, Field, Schema};
use datafusion::dataframe::DataFrame;
use datafusion::prelude::SessionContext;
use futures::StreamExt;
use tracing::debug;
use twinlens_dataset::protocol::State;
use twinlens_dataset::split_records::SplitRecords;
use twinlens_dataset::storage::Location;
use twinlens_dataset::writer::{PublishedSplit, SplitStarter};
use twinlens_dataset::{Commit, Dataset, DatasetWriter, MAIN, REJECTS, SplitWriter, blocking};

use crate::context::RunContext;
use crate::error::RunError;
use crate::rejects;
use crate::run::events::{Event, Progress};
use crate::secrets::Secrets;

/// The dataset that a stage makes.
pub struct Output {
    stage: String,
    writer: DatasetWriter,
    progress: Progress,
    max_rows: Option<u64>,
    /// Whether it holds what a pass over rows is told or answers, not the stage's dataset.
    is_pass: bool,
}

impl Output {
    /// An output over an opened dataset.
    pub fn new(stage: &str, writer: DatasetWriter, progress: Progress) -> Self {
        Self { stage: stage.into(), writer, progress, max_rows: None, is_pass: false }
    }

    /// An output that holds what a pass over rows is told or answers: its splits are no news.
    pub(crate) fn of_pass(stage: &str, writer: DatasetWriter, progress: Progress) -> Self {
        Self { is_pass: true, ..Self::new(stage, writer, progress) }
    }

    /// With the most rows that the run wants of a source.
    pub(crate) fn limited(&mut self, max_rows: Option<u64>) -> &mut Self {
        self.max_rows = max_rows;
        self
    }

    /// How many rows (and rejects) the run wants beside those that are committed; `None` for all. A
    /// job that makes its rows itself ends when there are so many.
    pub fn rows_wanted(&self) -> Option<u64> {
        Some(self.max_rows?.saturating_sub(self.state().rows_in().unwrap_or(0)))
    }

    /// Whether a split is committed already.
    pub fn is_done(&self, split: u64) -> bool {
        self.writer.is_done(split)
    }

    /// Everything that is recorded.
    pub fn state(&self) -> &State {
        self.writer.state()
    }

    /// What is committed so far, to read.
    pub fn dataset(&self) -> Dataset {
        self.writer.dataset()
    }

    /// The location of the dataset.
    pub fn dir(&self) -> &Location {
        self.writer.dir()
    }

    /// A folder for the stage's own state (checkpoints): survives a kill, is deleted when the
    /// stage's configuration changes.
    pub fn work_dir(&self) -> Result<PathBuf, RunError> {
        Ok(self.writer.work_dir()?)
    }

    /// Starts a split: write batches and artifacts to it, then [`Output::commit`]. A batch with the
    /// reserved columns is divided between the main table and the ledger by [`write_rows`].
    pub fn split(&self, split: u64, label: impl Into<String>) -> SplitWriter {
        self.writer.split(split, label)
    }

    /// Starts splits independently of the output that records them: for several splits in flight.
    pub fn starter(&self) -> SplitStarter {
        self.writer.splits()
    }

    /// Makes a split durable and records it. Blocking work is done on a blocking thread.
    pub async fn commit(&mut self, split: SplitWriter) -> Result<(), RunError> {
        let published = blocking(move || split.publish()).await??;
        self.record(published)
    }

    /// Records a split whose files are durable already.
    pub fn record(&mut self, split: PublishedSplit) -> Result<(), RunError> {
        let commit = split.commit().clone();
        self.writer.commit(split)?;
        self.announce(&commit);
        Ok(())
    }

    /// Records splits whose files are durable already, together.
    pub(crate) fn record_all(&mut self, commits: &[Commit]) -> Result<(), RunError> {
        let published = commits.iter().cloned().map(PublishedSplit::made_elsewhere);
        self.writer.commit_all(published.collect())?;
        commits.iter().for_each(|commit| self.announce(commit));
        Ok(())
    }

    fn announce(&self, commit: &Commit) {
        let (rows, rejects) = (commit.rows(MAIN), commit.rejected());
        if self.is_pass {
            debug!(split = commit.split, label = %commit.label, rows, "made for a pass");
            return;
        }
        debug!(split = commit.split, label = %commit.label, rows, rejects, "committed");
        self.progress.event(Event::SplitCommitted {
            stage: self.stage.clone(),
            split: commit.split,
            label: commit.label.clone(),
            rows,
            rejects,
        });
    }

    /// Where processes that make splits say so before the manifest has them; `None` where this
    /// process makes them all.
    pub(crate) fn records(&self) -> Option<SplitRecords> {
        self.writer.records()
    }

    /// The splits that an earlier run or another process made, and that are not recorded.
    pub(crate) fn made_unrecorded(&self) -> Result<BTreeMap<u64, Commit>, RunError> {
        match self.records() {
            Some(records) => Ok(records.usable(|split| self.is_done(split))?),
            None => Ok(BTreeMap::new()),
        }
    }

    /// Records that all splits are committed. The runner does this after the stage's work has
    /// returned.
    pub fn complete(&mut self) -> Result<(), RunError> {
        Ok(self.writer.complete()?)
    }

    /// Deletes the files of splits that were replaced.
    pub fn delete_unrecorded(&self) -> Result<(), RunError> {
        Ok(self.writer.delete_unrecorded()?)
    }

    /// A committed table of this dataset.
    pub async fn frame(&self, session: &SessionContext, table: &str) -> Result<DataFrame, RunError> {
        Ok(self.dataset().frame(session, table).await?)
    }
}

/// Writes a plan's rows into a table of a split, as they are.
pub(crate) async fn write_table(
    split: SplitWriter,
    table: &'static str,
    frame: DataFrame,
    progress: &Progress,
) -> Result<SplitWriter, RunError> {
    let write = move |split: &mut SplitWriter, batch: &RecordBatch| Ok(split.write(table, batch)?);
    let counted = if table == MAIN { Some(progress) } else { None };
    write_frame(split, frame, counted, write).await
}

/// Writes a plan's rows, which have the reserved columns, into the main table and the ledger.
/// No detail of a reject tells a secret.
pub(crate) async fn write_divided(
    split: SplitWriter,
    frame: DataFrame,
    cx: &RunContext,
) -> Result<SplitWriter, RunError> {
    let secrets = cx.secrets.clone();
    let write = move |split: &mut SplitWriter, batch: &RecordBatch| {
        write_rows(split, &with_hidden_details(batch, &secrets)?)
    };
    write_frame(split, frame, Some(&cx.progress), write).await
}

/// The rows with the secrets in the details of rejects hidden.
fn with_hidden_details(batch: &RecordBatch, secrets: &Secrets) -> Result<RecordBatch, RunError> {
    let place = batch.schema().index_of(rejects::DETAIL).ok();
    let details = place.and_then(|place| Some((place, batch.column(place).as_string_opt::<i32>()?)));
    let Some((place, details)) = details.filter(|(_, details)| details.null_count() < details.len()) else {
        return Ok(batch.clone());
    };
    let hidden: StringArray =
        details.iter().map(|detail| detail.map(|detail| secrets.hide(detail))).collect();
    let mut columns = batch.columns().to_vec();
    columns[place] = Arc::new(hidden);
    RecordBatch::try_new(batch.schema(), columns).map_err(engine)
}

async fn write_frame(
    mut split: SplitWriter,
    frame: DataFrame,
    progress: Option<&Progress>,
    write: impl Fn(&mut SplitWriter, &RecordBatch) -> Result<(), RunError> + Clone + Send + 'static,
) -> Result<SplitWriter, RunError> {
    let mut stream = frame.execute_stream().await?;
    while let Some(batch) = stream.next().await {
        let batch = batch?;
        if let Some(progress) = progress {
            progress.done(batch.num_rows() as u64);
        }
        let write = write.clone();
        split = blocking(move || {
            write(&mut split, &batch)?;
            Ok::<_, RunError>(split)
        })
        .await??;
    }
    Ok(split)
}

/// Writes rows of the main table; where the batch has the reserved columns, rejected rows go to the
/// ledger, counted by stage and code.
pub fn write_rows(split: &mut SplitWriter, batch: &RecordBatch) -> Result<(), RunError> {
    if batch.num_rows() == 0 {
        return Ok(());
    }
    let Some(codes) = batch.column_by_name(rejects::CODE) else {
        return Ok(split.write(MAIN, batch)?);
    };
    if codes.null_count() == codes.len() {
        return Ok(split.write(MAIN, batch)?);
    }
    let refused: BooleanArray = is_not_null(codes).map_err(engine)?;
    let kept = filter_record_batch(batch, &not(&refused).map_err(engine)?).map_err(engine)?;
    split.write(MAIN, &kept)?;
    write_rejects(split, &filter_record_batch(batch, &refused).map_err(engine)?)
}

/// Writes rejected rows to the ledger and counts them.
pub fn write_rejects(split: &mut SplitWriter, batch: &RecordBatch) -> Result<(), RunError> {
    let column = |name: &str| -> Result<_, RunError> {
        let column = batch.column_by_name(name).and_then(|column| column.as_string_opt::<i32>());
        column
            .ok_or_else(|| RunError::Internal(format!("the rejects of a split have no string column {name}")))
    };
    let (stages, codes) = (column(rejects::STAGE)?, column(rejects::CODE)?);
    if stages.null_count() + codes.null_count() > 0 {
        return Err(RunError::Internal("a row is rejected without a stage or a code".into()));
    }
    for row in 0..batch.num_rows() {
        split.count_rejects(stages.value(row), codes.value(row), 1);
    }
    // A stage with `rejects = "count"` has no ledger.
    match split.schema(REJECTS) {
        Some(_) => Ok(split.write(REJECTS, &with_attempts(&with_details(batch)?)?)?),
        None => Ok(()),
    }
}

/// A row whose code needs no detail has the code as its detail.
fn with_details(batch: &RecordBatch) -> Result<RecordBatch, RunError> {
    let schema = batch.schema();
    let place = |name: &str| schema.index_of(name).map_err(engine);
    let (detail, code) = (place(rejects::DETAIL)?, place(rejects::CODE)?);
    if batch.column(detail).null_count() == 0 {
        return Ok(batch.clone());
    }
    let mut columns = batch.columns().to_vec();
    let known = is_not_null(batch.column(detail)).map_err(engine)?;
    columns[detail] = zip(&known, batch.column(detail), batch.column(code)).map_err(engine)?;
    RecordBatch::try_new(schema, columns).map_err(engine)
}

/// A newly rejected row has had one attempt.
fn with_attempts(batch: &RecordBatch) -> Result<RecordBatch, RunError> {
    if batch.column_by_name(rejects::ATTEMPTS).is_some() {
        return Ok(batch.clone());
    }
    let mut fields: Vec<_> = batch.schema().fields().iter().cloned().collect();
    fields.push(Arc::new(Field::new(rejects::ATTEMPTS, DataType::Int32, true)));
    let mut columns = batch.columns().to_vec();
    columns.push(Arc::new(Int32Array::from(vec![1; batch.num_rows()])));
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).map_err(engine)
}

fn engine(error: datafusion::arrow::error::ArrowError) -> RunError {
    RunError::Engine(error.into())
}
