//! Writes a wave into its split.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int32Builder, RecordBatch, StringBuilder};
use twinlens_dataset::{MAIN, SplitWriter};
use twinlens_pipeline::run::events::Progress;
use twinlens_pipeline::run::output::write_rows;
use twinlens_pipeline::{RunContext, RunError};
use url::Url;

use super::tables::{FRONTIER, VISITS, frontier_schema, visits_schema};
use super::visit::VisitResult;
use crate::frontier::{Frontier, Visit, VisitKind};
use crate::html::Page;
use crate::net::FetchError;
use crate::pairs::{PairBatchBuilder, PairRow};
use crate::sitemap::Sitemap;
use crate::stages::common::arrow_error;

/// Reject code of an invalid sitemap; the other codes are those of [`crate::net::FetchErrorKind`].
const BAD_SITEMAP: &str = "bad_sitemap";
/// Rows that are buffered before they are written.
const BATCH: usize = 4096;

#[derive(Default)]
struct Outcome {
    name: &'static str,
    redirect: Option<String>,
    charset: Option<&'static str>,
    pairs: usize,
    links: usize,
    reject: Option<(&'static str, String)>,
}

pub(super) struct WaveWriter {
    split: SplitWriter,
    rows: PairBatchBuilder,
    /// Only take pairs from the first page with a canonical URL.
    canonical: bool,
    /// Rows until the crawl ends; `None` if unlimited.
    rows_left: Option<u64>,
    /// URL, kind, outcome, redirect, canonical, charset.
    texts: [StringBuilder; 6],
    /// Depth, pairs, links.
    numbers: [Int32Builder; 3],
    progress: Progress,
}

impl WaveWriter {
    pub(super) fn new(cx: &RunContext, split: SplitWriter, canonical: bool, rows_left: Option<u64>) -> Self {
        Self {
            split,
            rows: PairBatchBuilder::new(&cx.stage, &[]),
            canonical,
            rows_left,
            texts: std::array::from_fn(|_| StringBuilder::new()),
            numbers: std::array::from_fn(|_| Int32Builder::new()),
            progress: cx.progress.clone(),
        }
    }

    /// Records a visit and adds its finds to the frontier.
    pub(super) fn record(
        &mut self,
        visit: &Visit,
        found: Result<VisitResult, FetchError>,
        frontier: &mut Frontier,
    ) -> Result<(), RunError> {
        let mut outcome = match found {
            Ok(VisitResult::Redirect(url)) => {
                frontier.add_redirect(visit, &url)?;
                Outcome { name: "redirect", redirect: Some(url.into()), ..Outcome::default() }
            }
            Ok(VisitResult::Page { page, opt_out, charset }) => {
                let outcome = self.record_page(visit, &page, opt_out, frontier)?;
                Outcome { charset: Some(charset), ..outcome }
            }
            Ok(VisitResult::Sitemap(sitemap)) => record_sitemap(visit, sitemap, frontier)?,
            Ok(VisitResult::Robots(sitemaps)) => {
                frontier.add_sitemaps(visit, &sitemaps)?;
                Outcome { name: "robots", links: sitemaps.len(), ..Outcome::default() }
            }
            // A host need not have a robots.txt.
            Err(error) if visit.kind == VisitKind::Robots => {
                Outcome { name: error.code(), ..Outcome::default() }
            }
            Err(error) => Outcome { reject: Some((error.code(), error.detail)), ..Outcome::default() },
        };
        if let Some((code, detail)) = outcome.reject.take() {
            outcome.name = code;
            self.push(PairRow {
                page_url: Some(&visit.url),
                reject: Some((code, &detail)),
                ..PairRow::default()
            })?;
            self.progress.rejects(1);
        }
        let texts = [
            Some(visit.url.as_str()),
            Some(visit.kind.name()),
            Some(outcome.name),
            outcome.redirect.as_deref(),
            frontier.canonical_of(visit),
            outcome.charset,
        ];
        self.texts.iter_mut().zip(texts).for_each(|(column, text)| column.append_option(text));
        // Depth and per-page counts are bounded.
        let numbers = [visit.depth as usize, outcome.pairs, outcome.links];
        let number = |number: usize| i32::try_from(number).unwrap_or(i32::MAX);
        self.numbers.iter_mut().zip(numbers).for_each(|(column, value)| column.append_value(number(value)));
        Ok(())
    }

