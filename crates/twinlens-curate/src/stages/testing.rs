//! Test support for stages: stages from TOML, tables from literals, results as lines of text.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use datafusion::arrow::array::{
    ArrayRef, Int32Array, Int32Builder, Int64Array, ListBuilder, RecordBatch, StringArray,
};
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::dataframe::DataFrame;
use datafusion::prelude::SessionContext;
use tempfile::TempDir;
use twinlens_dataset::shard::{ShardLimits, TableWriter, conform};
use twinlens_dataset::{Dataset, MAIN, contracts};
use twinlens_pipeline::files::Files;
use twinlens_pipeline::rejects::with_reserved;
use twinlens_pipeline::run::events::{Progress, Silent};
use twinlens_pipeline::{
    CheckContext, Clock, Input, InputData, InputTables, Located, Registry, Rows, RunContext, StageKind, Whole,
};

pub(super) fn parse<K: StageKind>(options: &str) -> K {
    toml::from_str(options).unwrap()
}

fn session() -> SessionContext {
    let mut registry = Registry::default();
    super::register(&mut registry);
    twinlens_pipeline::run::session::plain(&registry, 3)
}

pub(super) fn check() -> CheckContext {
    CheckContext { session: session() }
}

pub(super) fn input(name: &str, schema: SchemaRef) -> InputTables {
    InputTables { input: Input(Located::without_span(name.into())), kind: None, schema: Some(schema) }
}

pub(super) fn context() -> RunContext {
    RunContext {
        stage: "t".into(),
        stream: "t".into(),
        session: session(),
        files: Files { base: PathBuf::new(), scratch: PathBuf::new(), hub: Default::default() },
        seed: 17,
        clock: Clock::System,
        cancel: Default::default(),
        progress: Progress::new("t", Arc::new(Silent)),
        hosts: Default::default(),
        bytes_in_flight: 1 << 20,
    }
}

/// A context with `folder` as the folder of the pipeline file.
pub(super) fn at(folder: &Path) -> RunContext {
    RunContext {
        files: Files { base: folder.into(), scratch: folder.join("scratch"), hub: Default::default() },
        ..context()
    }
}

fn batch(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
    RecordBatch::try_from_iter(columns).unwrap()
}

/// Pairs of (uid, caption); a caption of NUL is null.
pub(super) fn pairs(rows: &[(&str, &str)]) -> RecordBatch {
    let captions: StringArray = rows.iter().map(|(_, text)| (*text != "\0").then_some(*text)).collect();
    let uids: Vec<&str> = rows.iter().map(|(uid, _)| *uid).collect();
    let urls: Vec<String> = uids.iter().map(|uid| format!("http://example.com/{uid}")).collect();
    let given = batch(vec![
        ("uid", Arc::new(StringArray::from(uids))),
        ("url", Arc::new(StringArray::from(urls))),
        ("caption", Arc::new(captions)),
    ]);
    conform("pairs", &given, &contracts::pair_texts()).unwrap()
}

/// Pairs of uid and query ids.
pub(super) fn matched_pairs(rows: &[(String, Option<Vec<i32>>)]) -> RecordBatch {
    let mut lists = ListBuilder::new(Int32Builder::new());
    for (_, queries) in rows {
        lists.append_option(queries.as_ref().map(|queries| queries.iter().copied().map(Some)));
    }
    let uids = StringArray::from_iter_values(rows.iter().map(|(uid, _)| uid));
    batch(vec![("uid", Arc::new(uids)), ("query_ids", Arc::new(lists.finish()))])
}

/// Rows of uid and perceptual hash.
pub(super) fn hashed(rows: &[(&str, Option<i64>)]) -> RecordBatch {
    let uids = StringArray::from_iter_values(rows.iter().map(|(uid, _)| uid));
    let hashes: Int64Array = rows.iter().map(|(_, hash)| *hash).collect();
    batch(vec![("uid", Arc::new(uids)), ("phash", Arc::new(hashes))])
}

