//! The `crawl` stage: web pages to image-text pairs.
//!
//! Each wave of the frontier is a split. Beside the pairs it records the pages that were visited and the URLs that were found, so
//! that a killed crawl goes on where it was.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{Int32Builder, RecordBatch, StringBuilder};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::logical_expr::ident;
use futures::StreamExt;
use reqwest::header::{CONTENT_TYPE, HeaderMap};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio_util::task::AbortOnDropHandle;
use twinlens_dataset::{MAIN, SplitWriter};
use twinlens_pipeline::run::output::write_rows;
use twinlens_pipeline::{
    CheckContext, Fault, Input, InputData, InputTables, Job, Located, Output, RunContext, RunError, Stage,
    StageKind, Tables, Work,
};
use url::Url;

use crate::frontier::{Frontier, Scope, Visit};
use crate::html::{self, Page};
use crate::net::{Ask, ByteBudget, Client, Directives, FetchError, HttpOptions, Why};
use crate::pairs::{self, Row, Rows};

/// Side table: the pages that were visited.
const VISITS: &str = "visits";
/// Side table: the URLs that were found.
const FRONTIER: &str = "frontier";
/// Rows that are gathered before they are written.
const BATCH: usize = 4096;

/// Web pages to image-text pairs.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Crawl {
    /// The pages to begin with.
    seeds: Located<Vec<Located<String>>>,
    /// How far the crawl goes: the `host`s of the seeds, or only their folders (`prefix`). Where a seed redirects to is in scope.
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
    const ABOUT: &'static str = "Visits web pages, politely, and takes image-text pairs out of `alt`, `title` and `figcaption`; side tables: `visits`, `frontier`.";
    const EXAMPLE: &'static str = r#"
[stages.pages]
kind = "crawl"
seeds = ["http://clipart.example/"]
max_pages = 20000
http = { user_agent = "my-crawler/1.0 (me@example.org)", delay = 1.0 }
"#;
    const VERSION: u32 = 1;
}

impl Stage for Crawl {
    fn inputs(&self) -> Vec<Input> {
        Vec::new()
    }

