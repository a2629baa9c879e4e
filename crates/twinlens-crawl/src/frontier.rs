//! The crawl's frontier: which pages come next. Pure logic, no I/O.
//!
//! A crawl goes in waves. A wave is the first pages of the frontier, by depth and then by URL; it is fetched whole before the
//! next one is taken. So the order of a crawl, and with it every byte of its dataset, depends on what the web answers
//! and on nothing else: not on threads, not on interruptions. After a kill the frontier is rebuilt from what
//! the committed waves recorded: the pages that were visited and the URLs that were found.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use url::Url;

/// How far from its seeds a crawl goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// The hosts of the seeds.
    #[default]
    Host,
    /// The folders of the seeds: `http://a.example/b/c.html` reaches `http://a.example/b/...`.
    Prefix,
}

/// A page to visit: its depth (links from a seed) and its URL. The order is that of the crawl.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Visit {
    /// Links from a seed; a redirect counts as none.
    pub depth: u32,
    /// The URL in its normal form.
    pub url: String,
}

/// What is visited, what is known, what comes next.
#[derive(Debug)]
pub struct Frontier {
    scope: Scope,
    hosts: BTreeSet<String>,
    roots: BTreeSet<String>,
    max_depth: u32,
    max_pages: usize,
    visited: usize,
    pending: BTreeSet<Visit>,
    known: HashSet<String>,
}

/// File endings that are no pages: not worth a request.
const NO_PAGES: &[&str] = &[
    "7z", "apk", "avi", "bmp", "bz2", "css", "csv", "doc", "docx", "eot", "epub", "exe", "gif", "gz", "ico",
    "iso", "jar", "jpeg", "jpg", "js", "json", "m4a", "m4v", "mkv", "mov", "mp3", "mp4", "mpeg", "mpg",
    "ogg", "otf", "pdf", "png", "ppt", "pptx", "rar", "rss", "svg", "tar", "tgz", "tif", "tiff", "ttf",
    "txt", "wav", "webm", "webp", "woff", "woff2", "xls", "xlsx", "xml", "xz", "zip",
];

impl Frontier {
    /// A frontier of the seeds; `hosts` are in scope besides.
    pub fn new(seeds: &[Url], scope: Scope, hosts: &[String], max_depth: u32, max_pages: usize) -> Self {
        let hosts = hosts.iter().map(|host| host.to_ascii_lowercase()).collect();
        let mut frontier = Self {
            scope,
            hosts,
            roots: BTreeSet::new(),
            max_depth,
            max_pages,
            visited: 0,
            pending: BTreeSet::new(),
            known: HashSet::new(),
        };
        for seed in seeds {
            frontier.found(seed, 0, true);
        }
        frontier.trim();
        frontier
    }

    /// Goes on where earlier waves ended: what they found and what they visited, each in any order.
    pub fn restore(
        &mut self,
        found: impl IntoIterator<Item = Visit>,
        visited: impl IntoIterator<Item = Visit>,
    ) {
        // A URL that was forgotten may have been found again, nearer (by a redirect): the nearest place counts.
        let mut depths: HashMap<String, u32> =
            self.pending.iter().map(|visit| (visit.url.clone(), visit.depth)).collect();
        for visit in found {
            if let (0, Ok(url)) = (visit.depth, Url::parse(&visit.url)) {
                self.widen(&url);
            }
            depths
                .entry(visit.url)
                .and_modify(|depth| *depth = visit.depth.min(*depth))
                .or_insert(visit.depth);
        }
        for visit in visited {
            depths.remove(&visit.url);
            self.known.insert(visit.url);
            self.visited += 1;
        }
        self.known.extend(depths.keys().cloned());
        self.pending = depths.into_iter().map(|(url, depth)| Visit { depth, url }).collect();
        self.trim();
    }

    /// Takes the next wave: at most `size` pages, in order. Empty when the crawl is done.
    pub fn next_wave(&mut self, size: usize) -> Vec<Visit> {
        let size = size.min(self.max_pages.saturating_sub(self.visited));
        let wave: Vec<Visit> = std::iter::from_fn(|| self.pending.pop_first()).take(size).collect();
        self.visited += wave.len();
        wave
    }

    /// Takes in the links of a visited page. Call it for the pages of a wave in their order.
    /// Returns those that are new; keep of them what [`Frontier::end_wave`] keeps.
    pub fn links(&mut self, page: &Visit, links: &[Url]) -> Vec<Visit> {
        let depth = page.depth + 1;
        if depth > self.max_depth {
            return Vec::new();
        }
        links.iter().filter_map(|link| self.found(link, depth, false)).collect()
    }

