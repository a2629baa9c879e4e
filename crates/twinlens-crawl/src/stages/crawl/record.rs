//! What a wave leaves in its split.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int32Builder, RecordBatch, StringBuilder};
use twinlens_dataset::{MAIN, SplitWriter};
use twinlens_pipeline::run::events::Progress;
use twinlens_pipeline::run::output::write_rows;
use twinlens_pipeline::{RunContext, RunError};

use super::visit::Visited;
use super::{BAD_SITEMAP, FRONTIER, VISITS, frontier_schema, store, visits_schema};
use crate::frontier::{Frontier, Kind, Visit};
use crate::html::Page;
use crate::net::FetchError;
use crate::pairs::{Row, Rows};
use crate::sitemap::Sitemap;
use crate::stages::files::engine;

/// Rows that are gathered before they are written.
const BATCH: usize = 4096;

/// What came of a visit.
#[derive(Default)]
struct Outcome {
    name: &'static str,
    redirect: Option<String>,
    pairs: usize,
    links: usize,
    refused: Option<(&'static str, String)>,
}

pub(super) struct Record {
    split: SplitWriter,
    rows: Rows,
    /// Pages that give the same URL as their own are one.
    canonical: bool,
    /// Rows that are still wanted: the crawl ends when there are so many.
    wanted: Option<u64>,
    /// URL, kind, outcome, redirect, canonical.
    texts: [StringBuilder; 5],
    /// Depth, pairs, links.
    numbers: [Int32Builder; 3],
    progress: Progress,
}

impl Record {
    pub(super) fn new(cx: &RunContext, split: SplitWriter, canonical: bool, wanted: Option<u64>) -> Self {
        Self {
            split,
            rows: Rows::new(&cx.stage, &[]),
            canonical,
            wanted,
            texts: std::array::from_fn(|_| StringBuilder::new()),
            numbers: std::array::from_fn(|_| Int32Builder::new()),
            progress: cx.progress.clone(),
        }
    }

    /// Records one visit, and tells the frontier what it found.
    pub(super) fn visit(
        &mut self,
        visit: &Visit,
        found: Result<Visited, FetchError>,
        frontier: &mut Frontier,
    ) -> Result<(), RunError> {
        let mut outcome = match found {
            Ok(Visited::Redirect(url)) => {
                frontier.redirect(visit, &url).map_err(store)?;
                Outcome { name: "redirect", redirect: Some(url.into()), ..Outcome::default() }
            }
            Ok(Visited::Page { page, refused }) => self.page(visit, &page, refused, frontier)?,
            Ok(Visited::Sitemap(sitemap)) => listed(visit, sitemap, frontier)?,
            Ok(Visited::Robots(sitemaps)) => {
                frontier.sitemaps(visit, &sitemaps).map_err(store)?;
                Outcome { name: "robots", links: sitemaps.len(), ..Outcome::default() }
            }
            // A host without a robots.txt lacks nothing.
            Err(error) if visit.kind == Kind::Robots => Outcome { name: error.code(), ..Outcome::default() },
            Err(error) => Outcome { refused: Some((error.code(), error.detail)), ..Outcome::default() },
        };
        if let Some((code, detail)) = outcome.refused.take() {
            outcome.name = code;
            self.push(Row { page_url: Some(&visit.url), refused: Some((code, &detail)), ..Row::default() })?;
            self.progress.rejects(1);
        }
        let texts = [
            Some(visit.url.as_str()),
            Some(visit.kind.name()),
            Some(outcome.name),
            outcome.redirect.as_deref(),
            frontier.claimed(visit),
        ];
        self.texts.iter_mut().zip(texts).for_each(|(column, text)| column.append_option(text));
        // Depths, and numbers of what is bounded for one page.
        let numbers = [visit.depth as usize, outcome.pairs, outcome.links];
        let number = |number: usize| i32::try_from(number).unwrap_or(i32::MAX);
        self.numbers.iter_mut().zip(numbers).for_each(|(column, value)| column.append_value(number(value)));
        Ok(())
    }

    fn page(
        &mut self,
        visit: &Visit,
        page: &Page,
        refused: Option<FetchError>,
        frontier: &mut Frontier,
    ) -> Result<Outcome, RunError> {
        let first = match &page.canonical {
            Some(own) if self.canonical && refused.is_none() => frontier.claim(visit, own).map_err(store)?,
            _ => true,
        };
        for pair in page.pairs.iter().filter(|_| first) {
            self.push(Row {
                url: Some(&pair.image),
                caption: Some(&pair.text),
                page_url: Some(&visit.url),
                text_source: Some(pair.source.name()),
                ..Row::default()
            })?;
        }
        frontier.links(visit, &page.links).map_err(store)?;
        Ok(Outcome {
            name: if first { "page" } else { "duplicate" },
            pairs: if first { page.pairs.len() } else { 0 },
            links: page.links.len(),
            refused: refused.map(|error| (error.code(), error.detail)),
            ..Outcome::default()
        })
    }

    /// Whether there are as many rows as are wanted.
    pub(super) fn is_full(&self) -> bool {
        self.wanted == Some(0)
    }

    fn push(&mut self, row: Row<'_>) -> Result<(), RunError> {
        if self.is_full() {
            return Ok(());
        }
        self.wanted = self.wanted.map(|rows| rows - 1);
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
    pub(super) fn finish(mut self, found: &BTreeMap<Visit, String>) -> Result<SplitWriter, RunError> {
        self.flush()?;
        // A wave without a row has come to an end all the same.
        self.split.count_rows_in(0);
        let [url, kind, outcome, redirect, canonical] =
            self.texts.each_mut().map(|column| Arc::new(column.finish()) as ArrayRef);
        let [depth, pairs, links] =
            self.numbers.each_mut().map(|column| Arc::new(column.finish()) as ArrayRef);
        let columns = vec![url, kind, depth, outcome, redirect, canonical, pairs, links];
        let visits = RecordBatch::try_new(visits_schema(), columns).map_err(engine)?;
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
            self.split.write(FRONTIER, &RecordBatch::try_new(frontier_schema(), columns).map_err(engine)?)?;
        }
        Ok(self.split)
    }
}

/// Tells the frontier what a sitemap names.
fn listed(visit: &Visit, sitemap: Sitemap, frontier: &mut Frontier) -> Result<Outcome, RunError> {
    frontier.sitemaps(visit, &sitemap.sitemaps).map_err(store)?;
    frontier.links(visit, &sitemap.pages).map_err(store)?;
    Ok(Outcome {
        name: "sitemap",
        links: sitemap.pages.len() + sitemap.sitemaps.len(),
        refused: sitemap.fault.map(|fault| (BAD_SITEMAP, fault)),
        ..Outcome::default()
    })
}
