//! The SQL prompt: multi-line queries that end with `;`, history, completion, and a few commands
//! that start with `\`.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use datafusion::prelude::SessionContext;
use rustyline::completion::Completer;
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::FileHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{Config, Context, Editor, Helper};
use tokio::sync::Notify;

use super::query::{parse, row_counts, start, table_names, with_hint, within, write_now, write_rows};
use super::runs::Runs;
use super::terminal::stdout;
use crate::cli::{LogFormat, RowFormat, SqlArgs};
use crate::env;
use crate::errors::{Exit, Failure};
use crate::signals;
use crate::syntax::ident;
use crate::table::TableWriter;
use crate::text::count;
use twinlens_dataset::types;

const HELP: &str = "\
End a query with `;`. Ctrl-C cancels it.
  \\d        list tables
  \\d TABLE  list columns
  \\r        reload the run directory (while a run is in progress)
  \\q        quit
";

pub(super) async fn run(
    runs: &Runs<'_>,
    session: SessionContext,
    args: &SqlArgs,
    format: RowFormat,
) -> Result<(), Failure> {
    let interrupts = signals::interrupts()
        .map_err(|error| Failure::user(format!("cannot listen for signals: {error}")))?;
    let (all, timeout) = (args.all, args.timeout);
    let mut prompt = Prompt { runs, session, format, all, timeout, interrupts };
    let config = Config::builder().max_history_size(10_000).map_err(terminal)?.auto_add_history(true).build();
    let mut editor: Editor<Names, FileHistory> = Editor::with_config(config).map_err(terminal)?;
    let history = history_file();
    if let Some(history) = &history {
        // The file may not exist yet.
        let _ = editor.load_history(history);
    }
    write_now(
        &mut std::io::stderr(),
        "End queries with `;`. \\d lists tables, \\? shows help, \\q quits.\n",
    )?;
    loop {
        editor.set_helper(Some(Names(prompt.names())));
        match editor.readline("twinlens> ") {
            Ok(line) if matches!(line.trim(), "\\q" | "exit" | "quit" | "exit;" | "quit;") => break,
            Ok(line) => match prompt.run_line(line.trim()).await {
                Err(failure) if failure.exit == Exit::Quiet => break,
                Err(failure) => failure.print(LogFormat::Text),
                Ok(()) => {}
            },
            // Ctrl-C discards the line, Ctrl-D ends the prompt.
            Err(ReadlineError::Interrupted) => {}
            Err(ReadlineError::Eof) => break,
            Err(error) => return Err(terminal(error)),
        }
    }
    if let Some(history) = &history
        && let Err(error) = editor.save_history(history)
    {
        let message = format!("cannot save the history: {}: {error}\n", history.display());
        write_now(&mut std::io::stderr(), &message)?;
    }
    Ok(())
}

fn terminal(error: ReadlineError) -> Failure {
    Failure::user(format!("cannot read the terminal: {error}"))
        .hint("give the query as an argument or on stdin")
}

fn history_file() -> Option<PathBuf> {
    let dir = env::state_dir()?;
    std::fs::create_dir_all(&dir).ok()?;
    Some(dir.join("history"))
}

struct Prompt<'a> {
    runs: &'a Runs<'a>,
    session: SessionContext,
    format: RowFormat,
    all: bool,
    timeout: Option<Duration>,
    interrupts: Arc<Notify>,
}

