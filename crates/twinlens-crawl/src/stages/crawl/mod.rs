//! The `crawl` stage: web pages to image-text pairs.
//!
//! Each wave of the frontier is a split. Besides the pairs it records the visits and the URLs
//! found. These records define the crawl; the frontier on disk is an index over them, to which a
//! wave is applied after its commit.

mod cache;
mod fetcher;
mod tables;
mod visit;
mod writer;

use std::sync::Arc;

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use twinlens_dataset::SplitWriter;
use twinlens_dataset::secret_urls::has_credentials;
use twinlens_pipeline::{
    Fault, Inputs, Job, Located, Output, Ports, RunContext, RunError, SortKey, StageKind, Work,
};
use url::Url;

use self::cache::Cache;
use self::fetcher::WaveFetcher;
use self::tables::{FRONTIER, VISITS, frontier_schema, read_wave, visits_schema};
use self::visit::Visitor;
use self::writer::WaveWriter;
use super::fetch::CREDENTIALS_HINT;
use super::options;
use crate::frontier::{CrawlLimits, Frontier, Scope, Store, StoreError, Visit, VisitKind, WaveRecord};
use crate::html::{TextSource, TextSourceSet};
use crate::net::{ByteBudget, HttpOptions};
use crate::pairs;

/// File of the frontier in the stage's work directory.
const STORE: &str = "frontier.redb";

/// Crawls web pages politely and extracts image-text pairs from `alt`, `title`, `figcaption` and
/// optionally more; side tables: `visits`, `frontier`.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CrawlOptions {
    /// URLs of the first pages.
    seeds: Located<Vec<Located<String>>>,
    /// Sitemaps with further pages to visit (XML, feeds, lists of URLs; optionally gzipped). Their
    /// pages count as linked from a seed.
    #[serde(default)]
    sitemaps: Vec<Located<String>>,
    /// Read the sitemaps listed in the robots.txt of the seeds' hosts.
    #[serde(default)]
    robots_sitemaps: bool,
    /// Maximum number of sitemaps to read.
    #[serde(default = "max_sitemaps")]
    max_sitemaps: u64,
    /// Which pages are in scope: those on the `host`s of the seeds, also on their `subdomains`, or
    /// only those in the directories of the seeds (`prefix`). Redirect targets of seeds count as
    /// seeds.
    #[serde(default)]
    scope: Scope,
    /// Extra hosts in scope.
    #[serde(default)]
    hosts: Vec<String>,
    /// Maximum number of pages to visit.
    #[serde(default = "max_pages")]
    max_pages: usize,
    /// Maximum number of links from a seed to a page.
    #[serde(default = "max_depth")]
    max_depth: u32,
    /// Texts to use as captions: `alt`, `title`, `figcaption`, `aria-label`, `surrounding`,
    /// `json-ld`, `open-graph`.
    #[serde(default = "crate::html::default_captions")]
    captions: Vec<TextSource>,
    /// Of several pages with the same canonical URL (`link rel=canonical`), only take the pairs of
    /// the first.
    #[serde(default)]
    canonical: bool,
    /// Query parameters to drop from page URLs because they do not identify the page:
    /// `["utm_*", "gclid", "fbclid"]`. A final star matches any ending.
    #[serde(default)]
    drop_params: Vec<String>,
    /// Cache file for pages with an ETag or Last-Modified, relative to the pipeline file: a
    /// repeated crawl only downloads what has changed.
    #[serde(default)]
    cache: Option<String>,
    /// Longest page, in bytes.
    #[serde(default = "max_page_bytes")]
    max_page_bytes: u64,
    /// Maximum number of pages fetched at a time.
    #[serde(default = "concurrency")]
    #[schemars(range(min = 1))]
    concurrency: usize,
    /// Pages per wave. A wave is committed as a whole, and fetched again after a kill.
    #[serde(default = "wave_pages")]
    #[schemars(range(min = 1))]
    wave_pages: usize,
    /// HTTP settings.
    #[serde(default = "super::options::default_option::<HttpOptions>")]
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

