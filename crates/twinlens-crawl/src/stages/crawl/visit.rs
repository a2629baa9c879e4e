//! Fetches and parses one visit: a page, a sitemap or a robots.txt.

use reqwest::header::{CONTENT_TYPE, HeaderMap};
use twinlens_pipeline::blocking;
use url::Url;

use super::cache::{Cache, CachedPage};
use crate::frontier::{Visit, VisitKind};
use crate::html::{self, ExtractOptions, Page, TextSourceSet};
use crate::net::{
    ByteBudget, Client, ContentCoding, Directives, FetchError, FetchErrorKind, Request, TDMREP_HEADER,
};
use crate::sitemap::{self, Sitemap};

pub(super) enum VisitResult {
    /// A page. If the owner opted out, `opt_out` is set and there are no pairs.
    Page {
        page: Box<Page>,
        opt_out: Option<FetchError>,
        /// The charset in which it was decoded.
        charset: &'static str,
    },
    Redirect(Url),
    Sitemap(Sitemap),
    /// The sitemaps listed in a robots.txt.
    Robots(Vec<Url>),
}

pub(super) struct Visitor {
    pub(super) client: Client,
    max_bytes: u64,
    captions: TextSourceSet,
    /// Pages of earlier crawls.
    pub(super) cache: Option<Cache>,
    /// One sitemap is parsed at a time: it may take 50 MiB decompressed.
    sitemap_budget: ByteBudget,
}

impl Visitor {
    pub(super) fn new(client: Client, max_bytes: u64, captions: TextSourceSet, cache: Option<Cache>) -> Self {
        Self { client, max_bytes, captions, cache, sitemap_budget: ByteBudget::new(sitemap::MAX_BYTES) }
    }

    pub(super) async fn visit(&self, visit: &Visit) -> Result<VisitResult, FetchError> {
        let url = Url::parse(&visit.url)
            .map_err(|error| FetchError::new(FetchErrorKind::BadUrl, error.to_string()))?;
        match visit.kind {
            VisitKind::Page => self.page(url).await,
            VisitKind::Sitemap => self.sitemap(url).await,
            VisitKind::Robots => self.robots(url).await,
        }
    }

    async fn page(&self, url: Url) -> Result<VisitResult, FetchError> {
        let cached = self.cache.as_ref().and_then(|cache| cache.get(url.as_str()));
        let conditions = cached.as_ref().map(CachedPage::conditions);
        let request = Request {
            // A redirect is a link: its target is visited once, however many pages lead to it.
            follow_redirects: false,
            coding: ContentCoding::Gzip,
            extra_headers: conditions.as_ref(),
            check_headers: &check_html,
            ..Request::new(&url, "text/html,application/xhtml+xml;q=0.9", self.max_bytes)
        };
        let mut response = self.client.get(request).await?;
        if let Some(target) = response.redirect {
            return Ok(VisitResult::Redirect(target));
        }
        if let Some(cached) = cached.filter(|_| response.not_modified) {
            let page = cached.revalidated(&response.headers);
            self.keep(&url, &page)?;
            // The host's TDM rules are current, not cached.
            let reservation = response.headers.remove(TDMREP_HEADER);
            (response.headers, response.body) = (page.headers, page.body);
            response.headers.extend(reservation.map(|words| (TDMREP_HEADER, words)));
        } else if let Some(page) =
            self.cache.as_ref().and_then(|_| CachedPage::new(&response.headers, &response.body))
        {
            self.keep(&url, &page)?;
        }
        let product = self.client.options().product().to_string();
        let content_type = content_type(&response.headers).to_string();
        let header = Directives::from_headers(&response.headers, &product);
        let (body, reservation, captions) = (response.body, response.reservation, self.captions);
        let (mut page, charset) = blocking(move || {
            let _reserved = reservation;
            let host = url.host_str().unwrap_or_default();
            let (text, charset) = twinlens_text::decode_html(&body, &content_type, host);
            (html::extract(&text, &url, &ExtractOptions { product: &product, captions }), charset)
        })
        .await?;
        let mut opt_out = None;
        if self.client.options().opt_outs {
            if header.nofollow || page.directives.nofollow {
                page.links.clear();
                page.refresh = None;
            }
            if let Some(word) = header.opt_out.or(page.directives.opt_out.take()) {
                page.pairs.clear();
                opt_out = Some(FetchError::new(FetchErrorKind::OptedOut, word));
            }
        }
        Ok(VisitResult::Page { page: Box::new(page), opt_out, charset })
    }

    fn keep(&self, url: &Url, page: &CachedPage) -> Result<(), FetchError> {
        let kept = self.cache.as_ref().map_or(Ok(()), |cache| cache.put(url.as_str(), page));
        kept.map_err(|error| FetchError::new(FetchErrorKind::BadResponse, error.to_string()))
    }

    async fn sitemap(&self, url: Url) -> Result<VisitResult, FetchError> {
        let accept = "application/xml,text/xml;q=0.9,text/plain;q=0.5,*/*;q=0.1";
        let response = self.client.get(Request::new(&url, accept, sitemap::MAX_BYTES)).await?;
        let budget = self.sitemap_budget.reserve(sitemap::MAX_BYTES).await;
        let read = move || {
            let _reserved = (budget, response.reservation);
            Sitemap::parse(&response.body, &response.url)
        };
        Ok(VisitResult::Sitemap(blocking(read).await?))
    }

    async fn robots(&self, url: Url) -> Result<VisitResult, FetchError> {
        let (base, references) = self.client.robots_sitemaps(&url).await?;
        Ok(VisitResult::Robots(sitemap::resolve_all(&base, &references)))
    }
}

fn content_type(headers: &HeaderMap) -> &str {
    headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

fn check_html(headers: &HeaderMap) -> Result<(), FetchError> {
    let kind = content_type(headers).split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    match kind.as_str() {
        "" | "text/html" | "application/xhtml+xml" => Ok(()),
        _ => Err(FetchError::new(FetchErrorKind::ContentType, format!("content type `{kind}` is not HTML"))),
    }
}