/// A query list of (id, text).
pub(super) fn queries(rows: &[(i32, &str)]) -> RecordBatch {
    let ids: Int32Array = rows.iter().map(|(id, _)| Some(*id)).collect();
    let texts: StringArray = rows.iter().map(|(_, text)| Some(*text)).collect();
    let given = batch(vec![("id", Arc::new(ids)), ("text", Arc::new(texts))]);
    conform("queries", &given, &contracts::queries()).unwrap()
}

/// A table as a finished dataset: a Parquet file in a temporary folder, deleted with the guard.
pub(super) fn dataset(name: &str, rows: &RecordBatch) -> (InputData, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = TableWriter::new(folder.path(), MAIN, rows.schema(), 0, ShardLimits::default());
    writer.write(rows).unwrap();
    let path = folder.path().join(&writer.finish().unwrap()[0].path);
    let finished = folder.path().join("table.parquet");
    std::fs::rename(twinlens_dataset::storage::unfinished(&path), &finished).unwrap();
    let dataset = Dataset::from_parquet(&finished).unwrap();
    (InputData { name: name.into(), table: MAIN.into(), dataset, view: None, variants: vec![] }, folder)
}

/// Rows with the reserved columns, as a row stage gets them.
pub(super) fn reserved(cx: &RunContext, rows: &RecordBatch) -> DataFrame {
    with_reserved(cx.session.read_batch(rows.clone()).unwrap()).unwrap()
}

/// The rows of a plan as `a|b|c`; null is empty.
pub(super) async fn lines(frame: DataFrame, columns: &[&str]) -> Vec<String> {
    let mut lines = Vec::new();
    for batch in frame.collect().await.unwrap() {
        let options = FormatOptions::default();
        let columns: Vec<ArrayFormatter<'_>> = (columns.iter())
            .map(|name| ArrayFormatter::try_new(batch.column_by_name(name).unwrap(), &options).unwrap())
            .collect();
        lines.extend((0..batch.num_rows()).map(|row| {
            columns.iter().map(|column| column.value(row).to_string()).collect::<Vec<_>>().join("|")
        }));
    }
    lines
}

/// The output of a row stage, sorted.
pub(super) async fn rows_of<S: Rows>(
    stage: &S,
    rows: &RecordBatch,
    others: &[(&str, RecordBatch)],
    columns: &[&str],
) -> Vec<String> {
    let cx = context();
    let (others, _guards): (Vec<_>, Vec<_>) = others.iter().map(|(name, rows)| dataset(name, rows)).unzip();
    let mut found = lines(stage.plan(&cx, reserved(&cx, rows), &others).await.unwrap(), columns).await;
    found.sort();
    found
}

/// [`rows_of`] with the columns that most tests check.
pub(super) async fn rows<S: Rows>(
    stage: &S,
    rows: &RecordBatch,
    others: &[(&str, RecordBatch)],
) -> Vec<String> {
    rows_of(stage, rows, others, &["uid", "caption", "reject_code", "reject_detail"]).await
}

/// The tables of a `Whole` stage with the given columns; sorted where the runner sorts.
pub(super) async fn whole<S: Whole>(
    stage: &S,
    inputs: &[(&str, RecordBatch)],
    columns: &BTreeMap<&'static str, Vec<&str>>,
) -> BTreeMap<&'static str, Vec<String>> {
    let (inputs, _guards): (Vec<_>, Vec<_>) = inputs.iter().map(|(name, rows)| dataset(name, rows)).unzip();
    let mut found = tables_of(stage.plan(&context(), &inputs).await.unwrap(), columns).await;
    if stage.conserves() {
        found.values_mut().for_each(|lines| lines.sort());
    }
    found
}

pub(super) async fn tables_of(
    tables: Vec<(&'static str, DataFrame)>,
    columns: &BTreeMap<&'static str, Vec<&str>>,
) -> BTreeMap<&'static str, Vec<String>> {
    let mut found = BTreeMap::new();
    for (table, frame) in tables {
        found.insert(table, lines(frame, &columns[table]).await);
    }
    found
}