    /// Takes in a redirect of a visited page. Where a seed points to is a seed, and widens the scope:
    /// `http://example.org` is often only a signpost to `https://www.example.org`.
    pub fn redirect(&mut self, page: &Visit, target: &Url) -> Option<Visit> {
        self.found(target, page.depth, page.depth == 0)
    }

    /// Ends a wave: URLs that can never be reached within `max_pages` are forgotten. Returns the new URLs that are kept,
    /// with what was said of each.
    pub fn end_wave<T>(&mut self, new: BTreeMap<Visit, T>) -> BTreeMap<Visit, T> {
        self.trim();
        new.into_iter().filter(|(visit, _)| self.pending.contains(visit)).collect()
    }

    /// Pages visited so far.
    pub fn visited(&self) -> usize {
        self.visited
    }

    /// Pages that wait.
    pub fn waiting(&self) -> usize {
        self.pending.len()
    }

    fn found(&mut self, url: &Url, depth: u32, seed: bool) -> Option<Visit> {
        let mut url = url.clone();
        url.set_fragment(None);
        if seed {
            self.widen(&url);
        }
        if !self.in_scope(&url) || (!seed && is_no_page(&url)) || self.known.contains(url.as_str()) {
            return None;
        }
        let visit = Visit { depth, url: url.into() };
        self.known.insert(visit.url.clone());
        self.pending.insert(visit.clone());
        Some(visit)
    }

    fn widen(&mut self, seed: &Url) {
        match self.scope {
            Scope::Host => self.hosts.extend(seed.host_str().map(String::from)),
            Scope::Prefix => {
                let text = seed.as_str().split(['?', '#']).next().unwrap_or_default();
                self.roots.extend(text.rfind('/').map(|end| text[..=end].to_string()));
            }
        }
    }

    fn in_scope(&self, url: &Url) -> bool {
        let host = url.host_str().is_some_and(|host| self.hosts.contains(host));
        host || self.roots.iter().any(|root| url.as_str().starts_with(root))
    }

    /// Forgets what cannot be reached any more. The next waves take the first of those that wait, and what is found later only
    /// moves the others back: what is now beyond the pages that are left stays beyond.
    fn trim(&mut self) {
        let left = self.max_pages.saturating_sub(self.visited);
        while self.pending.len() > left {
            if let Some(visit) = self.pending.pop_last() {
                self.known.remove(&visit.url);
            }
        }
    }
}

