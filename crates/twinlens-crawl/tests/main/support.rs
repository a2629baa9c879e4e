//! Whole runs for tests: a [`Lab`] is a directory in which pipelines run, with the hosts they
//! reach; a [`FinishedRun`] gives access to the results.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use arrow::array::{ArrayRef, RecordBatch};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use twinlens_dataset::{Dataset, catalog};
use twinlens_pipeline::config::{self, InputSchemas, LoadError, Overrides};
use twinlens_pipeline::files::Files;
use twinlens_pipeline::run::events::{Event, Observer, Silent};
use twinlens_pipeline::run::{Outcome, Settings, run, session};
use twinlens_pipeline::{Clock, Registry, RunError};
use twinlens_testkit::WebServer;

/// The stages of this crate.
pub(crate) fn registry() -> Registry {
    let mut registry = Registry::default();
    twinlens_crawl::register(&mut registry);
    registry
}

/// A stage of a pipeline file.
pub(crate) fn stage(name: &str, kind: &str, options: &str) -> String {
    format!("[stages.{name}]\nkind = \"{kind}\"\n{options}\n")
}

/// The rendered faults of a pipeline file with these stages; `None` if there are none.
pub(crate) fn faults(stages: &str) -> Option<String> {
    let text = format!("name = \"test\"\nseed = 7\n{stages}");
    let (overrides, schemas) = (Overrides::default(), InputSchemas::none());
    let checked = config::check("p.toml".as_ref(), &text, &registry(), &overrides, &schemas);
    checked.err().map(|report| report.render(false))
}

/// A directory in which pipelines run; like the command, a run resumes an interrupted one.
pub(crate) struct Lab {
    /// Kept while results of a run are used.
    dir: Arc<TempDir>,
    hosts: BTreeMap<String, SocketAddr>,
    max_rows: Option<u64>,
}

impl Lab {
    pub(crate) fn new() -> Self {
        Self { dir: Arc::new(tempfile::tempdir().unwrap()), hosts: BTreeMap::new(), max_rows: None }
    }

    /// Adds a host that is served by `web`.
    pub(crate) fn host(self, name: &str, web: &WebServer) -> Self {
        self.host_at(name, web.addr())
    }

    /// Adds a host at an address.
    pub(crate) fn host_at(mut self, name: &str, addr: SocketAddr) -> Self {
        self.hosts.insert(name.into(), addr);
        self
    }

    /// A path relative to the pipeline file.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Sets the maximum number of rows of a source.
    pub(crate) fn max_rows(self, max_rows: Option<u64>) -> Self {
        Self { max_rows, ..self }
    }

    /// Writes a file, and creates its directories.
    pub(crate) fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }

    /// Runs these stages and checks that no row is lost.
    pub(crate) async fn run(&self, stages: &str) -> FinishedRun {
        self.try_run(stages).await.unwrap_or_else(|error| panic!("{error}"))
    }

    /// Runs these stages, which must fail.
    pub(crate) async fn run_error(&self, stages: &str) -> RunError {
        self.try_run(stages).await.err().expect("the run fails")
    }

    async fn try_run(&self, stages: &str) -> Result<FinishedRun, RunError> {
        self.run_observed(stages, Arc::new(Silent), CancellationToken::new()).await
    }

    /// Runs these stages until `splits` splits are committed; `None` if that interrupted the run.
    pub(crate) async fn run_until(&self, splits: u64, stages: &str) -> Option<FinishedRun> {
        let cancel = CancellationToken::new();
        let observer = Arc::new(StopAfter(AtomicU64::new(splits), cancel.clone()));
        match self.run_observed(stages, observer, cancel).await {
            Err(RunError::Interrupted) => None,
            done => Some(done.unwrap_or_else(|error| panic!("{error}"))),
        }
    }

    async fn run_observed(
        &self,
        stages: &str,
        observer: Arc<dyn Observer>,
        cancel: CancellationToken,
    ) -> Result<FinishedRun, RunError> {
        self.write("pipeline.toml", format!("name = \"test\"\nseed = 7\n{stages}"));
        let registry = registry();
        let files = Files::in_folder(self.dir.path());
        let (overrides, schemas) = (Overrides::default(), InputSchemas::of(&files));
        let pipeline =
            config::load(&self.path("pipeline.toml"), &registry, &overrides, &schemas).map_err(|error| {
                match error {
                    LoadError::Invalid(report) => RunError::user(report.render(false)),
                    other => panic!("{other:#?}"),
                }
            })?;
        let settings = Settings {
            max_rows: self.max_rows,
            clock: Clock::Fixed(UNIX_EPOCH + Duration::from_secs(1_700_000_000)),
            hosts: Arc::new(self.hosts.clone()),
            ..Settings::in_folder(self.dir.path())
        };
        let outcome = run(&pipeline, &registry, &settings, observer, cancel).await?;
        let done = FinishedRun { outcome, _dir: self.dir.clone() };
        done.assert_conserved();
        Ok(done)
    }
}

