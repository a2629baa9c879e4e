//! The crawl's frontier: which pages come next.
//!
//! A crawl goes in waves. A wave is the first pages of the frontier, by depth and then by URL; it
//! is fetched whole before the next one is taken. So the order of a crawl, and with it every byte
//! of its dataset, depends on what the web answers and on nothing else: not on threads, not on
//! interruptions. What waits and what is known is on disk but for the last changes ([`Store`]), and
//! changes only when a wave is taken in that is committed: after a kill the same wave is taken
//! again.
//!
//! Files that name pages (robots.txt, sitemaps) are visits too, and come before all pages that
//! wait.

mod changes;
mod normal;
mod store;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use url::Url;

pub use normal::normal;
pub use store::{Counts, Store, StoreError};

/// How far from its seeds a crawl goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// The hosts of the seeds.
    #[default]
    Host,
    /// The hosts of the seeds and all below them: `a.example` reaches `www.a.example`.
    Subdomains,
    /// The folders of the seeds: `http://a.example/b/c.html` reaches `http://a.example/b/...`.
    Prefix,
}

/// What is visited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Kind {
    /// A robots.txt, for the sitemaps that it names.
    Robots,
    /// A list of pages, or of such lists.
    Sitemap,
    /// A page.
    Page,
}

impl Kind {
    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Robots => "robots",
            Self::Sitemap => "sitemap",
            Self::Page => "page",
        }
    }

    /// The kind of that name; a page if there is none.
    pub fn of_name(name: &str) -> Self {
        [Self::Robots, Self::Sitemap].into_iter().find(|kind| kind.name() == name).unwrap_or(Self::Page)
    }

    fn of_number(number: u8) -> Self {
        [Self::Robots, Self::Sitemap].into_iter().find(|kind| *kind as u8 == number).unwrap_or(Self::Page)
    }
}

/// Something to visit. The order is that of the crawl.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Visit {
    /// What it is.
    pub kind: Kind,
    /// Of a page: links from a seed; a redirect counts as none, and a sitemap as one. Of a sitemap:
    /// sitemaps that lead to it.
    pub depth: u32,
    /// The URL in its normal form.
    pub url: String,
}

impl Visit {
    /// A page.
    pub fn page(depth: u32, url: impl Into<String>) -> Self {
        Self { kind: Kind::Page, depth, url: url.into() }
    }
}

/// How far a crawl goes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Bounds {
    /// Around the seeds.
    pub scope: Scope,
    /// Further hosts.
    pub hosts: Vec<String>,
    /// Most links from a seed to a page.
    pub max_depth: u32,
    /// Most pages that are visited.
    pub max_pages: u64,
    /// Most sitemaps that are visited.
    pub max_sitemaps: u64,
    /// Parameters that are dropped from URLs ([`normal`]).
    pub drop_params: Vec<String>,
}

/// What a committed wave recorded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recorded {
    /// What was visited, and the URL that it gave as its own, if no one knew that before.
    pub visits: Vec<(Visit, Option<String>)>,
    /// What was found.
    pub found: Vec<Visit>,
}

/// What the wave that is being fetched has found so far.
#[derive(Debug)]
struct Gathered {
    /// Pages of the wave.
    pages: u64,
    /// What was found, and where.
    new: BTreeMap<Visit, String>,
    /// URLs of `new`, and those that pages gave as their own.
    known: HashSet<String>,
    claims: HashMap<String, String>,
    sitemaps: u64,
}

/// What is visited, what is known, what comes next.
#[derive(Debug)]
pub struct Frontier {
    bounds: Bounds,
    hosts: BTreeSet<String>,
    roots: BTreeSet<String>,
    /// The robots.txt of the seeds' hosts are asked for sitemaps.
    robots: bool,
    store: Store,
    gathered: Option<Gathered>,
}

/// Sitemaps of a wave: a list may be long.
const WAVE_SITEMAPS: usize = 4;
/// Most sitemaps that lead to one another (the protocol allows one index of lists).
const SITEMAP_DEPTH: u32 = 3;

/// File endings that are no pages: not worth a request.
const NO_PAGES: &[&str] = &[
    "7z", "apk", "avi", "bmp", "bz2", "css", "csv", "doc", "docx", "eot", "epub", "exe", "gif", "gz", "ico",
    "iso", "jar", "jpeg", "jpg", "js", "json", "m4a", "m4v", "mkv", "mov", "mp3", "mp4", "mpeg", "mpg",
    "ogg", "otf", "pdf", "png", "ppt", "pptx", "rar", "rss", "svg", "tar", "tgz", "tif", "tiff", "ttf",
    "txt", "wav", "webm", "webp", "woff", "woff2", "xls", "xlsx", "xml", "xz", "zip",
];

