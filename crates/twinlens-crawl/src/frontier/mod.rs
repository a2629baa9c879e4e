//! The frontier of a crawl: which pages come next.
//!
//! A crawl proceeds in waves. A wave is the first pages of the frontier by depth and URL; it is
//! fetched completely before the next one starts. So the order of a crawl, and every byte of its
//! dataset, depends only on what the web answers, not on threads or interruptions. The frontier is
//! on disk except for the last changes ([`Store`]), and only committed waves change it: after a
//! kill the same wave is fetched again.
//!
//! Files that list pages (robots.txt, sitemaps) are visits too, and come before all waiting pages.

mod changes;
mod normalize;
mod store;
mod visit;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use url::Url;

pub(crate) use normalize::normalize_url;
pub use store::{Counts, Store, StoreError};
pub use visit::{Visit, VisitKind, WaveRecord};

/// How far from its seeds a crawl goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// The hosts of the seeds.
    #[default]
    Host,
    /// The hosts of the seeds and their subdomains: `a.example` includes `www.a.example`.
    Subdomains,
    /// The directories of the seeds: `http://a.example/b/c.html` includes `http://a.example/b/...`.
    Prefix,
}

/// Limits of a crawl.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CrawlLimits {
    pub scope: Scope,
    /// Extra hosts in scope.
    pub hosts: Vec<String>,
    /// Maximum number of links from a seed to a page.
    pub max_depth: u32,
    /// Maximum number of pages to visit.
    pub max_pages: u64,
    /// Maximum number of sitemaps to visit.
    pub max_sitemaps: u64,
    /// Parameters to drop from URLs ([`normalize_url`]).
    pub drop_params: Vec<String>,
}

/// What the current wave has found so far.
#[derive(Debug)]
struct PendingWave {
    /// Number of pages in the wave.
    pages: u64,
    /// What was found, and on which page.
    new: BTreeMap<Visit, String>,
    /// URLs of `new` and `canonicals`.
    known: HashSet<String>,
    canonicals: HashMap<String, String>,
    sitemaps: u64,
}

/// Which URLs were visited, which are known, and which come next.
#[derive(Debug)]
pub struct Frontier {
    limits: CrawlLimits,
    hosts: BTreeSet<String>,
    roots: BTreeSet<String>,
    /// Read the robots.txt of the seeds' hosts for sitemaps.
    robots: bool,
    store: Store,
    pending: Option<PendingWave>,
}

/// Maximum number of sitemaps in a wave: each may be long.
const WAVE_SITEMAPS: usize = 4;
/// Maximum depth of nested sitemaps (the protocol allows one index of sitemaps).
const SITEMAP_DEPTH: u32 = 3;

/// File extensions that are not pages: not worth a request.
const NON_PAGE_EXTENSIONS: &[&str] = &[
    "7z", "apk", "avi", "bmp", "bz2", "css", "csv", "doc", "docx", "eot", "epub", "exe", "gif", "gz", "ico",
    "iso", "jar", "jpeg", "jpg", "js", "json", "m4a", "m4v", "mkv", "mov", "mp3", "mp4", "mpeg", "mpg",
    "ogg", "otf", "pdf", "png", "ppt", "pptx", "rar", "rss", "svg", "tar", "tgz", "tif", "tiff", "ttf",
    "txt", "wav", "webm", "webp", "woff", "woff2", "xls", "xlsx", "xml", "xz", "zip",
];

impl Frontier {
    /// Opens the frontier in `store`; a new one gets the seeds and `sitemaps`. With `robots`, the
    /// robots.txt of the seeds' hosts is read for further sitemaps.
    pub fn open(
        store: Store,
        limits: CrawlLimits,
        seeds: &[Url],
        sitemaps: &[Url],
        robots: bool,
    ) -> Result<Self, StoreError> {
        let hosts = limits.hosts.iter().map(|host| host.to_ascii_lowercase()).collect();
        let mut frontier = Self { limits, hosts, roots: BTreeSet::new(), robots, store, pending: None };
        let seeds: Vec<Url> =
            seeds.iter().map(|seed| normalize_url(seed, &frontier.limits.drop_params)).collect();
        seeds.iter().for_each(|seed| frontier.extend_scope(seed));
        if frontier.counts().waves.is_none() {
            let mut found: BTreeSet<Visit> = seeds.iter().map(|seed| Visit::page(0, seed.as_str())).collect();
            found.extend(sitemaps.iter().map(|url| Visit {
                kind: VisitKind::Sitemap,
                depth: 0,
                url: url.to_string(),
            }));
            if robots {
                found.extend(seeds.iter().filter_map(robots_txt_visit));
            }
            frontier.apply(&WaveRecord { visits: Vec::new(), found: found.into_iter().collect() }, 0)?;
        }
        let redirected: Vec<Url> = frontier.store.seeds().filter_map(|seed| Url::parse(seed).ok()).collect();
        redirected.iter().for_each(|seed| frontier.extend_scope(seed));
        Ok(frontier)
    }

