//! How the command fails: whose fault it was, what to do next, and the exit code.

use std::error::Error;
use std::io::{self, Write};

use datafusion::error::DataFusionError;
use serde_json::json;
use twinlens_dataset::DatasetError;
use twinlens_pipeline::RunError;

use crate::cli::LogFormat;
use crate::text::{Paint, printable};

/// Why the command ends without success, as its exit code says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Whoever read stdout has gone: nothing is wrong.
    Quiet = 0,
    /// The user's mistake, or the world's.
    User = 1,
    /// Ours.
    Ours = 2,
    /// Done, with more rejects than the pipeline allows.
    Rejects = 3,
    /// Interrupted after a clean commit.
    Interrupted = 130,
}

/// A failure, ready to be told.
#[derive(Debug)]
pub struct Failure {
    /// The exit code.
    pub exit: Exit,
    /// What is wrong.
    pub message: String,
    /// What to do next.
    pub hint: Option<String>,
    /// The command that goes on where this one stopped.
    pub resume: Option<String>,
    /// Whether the message is a finished report, with `error:` and places of its own.
    pub rendered: bool,
}

impl Failure {
    fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into(), hint: None, resume: None, rendered: false }
    }

    /// The user's mistake, or the world's.
    pub fn user(message: impl Into<String>) -> Self {
        Self::new(Exit::User, message)
    }

    /// A broken invariant of ours.
    pub fn ours(message: impl Into<String>) -> Self {
        Self::new(Exit::Ours, message)
            .hint("this is a fault of twinlens: please report it, with the pipeline file")
    }

    /// Done, with too many rejects.
    pub fn rejects(message: impl Into<String>) -> Self {
        Self::new(Exit::Rejects, message)
    }

    /// A report that is rendered already.
    pub fn report(rendered: impl Into<String>) -> Self {
        Self { rendered: true, ..Self::new(Exit::User, rendered) }
    }

    /// A file that could not be read or written.
    pub fn io(path: impl AsRef<std::path::Path>, error: io::Error) -> Self {
        RunError::io(path.as_ref(), error).into()
    }

    /// Says what to do next.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Tells of it on stderr.
    pub fn tell(&self, format: LogFormat) {
        let mut stderr = io::stderr().lock();
        // Nobody is left to be told when stderr fails.
        let _ = stderr.write_all(self.told(format, Paint::stderr()).as_bytes());
    }

    fn told(&self, format: LogFormat, paint: Paint) -> String {
        if self.exit == Exit::Quiet {
            return String::new();
        }
        if format == LogFormat::Json {
            let event = if self.exit == Exit::Interrupted { "interrupted" } else { "error" };
            let exit = self.exit as u8;
            let object = json!({
                "event": event, "message": self.message, "hint": self.hint, "resume": self.resume, "exit": exit,
            });
            return format!("{object}\n");
        }
        let mut text = match (self.rendered, self.exit) {
            (true, _) => format!("{}\n", self.message.trim_end()),
            (false, Exit::Interrupted) => format!("{}\n", self.message),
            (false, _) => format!("{} {}\n", paint.bold_red("error:"), printable(&self.message)),
        };
        if let Some(hint) = &self.hint {
            text += &format!("{} {}\n", paint.bold("hint:"), printable(hint));
        }
        if let Some(command) = &self.resume {
            text += &format!("{} {command}\n", paint.bold("to go on:"));
        }
        text
    }
}

/// Writing to stdout failed.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::new(Exit::Quiet, ""),
            _ => Self::user(format!("stdout: {error}")),
        }
    }
}

impl From<RunError> for Failure {
    fn from(error: RunError) -> Self {
        of_run(&error)
    }
}

impl From<DatasetError> for Failure {
    fn from(error: DatasetError) -> Self {
        of_dataset(&error)
    }
}

impl From<DataFusionError> for Failure {
    fn from(error: DataFusionError) -> Self {
        of_engine(&error)
    }
}

fn of_run(error: &RunError) -> Failure {
    match error {
        RunError::User { message, hint } => Failure { hint: hint.clone(), ..Failure::user(message) },
        RunError::Internal(_) => Failure::ours(error.to_string()),
        RunError::Interrupted => {
            Failure::new(Exit::Interrupted, "interrupted; everything that was committed is kept")
        }
        RunError::Engine(inner) => of_engine(inner),
        RunError::Dataset(inner) => of_dataset(inner),
        RunError::Io { source, .. } => {
            Failure { hint: full_disk(source), ..Failure::user(error.to_string()) }
        }
    }
}

fn of_dataset(error: &DatasetError) -> Failure {
    match error {
        DatasetError::Engine(inner) => of_engine(inner),
        DatasetError::Protocol(_) | DatasetError::Schema { .. } => Failure::ours(error.to_string()),
        _ => Failure {
            hint: error.hint().or_else(|| causes(error).find_map(full_disk_of)),
            ..Failure::user(error.to_string())
        },
    }
}