    fn side_tables(&self) -> &'static [&'static str] {
        &[FRONTIER, VISITS]
    }

    fn tables(&self, _: &CheckContext, _: &[InputTables]) -> Result<Tables, Vec<Fault>> {
        let mut faults: Vec<Fault> = super::http_faults(&self.http).into_iter().collect();
        for seed in self.seeds.iter() {
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

/// The pages that were visited: `outcome` is `page`, `redirect`, or the code of the reject.
fn visits_schema() -> SchemaRef {
    let columns = [
        ("url", DataType::Utf8),
        ("depth", DataType::Int32),
        ("outcome", DataType::Utf8),
        ("redirect", DataType::Utf8),
        ("pairs", DataType::Int32),
        ("links", DataType::Int32),
    ];
    Arc::new(Schema::new(columns.map(|(name, kind)| Field::new(name, kind, true)).to_vec()))
}

/// The URLs that were found, each once, and where.
fn frontier_schema() -> SchemaRef {
    let columns = [("url", DataType::Utf8), ("depth", DataType::Int32), ("found_on", DataType::Utf8)];
    Arc::new(Schema::new(columns.map(|(name, kind)| Field::new(name, kind, true)).to_vec()))
}

#[async_trait]
impl Job for Crawl {
    async fn run(&self, cx: &RunContext, _: &[InputData], output: &mut Output) -> Result<(), RunError> {
        let budget = ByteBudget::new(cx.bytes_in_flight as u64);
        let visitor =
            Visitor { client: super::client(cx, &self.http, budget, self.concurrency.max(1))?, max_bytes: self.max_page_bytes };
        let visitor = Arc::new(visitor);
        let mut frontier = self.frontier(cx, output).await?;
        cx.progress.done(frontier.visited() as u64);
        loop {
            cx.check_cancelled()?;
            let wave = frontier.next_wave(self.wave_pages.max(1));
            let (Some(first), Some(last)) = (wave.first(), wave.last()) else {
                return super::reachable(&visitor.client, true);
            };
            let number = output.state().commits.len() as u64;
            let depths = if first.depth == last.depth {
                first.depth.to_string()
            } else {
                format!("{}..{}", first.depth, last.depth)
            };
            let split =
                output.split(number, format!("wave {number}: {} pages at depth {depths}", wave.len()));
            let fetch = self.wave(cx, &visitor, &mut frontier, &wave, Record::new(cx, split));
            let split = tokio::select! {
                split = fetch => split?,
                () = cx.cancel.cancelled() => return Err(RunError::Interrupted),
            };
            output.commit(split).await?;
        }
    }
}

impl Crawl {
    /// The frontier after the waves that are committed.
    async fn frontier(&self, cx: &RunContext, output: &Output) -> Result<Frontier, RunError> {
        let bad = |seed: &Located<String>| RunError::user(format!("`{}` is no web address", seed.value()));
        let seeds = self
            .seeds
            .iter()
            .map(|seed| Url::parse(seed).map_err(|_| bad(seed)))
            .collect::<Result<Vec<_>, _>>()?;
        let mut frontier = Frontier::new(&seeds, self.scope, &self.hosts, self.max_depth, self.max_pages);
        let found = visits(cx, output, FRONTIER).await?;
        frontier.restore(found, visits(cx, output, VISITS).await?);
        Ok(frontier)
    }

    /// Fetches a wave; its pages are recorded in their order, whatever the order in which they come.
    async fn wave(
        &self,
        cx: &RunContext,
        visitor: &Arc<Visitor>,
        frontier: &mut Frontier,
        wave: &[Visit],
        mut record: Record,
    ) -> Result<SplitWriter, RunError> {
        cx.progress.total((frontier.visited() + frontier.waiting()) as u64);
        let visits = wave.iter().cloned().map(|visit| {
            let visitor = visitor.clone();
            // A task of its own: the time-outs of a page do not run while another one is being written.
            let task = tokio::spawn(async move { visitor.visit(&visit.url).await });
            AbortOnDropHandle::new(task)
        });
        let mut pages = futures::stream::iter(visits).buffered(self.concurrency.clamp(1, 1000));
        let mut new = BTreeMap::new();
        let mut refusals = Vec::new();
        for visit in wave {
            let Some(page) = pages.next().await else { break };
            let page = page.map_err(|error| RunError::Internal(error.to_string()))?;
            if let Err(error) = &page {
                super::reachable(&visitor.client, false)?;
                refusals.push(format!("{}: {error}", visit.url));
            }
            let found = record.visit(visit, page, frontier)?;
            new.extend(found.into_iter().map(|found| (found, visit.url.clone())));
            cx.progress.done(1);
        }
        if refusals.len() == wave.len() && frontier.visited() == wave.len() {
            super::reachable(&visitor.client, true)?;
            return Err(RunError::user_with_hint(
                format!("stage `{}`: no seed can be crawled: {}", cx.stage, refusals.join("; ")),
                "check `seeds`, and the `http` options if the site is on a private network (`allow_private`)",
            ));
        }
        record.finish(frontier.end_wave(new))
    }
}

/// The URLs and depths of a side table that is committed so far.
async fn visits(cx: &RunContext, output: &Output, table: &str) -> Result<Vec<Visit>, RunError> {
    let frame = output.frame(&cx.session, table).await?.select([ident("url"), ident("depth")])?;
    let mut visits = Vec::new();
    for batch in frame.collect().await? {
        let (url, depth) = (batch.column(0), batch.column(1));
        let url = arrow::compute::cast(url, &DataType::Utf8).map_err(engine)?;
        let (url, depth) = (
            arrow::array::AsArray::as_string::<i32>(&url),
            arrow::array::AsArray::as_primitive::<arrow::datatypes::Int32Type>(depth),
        );
        visits.extend(
            (0..batch.num_rows())
                .map(|row| Visit { depth: depth.value(row).unsigned_abs(), url: url.value(row).into() }),
        );
    }
    Ok(visits)
}

fn engine(error: arrow::error::ArrowError) -> RunError {
    RunError::Engine(error.into())
}

/// What a page gave.
enum Visited {
    /// A page; `refused` when its pairs are not ours to take.
    Page { page: Page, refused: Option<FetchError> },
    /// A redirect.
    Redirect(Url),
}

/// Fetches and reads pages.
struct Visitor {
    client: Client,
    max_bytes: u64,
}

impl Visitor {
    async fn visit(&self, url: &str) -> Result<Visited, FetchError> {
        let url = Url::parse(url).map_err(|error| FetchError::new(Why::BadUrl, error.to_string()))?;
        let ask = Ask {
            url: &url,
            accept: "text/html,application/xhtml+xml;q=0.9",
            max_bytes: self.max_bytes,
            cut: false,
            // A redirect is a link: its target is visited once, whoever points to it.
            follow: false,
            robots: true,
            check: &check_html,
        };
        let reply = self.client.get(ask).await?;
        if let Some(target) = reply.redirect {
            return Ok(Visited::Redirect(target));
        }
        let product = self.client.options().product().to_string();
        let content_type = content_type(&reply.headers).to_string();
        let header = Directives::of_headers(&reply.headers, &product);
        let (body, reserved) = (reply.body, reply.reserved);
        let read = move || {
            let _reserved = reserved;
            let (text, _) = html::decode(&body, &content_type);
            html::extract(&text, &url, &product)
        };
        let mut page = tokio::task::spawn_blocking(read)
            .await
            .map_err(|error| FetchError::new(Why::BadResponse, error.to_string()))?;
        let mut refused = None;
        if self.client.options().opt_outs {
            if header.nofollow || page.directives.nofollow {
                page.links.clear();
            }
            if let Some(word) = header.opt_out.or(page.directives.opt_out.take()) {
                page.pairs.clear();
                refused = Some(FetchError::new(Why::OptedOut, word));
            }
        }
        Ok(Visited::Page { page, refused })
    }
}

fn content_type(headers: &HeaderMap) -> &str {
    headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

fn check_html(headers: &HeaderMap) -> Result<(), FetchError> {
    let kind = content_type(headers).split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    match kind.as_str() {
        "" | "text/html" | "application/xhtml+xml" => Ok(()),
        _ => Err(FetchError::new(Why::ContentType, format!("content type `{kind}` is no page"))),
    }
}

/// What a wave leaves in its split.
struct Record {
    split: SplitWriter,
    rows: Rows,
    url: StringBuilder,
    depth: Int32Builder,
    outcome: StringBuilder,
    redirect: StringBuilder,
    pairs: Int32Builder,
    links: Int32Builder,
    progress: twinlens_pipeline::run::events::Progress,
}

impl Record {
    fn new(cx: &RunContext, split: SplitWriter) -> Self {
        Self {
            split,
            rows: Rows::new(&cx.stage, &[]),
            url: StringBuilder::new(),
            depth: Int32Builder::new(),
            outcome: StringBuilder::new(),
            redirect: StringBuilder::new(),
            pairs: Int32Builder::new(),
            links: Int32Builder::new(),
            progress: cx.progress.clone(),
        }
    }

    /// Records one page. Returns the URLs that are new.
    fn visit(
        &mut self,
        visit: &Visit,
        page: Result<Visited, FetchError>,
        frontier: &mut Frontier,
    ) -> Result<Vec<Visit>, RunError> {
        let (mut found, mut outcome, mut target, mut counts) = (Vec::new(), "page", None, (0, 0));
        let refused = match page {
            Ok(Visited::Redirect(url)) => {
                found.extend(frontier.redirect(visit, &url));
                (outcome, target) = ("redirect", Some(String::from(url)));
                None
            }
            Ok(Visited::Page { page, refused }) => {
                for pair in &page.pairs {
                    let (url, caption) = (Some(pair.image.as_ref()), Some(pair.text.as_ref()));
                    self.push(Row {
                        url,
                        caption,
                        page_url: Some(&visit.url),
                        text_source: Some(pair.source.name()),
                        ..Row::default()
                    })?;
                }
                found = frontier.links(visit, &page.links);
                counts = (page.pairs.len() as i32, page.links.len() as i32);
                refused
            }
            Err(error) => Some(error),
        };
        if let Some(error) = &refused {
            outcome = error.code();
            self.push(Row {
                page_url: Some(&visit.url),
                refused: Some((outcome, &error.detail)),
                ..Row::default()
            })?;
            self.progress.rejects(1);
        }
        self.url.append_value(&visit.url);
        self.depth.append_value(visit.depth as i32);
        self.outcome.append_value(outcome);
        self.redirect.append_option(target);
        self.pairs.append_value(counts.0);
        self.links.append_value(counts.1);
        Ok(found)
    }

    fn push(&mut self, row: Row<'_>) -> Result<(), RunError> {
        self.rows.push(row);
        self.split.count_rows_in(1);
        if self.rows.len() >= BATCH { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), RunError> {
        let batch = self.rows.finish().map_err(engine)?;
        if self.split.schema(MAIN).is_some() && batch.num_rows() > 0 {
            write_rows(&mut self.split, &batch)?;
        }
        Ok(())
    }

    /// Writes what is left, the visits, and the URLs that were found (with the page of each).
    fn finish(mut self, found: BTreeMap<Visit, String>) -> Result<SplitWriter, RunError> {
        self.flush()?;
        // A wave without a row has come to an end all the same.
        self.split.count_rows_in(0);
        let visits = RecordBatch::try_new(
            visits_schema(),
            vec![
                Arc::new(self.url.finish()),
                Arc::new(self.depth.finish()),
                Arc::new(self.outcome.finish()),
                Arc::new(self.redirect.finish()),
                Arc::new(self.pairs.finish()),
                Arc::new(self.links.finish()),
            ],
        );
        self.split.write(VISITS, &visits.map_err(engine)?)?;
        if !found.is_empty() {
            let (mut url, mut depth, mut on) =
                (StringBuilder::new(), Int32Builder::new(), StringBuilder::new());
            for (visit, page) in &found {
                url.append_value(&visit.url);
                depth.append_value(visit.depth as i32);
                on.append_value(page);
            }
            let columns: Vec<arrow::array::ArrayRef> =
                vec![Arc::new(url.finish()), Arc::new(depth.finish()), Arc::new(on.finish())];
            self.split.write(FRONTIER, &RecordBatch::try_new(frontier_schema(), columns).map_err(engine)?)?;
        }
        Ok(self.split)
    }
}
