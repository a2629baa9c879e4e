//! A changed recipe deletes nothing before its replacement is complete.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::array::{ArrayRef, Int64Array, RecordBatch};
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use twinlens_dataset::MAIN;
use twinlens_pipeline::config::{self, InputSchemas, Overrides};
use twinlens_pipeline::run::consent::Replace;
use twinlens_pipeline::run::events::Silent;
use twinlens_pipeline::run::prune::Leftovers;
use twinlens_pipeline::run::{self, Outcome, Settings, generations};
use twinlens_pipeline::{
    Inputs, Job, Output, Ports, Registry, RunContext, RunError, SortKey, StageKind, Work,
};

/// A long computation of two splits. It counts how often it computes, and may fail half-way.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
struct Long {
    value: i64,
    #[serde(default)]
    keep: usize,
}

fn numbers() -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new("number", DataType::Int64, true)]))
}

impl StageKind for Long {
    type Options = Self;
    const NAME: &'static str = "long";
    const EXAMPLE: &'static str = "[stages.model]\nkind = \"long\"\nvalue = 1";
    const VERSION: u32 = 1;

    fn plan(options: Self, ports: &mut Ports<'_>) -> Option<Work> {
        ports.output(numbers(), SortKey::AsGiven);
        ports.generations(options.keep);
        Some(Work::job(options))
    }
}

#[async_trait]
impl Job for Long {
    async fn run(&self, cx: &RunContext, _: &Inputs, output: &mut Output) -> Result<(), RunError> {
        for number in 0..2 {
            if output.is_done(number) {
                continue;
            }
            if number == 1 && cx.path("fail").exists() {
                return Err(RunError::user("stopped half-way"));
            }
            let computed = cx.path("computed");
            let before = fs::read_to_string(&computed).unwrap_or_default();
            fs::write(computed, format!("{before}{}.{number} ", self.value)).unwrap();
            let mut split = output.split(number, "part");
            let rows: ArrayRef = Arc::new(Int64Array::from(vec![self.value]));
            split.write(MAIN, &RecordBatch::try_from_iter([("number", rows)]).unwrap())?;
            output.commit(split).await?;
        }
        Ok(())
    }
}

async fn run_with(folder: &Path, value: i64, keep: usize, fresh: bool) -> Result<Outcome, RunError> {
    run_settings(value, keep, Settings { fresh, ..Settings::in_folder(folder) }, folder).await
}

async fn run_settings(
    value: i64,
    keep: usize,
    settings: Settings,
    folder: &Path,
) -> Result<Outcome, RunError> {
    let text = format!("name = \"g\"\n[stages.model]\nkind = \"long\"\nvalue = {value}\nkeep = {keep}\n");
    fs::write(folder.join("pipeline.toml"), text).unwrap();
    let registry = Registry::default().with::<Long>();
    let pipeline =
        config::load(&folder.join("pipeline.toml"), &registry, &Overrides::default(), &InputSchemas::none())
            .unwrap();
    run::run(&pipeline, &registry, &settings, Arc::new(Silent), CancellationToken::new()).await
}