fn is_no_page(url: &Url) -> bool {
    let name = url.path().rsplit('/').next().unwrap_or_default();
    name.rsplit_once('.').is_some_and(|(_, ending)| NO_PAGES.contains(&ending.to_ascii_lowercase().as_str()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn url(path: &str) -> Url {
        Url::parse("http://a.example/").unwrap().join(path).unwrap()
    }

    fn paths(wave: &[Visit]) -> Vec<&str> {
        wave.iter().map(|visit| visit.url.trim_start_matches("http://a.example")).collect()
    }

    #[test]
    fn waves_go_by_depth_and_url() {
        let mut frontier = Frontier::new(&[url("/")], Scope::Host, &["c.example".into()], 2, 100);
        let wave = frontier.next_wave(10);
        assert_eq!(paths(&wave), ["/"]);
        let links =
            ["/z", "/b#x", "/b", "/", "/a.PNG", "http://b.example/", "http://c.example/", "/deep.html"]
                .map(url);
        frontier.links(&wave[0], &links);
        assert_eq!(paths(&frontier.next_wave(2)), ["/b", "/deep.html"]);
        let wave = frontier.next_wave(10);
        assert_eq!(paths(&wave), ["/z", "http://c.example/"]);
        assert_eq!(frontier.links(&wave[0], &[url("/at-two")]).len(), 1);
        let wave = frontier.next_wave(10);
        assert!(frontier.links(&wave[0], &[url("/at-three")]).is_empty());
        assert!(frontier.next_wave(10).is_empty());
    }

    #[test]
    fn a_prefix_is_a_folder() {
        let mut frontier = Frontier::new(&[url("/b/c.html?q=/x/")], Scope::Prefix, &[], 9, 100);
        let wave = frontier.next_wave(1);
        frontier.links(&wave[0], &["/b/d/e", "/bb", "/", "/b/"].map(url));
        assert_eq!(paths(&frontier.next_wave(9)), ["/b/", "/b/d/e"]);
    }

    #[test]
    fn where_a_seed_points_to_is_a_seed() {
        let elsewhere = Url::parse("https://www.b.example/").unwrap();
        let mut frontier = Frontier::new(&[url("/")], Scope::Host, &[], 9, 100);
        let wave = frontier.next_wave(1);
        let found = frontier.redirect(&wave[0], &elsewhere);
        assert_eq!(found, Some(Visit { depth: 0, url: elsewhere.to_string() }));
        // A frontier that is rebuilt from the record has the same scope.
        let mut again = Frontier::new(&[url("/")], Scope::Host, &[], 9, 100);
        again.restore(found, wave);
        let link = [elsewhere.join("/x").unwrap()];
        for mut frontier in [frontier, again] {
            let wave = frontier.next_wave(1);
            assert_eq!(frontier.links(&wave[0], &link).len(), 1);
            assert_eq!(
                frontier.redirect(
                    &Visit { depth: 1, ..wave[0].clone() },
                    &Url::parse("http://d.example/").unwrap()
                ),
                None
            );
        }
    }

    #[test]
    fn what_cannot_be_reached_is_forgotten() {
        let mut frontier = Frontier::new(&[url("/")], Scope::Host, &[], 9, 3);
        let wave = frontier.next_wave(10);
        let links: Vec<Url> = (0..100).map(|n| url(&format!("/{n:03}"))).collect();
        let new = frontier.links(&wave[0], &links).into_iter().map(|visit| (visit, ())).collect();
        let kept: Vec<Visit> = frontier.end_wave(new).into_keys().collect();
        assert_eq!(paths(&kept), ["/000", "/001"]);
        assert_eq!(
            (frontier.waiting(), frontier.next_wave(10).len(), frontier.next_wave(10).len()),
            (2, 2, 0)
        );
    }

    /// A random site: page `n` links to, or redirects to, others.
    #[derive(Debug, Clone)]
    enum Answer {
        Links(Vec<usize>),
        Redirect(usize),
    }

    /// Crawls it, rebuilding the frontier from the record before each wave for which `kill` says so. Returns the waves.
    fn crawl(site: &[Answer], max_pages: usize, wave_size: usize, kill: &[bool]) -> Vec<Vec<Visit>> {
        let name = |n: &usize| url(&format!("/{}", n * 7919 % 1000));
        let number: BTreeMap<String, usize> = (0..site.len()).map(|n| (name(&n).to_string(), n)).collect();
        let fresh = || Frontier::new(&[name(&0)], Scope::Host, &[], 6, max_pages);
        let (mut frontier, mut waves, mut record) = (fresh(), Vec::new(), Vec::new());
        loop {
            if kill.get(waves.len()).copied().unwrap_or(false) {
                frontier = fresh();
                frontier.restore(record.clone(), waves.concat());
            }
            let wave = frontier.next_wave(wave_size);
            if wave.is_empty() {
                return waves;
            }
            let mut new = BTreeMap::new();
            for visit in &wave {
                let found = match &site[number[&visit.url]] {
                    Answer::Links(links) => {
                        frontier.links(visit, &links.iter().map(name).collect::<Vec<_>>())
                    }
                    Answer::Redirect(target) => frontier.redirect(visit, &name(target)).into_iter().collect(),
                };
                new.extend(found.into_iter().map(|visit| (visit, ())));
            }
            record.extend(frontier.end_wave(new).into_keys());
            waves.push(wave);
        }
    }

    proptest! {
        #[test]
        fn an_interrupted_crawl_is_the_same_crawl(
            site in (2usize..60).prop_flat_map(|size| proptest::collection::vec(prop_oneof![
                4 => proptest::collection::vec(0..size, 0..8).prop_map(Answer::Links),
                1 => (0..size).prop_map(Answer::Redirect),
            ], size)),
            max_pages in 1usize..40,
            wave_size in 1usize..10,
            kill in proptest::collection::vec(any::<bool>(), 40),
        ) {
            let whole = crawl(&site, max_pages, wave_size, &[]);
            prop_assert_eq!(&whole, &crawl(&site, max_pages, wave_size, &kill));
            let visited = whole.concat();
            let distinct: HashSet<&String> = visited.iter().map(|visit| &visit.url).collect();
            prop_assert!(distinct.len() == visited.len() && visited.len() <= max_pages);
        }
    }
}
