//! The frontier of a large crawl: neither the cost of adding URLs nor memory grows with the number
//! of known URLs.

use std::time::Instant;

use twinlens_crawl::frontier::{CrawlLimits, Frontier, Store, WaveRecord};
use url::Url;

/// Number of URLs; the environment may set it.
fn urls() -> u64 {
    std::env::var("TWINLENS_FRONTIER_URLS").ok().and_then(|urls| urls.parse().ok()).unwrap_or(20_000)
}

/// Links on a page.
const LINKS: u64 = 20;

/// The page with a number. Nearby numbers have distant URLs.
fn page(number: u64) -> Url {
    let drawn = number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    Url::parse(&format!("http://site{}.test/{:016x}/{number}.html", drawn % 97, drawn.rotate_left(29)))
        .unwrap()
}

/// Resident memory of this process in MiB; 0 if unknown.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) / 1024
}

#[test]
fn a_large_crawl_finds_each_url_once() {
    let (dir, urls) = (tempfile::tempdir().unwrap(), urls());
    let open = || {
        let limits = CrawlLimits {
            hosts: (0..97).map(|host| format!("site{host}.test")).collect(),
            max_depth: 100,
            max_pages: urls,
            ..CrawlLimits::default()
        };
        let store = Store::open(&dir.path().join("frontier.redb")).unwrap();
        Frontier::open(store, limits, &[page(0)], &[], false).unwrap()
    };
    let mut frontier = open();
    let (mut known, mut waves, mut reported, begun) = (1, 0, 25_000, Instant::now());
    while known < urls {
        let wave = frontier.next_wave(250).unwrap();
        assert!(!wave.is_empty());
        for visit in &wave {
            let name = visit.url.rsplit('/').next().unwrap();
            let number: u64 = name.trim_end_matches(".html").parse().unwrap();
            // A tree that reaches all pages, and as many links to known pages.
            let new = (1..=LINKS / 2).map(|child| number * (LINKS / 2) + child).filter(|child| *child < urls);
            let old = (0..LINKS / 2).map(|link| (number * 31 + link * 7919) % (number + 1));
            let links: Vec<Url> = new.chain(old).map(page).collect();
            frontier.add_links(visit, &links).unwrap();
        }
        let visits = wave.into_iter().map(|visit| (visit, None)).collect();
        let found: Vec<_> = frontier.end_wave().unwrap().into_keys().collect();
        known += found.len() as u64;
        frontier.record(&WaveRecord { visits, found }).unwrap();
        waves += 1;
        if known >= reported {
            println!("{known} URLs, {waves} waves: {:.1?}, {} MiB", begun.elapsed(), resident());
            reported *= 2;
        }
    }
    println!("{known} URLs, {waves} waves: {:.1?}, {} MiB", begun.elapsed(), resident());
    assert_eq!(known, urls, "no URL is found twice");
    assert_eq!(frontier.counts().waiting, urls - frontier.counts().visited);
}
