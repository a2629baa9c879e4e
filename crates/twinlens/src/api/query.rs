//! Rows of runs: by SQL, or of one table.

use std::task::Poll;
use std::time::Duration;

use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::common::TableReference;
use datafusion::error::DataFusionError;
use datafusion::execution::{SendableRecordBatchStream, SessionStateBuilder};
use datafusion::prelude::SessionContext;
use futures::StreamExt;
use tokio::runtime::Runtime;
use tokio::sync::mpsc::{Receiver, channel};
use twinlens_pipeline::Registry;
use twinlens_pipeline::suggest::did_you_mean;

use super::error::{Error, catch};
use crate::errors::Failure;
use crate::runtime::{STACK_BYTES, multi_thread};
use crate::sql::query::{parse, row_counts, start, table_names, with_hint};
use crate::sql::runs::Runs;
use crate::syntax::ident;

/// Batches that are computed ahead of the reader.
const BATCHES_AHEAD: usize = 2;

/// The rows of a query, batch by batch, as they are computed.
pub struct RowStream {
    schema: SchemaRef,
    batches: Receiver<Result<RecordBatch, DataFusionError>>,
    runtime: Option<Runtime>,
}

impl RowStream {
    /// Its columns.
    pub fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    /// The next batch, if it is ready within `timeout`; `None` after the last one.
    ///
    /// # Errors
    /// Those of the query.
    pub fn poll(&mut self, timeout: Duration) -> Poll<Option<Result<RecordBatch, Error>>> {
        let Some(runtime) = &self.runtime else { return Poll::Ready(None) };
        let next = runtime.block_on(async { tokio::time::timeout(timeout, self.batches.recv()).await });
        next.map_or(Poll::Pending, |batch| Poll::Ready(batch.map(|batch| batch.map_err(error))))
    }
}

impl Iterator for RowStream {
    type Item = Result<RecordBatch, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        let batch = self.batches.blocking_recv()?;
        Some(batch.map_err(error))
    }
}

impl Drop for RowStream {
    fn drop(&mut self) {
        // Dropping a runtime waits for its blocking tasks.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn error(error: DataFusionError) -> Error {
    Failure::from(error).into()
}

/// Which rows and columns of a table are read.
#[derive(Debug, Clone, Default)]
pub struct Scan {
    /// `images`, `images.rejects`, a view.
    pub table: String,
    /// All columns without.
    pub columns: Option<Vec<String>>,
    /// A SQL predicate.
    pub predicate: Option<String>,
    /// At most so many rows.
    pub limit: Option<usize>,
}

/// A table of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableInfo {
    /// Its name in SQL, quoted if necessary.
    pub name: String,
    /// `None` for a view.
    pub rows: Option<u64>,
}

/// The tables and views of a run.
///
/// # Errors
/// It is not a run directory, or a manifest is damaged.
pub fn tables(registry: &Registry, dir: &str) -> Result<Vec<TableInfo>, Error> {
    let runs = Runs::new(registry, dir, &[])?;
    let (_runtime, names) = on_runtime(async || Ok(table_names(&runs.open().await?)))?;
    let counts = row_counts(&runs.dir)?;
    let table = |name: String| TableInfo { rows: counts.get(&name).copied(), name };
    Ok(names.into_iter().map(table).collect())
}

/// Runs a query; all but the last of several, such as `create view`, may give no rows. The tables
/// of other runs, given by name and directory, are `NAME.table`.
///
/// # Errors
/// The query is malformed, names what does not exist, or writes; it is not a run directory.
pub fn sql(
    registry: &Registry,
    dir: &str,
    queries: &str,
    with: &[(String, String)],
) -> Result<RowStream, Error> {
    let runs = Runs::new(registry, dir, with)?;
    stream(async || {
        let session = runs.open().await?;
        let mut statements = parse(queries)?;
        let last = statements.pop().ok_or_else(|| Failure::user("expected a query, got none"))?;
        for statement in statements {
            let mut rows = start(&session, statement).await?;
            while let Some(batch) = rows.next().await {
                batch?;
            }
        }
        start(&session, last).await
    })
}

/// Reads a table of a run, and of it no more than is asked for. The rows of a dataset come in their
/// order.
///
/// # Errors
/// The table or a column does not exist, the predicate is malformed; it is not a run directory.
pub fn scan(registry: &Registry, dir: &str, scan: &Scan) -> Result<RowStream, Error> {
    let runs = Runs::new(registry, dir, &[])?;
    stream(async || {
        let session = in_order(&runs.open().await?);
        let started = open_table(&session, &runs, scan).await;
        started.map_err(|failure| with_hint(&session, failure))
    })
}

