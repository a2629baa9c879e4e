//! Failures of a command: message, hint and exit code.

use std::error::Error;
use std::fmt::{self, Display, Formatter};
use std::io::{self, Write};
use std::path::PathBuf;

use datafusion::error::DataFusionError;
use serde_json::json;
use twinlens_dataset::DatasetError;
use twinlens_pipeline::RunError;
use twinlens_pipeline::config::Report;

use crate::cli::LogFormat;
use crate::secrets;
use crate::text::{Paint, printable, printable_with_colours};

/// Exit codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// The reader of stdout closed the pipe: not an error.
    Quiet = 0,
    /// User error, or an error of the environment (network, disk).
    User = 1,
    /// A bug in twinlens.
    Internal = 2,
    /// Finished, but with more rejects than the pipeline allows.
    Rejects = 3,
    /// Interrupted after a clean commit.
    Interrupted = 130,
}

/// An error as the user sees it.
#[derive(Debug)]
pub(crate) struct Failure {
    pub exit: Exit,
    pub message: String,
    /// What to do next.
    pub hint: Option<String>,
    /// The command that resumes the work.
    pub resume: Option<String>,
    /// The faults of a pipeline, of which the message is the text: with their own `error:` prefixes
    /// and source spans.
    pub report: Option<Box<Report>>,
}

impl Failure {
    fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into(), hint: None, resume: None, report: None }
    }

    pub(crate) fn user(message: impl Into<String>) -> Self {
        Self::new(Exit::User, message)
    }

    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(Exit::Internal, message)
            .hint("this is a bug in twinlens: please report it, with the pipeline file")
    }

    pub(crate) fn rejects(message: impl Into<String>) -> Self {
        Self::new(Exit::Rejects, message)
    }

    /// A pipeline has faults.
    pub(crate) fn report(report: Box<Report>) -> Self {
        Self { report: Some(report), ..Self::new(Exit::User, String::new()) }
    }

    /// A file cannot be read or written.
    pub(crate) fn io(path: impl AsRef<std::path::Path>, error: io::Error) -> Self {
        RunError::io(path.as_ref(), error).into()
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Writes the error to stderr.
    pub(crate) fn print(&self, format: LogFormat) {
        // If stderr fails, there is nowhere left to report it.
        let text = self.render(format, Paint::stderr());
        let _ = io::stderr().lock().write_all(secrets::hide(&text).as_bytes());
    }

    fn render(&self, format: LogFormat, paint: Paint) -> String {
        if self.exit == Exit::Quiet {
            return String::new();
        }
        let report = self.report.as_ref().map(|report| printable_with_colours(&report.render(paint.is_on())));
        if format == LogFormat::Json {
            let event = if self.exit == Exit::Interrupted { "interrupted" } else { "error" };
            let exit = self.exit as u8;
            let object = json!({
                "event": event, "message": report.as_ref().unwrap_or(&self.message), "hint": self.hint, "resume": self.resume, "exit": exit,
            });
            return format!("{object}\n");
        }
        let mut text = match (report, self.exit) {
            (Some(report), _) => format!("{}\n", report.trim_end()),
            (None, Exit::Interrupted) => format!("{}\n", printable(&self.message)),
            (None, _) => format!("{} {}\n", paint.bold_red("error:"), printable(&self.message)),
        };
        if let Some(hint) = &self.hint {
            text += &format!("{} {}\n", paint.bold("hint:"), printable(hint));
        }
        if let Some(command) = &self.resume {
            text += &format!("{} {command}\n", paint.bold("resume with:"));
        }
        text
    }
}

/// An I/O error and the file that it is about.
#[derive(Debug)]
pub(crate) struct FileError {
    pub(crate) path: PathBuf,
    pub(crate) error: io::Error,
}

impl Display for FileError {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path.display(), self.error)
    }
}

impl std::error::Error for FileError {}

/// For errors while writing to stdout, or to an [`crate::output::OutputFile`].
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.downcast::<FileError>() {
            Ok(FileError { path, error }) => Self::io(path, error),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Self::new(Exit::Quiet, ""),
            Err(error) => Self::user(format!("stdout: {error}")),
        }
    }
}

impl From<RunError> for Failure {
    fn from(error: RunError) -> Self {
        from_run_error(&error)
    }
}

impl From<DatasetError> for Failure {
    fn from(error: DatasetError) -> Self {
        from_dataset_error(&error)
    }
}

impl From<DataFusionError> for Failure {
    fn from(error: DataFusionError) -> Self {
        from_engine_error(&error)
    }
}

fn from_run_error(error: &RunError) -> Failure {
    match error {
        RunError::User { message, hint } => Failure { hint: hint.clone(), ..Failure::user(message) },
        RunError::Internal(_) => Failure::internal(error.to_string()),
        RunError::Interrupted => Failure::new(Exit::Interrupted, "interrupted; committed work is kept"),
        RunError::Engine(inner) => from_engine_error(inner),
        RunError::Dataset(inner) => from_dataset_error(inner),
        RunError::Io { source, .. } => {
            Failure { hint: full_disk_hint(source), ..Failure::user(error.to_string()) }
        }
    }
}

