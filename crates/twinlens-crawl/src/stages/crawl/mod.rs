//! The `crawl` stage: web pages to image-text pairs.
//!
//! Each wave of the frontier is a split. Beside the pairs it records what was visited and the URLs
//! that were found: what is recorded is the crawl; the frontier on disk is an index over it, and
//! takes a wave in after its commit.

mod cache;
mod fetching;
mod record;
mod visit;

use std::sync::Arc;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Int32Type, Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::logical_expr::ident;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use twinlens_dataset::SplitWriter;
use twinlens_pipeline::{
    CheckContext, Fault, Input, InputData, InputTables, Job, Located, Output, RunContext, RunError, Stage,
    StageKind, Tables, Work,
};
use url::Url;

use self::cache::Cache;
use self::fetching::Fetching;
use self::record::Record;
use self::visit::Visitor;
use super::checks;
use super::files::engine;
use crate::frontier::{Bounds, Frontier, Kind, Recorded, Scope, Store, StoreError, Visit};
use crate::html::{Captions, TextSource};
use crate::net::{ByteBudget, HttpOptions};
use crate::pairs;

/// Side table: what was visited.
const VISITS: &str = "visits";
/// Side table: the URLs that were found.
const FRONTIER: &str = "frontier";
/// The frontier's file in the stage's work folder.
const STORE: &str = "frontier.redb";
/// The code of a sitemap that is none; the other codes are those of [`crate::net::Why`].
pub const BAD_SITEMAP: &str = "bad_sitemap";

/// Web pages to image-text pairs.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Crawl {
    /// The pages to begin with.
    seeds: Located<Vec<Located<String>>>,
    /// Sitemaps that name pages to visit besides (XML, feeds, lists of URLs; compressed or not).
    /// Their pages count as linked from a seed.
    #[serde(default)]
    sitemaps: Vec<Located<String>>,
    /// Read the sitemaps that the robots.txt of the seeds' hosts name.
    #[serde(default)]
    robots_sitemaps: bool,
    /// Most sitemaps that are read.
    #[serde(default = "max_sitemaps")]
    max_sitemaps: u64,
    /// How far the crawl goes: the `host`s of the seeds, these and their `subdomains`, or only the
    /// folders of the seeds (`prefix`). Where a seed redirects to is in scope.
    #[serde(default)]
    scope: Scope,
    /// Further hosts in scope.
    #[serde(default)]
    hosts: Vec<String>,
    /// Most pages that are visited.
    #[serde(default = "max_pages")]
    max_pages: usize,
    /// Most links from a seed to a page.
    #[serde(default = "max_depth")]
    max_depth: u32,
    /// The texts that are taken as captions: `alt`, `title`, `figcaption`, `aria-label`,
    /// `surrounding`, `json-ld`, `open-graph`.
    #[serde(default = "crate::html::default_captions")]
    captions: Vec<TextSource>,
    /// Take the pairs of pages that give the same URL as their own (`link rel=canonical`) from the
    /// first of them alone.
    #[serde(default)]
    canonical: bool,
    /// Parameters that are dropped from the URLs of pages, since they do not say which page is
    /// meant: `["utm_*", "gclid", "fbclid"]`. A star at the end stands for any ending.
    #[serde(default)]
    drop_params: Vec<String>,
    /// A file, relative to the pipeline file, that keeps pages and what their servers say of their
    /// age (ETag, Last-Modified): a crawl that is repeated asks for what has changed alone.
    #[serde(default)]
    cache: Option<String>,
    /// Longest page that is read, in bytes.
    #[serde(default = "max_page_bytes")]
    max_page_bytes: u64,
    /// Pages that are fetched at a time.
    #[serde(default = "concurrency")]
    concurrency: usize,
    /// Pages of a wave: what is committed, and after a kill fetched again, as one.
    #[serde(default = "wave_pages")]
    wave_pages: usize,
    /// How the network is used.
    #[serde(default = "super::nowhere::<HttpOptions>")]
    http: Located<HttpOptions>,
}