/// The engine wraps what goes wrong inside it, several times over: the innermost error that we know
/// says whose fault it is.
fn of_engine(error: &DataFusionError) -> Failure {
    for cause in causes(error) {
        if let Some(inner) = cause.downcast_ref::<RunError>() {
            return of_run(inner);
        }
        if let Some(inner) = cause.downcast_ref::<DatasetError>() {
            return of_dataset(inner);
        }
    }
    let root = error.find_root();
    let message = match root {
        DataFusionError::SQL(error, _) => error.to_string(),
        _ => plain(&root.strip_backtrace()).to_string(),
    };
    match root {
        DataFusionError::ResourcesExhausted(_) => Failure::user(message)
            .hint("give the query engine more memory with --memory, or fewer threads with --threads"),
        DataFusionError::Internal(_) | DataFusionError::ExecutionJoin(_) => Failure::ours(message),
        _ => Failure { hint: causes(error).find_map(full_disk_of), ..Failure::user(message) },
    }
}

/// Without the engine's name for the sort of error.
fn plain(message: &str) -> &str {
    let sorts =
        ["Error during planning: ", "Schema error: ", "SQL error: ", "Arrow error: ", "Execution error: "];
    sorts.iter().find_map(|sort| message.strip_prefix(sort)).unwrap_or(message)
}

/// An error and what caused it, outermost first.
fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}

fn full_disk_of(error: &(dyn Error + 'static)) -> Option<String> {
    full_disk(error.downcast_ref::<io::Error>()?)
}

fn full_disk(error: &io::Error) -> Option<String> {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
        .then(|| "make room on the disk, then run the same command: it goes on where it stopped".into())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use datafusion::arrow::error::ArrowError;

    fn wrapped(error: RunError) -> DataFusionError {
        let external = DataFusionError::from(error).context("while reading");
        let arrow = ArrowError::ExternalError(Box::new(external));
        DataFusionError::Shared(Arc::new(DataFusionError::ArrowError(Box::new(arrow), None)))
    }

    fn full() -> io::Error {
        io::Error::from(io::ErrorKind::StorageFull)
    }

    #[test]
    fn the_innermost_known_error_says_whose_fault_it_is() {
        let damaged = DatasetError::DamagedFile { path: "a.parquet".into(), why: "cut".into() };
        let exhausted = DataFusionError::ResourcesExhausted("no more".into()).context("sorting");
        let cases: Vec<(&str, RunError, Exit, Option<&str>)> = vec![
            ("ours", RunError::Internal("x".into()), Exit::Ours, Some("report")),
            ("ours, wrapped", wrapped(RunError::Internal("x".into())).into(), Exit::Ours, Some("report")),
            (
                "a hint, wrapped",
                wrapped(RunError::user_with_hint("x", "do y")).into(),
                Exit::User,
                Some("do y"),
            ),
            ("interrupted, wrapped", wrapped(RunError::Interrupted).into(), Exit::Interrupted, None),
            ("a damaged file", wrapped(damaged.into()).into(), Exit::User, Some("restore a.parquet")),
            ("a full disk", RunError::io("x", full()), Exit::User, Some("make room")),
            ("a full spill disk", DataFusionError::IoError(full()).into(), Exit::User, Some("make room")),
            (
                "a full dataset disk",
                wrapped(DatasetError::io("x", full()).into()).into(),
                Exit::User,
                Some("make room"),
            ),
            ("memory", exhausted.into(), Exit::User, Some("--memory")),
            ("SQL", DataFusionError::Plan("no such column".into()).into(), Exit::User, None),
            ("the engine's bug", DataFusionError::Internal("x".into()).into(), Exit::Ours, Some("report")),
        ];
        for (name, error, exit, hint) in cases {
            let failure = Failure::from(error);
            assert_eq!(failure.exit, exit, "{name}");
            let found = failure.hint.unwrap_or_default();
            assert!(hint.map_or(found.is_empty(), |hint| found.contains(hint)), "{name}: {found}");
        }
    }

    #[test]
    fn a_failure_is_told_in_lines_or_as_json() {
        let mut failure = Failure::user("it\x1b[31m broke").hint("mend it");
        failure.resume = Some("twinlens run p.toml".into());
        let text = failure.told(LogFormat::Text, Paint::plain());
        assert_eq!(text, "error: it\\u{1b}[31m broke\nhint: mend it\nto go on: twinlens run p.toml\n");
        let json: serde_json::Value =
            serde_json::from_str(&failure.told(LogFormat::Json, Paint::plain())).unwrap();
        assert_eq!((json["exit"].as_u64(), json["hint"].as_str()), (Some(1), Some("mend it")));
        let broken = Failure::from(io::Error::from(io::ErrorKind::BrokenPipe));
        assert_eq!((broken.exit as u8, broken.told(LogFormat::Text, Paint::plain())), (0, String::new()));
    }
}