    /// Starts the next wave: at most `size` visits of one kind, in order. Empty when the crawl is
    /// done. The store does not change until the wave is [recorded](Frontier::record).
    pub fn next_wave(&mut self, size: usize) -> Result<Vec<Visit>, StoreError> {
        let left = self.limits.max_pages.saturating_sub(self.counts().visited);
        if left == 0 {
            return Ok(Vec::new());
        }
        let limit = |kind| if kind == VisitKind::Sitemap { size.min(WAVE_SITEMAPS) } else { size };
        let mut wave = self.store.first_files(limit);
        if wave.is_empty() {
            wave = self.store.first_pages(size.min(usize::try_from(left).unwrap_or(usize::MAX)))?;
        }
        let pages = wave.iter().filter(|visit| visit.kind == VisitKind::Page).count() as u64;
        self.pending = Some(PendingWave {
            pages,
            new: BTreeMap::new(),
            known: HashSet::new(),
            canonicals: HashMap::new(),
            sitemaps: 0,
        });
        Ok(wave)
    }

    /// Adds the links of a page, or the pages of a sitemap. Call it for the visits of a wave in
    /// order.
    pub fn add_links(&mut self, from: &Visit, links: &[Url]) -> Result<(), StoreError> {
        let depth = if from.kind == VisitKind::Page { from.depth + 1 } else { 1 };
        if depth > self.limits.max_depth {
            return Ok(());
        }
        for link in links {
            let url = normalize_url(link, &self.limits.drop_params);
            if self.in_scope(&url) && !has_non_page_extension(&url) {
                self.add_found(Visit::page(depth, url), from)?;
            }
        }
        Ok(())
    }

    /// Adds the target of a redirect. The target of a seed is itself a seed and extends the scope:
    /// `http://example.org` often redirects to `https://www.example.org`.
    pub fn add_redirect(&mut self, from: &Visit, target: &Url) -> Result<(), StoreError> {
        let url = normalize_url(target, &self.limits.drop_params);
        if from.depth == 0 {
            self.extend_scope(&url);
            if let Some(robots) = robots_txt_visit(&url).filter(|_| self.robots) {
                self.add_found(robots, from)?;
            }
        } else if has_non_page_extension(&url) {
            return Ok(());
        }
        if self.in_scope(&url) {
            self.add_found(Visit::page(from.depth, url), from)?;
        }
        Ok(())
    }

    /// Adds the sitemaps listed in a robots.txt or a sitemap, on any host.
    pub fn add_sitemaps(&mut self, from: &Visit, urls: &[Url]) -> Result<(), StoreError> {
        let depth = if from.kind == VisitKind::Sitemap { from.depth + 1 } else { 0 };
        for url in urls.iter().filter(|_| depth < SITEMAP_DEPTH) {
            let pending = self.pending.as_ref().map_or(0, |pending| pending.sitemaps);
            if self.counts().sitemaps + pending >= self.limits.max_sitemaps {
                break;
            }
            let new =
                self.add_found(Visit { kind: VisitKind::Sitemap, depth, url: url.to_string() }, from)?;
            if let Some(pending) = self.pending.as_mut() {
                pending.sitemaps += u64::from(new);
            }
        }
        Ok(())
    }

    /// Claims the canonical URL of a page, on the same host. Returns `false` if the URL is already
    /// known; otherwise it will not be visited again.
    pub fn claim_canonical(&mut self, page: &Visit, canonical: &Url) -> Result<bool, StoreError> {
        let url = normalize_url(canonical, &self.limits.drop_params);
        let same_host = Url::parse(&page.url).is_ok_and(|own| own.host_str() == url.host_str());
        if url.as_str() == page.url || !same_host || !self.in_scope(&url) {
            return Ok(true);
        }
        let url = String::from(url);
        let Some(pending) = self.pending.as_mut() else { return Ok(true) };
        if pending.known.contains(&url) || self.store.knows(&url)? {
            return Ok(false);
        }
        pending.known.insert(url.clone());
        pending.canonicals.insert(page.url.clone(), url);
        Ok(true)
    }

