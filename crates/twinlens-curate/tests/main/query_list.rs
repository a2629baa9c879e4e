//! The committed query list matches its documentation and the output of its pipeline.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use datafusion::arrow::array::{AsArray, RecordBatch};
use datafusion::arrow::compute::concat_batches;
use datafusion::arrow::datatypes::Int32Type;
use datafusion::prelude::SessionContext;
use tokio_util::sync::CancellationToken;
use twinlens_curate::matcher::Matcher;
use twinlens_curate::text::Normalizer;
use twinlens_dataset::{Dataset, MAIN, contracts};
use twinlens_pipeline::Registry;
use twinlens_pipeline::config::{self, InputSchemas, Overrides};
use twinlens_pipeline::run::events::Silent;
use twinlens_pipeline::run::{self, Settings};

fn pipelines() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../pipelines")
}

async fn rows(dataset: &Dataset) -> RecordBatch {
    let session = SessionContext::new();
    let frame = dataset.frame(&session, MAIN).await.unwrap();
    let batches = frame.sort_by(vec![datafusion::prelude::col("id")]).unwrap().collect().await.unwrap();
    concat_batches(&batches[0].schema(), &batches).unwrap()
}

#[tokio::test]
async fn the_committed_list_matches_its_documentation() {
    let committed = rows(&Dataset::from_parquet(pipelines().join("queries/queries.parquet")).unwrap()).await;
    assert_eq!(committed.schema().fields(), contracts::queries().fields());
    let (ids, texts) = (committed["id"].as_primitive::<Int32Type>(), committed["text"].as_string::<i32>());
    assert!(ids.values().iter().copied().eq(0..500_000), "ids run from 0 without a gap");

    let mut origins: BTreeMap<&str, usize> = BTreeMap::new();
    committed["origin"]
        .as_string::<i32>()
        .iter()
        .flatten()
        .for_each(|origin| *origins.entry(origin).or_default() += 1);
    let sources = std::fs::read_to_string(pipelines().join("queries/SOURCES.md")).unwrap();
    for (origin, count) in origins {
        let row = sources.lines().find(|line| line.starts_with(&format!("| {origin} |"))).unwrap();
        let documented = row.split('|').nth(2).unwrap().trim().replace(',', "");
        assert_eq!(documented, count.to_string(), "SOURCES.md on {origin}");
    }

    let queries = ids.values().iter().copied().zip(texts.iter().flatten());
    let matcher = Matcher::build(queries, Normalizer::default()).unwrap();
    assert_eq!(matcher.len(), 500_000);
    let found: Vec<&str> = matcher
        .matches("A Golden Retriever puppy, near the Gateway Arch (St. Louis)")
        .into_iter()
        .map(|id| texts.value(id as usize))
        .collect();
    for query in ["golden retriever", "puppy", "st.louis", "gateway arch"] {
        assert!(found.contains(&query), "{query} is not among {found:?}");
    }
    assert!(!found.contains(&"trieve"), "words are whole");
}

/// Always checks the pipeline file; runs it only with `TWINLENS_QUERY_SOURCES=1`, after
/// `pipelines/queries/prepare` has downloaded the sources.
#[tokio::test(flavor = "multi_thread")]
async fn the_pipeline_makes_the_committed_list() {
    let mut registry = Registry::default();
    twinlens_curate::register(&mut registry);
    let folder = tempfile::tempdir().unwrap();
    let file = pipelines().join("queries.toml");
    let pipeline = config::load(&file, &registry, &Overrides::default(), &InputSchemas::none())
        .unwrap_or_else(|error| panic!("{error}"));
    assert!(pipeline.node("queries").is_some() && !pipeline.tests.is_empty());
    if std::env::var_os("TWINLENS_QUERY_SOURCES").is_none() {
        return;
    }
    let settings = Settings::in_folder(folder.path());
    let ran =
        run::run(&pipeline, &registry, &settings, Arc::new(Silent), CancellationToken::new()).await.unwrap();
    for test in &ran.tests {
        assert!(test.failure.is_none(), "{}: {:?}", test.that, test.failure);
    }
    let committed = Dataset::from_parquet(pipelines().join("queries/queries.parquet")).unwrap();
    assert!(rows(&ran.datasets[0]).await.columns() == rows(&committed).await.columns(), "the rows differ");
}
