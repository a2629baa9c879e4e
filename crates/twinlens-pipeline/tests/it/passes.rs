//! A stage that looks at all rows before it decides: split by split, and on from where it was.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch, StringArray};
use datafusion::arrow::datatypes::{DataType, Field, Int64Type, Schema, UInt64Type};
use datafusion::dataframe::DataFrame;
use datafusion::logical_expr::{ident, lit};
use datafusion::parquet::arrow::ArrowWriter;
use proptest::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use twinlens_dataset::{Dataset, MAIN, REJECTS};
use twinlens_pipeline::config::{self, InputSchemas, Overrides};
use twinlens_pipeline::files::Files;
use twinlens_pipeline::rejects::{reject_where, with_reserved};
use twinlens_pipeline::run::events::Silent;
use twinlens_pipeline::run::prune::Leftovers;
use twinlens_pipeline::run::{self, Settings};
use twinlens_pipeline::{
    Input, InputData, Inputs, NextPass, Pass, PassWork, Passes, Ports, Registry, RunContext, RunError,
    SortKey, SplitRows, StageKind, Work,
};

/// Rejects numbers above their mean, after a pass that adds them up.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
struct BelowMean {
    input: Input,
}

impl StageKind for BelowMean {
    type Options = Self;
    const NAME: &'static str = "below_mean";
    const EXAMPLE: &'static str = "[stages.low]\nkind = \"below_mean\"\ninput = \"rows.parquet\"";
    const VERSION: u32 = 1;

    fn plan(options: Self, ports: &mut Ports<'_>) -> Option<Work> {
        let input = ports.rows(&options.input);
        ports.output(ports.schema(&input), SortKey::columns(["uid"]));
        ports.side_table("mean", Arc::new(Schema::new(vec![Field::new("mean", DataType::Int64, true)])));
        ports.split_rows(3);
        Some(Work::passes(options))
    }
}

/// Notes a split, and fails where the test wants it.
fn noted(cx: &RunContext, pass: &str, start: u64) -> Result<(), RunError> {
    let fail = fs::read_to_string(cx.path("fail")).unwrap_or_default();
    if fail == format!("{pass} {start}") {
        return Err(RunError::user("stopped half-way"));
    }
    let path = cx.path("made");
    let before = fs::read_to_string(&path).unwrap_or_default();
    fs::write(path, format!("{before}{pass} {start}\n")).unwrap();
    Ok(())
}

#[async_trait]
impl Passes for BelowMean {
    async fn next(
        &self,
        cx: &RunContext,
        _: &InputData,
        _: &Inputs,
        done: &[Pass],
    ) -> Result<NextPass, RunError> {
        let one = |name: &str, value: i64| {
            let column: ArrayRef = Arc::new(Int64Array::from(vec![value]));
            Ok::<_, RunError>(cx.session.read_batch(RecordBatch::try_from_iter([(name, column)]).unwrap())?)
        };
        let [sums] = done else {
            let number = |name| Field::new(name, DataType::Int64, true);
            let answers = Arc::new(Schema::new(vec![number("sum"), number("count")]));
            return Ok(NextPass::Look { name: "sums", told: one("nothing", 0)?, answers });
        };
        assert_eq!(sums.name, "sums");
        let (mut sum, mut count) = (0, 0);
        for batch in sums.answers.frame(&cx.session, MAIN).await?.collect().await? {
            let total =
                |column: usize| batch.column(column).as_primitive::<Int64Type>().values().iter().sum::<i64>();
            (sum, count) = (sum + total(0), count + total(1));
        }
        let mean = sum / count.max(1);
        Ok(NextPass::Rows { told: one("mean", mean)?, side: vec![("mean", one("mean", mean)?)] })
    }

    async fn open(&self, cx: &RunContext, pass: &str, told: &Dataset) -> Result<Box<dyn PassWork>, RunError> {
        if pass == "sums" {
            return Ok(Box::new(Sums));
        }
        let batches = told.frame(&cx.session, MAIN).await?.collect().await?;
        Ok(Box::new(Below(batches[0].column(0).as_primitive::<Int64Type>().value(0))))
    }
}