/// Cancels a run after a number of splits.
struct StopAfter(AtomicU64, CancellationToken);

impl Observer for StopAfter {
    fn event(&self, event: &Event) {
        if matches!(event, Event::SplitCommitted { .. }) && self.0.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.1.cancel();
        }
    }
}

pub(crate) struct FinishedRun {
    outcome: Outcome,
    _dir: Arc<TempDir>,
}

impl FinishedRun {
    /// The rows of a query, their values joined by ` | `.
    pub(crate) async fn rows(&self, sql: &str) -> Vec<String> {
        let session = session::plain(&registry(), 2);
        catalog::register(&session, &self.outcome.datasets).await.unwrap();
        let options = FormatOptions::default().with_null("-");
        let mut rows = Vec::new();
        for batch in session.sql(sql).await.unwrap().collect().await.unwrap() {
            let columns = batch.columns().iter();
            let columns: Vec<_> =
                columns.map(|column| ArrayFormatter::try_new(column, &options).unwrap()).collect();
            rows.extend((0..batch.num_rows()).map(|row| {
                columns.iter().map(|column| column.value(row).to_string()).collect::<Vec<_>>().join(" | ")
            }));
        }
        rows
    }

    /// The dataset of a stage.
    pub(crate) fn dataset(&self, stage: &str) -> &Dataset {
        self.outcome.datasets.iter().find(|dataset| dataset.state().begin.stage == stage).unwrap()
    }

    /// Paths and hashes of all files of the datasets.
    pub(crate) fn files(&self) -> Vec<(String, String)> {
        let of = |dataset: &Dataset| {
            dataset.state().files().map(|file| (file.path.clone(), file.sha256.clone())).collect::<Vec<_>>()
        };
        self.outcome.datasets.iter().flat_map(of).collect()
    }

    /// Checks for every dataset that rows in = rows out + rejects.
    fn assert_conserved(&self) {
        for dataset in &self.outcome.datasets {
            let rejects: u64 = dataset.state().rejects().values().flat_map(BTreeMap::values).sum();
            let stage = &dataset.state().begin.stage;
            assert_eq!(dataset.state().rows_in(), Some(dataset.rows("data") + rejects), "{stage}");
            assert_eq!(dataset.rows("rejects"), rejects, "{stage}");
        }
    }
}

/// Compresses as one gzip member.
pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A Parquet file of these columns.
pub(crate) fn parquet(columns: Vec<(&str, ArrayRef)>) -> Vec<u8> {
    let columns = columns.into_iter().map(|(name, column)| (name, column, true));
    let batch = RecordBatch::try_from_iter_with_nullable(columns).unwrap();
    let mut bytes = Vec::new();
    let mut writer = parquet::arrow::ArrowWriter::try_new(&mut bytes, batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    bytes
}
