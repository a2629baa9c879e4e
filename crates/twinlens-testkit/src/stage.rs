//! Tests of stages: options in TOML over tables in memory, run as the program runs them.
//!
//! Each table is a Parquet file beside the pipeline file: the options name it `pages.parquet`. So a
//! test goes through the whole contract: options, checks against real columns, splits, conservation
//! of rows, order, shards.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::parquet::arrow::ArrowWriter;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use twinlens_dataset::{Dataset, MAIN, REJECTS};
use twinlens_pipeline::config::{self, InputSchemas, Overrides, Pipeline, Report};
use twinlens_pipeline::files::Files;
use twinlens_pipeline::run::events::{Observer, Progress, Silent};
use twinlens_pipeline::run::{self, Settings, session};
use twinlens_pipeline::{Clock, Registry, RunContext, RunError};

/// The name of the stage under test.
pub const STAGE: &str = "t";

/// One stage, and the files that it reads.
pub struct StageTest {
    registry: Registry,
    toml: String,
    folder: TempDir,
}

impl StageTest {
    /// A stage of the kind `kind` with options as in its TOML table.
    pub fn new(registry: Registry, kind: &str, options: &str) -> Self {
        let toml = format!("name = \"test\"\nseed = 17\n[stages.{STAGE}]\nkind = \"{kind}\"\n{options}\n");
        Self { registry, toml, folder: tempfile::tempdir().unwrap() }
    }

    /// Adds the file `name.parquet`.
    pub fn table(self, name: &str, rows: &RecordBatch) -> Self {
        let file = std::fs::File::create(self.path(&format!("{name}.parquet"))).unwrap();
        let mut writer = ArrowWriter::try_new(file, rows.schema(), None).unwrap();
        writer.write(rows).unwrap();
        writer.close().unwrap();
        self
    }

    /// Adds a file.
    pub fn file(self, name: &str, contents: impl AsRef<[u8]>) -> Self {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, contents).unwrap();
        self
    }

    /// Adds tables `[stages.NAME]` to the pipeline.
    pub fn stages(mut self, toml: &str) -> Self {
        self.toml.push_str(toml);
        self
    }

    /// Replaces a part of the pipeline file, as a user would between two runs.
    ///
    /// # Panics
    /// The file has no such part.
    pub fn edit(mut self, from: &str, to: &str) -> Self {
        assert!(self.toml.contains(from), "{from}");
        self.toml = self.toml.replace(from, to);
        self
    }

    /// A path beside the pipeline file.
    pub fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    /// The checked pipeline; every input is opened.
    pub fn check(&self) -> Result<Pipeline, Report> {
        let files = Files::in_folder(self.folder.path());
        let (path, schemas) = (self.path("pipeline.toml"), InputSchemas::of(&files));
        config::check(&path, &self.toml, &self.registry, &Overrides::default(), &schemas)
    }

    /// What is wrong with the options, in their order: `the word in the file: what is wrong with it
    /// (what to do)`.
    ///
    /// # Panics
    /// Nothing is wrong with them.
    pub fn faults(&self) -> Vec<String> {
        let report = self.check().err().unwrap_or_else(|| panic!("nothing is wrong:\n{}", self.toml));
        let shown = |fault: &twinlens_pipeline::Fault| {
            let hint = fault.hint.as_ref().map(|hint| format!(" ({hint})")).unwrap_or_default();
            format!("{}: {}{hint}", &self.toml[fault.span.clone()], fault.message)
        };
        report.faults().iter().map(shown).collect()
    }

    /// Runs the pipeline, or resumes it.
    ///
    /// # Panics
    /// Something is wrong with the options.
    pub async fn run(&self) -> Result<StageOutput, RunError> {
        self.run_observed(Arc::new(Silent), CancellationToken::new()).await
    }

    /// As [`StageTest::run`], for what another stage of the pipeline made.
    ///
    /// # Panics
    /// Something is wrong with the options.
    pub async fn run_stage(&self, stage: &str) -> Result<StageOutput, RunError> {
        self.execute(Arc::new(Silent), CancellationToken::new()).await?;
        self.output(stage).await
    }

    /// As [`StageTest::run`]; `cancel` interrupts it.
    ///
    /// # Panics
    /// Something is wrong with the options.
    pub async fn run_observed(
        &self,
        observer: Arc<dyn Observer>,
        cancel: CancellationToken,
    ) -> Result<StageOutput, RunError> {
        self.execute(observer, cancel).await?;
        self.output(STAGE).await
    }

    async fn execute(&self, observer: Arc<dyn Observer>, cancel: CancellationToken) -> Result<(), RunError> {
        let pipeline = self.check().unwrap_or_else(|report| panic!("{report}"));
        let folder = self.folder.path();
        let settings = Settings { clock: Clock::Fixed(UNIX_EPOCH), ..Settings::in_folder(folder) };
        run::run(&pipeline, &self.registry, &settings, observer, cancel).await.map(drop)
    }

    /// What a stage has made so far.
    pub async fn output(&self, stage: &str) -> Result<StageOutput, RunError> {
        StageOutput::read(&self.folder.path().join("run").join(stage), &self.registry).await
    }
}

