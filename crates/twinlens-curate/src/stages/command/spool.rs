//! A program that runs once, over no input or over all of it. Its answers go to a temporary file,
//! which is read back when it has ended well: so a failed run leaves nothing, and can be repeated.

use std::fs::File;
use std::io::{BufReader, BufWriter};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::compute::concat_batches;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::arrow::error::ArrowError;
use datafusion::arrow::ipc::reader::StreamReader;
use datafusion::arrow::ipc::writer::StreamWriter;
use datafusion::dataframe::DataFrame;
use datafusion::error::{DataFusionError, Result as EngineResult};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_plan::stream::RecordBatchReceiverStreamBuilder;
use datafusion::physical_plan::streaming::PartitionStream;
use datafusion::prelude::SessionContext;
use futures::StreamExt;
use tempfile::NamedTempFile;
use tokio::sync::mpsc::Sender;
use twinlens_pipeline::batch_reader::{self, BatchReader, BatchSink};
use twinlens_pipeline::run::events::Progress;
use twinlens_pipeline::{RunError, blocking};

use super::contract::{Breach, RowContract};
use super::pool::{Failure, Worker};
use super::process::Program;
use super::split::project;

/// Rows of a batch of the file.
const BATCH_ROWS: usize = 256;

/// Batches in a temporary file, which is deleted with the last reference.
#[derive(Debug, Clone)]
pub(super) struct Spool {
    file: Arc<NamedTempFile>,
    pub(super) schema: SchemaRef,
    pub(super) rows: u64,
}

impl Spool {
    pub(super) fn frame(&self, session: &SessionContext) -> Result<DataFrame, RunError> {
        batch_reader::data_frame(session, self.clone())
    }
}

impl BatchReader for Spool {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn read(&self, send: BatchSink<'_>) -> Result<(), RunError> {
        let file = File::open(self.file.path()).map_err(|error| RunError::io(self.file.path(), error))?;
        for batch in StreamReader::try_new(BufReader::new(file), None).map_err(DataFusionError::from)? {
            if !send(batch.map_err(DataFusionError::from)?) {
                break;
            }
        }
        Ok(())
    }
}

struct SpoolWriter {
    file: NamedTempFile,
    writer: Option<StreamWriter<BufWriter<File>>>,
    schema: SchemaRef,
    rows: u64,
}

impl SpoolWriter {
    /// `schema` is that of a file without any batch.
    fn new(folder: &Path, schema: SchemaRef) -> Result<Self, RunError> {
        let io = |error| RunError::io(folder, error);
        std::fs::create_dir_all(folder).map_err(io)?;
        Ok(Self { file: NamedTempFile::new_in(folder).map_err(io)?, writer: None, schema, rows: 0 })
    }

    fn writer(&mut self, schema: &SchemaRef) -> Result<&mut StreamWriter<BufWriter<File>>, ArrowError> {
        if self.writer.is_none() {
            self.schema = schema.clone();
            self.writer = Some(StreamWriter::try_new_buffered(self.file.reopen()?, schema)?);
        }
        self.writer.as_mut().ok_or_else(|| ArrowError::IpcError("the spool has no writer".into()))
    }

    fn write(&mut self, batch: &RecordBatch) -> Result<(), ArrowError> {
        let rows = batch.num_rows();
        let writer = self.writer(&batch.schema())?;
        for start in (0..rows).step_by(BATCH_ROWS) {
            writer.write(&batch.slice(start, BATCH_ROWS.min(rows - start)))?;
        }
        self.rows += rows as u64;
        Ok(())
    }

    fn finish(mut self) -> Result<Spool, ArrowError> {
        let schema = self.schema.clone();
        self.writer(&schema)?.finish()?;
        Ok(Spool { file: Arc::new(self.file), schema: self.schema, rows: self.rows })
    }
}

/// How a program runs once.
pub(super) struct Once<'a> {
    pub(super) program: &'a Program,
    pub(super) progress: &'a Progress,
    /// Where the temporary file is made.
    pub(super) folder: &'a Path,
    /// How long the next batch may take.
    pub(super) timeout: Option<Duration>,
    /// The schema of the file if it has no batch.
    pub(super) schema: SchemaRef,
}

/// The error of the engine or the file, or a failure of the program.
pub(super) enum OnceError {
    Run(RunError),
    Failure(Failure),
}

impl<E: Into<RunError>> From<E> for OnceError {
    fn from(error: E) -> Self {
        Self::Run(error.into())
    }
}

