//! A stage that streams its input runs concurrently with it.

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
use twinlens_pipeline::config::{self, InputSchemas, Overrides};
use twinlens_pipeline::run::events::Silent;
use twinlens_pipeline::run::{self, Outcome, Settings};
use twinlens_pipeline::{
    Clock, Input, Inputs, Job, Output, Ports, Registry, RunContext, RunError, SortKey, Source, StageKind,
    TableInput, Work, rejects,
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
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
struct Drip {
    /// Wait.
    wait: bool,
}

impl StageKind for Drip {
    type Options = Self;
    const NAME: &'static str = "drip";
    const EXAMPLE: &'static str = "[stages.drops]\nkind = \"drip\"\nwait = true";
    const VERSION: u32 = 1;

    fn plan(options: Self, ports: &mut Ports<'_>) -> Option<Work> {
        ports.output(numbers(), SortKey::columns(["number"]));
        Some(Work::source(options))
    }
}

#[async_trait]
impl Source for Drip {
    type Split = i64;
    async fn splits(&self, _: &RunContext) -> Result<Vec<i64>, RunError> {
        Ok((0..3).collect())
    }
    async fn read(&self, cx: &RunContext, split: &i64) -> Result<DataFrame, RunError> {
        if self.wait && *split > 0 && !wait_for(cx, "seen").await {
            return Err(RunError::Interrupted);
        }
        rejects::with_reserved(cx.session.read_batch(batch(vec![*split]))?)
    }
}

/// Counts the shards of its first input until it is complete; optionally fails at the first.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
struct CountOptions {
    input: Input,
    beside: Input,
    #[serde(default)]
    fail: bool,
}

struct Count {
    input: TableInput,
    beside: TableInput,
    fail: bool,
}

impl StageKind for Count {
    type Options = CountOptions;
    const NAME: &'static str = "count";
    const EXAMPLE: &'static str =
        "[stages.counted]\nkind = \"count\"\ninput = \"drops\"\nbeside = \"others\"";
    const VERSION: u32 = 1;

    fn plan(options: CountOptions, ports: &mut Ports<'_>) -> Option<Work> {
        let input = ports.table(&options.input);
        ports.streams_input(&input);
        let beside = ports.table(&options.beside);
        ports.output(numbers(), SortKey::AsGiven);
        Some(Work::job(Count { input, beside, fail: options.fail }))
    }
}

#[async_trait]
impl Job for Count {
    async fn run(&self, cx: &RunContext, inputs: &Inputs, output: &mut Output) -> Result<(), RunError> {
        assert_eq!(inputs.get(&self.beside).rows(), 3, "its other inputs are complete");
        let mut seen = Vec::new();
        loop {
            cx.check_cancelled()?;
            let state = manifest::read(inputs.get(&self.input).dataset.location())?.unwrap();
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
    let registry = Registry::default().with::<Drip>().with::<Count>();
    let file = folder.join("pipeline.toml");
    std::fs::write(&file, format!("name = \"test\"\n{stages}")).unwrap();
    let pipeline = config::load(&file, &registry, &Overrides::default(), &InputSchemas::none())
        .unwrap_or_else(|error| panic!("{error:#?}"));
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