fn max_sitemaps() -> u64 {
    100
}
fn max_pages() -> usize {
    1000
}
fn max_depth() -> u32 {
    32
}
fn max_page_bytes() -> u64 {
    4 << 20
}
fn concurrency() -> usize {
    16
}
fn wave_pages() -> usize {
    250
}

impl StageKind for Crawl {
    const KIND: &'static str = "crawl";
    const ABOUT: &'static str = "Visits web pages, politely, and takes image-text pairs out of `alt`, `title`, `figcaption` and, if asked for, more; side tables: `visits`, `frontier`.";
    const EXAMPLE: &'static str = r#"
[stages.pages]
kind = "crawl"
seeds = ["http://clipart.example/"]
robots_sitemaps = true
max_pages = 20000
http = { user_agent = "my-crawler/1.0 (me@example.org)", delay = 1.0 }
"#;
    const VERSION: u32 = 2;
}

impl Stage for Crawl {
    fn inputs(&self) -> Vec<Input> {
        Vec::new()
    }

    fn side_tables(&self) -> &'static [&'static str] {
        &[FRONTIER, VISITS]
    }

    fn tables(&self, _: &CheckContext, _: &[InputTables]) -> Result<Tables, Vec<Fault>> {
        let mut faults = checks::http(&self.http);
        for seed in self.seeds.iter().chain(&self.sitemaps) {
            if !Url::parse(seed).is_ok_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host()) {
                let fault = Fault::at(seed.span(), format!("`{}` is no web address", seed.value()));
                faults.push(fault.label("expected http://... or https://..."));
            }
        }
        if self.seeds.is_empty() {
            faults.push(Fault::at(self.seeds.span(), "`seeds` is empty: there is nothing to crawl"));
        }
        match faults.is_empty() {
            true => Ok(Tables::main(pairs::schema(&[]))
                .with(VISITS, visits_schema())
                .with(FRONTIER, frontier_schema())),
            false => Err(faults),
        }
    }

    fn work(&self) -> Work<'_> {
        Work::Job(self)
    }
}

fn nullable(columns: &[(&str, DataType)]) -> SchemaRef {
    let field = |(name, kind): &(&str, DataType)| Field::new(*name, kind.clone(), true);
    Arc::new(Schema::new(columns.iter().map(field).collect::<Vec<_>>()))
}

/// What was visited. `kind` is `page`, `sitemap` or `robots`; `outcome` is `page`, `duplicate` (of
/// a page that gives the same URL as its own), `redirect`, `sitemap`, `robots`, or the code of the
/// reject. `canonical` is the URL that the page is known by besides.
fn visits_schema() -> SchemaRef {
    nullable(&[
        ("url", DataType::Utf8),
        ("kind", DataType::Utf8),
        ("depth", DataType::Int32),
        ("outcome", DataType::Utf8),
        ("redirect", DataType::Utf8),
        ("canonical", DataType::Utf8),
        ("pairs", DataType::Int32),
        ("links", DataType::Int32),
    ])
}

/// The URLs that were found, each once, and where.
fn frontier_schema() -> SchemaRef {
    nullable(&[
        ("url", DataType::Utf8),
        ("kind", DataType::Utf8),
        ("depth", DataType::Int32),
        ("found_on", DataType::Utf8),
    ])
}

