//! Checking, planning and running of pipelines.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use twinlens_pipeline::Registry;
use twinlens_pipeline::config::Pipeline;
use twinlens_pipeline::run::events::{Counters, Event, Observer};
use twinlens_pipeline::run::{self, Settings};

use super::error::{Error, catch};
use crate::cli::{EngineArgs, LogFormat, ProgressMode, VerifyMode};
use crate::errors::Failure;
use crate::in_flight::Notes;
use crate::isolation::Isolation;
use crate::progress::Watcher;
use crate::{config, runtime, secrets};

/// How long a run waits for a scheduler that does not answer, and for executors.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where a pipeline comes from.
#[derive(Debug, Clone)]
pub enum PipelineSource {
    /// A pipeline file.
    File(PathBuf),
    /// The text of one. Relative paths in it start at the current directory.
    Text {
        /// What errors call it.
        name: String,
        /// TOML.
        text: String,
    },
}

impl PipelineSource {
    fn open(&self, registry: &Registry, set: &[String]) -> Result<Pipeline, Failure> {
        match self {
            Self::File(path) => config::open(path, registry, set),
            Self::Text { name, text } => config::open_text(Path::new(name), text, registry, set),
        }
    }
}

/// Options of a run, a plan or a check: those of the commands, with the same defaults.
#[derive(Debug, Clone, Default)]
pub struct RunOptions {
    /// The run directory, or its URL in an object store.
    pub dir: Option<String>,
    /// `NAME=VALUE`, as `--set`.
    pub set: Vec<String>,
    /// The last stage.
    pub until: Option<String>,
    /// Rows from each source and each input.
    pub max_rows: Option<u64>,
    /// Whether every dataset is made again.
    pub fresh: bool,
    /// Threads.
    pub threads: Option<u16>,
    /// Memory limit of the query engine in bytes.
    pub memory: Option<usize>,
    /// Whether progress is shown on stderr.
    pub progress: bool,
    /// A directory for TensorBoard's event files.
    pub tensorboard: Option<PathBuf>,
    /// The scheduler whose executors make the splits: `df://HOST:PORT`.
    pub on: Option<String>,
}

/// A finished run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunSummary {
    /// The run directory.
    pub dir: String,
    /// The datasets, in the order of their stages.
    pub datasets: Vec<String>,
    /// How many `[[tests]]` passed; all of them did.
    pub tests: usize,
}

/// Checks a pipeline, and the columns of the files that it names.
///
/// # Errors
/// All faults of the pipeline.
pub fn check(registry: &Registry, pipeline: &PipelineSource, set: &[String]) -> Result<(), Error> {
    catch(|| Ok(pipeline.open(registry, set).map(|_| ())?))
}

/// What a run would do with each stage and why, as JSON.
///
/// # Errors
/// Faults of the pipeline; the run directory is another pipeline's.
pub fn plan(registry: &Registry, pipeline: &PipelineSource, options: &RunOptions) -> Result<Value, Error> {
    catch(|| {
        let pipeline = pipeline.open(registry, &options.set)?;
        let (dir, until) = (options.dir.as_deref(), options.until.as_deref());
        let stages = crate::plan::stage_plans(&pipeline, dir, until, options.max_rows)?;
        // Options may hold secrets.
        let text = serde_json::to_string(&stages).map_err(Error::internal)?;
        serde_json::from_str(&secrets::hide(&text)).map_err(Error::internal)
    })
}