    /// The canonical URL that a page has claimed.
    pub fn canonical_of(&self, page: &Visit) -> Option<&str> {
        self.pending.as_ref()?.canonicals.get(&page.url).map(String::as_str)
    }

    /// Ends the fetching of a wave. Returns what was found and where, without the pages that
    /// `max_pages` excludes: waves take the first waiting pages, and later finds only move pages
    /// back.
    pub fn end_wave(&mut self) -> Result<BTreeMap<Visit, String>, StoreError> {
        let Some(pending) = self.pending.take() else { return Ok(BTreeMap::new()) };
        let mut new = pending.new;
        let pages = new.keys().filter(|visit| visit.kind == VisitKind::Page).count() as u64;
        let left = self.limits.max_pages.saturating_sub(self.counts().visited + pending.pages);
        let beyond = (self.counts().waiting.saturating_sub(pending.pages) + pages).saturating_sub(left);
        if beyond > 0 {
            let mut kept: BTreeSet<Visit> = new.keys().cloned().collect();
            self.store.trim_new(&mut kept, beyond, pending.pages)?;
            new.retain(|visit, _| kept.contains(visit));
        }
        Ok(new)
    }

    /// Applies a committed wave: the one just fetched, or one that the store lacks after a kill.
    pub fn record(&mut self, wave: &WaveRecord) -> Result<(), StoreError> {
        let seeds = wave.found.iter().filter(|visit| visit.kind == VisitKind::Page && visit.depth == 0);
        for url in seeds.filter_map(|visit| Url::parse(&visit.url).ok()) {
            self.extend_scope(&url);
        }
        self.apply(wave, self.counts().waves.unwrap_or(0) + 1)
    }

    fn apply(&mut self, wave: &WaveRecord, waves: u64) -> Result<(), StoreError> {
        let max_pages = self.limits.max_pages;
        self.store.apply(wave, waves, |visited| max_pages.saturating_sub(visited))
    }

    /// Writes buffered changes, so that the next run need not replay the records.
    pub fn save(&mut self) -> Result<(), StoreError> {
        self.store.save()
    }

    pub fn counts(&self) -> Counts {
        self.store.counts()
    }

    /// Adds a visit unless its URL is known. Returns whether it was added.
    fn add_found(&mut self, visit: Visit, from: &Visit) -> Result<bool, StoreError> {
        let Some(pending) = self.pending.as_mut() else { return Ok(false) };
        if pending.known.contains(&visit.url) || self.store.knows(&visit.url)? {
            return Ok(false);
        }
        pending.known.insert(visit.url.clone());
        pending.new.insert(visit, from.url.clone());
        Ok(true)
    }

    fn extend_scope(&mut self, seed: &Url) {
        match self.limits.scope {
            Scope::Host | Scope::Subdomains => self.hosts.extend(seed.host_str().map(String::from)),
            Scope::Prefix => {
                let text = seed.as_str().split(['?', '#']).next().unwrap_or_default();
                self.roots.extend(text.rfind('/').map(|end| text[..=end].to_string()));
            }
        }
    }

    fn in_scope(&self, url: &Url) -> bool {
        let Some(host) = url.host_str() else { return false };
        let above = || host.match_indices('.').any(|(dot, _)| self.hosts.contains(&host[dot + 1..]));
        self.hosts.contains(host)
            || (self.limits.scope == Scope::Subdomains && above())
            || self.roots.iter().any(|root| url.as_str().starts_with(root))
    }
}

/// The robots.txt of a seed's host.
fn robots_txt_visit(seed: &Url) -> Option<Visit> {
    let url = seed.join("/robots.txt").ok()?;
    Some(Visit { kind: VisitKind::Robots, depth: 0, url: url.into() })
}

fn has_non_page_extension(url: &Url) -> bool {
    let name = url.path().rsplit('/').next().unwrap_or_default();
    name.rsplit_once('.')
        .is_some_and(|(_, extension)| NON_PAGE_EXTENSIONS.contains(&extension.to_ascii_lowercase().as_str()))
}

#[cfg(test)]
mod tests;