impl Frontier {
    /// The frontier of a store; a new one is given the seeds. Of each seed's host, robots.txt is
    /// asked for `sitemaps` if that is wanted.
    pub fn open(
        store: Store,
        bounds: Bounds,
        seeds: &[Url],
        sitemaps: &[Url],
        robots: bool,
    ) -> Result<Self, StoreError> {
        let hosts = bounds.hosts.iter().map(|host| host.to_ascii_lowercase()).collect();
        let mut frontier = Self { bounds, hosts, roots: BTreeSet::new(), robots, store, gathered: None };
        let seeds: Vec<Url> = seeds.iter().map(|seed| normal(seed, &frontier.bounds.drop_params)).collect();
        seeds.iter().for_each(|seed| frontier.widen(seed));
        if frontier.counts().waves.is_none() {
            let mut found: BTreeSet<Visit> = seeds.iter().map(|seed| Visit::page(0, seed.as_str())).collect();
            found.extend(sitemaps.iter().map(|url| Visit {
                kind: Kind::Sitemap,
                depth: 0,
                url: url.to_string(),
            }));
            if robots {
                found.extend(seeds.iter().filter_map(robots_of));
            }
            frontier.apply(&Recorded { visits: Vec::new(), found: found.into_iter().collect() }, 0)?;
        }
        let redirected: Vec<Url> = frontier.store.seeds().filter_map(|seed| Url::parse(seed).ok()).collect();
        redirected.iter().for_each(|seed| frontier.widen(seed));
        Ok(frontier)
    }

    /// Takes the next wave: at most `size` visits, all of one kind, in order. Empty when the crawl
    /// is done. The store is as before until the wave is [recorded](Frontier::record).
    pub fn next_wave(&mut self, size: usize) -> Result<Vec<Visit>, StoreError> {
        let left = self.bounds.max_pages.saturating_sub(self.counts().visited);
        if left == 0 {
            return Ok(Vec::new());
        }
        let most = |kind| if kind == Kind::Sitemap { size.min(WAVE_SITEMAPS) } else { size };
        let mut wave = self.store.first_files(most);
        if wave.is_empty() {
            wave = self.store.first_pages(size.min(usize::try_from(left).unwrap_or(usize::MAX)))?;
        }
        let pages = wave.iter().filter(|visit| visit.kind == Kind::Page).count() as u64;
        self.gathered = Some(Gathered {
            pages,
            new: BTreeMap::new(),
            known: HashSet::new(),
            claims: HashMap::new(),
            sitemaps: 0,
        });
        Ok(wave)
    }

    /// Takes in the links of a page, or the pages of a sitemap. Call it for the visits of a wave in
    /// their order.
    pub fn links(&mut self, from: &Visit, links: &[Url]) -> Result<(), StoreError> {
        let depth = if from.kind == Kind::Page { from.depth + 1 } else { 1 };
        if depth > self.bounds.max_depth {
            return Ok(());
        }
        for link in links {
            let url = normal(link, &self.bounds.drop_params);
            if self.in_scope(&url) && !is_no_page(&url) {
                self.found(Visit::page(depth, url), from)?;
            }
        }
        Ok(())
    }

    /// Takes in a redirect of a page. Where a seed points to is a seed, and widens the scope:
    /// `http://example.org` is often only a signpost to `https://www.example.org`.
    pub fn redirect(&mut self, from: &Visit, target: &Url) -> Result<(), StoreError> {
        let url = normal(target, &self.bounds.drop_params);
        if from.depth == 0 {
            self.widen(&url);
            if let Some(robots) = robots_of(&url).filter(|_| self.robots) {
                self.found(robots, from)?;
            }
        } else if is_no_page(&url) {
            return Ok(());
        }
        if self.in_scope(&url) {
            self.found(Visit::page(from.depth, url), from)?;
        }
        Ok(())
    }

    /// Takes in the sitemaps that a robots.txt or a sitemap names, on whatever host.
    pub fn sitemaps(&mut self, from: &Visit, urls: &[Url]) -> Result<(), StoreError> {
        let depth = if from.kind == Kind::Sitemap { from.depth + 1 } else { 0 };
        for url in urls.iter().filter(|_| depth < SITEMAP_DEPTH) {
            let gathered = self.gathered.as_ref().map_or(0, |gathered| gathered.sitemaps);
            if self.counts().sitemaps + gathered >= self.bounds.max_sitemaps {
                break;
            }
            let new = self.found(Visit { kind: Kind::Sitemap, depth, url: url.to_string() }, from)?;
            if let Some(gathered) = self.gathered.as_mut() {
                gathered.sitemaps += u64::from(new);
            }
        }
        Ok(())
    }

