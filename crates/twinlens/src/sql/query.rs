//! Parsing, planning and running of queries.

use std::collections::BTreeMap;
use std::io::{BufWriter, Write};

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
use crate::cli::RowFormat;
use crate::errors::Failure;
use crate::syntax::ident;
use crate::views;

pub(super) fn stdout() -> Out {
    Box::new(BufWriter::new(std::io::stdout()))
}

pub(super) async fn write_rows(
    mut stream: SendableRecordBatchStream,
    format: RowFormat,
    out: Out,
) -> Result<(), Failure> {
    // Statements without rows (`create view`, `set`).
    if stream.schema().fields().is_empty() {
        while let Some(batch) = stream.next().await {
            batch?;
        }
        return Ok(());
    }
    let mut writer = RowWriter::new(format, out, &stream.schema())?;
    while let Some(batch) = stream.next().await {
        writer.write(&batch?)?;
    }
    writer.finish()
}

pub(super) fn parse(queries: &str) -> Result<Vec<Statement>, Failure> {
    match DFParser::parse_sql(queries) {
        Ok(statements) if statements.is_empty() => Err(Failure::user("expected a query, got none")),
        Ok(statements) => Ok(statements.into()),
        Err(error) => Err(error.into()),
    }
}

/// Plans and starts a statement. Statements that write files are refused.
pub(super) async fn start(
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
pub(super) fn with_hint(session: &SessionContext, failure: Failure) -> Failure {
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
pub(super) fn table_names(session: &SessionContext) -> Vec<String> {
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
pub(super) fn row_counts(dir: &Location) -> Result<BTreeMap<String, u64>, Failure> {
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
