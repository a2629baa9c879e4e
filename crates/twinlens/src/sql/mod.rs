//! `twinlens sql`: queries the datasets of a run, with an argument, queries on stdin, or a prompt.
//!
//! Manifests are only read, so this works while a run is in progress: a reader sees what was
//! committed when it started.

mod live;
mod prompt;
pub(crate) mod query;
pub(crate) mod rows;
pub(crate) mod runs;
mod terminal;
pub(crate) mod token_count;

use std::io::{IsTerminal, Read, Write};
use std::path::Path;

use datafusion::execution::SendableRecordBatchStream;
use datafusion::prelude::SessionContext;
use twinlens_dataset::storage::local;
use twinlens_pipeline::Registry;

use crate::cli::{RowFormat, SqlArgs};
use crate::errors::Failure;
use crate::output::OutputFile;
use crate::{runtime, views};
use query::{parse, start, within, write_now, write_rows};
use runs::Runs;
use terminal::stdout;

pub(crate) fn execute(args: &SqlArgs, registry: &Registry) -> Result<(), Failure> {
    let by_extension = args.output.as_deref().and_then(format_of);
    let format = args.format.or(by_extension).unwrap_or(RowFormat::Table);
    let interactive = args.query.is_none() && !args.views && std::io::stdin().is_terminal();
    if format == RowFormat::Parquet && args.output.is_none() && std::io::stdout().is_terminal() {
        return Err(Failure::user("cannot write Parquet to a terminal").hint("add `-o FILE`, or redirect it"));
    }
    runtime::block_on(None, async {
        let runs = Runs::new(registry, &args.dir, &args.with)?;
        let session = runs.open().await?;
        if args.views {
            return list_views(&session);
        }
        if interactive {
            return prompt::run(&runs, session, args, format).await;
        }
        let queries = match &args.query {
            Some(query) => query.clone(),
            None => read_stdin()?,
        };
        let (output, all) = (args.output.clone(), args.all);
        let work = async move { run_queries(&session, &queries, format, output.as_deref(), all).await };
        let done = within(args.timeout, work).await;
        if let (Err(_), Some(path)) = (&done, &args.output) {
            // Best effort: the failure itself is reported.
            let _ = std::fs::remove_file(local::unfinished(path));
        }
        done
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
    all: bool,
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
                if let Some(note) = write_rows(stream, format, stdout(all)).await? {
                    write_now(&mut std::io::stderr(), &format!("{note}\n"))?;
                }
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
    let (file, out) = OutputFile::create(path)?;
    write_rows(stream, format, (out, None)).await?;
    file.publish()
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
}