/// What a stage is run with, for tests of the running object itself. Files are found in `folder`.
pub fn context(registry: &Registry, folder: &Path) -> RunContext {
    RunContext {
        stage: STAGE.into(),
        stream: STAGE.into(),
        session: session::plain(registry, 3),
        files: Files::in_folder(folder),
        seed: 17,
        clock: Clock::Fixed(UNIX_EPOCH),
        cancel: CancellationToken::new(),
        progress: Progress::new(STAGE, Arc::new(Silent)),
        hosts: Default::default(),
        secrets: Default::default(),
        bytes_in_flight: 1 << 20,
        ranks: None,
        sharers: Arc::default(),
    }
}

/// The tables that a stage made.
pub struct StageOutput {
    dataset: Dataset,
    tables: BTreeMap<String, Vec<RecordBatch>>,
}

impl StageOutput {
    async fn read(dataset: &Path, registry: &Registry) -> Result<Self, RunError> {
        let dataset = Dataset::open(dataset)?;
        let session = session::plain(registry, 1);
        let mut tables = BTreeMap::new();
        for table in dataset.tables() {
            tables.insert(table.to_string(), dataset.frame(&session, table).await?.collect().await?);
        }
        Ok(Self { dataset, tables })
    }

    /// The dataset of the stage.
    pub fn dataset(&self) -> &Dataset {
        &self.dataset
    }

    /// The rows of a table in their order.
    ///
    /// # Panics
    /// There is no such table.
    pub fn batches(&self, table: &str) -> &[RecordBatch] {
        &self.tables[table]
    }

    /// The rows of a table in their order, as `a|b|c`; null is nothing.
    ///
    /// # Panics
    /// The table lacks a column.
    pub fn table(&self, table: &str, columns: &[&str]) -> Vec<String> {
        lines(&self.tables[table], columns)
    }

    /// The rows that were kept and those that were rejected, sorted. A kept row has nothing in
    /// `reject_code`.
    pub fn rows(&self, columns: &[&str]) -> Vec<String> {
        let rejects = self.tables.get(REJECTS).into_iter().flatten();
        let all = self.tables[MAIN].iter().chain(rejects);
        let mut rows: Vec<String> =
            all.flat_map(|batch| lines(std::slice::from_ref(batch), columns)).collect();
        rows.sort();
        rows
    }
}

/// Rows as `a|b|c`; null is nothing.
///
/// # Panics
/// There is no such column.
pub fn lines(batches: &[RecordBatch], columns: &[&str]) -> Vec<String> {
    batches.iter().flat_map(|batch| lines_of(batch, columns)).collect()
}

fn lines_of(batch: &RecordBatch, columns: &[&str]) -> Vec<String> {
    let options = FormatOptions::default();
    let column = |name: &&str| match batch.column_by_name(name) {
        Some(column) => Some(ArrayFormatter::try_new(column, &options).unwrap()),
        None if name.starts_with("reject_") => None,
        None => panic!("there is no column `{name}`"),
    };
    let columns: Vec<_> = columns.iter().map(column).collect();
    let cell = |column: &Option<ArrayFormatter<'_>>, row: usize| {
        column.as_ref().map(|column| column.value(row).to_string()).unwrap_or_default()
    };
    let line = |row: usize| columns.iter().map(|column| cell(column, row)).collect::<Vec<_>>().join("|");
    (0..batch.num_rows()).map(line).collect()
}