struct Sums;

#[async_trait]
impl PassWork for Sums {
    async fn split(&self, cx: &RunContext, rows: SplitRows<'_>) -> Result<DataFrame, RunError> {
        noted(cx, "sums", rows.start)?;
        let (mut sum, mut places) = (0, Vec::<u64>::new());
        for batch in rows.numbered(&cx.session, Some(&["number"]), "place")?.collect().await? {
            sum += batch.column(0).as_primitive::<Int64Type>().values().iter().sum::<i64>();
            places.extend(batch.column(1).as_primitive::<UInt64Type>().values());
        }
        places.sort_unstable();
        assert!(places.iter().copied().eq(rows.start..rows.end), "{places:?}");
        let column = |value: i64| Arc::new(Int64Array::from(vec![value])) as ArrayRef;
        let count = (rows.end - rows.start) as i64;
        let answer = RecordBatch::try_from_iter([("sum", column(sum)), ("count", column(count))]).unwrap();
        Ok(cx.session.read_batch(answer)?)
    }
}

struct Below(i64);

#[async_trait]
impl PassWork for Below {
    async fn split(&self, cx: &RunContext, rows: SplitRows<'_>) -> Result<DataFrame, RunError> {
        noted(cx, "rows", rows.start)?;
        let rows = with_reserved(rows.frame(&cx.session)?)?;
        reject_where(rows, &cx.stage, ident("number").gt(lit(self.0)), "above", lit("above the mean"))
    }
}

/// Writes the input.
fn write(folder: &Path, numbers: &[i64]) {
    let uids: ArrayRef =
        Arc::new(StringArray::from_iter_values((0..numbers.len()).map(|row| format!("{row:04}"))));
    let numbers: ArrayRef = Arc::new(Int64Array::from(numbers.to_vec()));
    let rows = RecordBatch::try_from_iter([("uid", uids), ("number", numbers)]).unwrap();
    let file = fs::File::create(folder.join("rows.parquet")).unwrap();
    let mut writer = ArrowWriter::try_new(file, rows.schema(), None).unwrap();
    writer.write(&rows).unwrap();
    writer.close().unwrap();
    fs::write(folder.join("pipeline.toml"), format!("name = \"p\"\n{}\n", BelowMean::EXAMPLE)).unwrap();
}

async fn run(folder: &Path, dir: &str, fresh: bool) -> Result<Dataset, RunError> {
    let registry = Registry::default().with::<BelowMean>();
    let files = Files::in_folder(folder);
    let schemas = InputSchemas::of(&files);
    let pipeline =
        config::load(&folder.join("pipeline.toml"), &registry, &Overrides::default(), &schemas).unwrap();
    let settings = Settings { dir: folder.join(dir).into(), fresh, ..Settings::in_folder(folder) };
    run::run(&pipeline, &registry, &settings, Arc::new(Silent), CancellationToken::new()).await?;
    Ok(Dataset::open(folder.join(dir).join("low"))?)
}

/// The splits that were made, sorted.
fn made(folder: &Path) -> Vec<String> {
    let text = fs::read_to_string(folder.join("made")).unwrap_or_default();
    let _ = fs::remove_file(folder.join("made"));
    let mut made: Vec<String> = text.lines().map(String::from).collect();
    made.sort();
    made
}

/// The names and hashes of the files of a dataset.
fn files(dataset: &Dataset) -> Vec<(String, String)> {
    dataset.state().files().map(|file| (file.path.clone(), file.sha256.clone())).collect()
}