/// Runs or resumes a pipeline until it is done or `cancel` is cancelled, which commits the splits
/// in flight first. `on_event` is called on any thread, and must return quickly.
///
/// # Errors
/// Faults of the pipeline; errors of stages; failed tests; too many rejects; `Interrupted`.
pub fn run(
    registry: &Registry,
    source: &PipelineSource,
    options: &RunOptions,
    on_event: impl Fn(&Event) + Send + Sync + 'static,
    cancel: CancellationToken,
) -> Result<RunSummary, Error> {
    catch(|| {
        let pipeline = source.open(registry, &options.set)?;
        let engine = engine(options);
        let settings = Settings {
            fresh: options.fresh,
            until: options.until.clone(),
            max_rows: options.max_rows,
            ..crate::run::settings(&engine, options.dir.as_deref(), &pipeline)?
        };
        let settings = crate::run::connected(settings, options.on.clone(), PATIENCE, &pipeline)?;
        let watcher = Arc::new(crate::run::watcher(&engine, &settings, &pipeline)?);
        let observer = Arc::new(Observers { watcher: watcher.clone(), on_event });
        let _isolation = Isolation::begin(engine.isolate || pipeline.isolate)?;
        let notes = Notes::watch(&settings.dir.local_path());
        let work = crate::run::with_sites(&pipeline, &settings, async |settings| {
            Ok(run::run(&pipeline, registry, settings, observer, cancel).await?)
        });
        let done = runtime::block_on(Some(settings.threads), work);
        notes.stop(done.is_ok());
        watcher.end(&json!({ "event": "run_ended" }));
        let outcome = done.map_err(|failure| crate::run::of_running_stage(failure, &watcher))?;
        crate::run::check_outcome(&pipeline, &settings, &outcome)?;
        let names = outcome.datasets.iter().map(|dataset| dataset.state().begin.stage.clone());
        let (datasets, tests) = (names.collect(), outcome.tests.len());
        Ok(RunSummary { dir: settings.dir.to_string(), datasets, tests })
    })
}

/// The options of the commands that run stages.
fn engine(options: &RunOptions) -> EngineArgs {
    EngineArgs {
        threads: options.threads,
        memory: options.memory.unwrap_or(EngineArgs::MEMORY),
        bytes_in_flight: EngineArgs::BYTES_IN_FLIGHT,
        isolate: false,
        progress: if options.progress { ProgressMode::Auto } else { ProgressMode::Silent },
        log_format: LogFormat::Text,
        metrics: None,
        verify: VerifyMode::Always,
        tensorboard: options.tensorboard.clone(),
    }
}

/// The program's own display, and the caller's function.
struct Observers<F> {
    watcher: Arc<Watcher>,
    on_event: F,
}

impl<F: Fn(&Event) + Send + Sync> Observer for Observers<F> {
    fn event(&self, event: &Event) {
        self.watcher.event(event);
        (self.on_event)(event);
    }

    fn watch(&self, stage: &str, counters: Arc<Counters>) {
        self.watcher.watch(stage, counters);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::ErrorKind;
    use std::sync::Mutex;

    fn text(text: &str) -> PipelineSource {
        PipelineSource::Text { name: "<text>".into(), text: text.into() }
    }

    #[test]
    fn a_pipeline_of_text_runs_and_tells_its_events() {
        let place = tempfile::tempdir().unwrap();
        let dir = place.path().join("run").display().to_string();
        let source = text("name = \"t\"\n[stages.one]\nkind = \"sql\"\nquery = \"select 1 as n\"\n");
        let options = RunOptions { dir: Some(dir.clone()), ..RunOptions::default() };
        let registry = crate::registry();
        let events = Arc::new(Mutex::new(Vec::new()));
        let told = events.clone();
        let on_event = move |event: &Event| told.lock().unwrap().push(serde_json::to_value(event).unwrap());
        let summary = run(&registry, &source, &options, on_event, CancellationToken::new()).unwrap();
        assert_eq!((summary.dir, summary.datasets), (dir.clone(), vec!["one".to_string()]));
        let names: Vec<Value> = events.lock().unwrap().iter().map(|event| event["event"].clone()).collect();
        assert_eq!(names, ["stage_started", "split_committed", "stage_finished"]);
        let plan = plan(&registry, &source, &options).unwrap();
        assert_eq!(plan[0]["decision"], "reuse");
        let status = super::super::status(&dir).unwrap();
        assert_eq!((&status["pipeline"], &status["datasets"][0]["kept"]), (&json!("t"), &json!(1)));

        let cancelled = CancellationToken::new();
        cancelled.cancel();
        let fresh = RunOptions { fresh: true, ..options };
        let error = run(&registry, &source, &fresh, |_| {}, cancelled).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Interrupted);
    }

    #[test]
    fn faults_of_a_pipeline_have_places() {
        let source = text("name = \"t\"\n[stages.one]\nkind = \"sqll\"\n");
        let error = check(&crate::registry(), &source, &[]).unwrap_err();
        let [place] = &error.places[..] else { panic!("{error}") };
        assert_eq!((place.file.as_str(), place.line, place.column), ("<text>", 3, 8));
        assert_eq!(place.hint.as_deref(), Some("did you mean `sql`?"));
        assert!(error.to_string().contains("3 | kind = \"sqll\"\n"), "{error}");
    }
}
