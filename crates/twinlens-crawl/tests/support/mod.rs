//! Whole runs for tests.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use arrow::util::display::{ArrayFormatter, FormatOptions};
use tokio_util::sync::CancellationToken;
use twinlens_dataset::catalog;
use twinlens_pipeline::config::{self, Overrides};
use twinlens_pipeline::run::events::Silent;
use twinlens_pipeline::run::{Outcome, Settings, run, session};
use twinlens_pipeline::{Clock, Registry, RunError};

fn registry() -> Registry {
    let mut registry = Registry::default();
    twinlens_crawl::register(&mut registry);
    registry
}

/// Runs `pipeline` (its stages) in `dir/run`; `host` is served at `addr`.
pub async fn run_in(dir: &Path, pipeline: &str, host: &str, addr: SocketAddr) -> Result<Outcome, RunError> {
    let path = dir.join("pipeline.toml");
    std::fs::write(&path, format!("name = \"test\"\nseed = 7\n{pipeline}")).unwrap();
    let registry = registry();
    let pipeline =
        config::load(&path, &registry, &Overrides::default()).unwrap_or_else(|error| panic!("{error:#?}"));
    let settings = Settings {
        dir: dir.join("run").into(),
        scratch: dir.join("scratch"),
        fresh: false,
        until: None,
        max_rows: None,
        threads: 2,
        memory_bytes: 256 << 20,
        bytes_in_flight: 64 << 20,
        grace: Duration::from_secs(5),
        clock: Clock::Fixed(UNIX_EPOCH + Duration::from_secs(1_700_000_000)),
        hosts: Arc::new(BTreeMap::from([(host.to_string(), addr)])),
    };
    run(&pipeline, &registry, &settings, Arc::new(Silent), CancellationToken::new()).await
}

/// The rows of a query, their values joined by ` | `.
pub async fn query(outcome: &Outcome, sql: &str) -> Vec<String> {
    let session = session::plain(&registry(), 2);
    catalog::register(&session, &outcome.datasets).await.unwrap();
    let mut rows = Vec::new();
    for batch in session.sql(sql).await.unwrap().collect().await.unwrap() {
        let options = FormatOptions::default().with_null("-");
        let columns: Vec<_> =
            batch.columns().iter().map(|column| ArrayFormatter::try_new(column, &options).unwrap()).collect();
        rows.extend((0..batch.num_rows()).map(|row| {
            columns.iter().map(|column| column.value(row).to_string()).collect::<Vec<_>>().join(" | ")
        }));
    }
    rows
}

/// Rows in = rows out + rejects, for every dataset.
pub fn assert_conserved(outcome: &Outcome) {
    for dataset in &outcome.datasets {
        let rejects: u64 = dataset.state().rejects().values().flat_map(BTreeMap::values).sum();
        let stage = &dataset.state().begin.stage;
        assert_eq!(dataset.state().rows_in(), Some(dataset.rows("data") + rejects), "{stage}");
        assert_eq!(dataset.rows("rejects"), rejects, "{stage}");
    }
}