#[tokio::test]
async fn passes_go_on_from_where_they_were() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path();
    // Three splits of the look (48 rows each), 34 of rows.
    write(folder, &(0..100).collect::<Vec<_>>());
    let whole = run(folder, "whole", false).await.unwrap();
    assert_eq!((whole.rows(MAIN), whole.rows(REJECTS), whole.rows("mean")), (50, 50, 1));
    assert_eq!((whole.state().commits.len(), whole.state().rows_in()), (35, Some(100)));
    assert_eq!(made(folder).len(), 3 + 34);
    assert!(!folder.join("whole/.passes").exists(), "what the passes left is deleted");

    // Stopped in the look, and then in the rows: what was answered is not asked again.
    for (fail, may_be_made) in [
        ("sums 48", &["sums"][..]),
        ("rows 30", &["sums 48", "sums 96", "rows"]),
        ("", &["rows 3", "rows 4", "rows 5", "rows 6", "rows 7", "rows 8", "rows 9"]),
    ] {
        fs::write(folder.join("fail"), fail).unwrap();
        let result = run(folder, "stopped", false).await;
        let made = made(folder);
        assert!(made.iter().all(|split| may_be_made.iter().any(|may| split.starts_with(may))), "{made:?}");
        match result {
            Ok(dataset) if fail.is_empty() => assert_eq!(files(&dataset), files(&whole)),
            Err(_) if !fail.is_empty() => assert!(folder.join("stopped/.passes/low/00-answers").exists()),
            other => panic!("{fail}: {other:?}"),
        }
    }
    // What a stage left that is gone from the pipeline, nobody needs.
    fs::write(folder.join("fail"), "rows 30").unwrap();
    run(folder, "gone", false).await.unwrap_err();
    let dir = folder.join("gone").into();
    let left = Leftovers::find(&dir).unwrap();
    assert!(left.found.is_empty() && left.kept.len() == 3, "{left:?}");
    drop(left);
    fs::remove_dir_all(folder.join("gone/low")).unwrap();
    let left = Leftovers::find(&dir).unwrap();
    assert_eq!(left.found.iter().filter(|found| found.kind.to_string().contains("passes")).count(), 3);
    left.delete().unwrap();
    assert!(!folder.join("gone/.passes/low/00-told").exists());
    fs::write(folder.join("fail"), "").unwrap();
    made(folder);

    // `fresh` asks again.
    run(folder, "stopped", true).await.unwrap();
    assert_eq!(made(folder).len(), 3 + 34);
}

#[cfg(unix)]
#[tokio::test]
async fn what_is_not_ours_stays() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path();
    write(folder, &[1, 2, 3]);
    fs::write(folder.join("fail"), "rows 0").unwrap();
    run(folder, "run", false).await.unwrap_err();
    fs::remove_file(folder.join("fail")).unwrap();
    let foreign = folder.join("run/.passes/low/00-answers/mine.txt");
    fs::write(&foreign, "mine").unwrap();
    run(folder, "run", false).await.unwrap();
    assert!(foreign.exists());

    let elsewhere = folder.join("elsewhere");
    fs::create_dir_all(elsewhere.join("00-told")).unwrap();
    fs::write(elsewhere.join("00-told/mine.txt"), "mine").unwrap();
    for link in [".passes", ".passes/low"] {
        let dir = format!("linked{}", link.len());
        let path = folder.join(&dir).join(link);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(&elsewhere, &path).unwrap();
        let error = run(folder, &dir, false).await.unwrap_err().to_string();
        assert!(error.contains("is a link") || error.contains("is not a run directory"), "{error}");
        assert!(elsewhere.join("00-told/mine.txt").exists());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]

    /// Whatever the splits, the rows are those of one that has them all.
    #[test]
    fn splits_decide_as_one(numbers in prop::collection::vec(-50i64..50, 0..60)) {
        let place = tempfile::tempdir().unwrap();
        write(place.path(), &numbers);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let dataset = runtime.block_on(run(place.path(), "run", false)).unwrap();
        let mean = numbers.iter().sum::<i64>() / (numbers.len() as i64).max(1);
        let below = numbers.iter().filter(|number| **number <= mean).count() as u64;
        prop_assert_eq!(dataset.rows(MAIN), below);
        prop_assert_eq!(dataset.rows(REJECTS), numbers.len() as u64 - below);
        prop_assert_eq!(dataset.state().commits.len() as u64, (numbers.len() as u64).div_ceil(3) + 1);
    }
}
