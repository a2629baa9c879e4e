//! Parsing, planning and running of queries.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use datafusion::error::DataFusionError;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::execution::context::SQLOptions;
use datafusion::prelude::SessionContext;
use datafusion::sql::parser::{DFParser, Statement};
use futures::{FutureExt, StreamExt};
use twinlens_dataset::MAIN;
use twinlens_dataset::storage::Location;
use twinlens_pipeline::run;
use twinlens_pipeline::suggest::did_you_mean;

use super::rows::{Out, RowWriter};
use super::terminal::Limit;
use crate::cli::RowFormat;
use crate::errors::Failure;
use crate::syntax::ident;
use crate::text::seconds;
use crate::views;

/// Rows that are written together where there is a limit.
const PIECE_ROWS: usize = 16;

/// Writes the rows of an answer; gives what is to be said if there are more than the limit.
pub(super) async fn write_rows(
    mut stream: SendableRecordBatchStream,
    format: RowFormat,
    (out, limit): (Out, Option<Limit>),
) -> Result<Option<String>, Failure> {
    // Statements without rows (`create view`, `set`).
    if stream.schema().fields().is_empty() {
        while let Some(batch) = stream.next().await {
            batch?;
        }
        return Ok(None);
    }
    let written = Arc::new(AtomicUsize::new(0));
    let out = Box::new(Counted { out, bytes: written.clone() });
    let mut writer = RowWriter::new(format, out, &stream.schema())?;
    let mut rows = 0;
    while let Some(batch) = stream.next().await {
        let batch = batch?;
        let Some(limit) = limit else {
            writer.write(&batch)?;
            continue;
        };
        let mut from = 0;
        while from < batch.num_rows() {
            let piece = PIECE_ROWS.min(batch.num_rows() - from).min(limit.rows - rows);
            if piece == 0 || written.load(Ordering::Relaxed) > limit.bytes {
                writer.finish()?;
                return Ok(Some(limit.note(rows)));
            }
            writer.write(&batch.slice(from, piece))?;
            (from, rows) = (from + piece, rows + piece);
        }
    }
    writer.finish()?;
    Ok(None)
}

/// Counts the bytes that go through it.
struct Counted {
    out: Out,
    bytes: Arc<AtomicUsize>,
}

impl Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.bytes.fetch_add(written, Ordering::Relaxed);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Ends work that takes longer than the limit. A task of its own, since a plan may compute for long
/// without yielding.
pub(super) async fn within<T: Send + 'static>(
    limit: Option<Duration>,
    work: impl Future<Output = Result<T, Failure>> + Send + 'static,
) -> Result<T, Failure> {
    let Some(limit) = limit else { return work.await };
    let mut running = tokio::spawn(work);
    match tokio::time::timeout(limit, &mut running).await {
        Ok(done) => done.unwrap_or_else(|panic| Err(Failure::internal(panic.to_string()))),
        Err(_) => {
            running.abort();
            let message = format!("the query took longer than {}", seconds(limit));
            Err(Failure::user(message).hint("give it more time with --timeout"))
        }
    }
}

pub(crate) fn parse(queries: &str) -> Result<Vec<Statement>, Failure> {
    match DFParser::parse_sql(queries) {
        Ok(statements) if statements.is_empty() => Err(Failure::user("expected a query, got none")),
        Ok(statements) => Ok(statements.into()),
        Err(error) => Err(error.into()),
    }
}

/// Plans and starts a statement. Statements that write files are refused.
pub(crate) async fn start(
    session: &SessionContext,
    statement: Statement,
) -> Result<SendableRecordBatchStream, Failure> {
    let started = async {
        let plan = session.state().statement_to_plan(statement).await?;
        SQLOptions::new().with_allow_dml(false).verify_plan(&plan)?;
        session.execute_logical_plan(plan).await?.execute_stream().await
    };
    // DataFusion's planner panics on a few queries, such as a scalar subquery without columns.
    let started = std::panic::AssertUnwindSafe(started).catch_unwind().await;
    let started =
        started.unwrap_or_else(|_| Err(DataFusionError::Plan("DataFusion cannot plan this query".into())));
    started.map_err(|error| with_hint(session, error.into()))
}