/// `crawl` as it runs.
pub struct Crawl {
    seeds: Vec<Url>,
    sitemaps: Vec<Url>,
    options: CrawlOptions,
}

impl StageKind for Crawl {
    type Options = CrawlOptions;
    const NAME: &'static str = "crawl";
    const VERSION: u32 = 3;
    const UNIT: &'static str = "page";
    const EXAMPLE: &'static str = r#"
[stages.pages]
kind = "crawl"
seeds = ["http://clipart.example/"]
robots_sitemaps = true
max_pages = 20000
http = { user_agent = "my-crawler/1.0 (me@example.org)", delay = 1.0 }
"#;

    fn plan(options: CrawlOptions, ports: &mut Ports<'_>) -> Option<Work> {
        options::check_http(ports, &options.http);
        let (seeds, sitemaps) = (urls(ports, &options.seeds), urls(ports, &options.sitemaps));
        if options.seeds.is_empty() {
            ports.fault(Fault::at(options.seeds.span(), "`seeds` is empty: there is nothing to crawl"));
        }
        ports.output(pairs::schema(&[]), SortKey::AsGiven);
        ports.side_table(VISITS, visits_schema());
        ports.side_table(FRONTIER, frontier_schema());
        Some(Work::job(Crawl { seeds, sitemaps, options }))
    }
}

/// The http(s) URLs among these; the others are faults.
fn urls(ports: &mut Ports<'_>, written: &[Located<String>]) -> Vec<Url> {
    let mut urls = Vec::new();
    for url in written {
        if has_credentials(url) {
            let fault = Fault::at(url.span(), "this URL has a user or a password, which pages would not get");
            ports.fault(fault.hint(CREDENTIALS_HINT));
            continue;
        }
        match Url::parse(url) {
            Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => urls.push(url),
            _ => {
                let fault = Fault::at(url.span(), format!("`{}` is not an http(s) URL", url.value()));
                ports.fault(fault.label("expected http://... or https://..."));
            }
        }
    }
    urls
}

#[async_trait]
impl Job for Crawl {
    async fn run(&self, cx: &RunContext, _: &Inputs, output: &mut Output) -> Result<(), RunError> {
        let budget = ByteBudget::new(cx.bytes_in_flight as u64);
        let options = &self.options;
        let client = super::network::client(cx, &options.http, budget, options.concurrency.max(1), false)?;
        let cache = options.cache.as_ref().map(|path| Cache::open(&cx.path(path))).transpose()?;
        let captions = TextSourceSet::new(&options.captions);
        let visitor = Arc::new(Visitor::new(client, options.max_page_bytes, captions, cache));
        let mut frontier = self.frontier(cx, output).await?;
        cx.progress.done(frontier.counts().visited);
        let crawled = self.waves(cx, &visitor, &mut frontier, output).await;
        let path = output.work_dir()?.join(STORE);
        match crawled {
            Ok(()) => {
                // The crawl is complete and needs no index.
                drop(frontier);
                std::fs::remove_file(&path).map_err(|error| RunError::io(&path, error))
            }
            Err(error) => {
                // Saves the next run work, but is not needed.
                let _ignored = frontier.save();
                Err(error)
            }
        }
    }
}

impl Crawl {
    /// Crawls wave after wave until none is left.
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
                _ => frontier.next_wave(self.options.wave_pages.max(1))?,
            };
            if wave.is_empty() {
                return super::network::check_reachable(&visitor.client, true);
            }
            let number = output.state().commits.len() as u64;
            let split = output.split(number, label(number, &wave));
            let writer = WaveWriter::new(cx, split, self.options.canonical, output.rows_wanted());
            let (split, record) = tokio::select! {
                fetched = self.wave(cx, visitor, frontier, wave, writer) => fetched?,
                () = cx.cancel.cancelled() => return Err(RunError::Interrupted),
            };
            if let Some(cache) = &visitor.cache {
                cache.flush()?;
            }
            output.commit(split).await?;
            frontier.record(&record)?;
        }
    }
}