fn from_dataset_error(error: &DatasetError) -> Failure {
    match error {
        DatasetError::Engine(inner) => from_engine_error(inner),
        DatasetError::Protocol(_) | DatasetError::Schema { .. } => Failure::internal(error.to_string()),
        _ => Failure {
            hint: error.hint().or_else(|| causes(error).find_map(full_disk_hint_of)),
            ..Failure::user(error.to_string())
        },
    }
}

/// DataFusion wraps errors several times: the innermost one of ours decides the exit code.
fn from_engine_error(error: &DataFusionError) -> Failure {
    for cause in causes(error) {
        if let Some(inner) = cause.downcast_ref::<RunError>() {
            return from_run_error(inner);
        }
        if let Some(inner) = cause.downcast_ref::<DatasetError>() {
            return from_dataset_error(inner);
        }
    }
    let root = error.find_root();
    let message = match root {
        DataFusionError::SQL(error, _) => error.to_string(),
        DataFusionError::Plan(_)
        | DataFusionError::SchemaError(..)
        | DataFusionError::ArrowError(..)
        | DataFusionError::Execution(_) => root.message().into_owned(),
        _ => root.strip_backtrace(),
    };
    match root {
        DataFusionError::ResourcesExhausted(_) => Failure::user(message)
            .hint("give the query engine more memory with --memory, or fewer threads with --threads"),
        DataFusionError::Internal(_) | DataFusionError::ExecutionJoin(_) => Failure::internal(message),
        _ => Failure { hint: causes(error).find_map(full_disk_hint_of), ..Failure::user(message) },
    }
}

/// An error and its sources, outermost first.
fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}

fn full_disk_hint_of(error: &(dyn Error + 'static)) -> Option<String> {
    full_disk_hint(error.downcast_ref::<io::Error>()?)
}

fn full_disk_hint(error: &io::Error) -> Option<String> {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
        .then(|| "free some disk space, then run the same command: it resumes where it stopped".into())
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
    fn the_innermost_known_error_sets_the_exit_code() {
        let damaged = DatasetError::DamagedFile { path: "a.parquet".into(), why: "cut".into() };
        let exhausted = DataFusionError::ResourcesExhausted("no more".into()).context("sorting");
        let cases: Vec<(&str, RunError, Exit, Option<&str>)> = vec![
            ("internal", RunError::Internal("x".into()), Exit::Internal, Some("report")),
            (
                "internal, wrapped",
                wrapped(RunError::Internal("x".into())).into(),
                Exit::Internal,
                Some("report"),
            ),
            (
                "a hint, wrapped",
                wrapped(RunError::user_with_hint("x", "do y")).into(),
                Exit::User,
                Some("do y"),
            ),
            ("interrupted, wrapped", wrapped(RunError::Interrupted).into(), Exit::Interrupted, None),
            ("a damaged file", wrapped(damaged.into()).into(), Exit::User, Some("restore a.parquet")),
            ("a full disk", RunError::io("x", full()), Exit::User, Some("free some disk space")),
            (
                "a full spill disk",
                DataFusionError::IoError(full()).into(),
                Exit::User,
                Some("free some disk space"),
            ),
            (
                "a full dataset disk",
                wrapped(DatasetError::io("x", full()).into()).into(),
                Exit::User,
                Some("free space on the disk"),
            ),
            ("memory", exhausted.into(), Exit::User, Some("--memory")),
            ("SQL", DataFusionError::Plan("no such column".into()).into(), Exit::User, None),
            (
                "the engine's bug",
                DataFusionError::Internal("x".into()).into(),
                Exit::Internal,
                Some("report"),
            ),
        ];
        for (name, error, exit, hint) in cases {
            let failure = Failure::from(error);
            assert_eq!(failure.exit, exit, "{name}");
            let found = failure.hint.unwrap_or_default();
            assert!(hint.map_or(found.is_empty(), |hint| found.contains(hint)), "{name}: {found}");
        }
    }

    #[test]
    fn failures_are_rendered_as_text_or_json() {
        let mut failure = Failure::user("it\x1b[31m broke").hint("fix it");
        failure.resume = Some("twinlens run p.toml".into());
        let text = failure.render(LogFormat::Text, Paint::plain());
        assert_eq!(text, "error: it\\u{1b}[31m broke\nhint: fix it\nresume with: twinlens run p.toml\n");
        let json: serde_json::Value =
            serde_json::from_str(&failure.render(LogFormat::Json, Paint::plain())).unwrap();
        assert_eq!((json["exit"].as_u64(), json["hint"].as_str()), (Some(1), Some("fix it")));
        let broken = Failure::from(io::Error::from(io::ErrorKind::BrokenPipe));
        assert_eq!((broken.exit as u8, broken.render(LogFormat::Text, Paint::plain())), (0, String::new()));
    }
}