    fn record_page(
        &mut self,
        visit: &Visit,
        page: &Page,
        reject: Option<FetchError>,
        frontier: &mut Frontier,
    ) -> Result<Outcome, RunError> {
        let first = match &page.canonical {
            Some(own) if self.canonical && reject.is_none() => frontier.claim_canonical(visit, own)?,
            _ => true,
        };
        for pair in page.pairs.iter().filter(|_| first) {
            self.push(PairRow {
                url: Some(&pair.image),
                caption: Some(&pair.text),
                page_url: Some(&visit.url),
                text_source: Some(pair.source.name()),
                ..PairRow::default()
            })?;
        }
        if let Some(target) = &page.refresh {
            frontier.add_redirect(visit, target)?;
        }
        frontier.add_links(visit, &page.links)?;
        Ok(Outcome {
            name: if first { "page" } else { "duplicate" },
            redirect: page.refresh.as_ref().map(Url::to_string),
            pairs: if first { page.pairs.len() } else { 0 },
            links: page.links.len(),
            reject: reject.map(|error| (error.code(), error.detail)),
            ..Outcome::default()
        })
    }

    pub(super) fn is_full(&self) -> bool {
        self.rows_left == Some(0)
    }

    fn push(&mut self, row: PairRow<'_>) -> Result<(), RunError> {
        if self.is_full() {
            return Ok(());
        }
        self.rows_left = self.rows_left.map(|rows| rows - 1);
        self.rows.push(row);
        self.split.count_rows_in(1);
        if self.rows.len() >= BATCH { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), RunError> {
        let batch = self.rows.finish().map_err(arrow_error)?;
        if self.split.schema(MAIN).is_some() && batch.num_rows() > 0 {
            write_rows(&mut self.split, &batch)?;
        }
        Ok(())
    }

    /// Writes the remaining rows, the visits, and the URLs found (each with its page).
    pub(super) fn finish(mut self, found: &BTreeMap<Visit, String>) -> Result<SplitWriter, RunError> {
        self.flush()?;
        // A wave without rows must be counted too.
        self.split.count_rows_in(0);
        let [url, kind, outcome, redirect, canonical, charset] =
            self.texts.each_mut().map(|column| Arc::new(column.finish()) as ArrayRef);
        let [depth, pairs, links] =
            self.numbers.each_mut().map(|column| Arc::new(column.finish()) as ArrayRef);
        let columns = vec![url, kind, depth, outcome, redirect, canonical, charset, pairs, links];
        let visits = RecordBatch::try_new(visits_schema(), columns).map_err(arrow_error)?;
        self.split.write(VISITS, &visits)?;
        if !found.is_empty() {
            let (mut texts, mut depth) = ([(); 3].map(|()| StringBuilder::new()), Int32Builder::new());
            for (visit, page) in found {
                let values = [visit.url.as_str(), visit.kind.name(), page.as_str()];
                texts.iter_mut().zip(values).for_each(|(column, value)| column.append_value(value));
                depth.append_value(visit.depth as i32);
            }
            let [url, kind, on] = texts.each_mut().map(|column| Arc::new(column.finish()) as ArrayRef);
            let columns = vec![url, kind, Arc::new(depth.finish()) as ArrayRef, on];
            self.split
                .write(FRONTIER, &RecordBatch::try_new(frontier_schema(), columns).map_err(arrow_error)?)?;
        }
        Ok(self.split)
    }
}

/// Adds the entries of a sitemap to the frontier.
fn record_sitemap(visit: &Visit, sitemap: Sitemap, frontier: &mut Frontier) -> Result<Outcome, RunError> {
    frontier.add_sitemaps(visit, &sitemap.sitemaps)?;
    frontier.add_links(visit, &sitemap.pages)?;
    Ok(Outcome {
        name: "sitemap",
        links: sitemap.pages.len() + sitemap.sitemaps.len(),
        reject: sitemap.error.map(|error| (BAD_SITEMAP, error)),
        ..Outcome::default()
    })
}
