//! A stage that streams its input runs concurrently with it.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use async_trait::async_trait;
use datafusion::arrow::array::{ArrayRef, Int64Array, RecordBatch};
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::dataframe::DataFrame;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use twinlens_dataset::{MAIN, manifest};
use twinlens_pipeline::config::{self, Overrides};
use twinlens_pipeline::run::events::Silent;
use twinlens_pipeline::run::{self, Outcome, Settings};
use twinlens_pipeline::stage::{Source, SourceSplit};
use twinlens_pipeline::{
    CheckContext, Clock, Fault, Input, InputData, InputTables, Job, Output, Registry, RunContext, RunError,
    Stage, StageKind, Tables, Work, rejects,
};

fn numbers() -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new("number", DataType::Int64, true)]))
}

fn batch(numbers: Vec<i64>) -> RecordBatch {
    RecordBatch::try_from_iter([("number", Arc::new(Int64Array::from(numbers)) as ArrayRef)]).unwrap()
}

/// Waits until a file exists; false when the run is cancelled, or after a timeout.
async fn wait_for(cx: &RunContext, name: &str) -> bool {
    for _ in 0..2000 {
        if cx.path(name).exists() {
            return true;
        }
        if cx.cancel.is_cancelled() {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    false
}

/// Three splits of one number each. The second is written only after a reader has seen the first.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
struct Drip {
    /// Wait.
    wait: bool,
}

impl Stage for Drip {
    fn inputs(&self) -> Vec<Input> {
        vec![]
    }
    fn tables(&self, _: &CheckContext, _: &[InputTables]) -> Result<Tables, Vec<Fault>> {
        Ok(Tables::main(numbers()))
    }
    fn work(&self) -> Work<'_> {
        Work::Source(self)
    }
}

impl StageKind for Drip {
    const KIND: &'static str = "drip";
    const ABOUT: &'static str = "Drips.";
    const EXAMPLE: &'static str = "[stages.drops]\nkind = \"drip\"\nwait = true";
    const VERSION: u32 = 1;
}

#[async_trait]
impl Source for Drip {
    async fn splits(&self, _: &RunContext) -> Result<Vec<SourceSplit>, RunError> {
        let split = |number| SourceSplit {
            label: "drop".into(),
            file: String::new(),
            start: number,
            end: number + 1,
        };
        Ok((0..3).map(split).collect())
    }
    async fn read(&self, cx: &RunContext, split: &SourceSplit) -> Result<DataFrame, RunError> {
        if self.wait && split.start > 0 && !wait_for(cx, "seen").await {
            return Err(RunError::Interrupted);
        }
        rejects::with_reserved(cx.session.read_batch(batch(vec![split.start as i64]))?)
    }
}

/// Counts the shards of its first input until it is complete; optionally fails at the first.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
struct Count {
    input: Input,
    beside: Input,
    #[serde(default)]
    fail: bool,
}

impl Stage for Count {
    fn inputs(&self) -> Vec<Input> {
        vec![self.input.clone(), self.beside.clone()]
    }
    fn follows(&self) -> bool {
        true
    }
    fn tables(&self, _: &CheckContext, _: &[InputTables]) -> Result<Tables, Vec<Fault>> {
        Ok(Tables::main(numbers()))
    }
    fn work(&self) -> Work<'_> {
        Work::Job(self)
    }
}

impl StageKind for Count {
    const KIND: &'static str = "count";
    const ABOUT: &'static str = "Counts.";
    const EXAMPLE: &'static str =
        "[stages.counted]\nkind = \"count\"\ninput = \"drops\"\nbeside = \"others\"";
    const VERSION: u32 = 1;
}

#[async_trait]
impl Job for Count {
    async fn run(&self, cx: &RunContext, inputs: &[InputData], output: &mut Output) -> Result<(), RunError> {
        assert_eq!(inputs[1].rows(), 3, "its other inputs are complete");
        let mut seen = Vec::new();
        loop {
            cx.check_cancelled()?;
            let state = manifest::read(inputs[0].dataset.location())?.unwrap();
            if seen.last() != Some(&(state.commits.len() as i64)) {
                seen.push(state.commits.len() as i64);
            }
            if state.complete {
                break;
            }
            if !state.commits.is_empty() {
                if self.fail {
                    return Err(RunError::user("it failed"));
                }
                std::fs::write(cx.path("seen"), "").unwrap();
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let mut split = output.split(0, "counts");
        split.write(MAIN, &batch(seen))?;
        output.commit(split).await
    }
}

async fn run_in(folder: &Path, stages: &str) -> Result<Outcome, RunError> {
    let mut registry = Registry::default();
    registry.add::<Drip>();
    registry.add::<Count>();
    let file = folder.join("pipeline.toml");
    std::fs::write(&file, format!("name = \"test\"\n{stages}")).unwrap();
    let pipeline =
        config::load(&file, &registry, &Overrides::default()).unwrap_or_else(|error| panic!("{error:#?}"));
    let settings = Settings { clock: Clock::Fixed(UNIX_EPOCH), ..Settings::in_folder(folder) };
    run::run(&pipeline, &registry, &settings, Arc::new(Silent), CancellationToken::new()).await
}

const STAGES: &str = r#"
[stages.drops]
kind = "drip"
wait = true

[stages.counted]
kind = "count"
input = "drops"
beside = "others"

[stages.others]
kind = "drip"
wait = false
"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_streaming_stage_sees_its_input_grow() {
    let folder = tempfile::tempdir().unwrap();
    // This would hang unless both stages ran concurrently, after the third.
    let outcome = run_in(folder.path(), STAGES).await.unwrap();
    let rows: Vec<u64> = outcome.datasets.iter().map(|dataset| dataset.rows(MAIN)).collect();
    assert!(outcome.datasets.iter().all(|dataset| dataset.state().complete));
    // It saw one or two of the three shards, and then all.
    assert!(rows[0] == 3 && rows[1] == 3 && rows[2] >= 2, "{rows:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn when_one_fails_the_other_stops_and_resumes_later() {
    let folder = tempfile::tempdir().unwrap();
    let error =
        run_in(folder.path(), &STAGES.replace("beside =", "fail = true\nbeside =")).await.unwrap_err();
    assert_eq!(error.to_string(), "it failed");
    let state = manifest::read(&folder.path().join("run/drops").into()).unwrap().unwrap();
    assert!(!state.complete && !state.commits.is_empty(), "committed splits are kept");
    run_in(folder.path(), STAGES).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stage_that_also_needs_the_whole_input_waits_for_it() {
    let folder = tempfile::tempdir().unwrap();
    let stages = STAGES.replace("\"others\"", "\"drops\"").replace("wait = true", "wait = false");
    let outcome = run_in(folder.path(), &stages).await.unwrap();
    assert!(outcome.datasets.iter().all(|dataset| dataset.state().complete));
}