/// The folders of datasets, and what was computed so far.
fn state(folder: &Path) -> (Vec<String>, String) {
    let names = fs::read_dir(folder.join("run")).unwrap().map(|entry| entry.unwrap());
    let folders = names.filter(|entry| entry.path().join("manifest.jsonl").exists());
    let mut folders: Vec<_> = folders.map(|entry| entry.file_name().into_string().unwrap()).collect();
    folders.sort();
    (folders, fs::read_to_string(folder.join("computed")).unwrap_or_default())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_mind_costs_nothing() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path();
    run_with(folder, 1, 1, false).await.unwrap();
    assert_eq!(state(folder), (vec!["model".into()], "1.0 1.1 ".into()));
    // Another option, stopped half-way: the old dataset is there and readable.
    fs::write(folder.join("fail"), "").unwrap();
    run_with(folder, 2, 1, false).await.unwrap_err();
    let (folders, _) = state(folder);
    assert_eq!(folders, ["model", "model@1"]);
    let earlier = generations::earlier(&(&folder.join("run")).into()).unwrap();
    assert_eq!((earlier[0].state().begin.stage.as_str(), earlier[0].rows(MAIN)), ("model@1", 2));
    // Changed back: it is reused, and the unfinished one is kept.
    run_with(folder, 1, 1, false).await.unwrap();
    assert_eq!(state(folder), (vec!["model".into(), "model@2".into()], "1.0 1.1 2.0 ".into()));
    // And forward again: the unfinished one resumes, and its replacement deletes the old one.
    fs::remove_file(folder.join("fail")).unwrap();
    run_with(folder, 2, 1, false).await.unwrap();
    assert_eq!(state(folder), (vec!["model".into()], "1.0 1.1 2.0 2.1 ".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn generations_are_kept_and_bounded() {
    let place = tempfile::tempdir().unwrap();
    for value in 0..6 {
        run_with(place.path(), value, 3, false).await.unwrap();
    }
    assert_eq!(state(place.path()).0, ["model", "model@4", "model@5"]);
    // Unfinished ones do not pile up, and the newest complete one is never deleted.
    fs::write(place.path().join("fail"), "").unwrap();
    for value in 10..16 {
        run_with(place.path(), value, 1, false).await.unwrap_err();
    }
    let earlier = generations::earlier(&(&place.path().join("run")).into()).unwrap();
    assert!(earlier.len() <= 2 && earlier.iter().any(|dataset| dataset.state().complete));
}

#[tokio::test(flavor = "multi_thread")]
async fn fresh_keeps_the_old_until_the_new_is_complete() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path();
    run_with(folder, 1, 1, false).await.unwrap();
    fs::create_dir(folder.join("run/mine")).unwrap();
    fs::write(folder.join("run/mine/notes.txt"), "mine").unwrap();
    fs::write(folder.join("fail"), "").unwrap();
    for _ in 0..2 {
        run_with(folder, 1, 1, true).await.unwrap_err();
        assert!(folder.join("run/.old/model/data/000001-000.parquet").exists());
    }
    fs::remove_file(folder.join("fail")).unwrap();
    run_with(folder, 1, 1, false).await.unwrap();
    assert!(!folder.join("run/.old/model").exists());
    assert_eq!(state(folder).1, "1.0 1.1 1.0 1.0 1.1 ");
    assert!(folder.join("run/mine/notes.txt").exists(), "a folder of the user's stays");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_folder_is_refused() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path();
    run_with(folder, 1, 1, false).await.unwrap();
    fs::rename(folder.join("run/model"), folder.join("moved")).unwrap();
    fs::create_dir(folder.join("run/model")).unwrap();
    fs::write(folder.join("run/model/holiday.jpg"), "mine").unwrap();
    let error = run_with(folder, 1, 1, false).await.unwrap_err().to_string();
    assert!(error.contains("run/model") && error.contains("holiday.jpg"), "{error}");
    assert!(folder.join("run/model/holiday.jpg").exists());
    // What a kill before the first line of the manifest leaves is ours.
    fs::rename(folder.join("run/model/holiday.jpg"), folder.join("run/model/manifest.jsonl.unfinished"))
        .unwrap();
    run_with(folder, 1, 1, false).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_took_long_is_not_deleted_without_a_word() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path();
    run_with(folder, 1, 1, false).await.unwrap();
    fs::write(folder.join("run/model/.took"), "7260\n").unwrap();
    let with = |replace| Settings { replace, ..Settings::in_folder(folder) };
    for refused in [Replace::No, Replace::Ask(|_| false)] {
        run_settings(2, 1, with(refused), folder).await.unwrap_err();
        assert_eq!(state(folder), (vec!["model".into()], "1.0 1.1 ".into()));
    }
    let error = run_settings(2, 1, with(Replace::No), folder).await.unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("`model` (") && text.contains("made in 2h 01m)") && text.contains("`value`: 1 -> 2"),
        "{text}"
    );
    // Kept as a generation it is not deleted, so nobody is asked.
    run_settings(2, 2, with(Replace::No), folder).await.unwrap();
    assert_eq!(state(folder).0, ["model", "model@1"]);
    run_settings(3, 2, with(Replace::No), folder).await.unwrap_err();
    run_settings(3, 2, with(Replace::Ask(|text| text.contains("`model@1`"))), folder).await.unwrap();
    assert_eq!(state(folder).0, ["model", "model@2"]);
    // What comes back replaces nothing.
    run_settings(2, 2, with(Replace::No), folder).await.unwrap();
    assert_eq!(state(folder).0, ["model", "model@3"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn prune_frees_what_no_run_needs() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path();
    for value in 0..3 {
        run_with(folder, value, 3, false).await.unwrap();
    }
    fs::write(folder.join("fail"), "").unwrap();
    run_with(folder, 3, 3, false).await.unwrap_err();
    fs::create_dir_all(folder.join("run/.deleted/other")).unwrap();
    fs::write(folder.join("run/.deleted/other/x"), "half").unwrap();
    fs::create_dir_all(folder.join("run/mine@1")).unwrap();
    fs::write(folder.join("run/mine@1/photo.jpg"), "mine").unwrap();
    let dir = folder.join("run").into();
    let names = |found: &Leftovers| found.found.iter().map(|l| l.folder.clone()).collect::<Vec<_>>();
    let found = Leftovers::find(&dir).unwrap();
    assert_eq!(names(&found), ["model@2", ".deleted"], "the newest complete one stays");
    assert_eq!(found.kept.len(), 1, "{:?}", found.kept);
    let locked = Leftovers::find(&dir).unwrap_err().to_string();
    assert!(locked.contains("another process"), "{locked}");
    found.delete().unwrap();
    assert_eq!(state(folder).0, ["model", "model@3"]);
    // A file of somebody keeps its folder.
    fs::remove_file(folder.join("fail")).unwrap();
    run_with(folder, 3, 3, false).await.unwrap();
    fs::write(folder.join("run/model@3/notes.txt"), "mine").unwrap();
    let found = Leftovers::find(&dir).unwrap();
    assert_eq!(names(&found), [] as [&str; 0]);
    assert!(found.kept[0].1.contains("notes.txt"), "{:?}", found.kept);
    assert!(folder.join("run/mine@1/photo.jpg").exists());
}