impl Once<'_> {
    /// Runs the program over `rows` (of the columns that are sent), or over nothing; `accept`
    /// checks a batch and gives what is kept of it.
    pub(super) async fn run(
        &self,
        rows: Option<(SchemaRef, DataFrame)>,
        mut accept: impl FnMut(RecordBatch) -> Result<RecordBatch, Breach>,
    ) -> Result<Spool, OnceError> {
        let mut file = SpoolWriter::new(self.folder, self.schema.clone())?;
        let schema = rows.as_ref().map(|(schema, _)| schema);
        let mut worker = Worker::start(self.program, schema, self.progress).map_err(OnceError::Failure)?;
        let feed = match (rows, worker.take_sender()) {
            (Some((schema, rows)), Some(sender)) => Some(tokio::spawn(feed(rows, schema, sender))),
            _ => None,
        };
        let _stop = feed.as_ref().map(|feed| AbortOnDrop(feed.abort_handle()));
        loop {
            let next = match self.timeout {
                Some(limit) => tokio::time::timeout(limit, worker.answer()).await.map_err(|_| limit),
                None => Ok(worker.answer().await),
            };
            let batch = match next {
                Ok(None) => break,
                Ok(Some(Ok(batch))) => batch,
                Ok(Some(Err(error))) => {
                    return Err(OnceError::Failure(worker.fail(error.to_string(), false).await));
                }
                Err(limit) => {
                    let reason = format!("it wrote no batch for {} s", limit.as_secs_f64());
                    return Err(OnceError::Failure(worker.fail(reason, false).await));
                }
            };
            let kept = match accept(batch) {
                Ok(kept) => kept,
                Err(breach) => {
                    let is_final = !matches!(breach, Breach::Rows(_));
                    return Err(OnceError::Failure(worker.fail(breach.to_string(), is_final).await));
                }
            };
            file = blocking(move || file.write(&kept).map(|()| file))
                .await
                .map_err(RunError::from)?
                .map_err(DataFusionError::from)?;
        }
        worker.finish().await.map_err(OnceError::Failure)?;
        if let Some(feed) = feed {
            feed.await.map_err(|error| RunError::Internal(error.to_string()))??;
        }
        Ok(blocking(move || file.finish()).await.map_err(RunError::from)?.map_err(DataFusionError::from)?)
    }

    /// [`Once::run`], repeated once if the program fails.
    pub(super) async fn run_or_repeat(
        &self,
        rows: Option<(SchemaRef, DataFrame)>,
        expected: Option<u64>,
        mut accept: impl FnMut(RecordBatch) -> Result<RecordBatch, Breach>,
    ) -> Result<Spool, RunError> {
        let mut was_restarted = false;
        loop {
            let failure = match self.run(rows.clone(), &mut accept).await {
                Ok(spool) if expected.is_none_or(|expected| expected == spool.rows) => return Ok(spool),
                Ok(spool) => Failure {
                    reason: format!("it answered {} rows with {}", expected.unwrap_or_default(), spool.rows),
                    stderr: Vec::new(),
                    is_final: false,
                },
                Err(OnceError::Failure(failure)) => failure,
                Err(OnceError::Run(error)) => return Err(error),
            };
            if was_restarted || failure.is_final {
                return Err(failure.into_error(self.program, was_restarted));
            }
            was_restarted = true;
            self.progress.note(format!("`{}` is restarted: {}", self.program.shown, failure.reason));
        }
    }
}

struct AbortOnDrop(tokio::task::AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Sends all rows, as far as the program reads.
async fn feed(rows: DataFrame, schema: SchemaRef, sender: Sender<RecordBatch>) -> Result<(), RunError> {
    let mut rows = rows.execute_stream().await?;
    while let Some(batch) = rows.next().await {
        if sender.send(project(&batch?, &schema)?).await.is_err() {
            break;
        }
    }
    Ok(())
}

/// Puts together rows and answers of the same number, both in the same order.
#[derive(Debug)]
pub(super) struct Pairing {
    pub(super) rows: DataFrame,
    pub(super) answers: DataFrame,
    /// The columns that were sent.
    pub(super) sent: SchemaRef,
    /// The columns of the answers.
    pub(super) answered: SchemaRef,
    pub(super) contract: Arc<RowContract>,
    pub(super) program: Program,
}

impl PartitionStream for Pairing {
    fn schema(&self) -> &SchemaRef {
        &self.contract.output
    }

    fn execute(&self, _: Arc<TaskContext>) -> SendableRecordBatchStream {
        let mut builder = RecordBatchReceiverStreamBuilder::new(self.contract.output.clone(), 1);
        let output = builder.tx();
        let pairing = Self {
            rows: self.rows.clone(),
            answers: self.answers.clone(),
            sent: self.sent.clone(),
            answered: self.answered.clone(),
            contract: self.contract.clone(),
            program: self.program.clone(),
        };
        builder.spawn(async move { pairing.run(&output).await });
        builder.build()
    }
}

impl Pairing {
    async fn run(self, output: &Sender<EngineResult<RecordBatch>>) -> EngineResult<()> {
        let mut rows = self.rows.clone().execute_stream().await?;
        let mut answers = self.answers.clone().execute_stream().await?;
        let mut rest = RecordBatch::new_empty(self.answered.clone());
        while let Some(batch) = rows.next().await {
            let batch = batch?;
            let mut parts = vec![rest];
            let mut count = parts[0].num_rows();
            while count < batch.num_rows()
                && let Some(answer) = answers.next().await
            {
                parts.push(project(&answer?, &self.answered)?);
                count += parts[parts.len() - 1].num_rows();
            }
            let answer = concat_batches(&self.answered, &parts)?;
            let taken = batch.num_rows().min(count);
            rest = answer.slice(taken, count - taken);
            let checked = self.contract.check(&project(&batch, &self.sent)?, answer.slice(0, taken));
            let answer = checked.map_err(|breach| {
                let reason = breach.to_string();
                Failure { reason, stderr: Vec::new(), is_final: true }.into_error(&self.program, false)
            })?;
            let live = vec![true; batch.num_rows()].into();
            if output.send(Ok(self.contract.output(&batch, &live, &answer)?)).await.is_err() {
                break;
            }
        }
        Ok(())
    }
}