/// The same tables in a session whose plans have one partition, which keeps the order of rows:
/// columns that are read one by one belong together.
fn in_order(session: &SessionContext) -> SessionContext {
    let config = session.copied_config().with_target_partitions(1);
    // Or the catalog with the tables would be replaced.
    let config = config.with_create_default_catalog_and_schema(false);
    let state = SessionStateBuilder::new_from_existing(session.state()).with_config(config).build();
    SessionContext::new_with_state(state)
}

async fn open_table(
    session: &SessionContext,
    runs: &Runs<'_>,
    scan: &Scan,
) -> Result<SendableRecordBatchStream, Failure> {
    let name = table_name(session, &scan.table)
        .ok_or_else(|| unknown_table(session, &scan.table, &runs.dir.to_string()))?;
    let mut frame = session.table(name).await?;
    if let Some(predicate) = &scan.predicate {
        let predicate = frame.parse_sql_expr(predicate)?;
        frame = frame.filter(predicate)?;
    }
    if let Some(columns) = &scan.columns {
        let known: Vec<&str> = frame.schema().fields().iter().map(|field| field.name().as_str()).collect();
        if let Some(missing) = columns.iter().find(|column| !known.contains(&column.as_str())) {
            let hint = did_you_mean(missing, known.iter().copied())
                .unwrap_or_else(|| format!("its columns are {}", known.join(", ")));
            let message = format!("`{}` has no column `{missing}`", scan.table);
            return Err(Failure::user(message).hint(hint));
        }
        let columns = columns.iter().map(datafusion::logical_expr::ident).collect::<Vec<_>>();
        frame = frame.select(columns)?;
    }
    if let Some(limit) = scan.limit {
        frame = frame.limit(0, Some(limit))?;
    }
    Ok(frame.execute_stream().await?)
}

/// The table of a name, as it is or as SQL quotes it; `stage.table` is a side table.
fn table_name(session: &SessionContext, name: &str) -> Option<TableReference> {
    let side = name.split_once('.').map(|(stage, table)| TableReference::partial(stage, table));
    let names = [Some(TableReference::bare(name)), side, Some(TableReference::parse_str(name))];
    names.into_iter().flatten().find(|name| session.table_exist(name.clone()).unwrap_or(false))
}

fn unknown_table(session: &SessionContext, name: &str, dir: &str) -> Failure {
    let failure = Failure::user(format!("{dir} has no table `{name}`"));
    if let Some(needs) = crate::views::missing_reason(name) {
        return failure.hint(needs);
    }
    let known = table_names(session);
    let meant = did_you_mean(&ident(name), known.iter().map(String::as_str));
    failure.hint(meant.unwrap_or_else(|| format!("the tables are {}", known.join(", "))))
}

/// Starts a query on a runtime of its own, whose threads compute its batches.
fn stream(
    start: impl AsyncFnOnce() -> Result<SendableRecordBatchStream, Failure> + Send,
) -> Result<RowStream, Error> {
    let (runtime, mut rows) = on_runtime(start)?;
    let schema = rows.schema();
    let (send, batches) = channel(BATCHES_AHEAD);
    runtime.spawn(async move {
        while let Some(batch) = rows.next().await {
            if send.send(batch).await.is_err() {
                break;
            }
        }
    });
    Ok(RowStream { schema, batches, runtime: Some(runtime) })
}

/// Does work on a new runtime, and on a thread whose stack is as large as deep queries need.
fn on_runtime<T: Send>(work: impl AsyncFnOnce() -> Result<T, Failure> + Send) -> Result<(Runtime, T), Error> {
    catch(|| {
        let runtime = multi_thread(None)?;
        let done = std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("query".into()).stack_size(STACK_BYTES);
            let thread = thread.spawn_scoped(scope, || runtime.block_on(work()));
            let thread = thread.map_err(|error| Failure::user(format!("cannot start a thread: {error}")))?;
            thread.join().unwrap_or_else(|_| Err(Failure::internal("a query panicked")))
        });
        match done {
            Ok(done) => Ok((runtime, done)),
            Err(failure) => {
                runtime.shutdown_background();
                Err(failure.into())
            }
        }
    })
}