/// The label of a wave.
fn label(number: u64, wave: &[Visit]) -> String {
    let depths = match (wave.first(), wave.last()) {
        (Some(first), Some(last)) if first.depth != last.depth => format!("{}..{}", first.depth, last.depth),
        (first, _) => first.map_or(0, |first| first.depth).to_string(),
    };
    match wave.first().map(|visit| visit.kind) {
        Some(VisitKind::Robots) => format!("wave {number}: {} robots.txt", wave.len()),
        Some(VisitKind::Sitemap) => format!("wave {number}: {} sitemaps", wave.len()),
        _ => format!("wave {number}: {} pages at depth {depths}", wave.len()),
    }
}

impl From<StoreError> for RunError {
    fn from(error: StoreError) -> Self {
        Self::user_with_hint(
            error.to_string(),
            "check disk space and permissions, or delete the file: it is rebuilt from the committed waves",
        )
    }
}

impl Crawl {
    /// The frontier after the committed waves.
    async fn frontier(&self, cx: &RunContext, output: &Output) -> Result<Frontier, RunError> {
        let path = output.work_dir()?.join(STORE);
        let commits = output.state().commits.len() as u64;
        let mut frontier = self.open(&path)?;
        if frontier.counts().waves.is_some_and(|waves| waves > commits) {
            // It belongs to another dataset, which is gone.
            drop(frontier);
            std::fs::remove_file(&path).map_err(|error| RunError::io(&path, error))?;
            frontier = self.open(&path)?;
        }
        for number in frontier.counts().waves.unwrap_or(0)..commits {
            cx.check_cancelled()?;
            frontier.record(&read_wave(cx, output, number).await?)?;
        }
        Ok(frontier)
    }

    fn open(&self, path: &std::path::Path) -> Result<Frontier, RunError> {
        let options = &self.options;
        let limits = CrawlLimits {
            scope: options.scope,
            hosts: options.hosts.clone(),
            max_depth: options.max_depth,
            max_pages: options.max_pages as u64,
            max_sitemaps: options.max_sitemaps,
            drop_params: options.drop_params.clone(),
        };
        let store = Store::open(path)?;
        Ok(Frontier::open(store, limits, &self.seeds, &self.sitemaps, options.robots_sitemaps)?)
    }

    /// Fetches a wave and records its visits in order.
    async fn wave(
        &self,
        cx: &RunContext,
        visitor: &Arc<Visitor>,
        frontier: &mut Frontier,
        wave: Vec<Visit>,
        mut writer: WaveWriter,
    ) -> Result<(SplitWriter, WaveRecord), RunError> {
        let counts = frontier.counts();
        cx.progress.total(counts.visited + counts.waiting);
        let first = counts.visited == 0 && wave.iter().all(|visit| visit.kind == VisitKind::Page);
        let (mut failures, mut visited) = (Vec::new(), 0);
        let concurrency = self.options.concurrency.clamp(1, 1000);
        let mut fetcher = WaveFetcher::new(visitor, &wave, concurrency, cx.bytes_in_flight / 2);
        for visit in &wave {
            let result = fetcher.next().await?;
            if let Err(error) = &result {
                super::network::check_reachable(&visitor.client, false)?;
                failures.push(format!("{}: {error}", visit.url));
            }
            writer.record(visit, result, frontier)?;
            visited += 1;
            cx.progress.done(u64::from(visit.kind == VisitKind::Page));
            if writer.is_full() {
                break;
            }
        }
        if first && failures.len() == wave.len() {
            super::network::check_reachable(&visitor.client, true)?;
            return Err(RunError::user_with_hint(
                format!("stage `{}`: no seed can be crawled: {}", cx.stage, failures.join("; ")),
                "check `seeds`, and the `http` options if the site is on a private network (`allow_private`)",
            ));
        }
        let visits = wave.into_iter().take(visited).map(|visit| {
            let canonical = frontier.canonical_of(&visit).map(String::from);
            (visit, canonical)
        });
        let visits = visits.collect();
        let found = frontier.end_wave()?;
        let split = writer.finish(&found)?;
        Ok((split, WaveRecord { visits, found: found.into_keys().collect() }))
    }
}