impl Prompt<'_> {
    async fn run_line(&mut self, line: &str) -> Result<(), Failure> {
        match line.strip_prefix('\\') {
            None if line.is_empty() => Ok(()),
            None => self.query(line).await,
            Some(command) => match command.trim_end_matches(';').split_once(' ').unwrap_or((command, "")) {
                ("d", "") => self.tables(),
                ("d", table) => self.columns(table.trim()).await,
                ("r", "") => {
                    self.session = self.runs.open().await?;
                    Ok(())
                }
                _ => write_now(&mut std::io::stderr(), HELP),
            },
        }
    }

    async fn query(&self, text: &str) -> Result<(), Failure> {
        let (session, text, format, all) = (self.session.clone(), text.to_string(), self.format, self.all);
        // A separate task, because a plan that computes for long without yielding would block
        // Ctrl-C here. It continues in the background until it yields or the prompt ends.
        let query = async move {
            for statement in parse(&text)? {
                let rows = start(&session, statement).await?;
                if let Some(note) = write_rows(rows, format, stdout(all)).await? {
                    write_now(&mut std::io::stderr(), &format!("{note}\n"))?;
                }
            }
            Ok(())
        };
        let mut work = tokio::spawn(within(self.timeout, query));
        tokio::select! {
            done = &mut work => done.unwrap_or_else(|panic| Err(Failure::internal(panic.to_string()))),
            () = self.interrupts.notified() => {
                work.abort();
                write_now(&mut std::io::stderr(), "cancelled\n")
            }
        }
    }

    fn tables(&self) -> Result<(), Failure> {
        let counts = row_counts(&self.runs.dir)?;
        let mut table = TableWriter::with_columns(stdout(true).0, &["table", "rows"], &[false, true]);
        for name in table_names(&self.session) {
            let rows = counts.get(&name).map(|rows| count(*rows)).unwrap_or_default();
            table.row(vec![name, rows])?;
        }
        table.finish()?;
        Ok(())
    }

    async fn columns(&self, name: &str) -> Result<(), Failure> {
        let frame = self.session.table(name).await.map_err(|error| with_hint(&self.session, error.into()))?;
        let mut table = TableWriter::with_columns(stdout(true).0, &["column", "type"], &[false, false]);
        for field in frame.schema().fields() {
            table.row(vec![ident(field.name()), types::name(field.data_type())])?;
        }
        table.finish()?;
        Ok(())
    }

    /// Tables and columns, for completion.
    fn names(&self) -> Vec<String> {
        let mut names = table_names(&self.session);
        if let Some(public) = self.session.catalog("datafusion").and_then(|catalog| catalog.schema("public"))
        {
            for table in public.table_names() {
                // All tables are in memory, so this future is ready at once.
                if let Some(Ok(Some(table))) = futures::FutureExt::now_or_never(public.table(&table)) {
                    names.extend(table.schema().fields().iter().map(|field| ident(field.name())));
                }
            }
        }
        names.sort();
        names.dedup();
        names
    }
}

/// Completes names, and continues input until `;`.
struct Names(Vec<String>);

impl Completer for Names {
    type Candidate = String;

    fn complete(&self, line: &str, at: usize, _: &Context<'_>) -> rustyline::Result<(usize, Vec<String>)> {
        let part = |c: char| c.is_alphanumeric() || matches!(c, '_' | '.' | '"' | '-');
        let start = line[..at]
            .rfind(|c| !part(c))
            .map_or(0, |before| before + line[before..].chars().next().map_or(1, char::len_utf8));
        let word = &line[start..at];
        let matching = self.0.iter().filter(|name| !word.is_empty() && name.starts_with(word)).cloned();
        Ok((start, matching.collect()))
    }
}

impl Validator for Names {
    fn validate(&self, cx: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        Ok(if is_complete(cx.input()) { ValidationResult::Valid(None) } else { ValidationResult::Incomplete })
    }
}

fn is_complete(input: &str) -> bool {
    let input = input.trim();
    input.is_empty() || input.starts_with('\\') || input.ends_with(';') || matches!(input, "exit" | "quit")
}

impl Helper for Names {}
impl Highlighter for Names {}
impl Hinter for Names {
    type Hint = String;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_end_with_a_semicolon() {
        for (input, expected) in
            [("select 1", false), ("select 1\n;", true), ("\\d wit", true), ("", true), ("quit", true)]
        {
            assert_eq!(is_complete(input), expected, "{input}");
        }
    }

    #[test]
    fn names_are_completed_by_prefix() {
        let names = Names(vec!["caption".into(), "wit".into(), "wit.rejects".into()]);
        let history = FileHistory::new();
        let complete = |line: &str| names.complete(line, line.len(), &Context::new(&history)).unwrap();
        assert_eq!(complete("select cap"), (7, vec!["caption".to_string()]));
        assert_eq!(complete("select * from wit"), (14, vec!["wit".to_string(), "wit.rejects".into()]));
        assert_eq!(complete("select 'é',cap"), (12, vec!["caption".to_string()]));
        assert_eq!(complete("select "), (7, vec![]));
    }
}
