//! `twinlens sql`: queries the datasets of a run, with an argument, queries on stdin, or a prompt.
//!
//! Manifests are only read, so this works while a run is in progress: a reader sees what was
//! committed when it started.

mod prompt;
pub mod rows;
pub mod runs;

use std::fs::File;
use std::io::{BufWriter, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};

use datafusion::error::DataFusionError;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::execution::context::SQLOptions;
use datafusion::prelude::SessionContext;
use datafusion::sql::parser::{DFParser, Statement};
use futures::FutureExt;
use futures::StreamExt;
use twinlens_dataset::MAIN;
use twinlens_dataset::storage::{Location, local};
use twinlens_pipeline::run;
use twinlens_pipeline::suggest::did_you_mean;

use crate::cli::{RowFormat, SqlArgs};
use crate::errors::Failure;
use crate::{runtime, views};
use rows::{Out, RowWriter};
use runs::Runs;

pub fn execute(args: &SqlArgs) -> Result<(), Failure> {
    let by_extension = args.output.as_deref().and_then(format_of);
    let format = args.format.or(by_extension).unwrap_or(RowFormat::Table);
    let interactive = args.query.is_none() && !args.views && std::io::stdin().is_terminal();
    if format == RowFormat::Parquet && args.output.is_none() && std::io::stdout().is_terminal() {
        return Err(Failure::user("cannot write Parquet to a terminal").hint("add `-o FILE`, or redirect it"));
    }
    runtime::block_on(None, async {
        let runs = Runs::new(&args.dir, &args.with)?;
        let session = runs.open().await?;
        if args.views {
            return list_views(&session);
        }
        if interactive {
            return prompt::run(&runs, session, format).await;
        }
        let queries = match &args.query {
            Some(query) => query.clone(),
            None => read_stdin()?,
        };
        run_queries(&session, &queries, format, args.output.as_deref()).await
    })
}

fn read_stdin() -> Result<String, Failure> {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).map_err(|error| Failure::user(format!("stdin: {error}")))?;
    Ok(text)
}

fn format_of(path: &Path) -> Option<RowFormat> {
    match path.extension()?.to_str()? {
        "csv" => Some(RowFormat::Csv),
        "json" | "jsonl" | "ndjson" => Some(RowFormat::Json),
        "parquet" => Some(RowFormat::Parquet),
        _ => None,
    }
}

/// Prints the views, and whether the run has their tables.
fn list_views(session: &SessionContext) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    for view in views::ALL {
        let exists = session.table_exist(format!("{}.{}", views::SCHEMA, view.name))?;
        out.write_all(view.help().as_bytes())?;
        if !exists {
            writeln!(out, "  not available in this run: needs {}", view.needs)?;
        }
        writeln!(out)?;
    }
    Ok(out.flush()?)
}

/// Runs queries one after another. An output file appears only when it is complete.
async fn run_queries(
    session: &SessionContext,
    queries: &str,
    format: RowFormat,
    output: Option<&Path>,
) -> Result<(), Failure> {
    let statements = parse(queries)?;
    if statements.len() != 1 && (format == RowFormat::Parquet || output.is_some()) {
        return Err(Failure::user(format!("expected one query per file, got {}", statements.len())));
    }
    for (index, statement) in statements.into_iter().enumerate() {
        let stream = start(session, statement).await?;
        let needs_blank_line =
            index > 0 && format == RowFormat::Table && !stream.schema().fields().is_empty();
        match output {
            None => {
                if needs_blank_line {
                    write_now(&mut std::io::stdout(), "\n")?;
                }
                write_rows(stream, format, stdout()).await?;
            }
            Some(path) => write_file(stream, format, path).await?,
        }
    }
    Ok(())
}

async fn write_file(
    stream: SendableRecordBatchStream,
    format: RowFormat,
    path: &Path,
) -> Result<(), Failure> {
    let temporary: PathBuf = local::unfinished(path);
    let file = File::create(&temporary).map_err(|error| Failure::io(&temporary, error))?;
    let written = write_rows(stream, format, Box::new(BufWriter::new(file))).await;
    if let Err(failure) = written {
        // Best effort: the failure itself is reported.
        let _ = std::fs::remove_file(&temporary);
        return Err(failure);
    }
    Ok(local::publish(path)?)
}

fn stdout() -> Out {
    Box::new(BufWriter::new(std::io::stdout()))
}

async fn write_rows(
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

fn parse(queries: &str) -> Result<Vec<Statement>, Failure> {
    match DFParser::parse_sql(queries) {
        Ok(statements) if statements.is_empty() => Err(Failure::user("expected a query, got none")),
        Ok(statements) => Ok(statements.into()),
        Err(error) => Err(error.into()),
    }
}

/// Plans and starts a statement. Statements that write files are refused.
async fn start(session: &SessionContext, statement: Statement) -> Result<SendableRecordBatchStream, Failure> {
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
fn with_hint(session: &SessionContext, failure: Failure) -> Failure {
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
fn table_names(session: &SessionContext) -> Vec<String> {
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

/// Quotes an identifier, if necessary.
fn ident(name: &str) -> String {
    let plain = name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    if plain { name.into() } else { format!("\"{}\"", name.replace('"', "\"\"")) }
}

/// Row counts by table name.
fn row_counts(dir: &Location) -> Result<std::collections::BTreeMap<String, u64>, Failure> {
    let mut counts = std::collections::BTreeMap::new();
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
fn write_now(out: &mut impl Write, text: &str) -> Result<(), Failure> {
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_extension_sets_the_format() {
        let cases = [
            ("a.csv", Some(RowFormat::Csv)),
            ("a.b.jsonl", Some(RowFormat::Json)),
            ("x/a.parquet", Some(RowFormat::Parquet)),
            ("parquet", None),
            ("a.txt", None),
        ];
        for (path, expected) in cases {
            assert_eq!(format_of(Path::new(path)), expected, "{path}");
        }
    }

    #[test]
    fn identifiers_are_quoted_if_necessary() {
        for (name, expected) in
            [("wit", "wit"), ("zero_shot2", "zero_shot2"), ("zero-shot", "\"zero-shot\""), ("Wit", "\"Wit\"")]
        {
            assert_eq!(ident(name), expected);
        }
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
