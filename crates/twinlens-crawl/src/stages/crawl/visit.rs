//! One visit: a page, a sitemap or a robots.txt, fetched and read.

use reqwest::header::{CONTENT_TYPE, HeaderMap};
use url::Url;

use super::cache::{Cache, Cached};
use crate::frontier::{Kind, Visit};
use crate::html::{self, Captions, Page, Reading};
use crate::net::{Ask, ByteBudget, Client, Directives, FetchError, OF_FILE, Reply, Why};
use crate::sitemap::{self, Sitemap};

/// How much of a robots.txt is read for its sitemaps, in bytes.
const MAX_ROBOTS: u64 = 500 << 10;

/// What a visit gave.
pub(super) enum Visited {
    /// A page; `refused` when its pairs are not ours to take.
    Page { page: Page, refused: Option<FetchError> },
    /// A redirect.
    Redirect(Url),
    /// A sitemap.
    Sitemap(Sitemap),
    /// The sitemaps that a robots.txt names.
    Robots(Vec<Url>),
}

/// Fetches and reads.
pub(super) struct Visitor {
    pub(super) client: Client,
    max_bytes: u64,
    captions: Captions,
    /// Pages of earlier crawls.
    pub(super) cache: Option<Cache>,
    /// One sitemap is read at a time: decompressed, one may take 50 MiB.
    reading: ByteBudget,
}

impl Visitor {
    pub(super) fn new(client: Client, max_bytes: u64, captions: Captions, cache: Option<Cache>) -> Self {
        Self { client, max_bytes, captions, cache, reading: ByteBudget::new(sitemap::MAX_BYTES) }
    }

    pub(super) async fn visit(&self, visit: &Visit) -> Result<Visited, FetchError> {
        let url = Url::parse(&visit.url).map_err(|error| FetchError::new(Why::BadUrl, error.to_string()))?;
        match visit.kind {
            Kind::Page => self.page(url).await,
            Kind::Sitemap => self.sitemap(url).await,
            Kind::Robots => self.robots(url).await,
        }
    }

    async fn page(&self, url: Url) -> Result<Visited, FetchError> {
        let known = self.cache.as_ref().and_then(|cache| cache.get(url.as_str()));
        let conditions = known.as_ref().map(Cached::conditions);
        let ask = Ask {
            url: &url,
            accept: "text/html,application/xhtml+xml;q=0.9",
            max_bytes: self.max_bytes,
            cut: false,
            // A redirect is a link: its target is visited once, whoever points to it.
            follow: false,
            robots: true,
            conditions: conditions.as_ref(),
            check: &check_html,
        };
        let mut reply = self.client.get(ask).await?;
        if let Some(target) = reply.redirect {
            return Ok(Visited::Redirect(target));
        }
        if let Some(known) = known.filter(|_| reply.unchanged) {
            let page = known.renewed(&reply.headers);
            self.keep(&url, &page)?;
            // What the host reserves is of today, and no part of what is kept.
            let reserved = reply.headers.remove(OF_FILE);
            (reply.headers, reply.body) = (page.headers, page.body);
            reply.headers.extend(reserved.map(|words| (OF_FILE, words)));
        } else if let Some(page) = self.cache.as_ref().and_then(|_| Cached::of(&reply.headers, &reply.body)) {
            self.keep(&url, &page)?;
        }
        let product = self.client.options().product().to_string();
        let content_type = content_type(&reply.headers).to_string();
        let header = Directives::of_headers(&reply.headers, &product);
        let (body, reserved, captions) = (reply.body, reply.reserved, self.captions);
        let mut page = blocking(move || {
            let _reserved = reserved;
            let (text, _) = html::decode(&body, &content_type);
            html::extract(&text, &url, &Reading { product: &product, captions })
        })
        .await?;
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

    fn keep(&self, url: &Url, page: &Cached) -> Result<(), FetchError> {
        let kept = self.cache.as_ref().map_or(Ok(()), |cache| cache.put(url.as_str(), page));
        kept.map_err(|error| FetchError::new(Why::BadResponse, error.to_string()))
    }

    async fn sitemap(&self, url: Url) -> Result<Visited, FetchError> {
        let accept = "application/xml,text/xml;q=0.9,text/plain;q=0.5,*/*;q=0.1";
        let reply = self.list(&url, accept, sitemap::MAX_BYTES, true).await?;
        let reading = self.reading.reserve(sitemap::MAX_BYTES).await;
        let read = move || {
            let _reserved = (reading, reply.reserved);
            Sitemap::read(&reply.body, &reply.url)
        };
        Ok(Visited::Sitemap(blocking(read).await?))
    }

    async fn robots(&self, url: Url) -> Result<Visited, FetchError> {
        let reply = self.list(&url, "text/plain, */*;q=0.5", MAX_ROBOTS, false).await?;
        Ok(Visited::Robots(sitemap::of_robots(&reply.body, &reply.url)))
    }

    async fn list(
        &self,
        url: &Url,
        accept: &'static str,
        max_bytes: u64,
        robots: bool,
    ) -> Result<Reply, FetchError> {
        let check = &|_: &HeaderMap| Ok(());
        // What is beyond the limit of a robots.txt is ignored; a sitemap that is too long is
        // refused.
        let ask = Ask { url, accept, max_bytes, cut: !robots, follow: true, robots, conditions: None, check };
        self.client.get(ask).await
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, FetchError> {
    let failed = |error: tokio::task::JoinError| FetchError::new(Why::BadResponse, error.to_string());
    tokio::task::spawn_blocking(work).await.map_err(failed)
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