#[async_trait]
impl Job for Crawl {
    async fn run(&self, cx: &RunContext, _: &[InputData], output: &mut Output) -> Result<(), RunError> {
        let budget = ByteBudget::new(cx.bytes_in_flight as u64);
        let client = super::client(cx, &self.http, budget, self.concurrency.max(1))?;
        let cache = self.cache.as_ref().map(|path| Cache::open(&cx.path(path))).transpose()?;
        let captions = Captions::of(&self.captions);
        let visitor = Arc::new(Visitor::new(client, self.max_page_bytes, captions, cache));
        let mut frontier = self.frontier(cx, output).await?;
        cx.progress.done(frontier.counts().visited);
        let crawled = self.waves(cx, &visitor, &mut frontier, output).await;
        let path = output.work_dir()?.join(STORE);
        match crawled {
            Ok(()) => {
                // What the index was over is complete.
                drop(frontier);
                std::fs::remove_file(&path).map_err(|error| RunError::io(&path, error))
            }
            Err(error) => {
                // To spare the next run work; it can do without.
                let _behind = frontier.save();
                Err(error)
            }
        }
    }
}

impl Crawl {
    /// Wave after wave, until none is left.
    async fn waves(
        &self,
        cx: &RunContext,
        visitor: &Arc<Visitor>,
        frontier: &mut Frontier,
        output: &mut Output,
    ) -> Result<(), RunError> {
        loop {
            cx.check_cancelled()?;
            let wave = match output.rows_wanted() {
                Some(0) => Vec::new(),
                _ => frontier.next_wave(self.wave_pages.max(1)).map_err(store)?,
            };
            if wave.is_empty() {
                return super::reachable(&visitor.client, true);
            }
            let number = output.state().commits.len() as u64;
            let split = output.split(number, label(number, &wave));
            let record = Record::new(cx, split, self.canonical, output.rows_wanted());
            let (split, recorded) = tokio::select! {
                fetched = self.wave(cx, visitor, frontier, wave, record) => fetched?,
                () = cx.cancel.cancelled() => return Err(RunError::Interrupted),
            };
            if let Some(cache) = &visitor.cache {
                cache.flush()?;
            }
            output.commit(split).await?;
            frontier.record(&recorded).map_err(store)?;
        }
    }
}

/// What a wave is, for people.
fn label(number: u64, wave: &[Visit]) -> String {
    let depths = match (wave.first(), wave.last()) {
        (Some(first), Some(last)) if first.depth != last.depth => format!("{}..{}", first.depth, last.depth),
        (first, _) => first.map_or(0, |first| first.depth).to_string(),
    };
    match wave.first().map(|visit| visit.kind) {
        Some(Kind::Robots) => format!("wave {number}: {} robots.txt", wave.len()),
        Some(Kind::Sitemap) => format!("wave {number}: {} sitemaps", wave.len()),
        _ => format!("wave {number}: {} pages at depth {depths}", wave.len()),
    }
}

fn store(error: StoreError) -> RunError {
    RunError::user_with_hint(
        error.to_string(),
        "if there is room and the file may be written, delete it: it is made anew from what is recorded",
    )
}

impl Crawl {
    /// The frontier after the waves that are committed.
    async fn frontier(&self, cx: &RunContext, output: &Output) -> Result<Frontier, RunError> {
        let path = output.work_dir()?.join(STORE);
        let commits = output.state().commits.len() as u64;
        let mut frontier = self.open(&path)?;
        if frontier.counts().waves.is_some_and(|waves| waves > commits) {
            // Of another dataset, which is gone.
            drop(frontier);
            std::fs::remove_file(&path).map_err(|error| RunError::io(&path, error))?;
            frontier = self.open(&path)?;
        }
        for number in frontier.counts().waves.unwrap_or(0)..commits {
            cx.check_cancelled()?;
            frontier.record(&recorded(cx, output, number).await?).map_err(store)?;
        }
        Ok(frontier)
    }

    fn open(&self, path: &std::path::Path) -> Result<Frontier, RunError> {
        let urls = |written: &[Located<String>]| {
            let bad = |url: &Located<String>| RunError::user(format!("`{}` is no web address", url.value()));
            written.iter().map(|url| Url::parse(url).map_err(|_| bad(url))).collect::<Result<Vec<_>, _>>()
        };
        let bounds = Bounds {
            scope: self.scope,
            hosts: self.hosts.clone(),
            max_depth: self.max_depth,
            max_pages: self.max_pages as u64,
            max_sitemaps: self.max_sitemaps,
            drop_params: self.drop_params.clone(),
        };
        let (seeds, sitemaps) = (urls(&self.seeds)?, urls(&self.sitemaps)?);
        let opened = Store::open(path).map_err(store)?;
        Frontier::open(opened, bounds, &seeds, &sitemaps, self.robots_sitemaps).map_err(store)
    }