/// Suggests table names; DataFusion itself suggests columns.
pub(crate) fn with_hint(session: &SessionContext, failure: Failure) -> Failure {
    let missing = failure.message.split_once("table '").and_then(|(_, rest)| rest.split_once("' not found"));
    let Some((name, _)) = missing.filter(|_| failure.hint.is_none()) else { return failure };
    let name = name.rsplit('.').next().unwrap_or(name).to_string();
    if let Some(needs) = views::missing_reason(&name) {
        return failure.hint(needs);
    }
    let known = table_names(session);
    match did_you_mean(&name, known.iter().map(String::as_str)) {
        Some(hint) => failure.hint(hint),
        None => failure.hint(format!("the tables are {}", known.join(", "))),
    }
}

/// All tables, quoted as necessary.
pub(crate) fn table_names(session: &SessionContext) -> Vec<String> {
    let Some(catalog) = session.catalog("datafusion") else { return Vec::new() };
    let mut names = Vec::new();
    for schema in catalog.schema_names() {
        let tables = catalog.schema(&schema).map(|schema| schema.table_names()).unwrap_or_default();
        match schema.as_str() {
            "information_schema" => {}
            "public" => names.extend(tables.iter().map(|table| ident(table))),
            stage => names.extend(tables.iter().map(|table| format!("{}.{}", ident(stage), ident(table)))),
        }
    }
    names.sort();
    names
}

/// Row counts by table name.
pub(crate) fn row_counts(dir: &Location) -> Result<BTreeMap<String, u64>, Failure> {
    let mut counts = BTreeMap::new();
    for dataset in run::datasets(dir)? {
        let stage = ident(&dataset.state().begin.stage);
        for table in dataset.tables() {
            let name = if table == MAIN { stage.clone() } else { format!("{stage}.{}", ident(table)) };
            counts.insert(name, dataset.rows(table));
        }
    }
    Ok(counts)
}

/// Writes and flushes.
pub(super) fn write_now(out: &mut impl Write, text: &str) -> Result<(), Failure> {
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn shown(sql: &str, format: RowFormat, limit: Limit) -> (String, Option<String>) {
        let session = SessionContext::new();
        let stream = start(&session, parse(sql).unwrap().remove(0)).await.unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        let out: Out = Box::new(file.reopen().unwrap());
        let note = write_rows(stream, format, (out, Some(limit))).await.unwrap();
        (std::fs::read_to_string(file.path()).unwrap(), note)
    }

    #[tokio::test]
    async fn answers_are_bounded_by_rows_and_bytes() {
        let all = "select value, repeat('x', 100) from generate_series(1, 100)";
        for (rows, bytes, expected, has_note) in [
            (30, 1 << 20, 30, true),
            (100, 1 << 20, 100, false),
            (100, 2000, 32, true),
            (16, 1 << 20, 16, true),
        ] {
            let (text, note) = shown(all, RowFormat::Csv, Limit { rows, bytes }).await;
            assert_eq!((text.lines().count(), note.is_some()), (expected + 1, has_note), "{rows} {bytes}");
        }
        let (table, note) = shown(all, RowFormat::Table, Limit { rows: 20, bytes: 1 << 20 }).await;
        assert_eq!(table.lines().count(), 22);
        assert!(note.unwrap().starts_with("... 20 rows are shown"));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_query_ends_in_time() {
        let forever = async {
            tokio::time::sleep(Duration::from_secs(3600)).await;
            Ok(())
        };
        let failure = within(Some(Duration::from_millis(20)), forever).await.unwrap_err();
        assert!(failure.message.starts_with("the query took longer than"), "{}", failure.message);
        assert_eq!(within(Some(Duration::from_secs(60)), async { Ok(3) }).await.unwrap(), 3);
        assert_eq!(within(None, async { Ok(3) }).await.unwrap(), 3);
    }

    #[tokio::test]
    async fn queries_cannot_write() {
        let session = SessionContext::new();
        for sql in ["copy (select 1) to 'x.csv'", "insert into t select 1"] {
            let statement = parse(sql).unwrap().remove(0);
            assert!(start(&session, statement).await.is_err(), "{sql}");
        }
        let several = parse("create view v as select 1 as one; select one + 1 from v").unwrap();
        assert_eq!(several.len(), 2);
        for statement in several {
            start(&session, statement).await.unwrap();
        }
    }
}