    /// Takes in the URL that a page gives as its own. Returns whether the page is the first to be
    /// known by it: if so, no other will be visited for it. A page cannot speak for another host.
    pub fn claim(&mut self, page: &Visit, canonical: &Url) -> Result<bool, StoreError> {
        let url = normal(canonical, &self.bounds.drop_params);
        let same_host = Url::parse(&page.url).is_ok_and(|own| own.host_str() == url.host_str());
        if url.as_str() == page.url || !same_host || !self.in_scope(&url) {
            return Ok(true);
        }
        let url = String::from(url);
        let Some(gathered) = self.gathered.as_mut() else { return Ok(true) };
        if gathered.known.contains(&url) || self.store.knows(&url)? {
            return Ok(false);
        }
        gathered.known.insert(url.clone());
        gathered.claims.insert(page.url.clone(), url);
        Ok(true)
    }

    /// What a page was found to be known by besides its URL.
    pub fn claimed(&self, page: &Visit) -> Option<&str> {
        self.gathered.as_ref()?.claims.get(&page.url).map(String::as_str)
    }

    /// Ends the fetching of a wave. Returns what was found and where; of the pages, those that can
    /// be reached within `max_pages`: the next waves take the first of those that wait, and what is
    /// found later only moves the others back.
    pub fn end_wave(&mut self) -> Result<BTreeMap<Visit, String>, StoreError> {
        let Some(gathered) = self.gathered.take() else { return Ok(BTreeMap::new()) };
        let mut new = gathered.new;
        let pages = new.keys().filter(|visit| visit.kind == Kind::Page).count() as u64;
        let left = self.bounds.max_pages.saturating_sub(self.counts().visited + gathered.pages);
        let beyond = (self.counts().waiting.saturating_sub(gathered.pages) + pages).saturating_sub(left);
        if beyond > 0 {
            let mut kept: BTreeSet<Visit> = new.keys().cloned().collect();
            self.store.trim_new(&mut kept, beyond, gathered.pages)?;
            new.retain(|visit, _| kept.contains(visit));
        }
        Ok(new)
    }

    /// Takes in a wave that is committed: the one that was just fetched, or one that the store
    /// lacks after a kill.
    pub fn record(&mut self, wave: &Recorded) -> Result<(), StoreError> {
        let seeds = wave.found.iter().filter(|visit| visit.kind == Kind::Page && visit.depth == 0);
        for url in seeds.filter_map(|visit| Url::parse(&visit.url).ok()) {
            self.widen(&url);
        }
        self.apply(wave, self.counts().waves.unwrap_or(0) + 1)
    }

    fn apply(&mut self, wave: &Recorded, waves: u64) -> Result<(), StoreError> {
        let max_pages = self.bounds.max_pages;
        self.store.apply(wave, waves, |visited| max_pages.saturating_sub(visited))
    }

    /// Writes what is in memory alone, so that the next run need not take in again what is
    /// recorded.
    pub fn save(&mut self) -> Result<(), StoreError> {
        self.store.save()
    }

    /// How far the crawl is.
    pub fn counts(&self) -> Counts {
        self.store.counts()
    }

    /// Adds what is new. Returns whether it is.
    fn found(&mut self, visit: Visit, from: &Visit) -> Result<bool, StoreError> {
        let Some(gathered) = self.gathered.as_mut() else { return Ok(false) };
        if gathered.known.contains(&visit.url) || self.store.knows(&visit.url)? {
            return Ok(false);
        }
        gathered.known.insert(visit.url.clone());
        gathered.new.insert(visit, from.url.clone());
        Ok(true)
    }

    fn widen(&mut self, seed: &Url) {
        match self.bounds.scope {
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
            || (self.bounds.scope == Scope::Subdomains && above())
            || self.roots.iter().any(|root| url.as_str().starts_with(root))
    }
}

/// The robots.txt of a seed's host.
fn robots_of(seed: &Url) -> Option<Visit> {
    let url = seed.join("/robots.txt").ok()?;
    Some(Visit { kind: Kind::Robots, depth: 0, url: url.into() })
}

fn is_no_page(url: &Url) -> bool {
    let name = url.path().rsplit('/').next().unwrap_or_default();
    name.rsplit_once('.').is_some_and(|(_, ending)| NO_PAGES.contains(&ending.to_ascii_lowercase().as_str()))
}

#[cfg(test)]
mod tests;