    /// Fetches a wave; its visits are recorded in their order, whatever the order in which they
    /// come.
    async fn wave(
        &self,
        cx: &RunContext,
        visitor: &Arc<Visitor>,
        frontier: &mut Frontier,
        wave: Vec<Visit>,
        mut record: Record,
    ) -> Result<(SplitWriter, Recorded), RunError> {
        let counts = frontier.counts();
        cx.progress.total(counts.visited + counts.waiting);
        let first = counts.visited == 0 && wave.iter().all(|visit| visit.kind == Kind::Page);
        let (mut refusals, mut visited) = (Vec::new(), 0);
        let mut fetching =
            Fetching::new(visitor, &wave, self.concurrency.clamp(1, 1000), cx.bytes_in_flight / 2);
        for visit in &wave {
            let found = fetching.next().await?;
            if let Err(error) = &found {
                super::reachable(&visitor.client, false)?;
                refusals.push(format!("{}: {error}", visit.url));
            }
            record.visit(visit, found, frontier)?;
            visited += 1;
            cx.progress.done(u64::from(visit.kind == Kind::Page));
            if record.is_full() {
                break;
            }
        }
        if first && refusals.len() == wave.len() {
            super::reachable(&visitor.client, true)?;
            return Err(RunError::user_with_hint(
                format!("stage `{}`: no seed can be crawled: {}", cx.stage, refusals.join("; ")),
                "check `seeds`, and the `http` options if the site is on a private network (`allow_private`)",
            ));
        }
        let visits = wave.into_iter().take(visited).map(|visit| {
            let claimed = frontier.claimed(&visit).map(String::from);
            (visit, claimed)
        });
        let visits = visits.collect();
        let found = frontier.end_wave().map_err(store)?;
        let split = record.finish(&found)?;
        Ok((split, Recorded { visits, found: found.into_keys().collect() }))
    }
}

/// What a committed wave recorded.
async fn recorded(cx: &RunContext, output: &Output, number: u64) -> Result<Recorded, RunError> {
    if !output.is_done(number) {
        return Err(RunError::Internal(format!("wave {number} is not recorded")));
    }
    let wave = output.dataset().of_split(number);
    let mut recorded = Recorded::default();
    for (table, third) in [(VISITS, "canonical"), (FRONTIER, "found_on")] {
        let columns = ["url", "kind", "depth", third].map(ident);
        let frame = wave.frame(&cx.session, table).await?.select(columns)?;
        for batch in frame.collect().await? {
            let rows = rows(&batch)?;
            match table {
                VISITS => recorded.visits.extend(rows),
                _ => recorded.found.extend(rows.into_iter().map(|(visit, _)| visit)),
            }
        }
    }
    Ok(recorded)
}

/// Visits, and the last column.
fn rows(batch: &RecordBatch) -> Result<Vec<(Visit, Option<String>)>, RunError> {
    let text = |column: usize| -> Result<_, RunError> {
        Ok(cast(batch.column(column), &DataType::Utf8).map_err(engine)?.as_string::<i32>().clone())
    };
    let (url, kind, last) = (text(0)?, text(1)?, text(3)?);
    let depth = batch.column(2).as_primitive::<Int32Type>();
    let row = |row: usize| {
        let visit = Visit {
            kind: Kind::of_name(kind.value(row)),
            depth: depth.value(row).unsigned_abs(),
            url: url.value(row).into(),
        };
        (visit, last.is_valid(row).then(|| last.value(row).to_string()))
    };
    Ok((0..batch.num_rows()).map(row).collect())
}
