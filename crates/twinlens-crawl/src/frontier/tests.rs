use proptest::prelude::*;

use super::*;

fn url(path: &str) -> Url {
    Url::parse("http://a.example/").unwrap().join(path).unwrap()
}

fn paths(wave: &[Visit]) -> Vec<&str> {
    wave.iter().map(|visit| visit.url.trim_start_matches("http://a.example")).collect()
}

fn limits(max_depth: u32, max_pages: u64) -> CrawlLimits {
    CrawlLimits { max_depth, max_pages, max_sitemaps: 10, ..CrawlLimits::default() }
}

fn frontier_with(limits: CrawlLimits, seeds: &[Url], sitemaps: &[Url], robots: bool) -> Frontier {
    Frontier::open(Store::in_memory(1000).unwrap(), limits, seeds, sitemaps, robots).unwrap()
}

fn frontier(seeds: &[Url], limits: CrawlLimits) -> Frontier {
    frontier_with(limits, seeds, &[], false)
}

/// Ends a wave as the stage does.
fn end_wave(frontier: &mut Frontier, wave: &[Visit]) -> Vec<Visit> {
    let canonical_of = |visit: &Visit| (visit.clone(), frontier.canonical_of(visit).map(String::from));
    let visits = wave.iter().map(canonical_of).collect();
    let found: Vec<Visit> = frontier.end_wave().unwrap().into_keys().collect();
    frontier.record(&WaveRecord { visits, found: found.clone() }).unwrap();
    found
}

#[test]
fn waves_are_ordered_by_depth_and_url() {
    let mut frontier =
        frontier(&[url("/")], CrawlLimits { hosts: vec!["c.example".into()], ..limits(2, 100) });
    let wave = frontier.next_wave(10).unwrap();
    assert_eq!(paths(&wave), ["/"]);
    let links =
        ["/z", "/b#x", "/b", "/", "/a.PNG", "http://b.example/", "http://c.example/", "/deep.html"].map(url);
    frontier.add_links(&wave[0], &links).unwrap();
    end_wave(&mut frontier, &wave);
    let wave = frontier.next_wave(2).unwrap();
    assert_eq!(paths(&wave), ["/b", "/deep.html"]);
    assert_eq!(frontier.next_wave(2).unwrap(), wave, "a wave that was not recorded is returned again");
    end_wave(&mut frontier, &wave);
    let wave = frontier.next_wave(10).unwrap();
    assert_eq!(paths(&wave), ["/z", "http://c.example/"]);
    frontier.add_links(&wave[0], &[url("/at-two")]).unwrap();
    assert_eq!(end_wave(&mut frontier, &wave).len(), 1);
    let wave = frontier.next_wave(10).unwrap();
    frontier.add_links(&wave[0], &[url("/at-three")]).unwrap();
    assert!(end_wave(&mut frontier, &wave).is_empty());
    assert!(frontier.next_wave(10).unwrap().is_empty());
}

#[test]
fn links_out_of_scope_are_ignored() {
    let links =
        ["/b/d/e", "/bb", "/b/", "http://www.a.example/", "http://xa.example/", "http://example/"].map(url);
    let cases = [
        (Scope::Prefix, vec!["/b/", "/b/d/e"]),
        (Scope::Host, vec!["/b/", "/b/d/e", "/bb"]),
        (Scope::Subdomains, vec!["/b/", "/b/d/e", "/bb", "http://www.a.example/"]),
    ];
    for (scope, expected) in cases {
        let mut frontier = frontier(&[url("/b/c.html?q=/x/")], CrawlLimits { scope, ..limits(9, 100) });
        let wave = frontier.next_wave(1).unwrap();
        frontier.add_links(&wave[0], &links).unwrap();
        end_wave(&mut frontier, &wave);
        assert_eq!(paths(&frontier.next_wave(9).unwrap()), expected, "{scope:?}");
    }
}

#[test]
fn the_redirect_target_of_a_seed_is_a_seed() {
    let elsewhere = Url::parse("https://www.b.example/").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let open = || {
        let store = Store::open(&dir.path().join("frontier.redb")).unwrap();
        Frontier::open(store, limits(9, 100), &[url("/")], &[], false).unwrap()
    };
    let mut first = open();
    let wave = first.next_wave(1).unwrap();
    first.add_redirect(&wave[0], &elsewhere).unwrap();
    assert_eq!(end_wave(&mut first, &wave), [Visit::page(0, elsewhere.as_str())]);
    first.save().unwrap();
    drop(first);
    // A reopened frontier has the same scope.
    let mut again = open();
    assert_eq!((again.counts().waves, again.counts().visited), (Some(1), 1));
    let wave = again.next_wave(1).unwrap();
    again.add_links(&wave[0], &[elsewhere.join("/x").unwrap()]).unwrap();
    again
        .add_redirect(&Visit { depth: 1, ..wave[0].clone() }, &Url::parse("http://d.example/").unwrap())
        .unwrap();
    assert_eq!(end_wave(&mut again, &wave), [Visit::page(1, "https://www.b.example/x")]);
}

#[test]
fn robots_txt_of_a_redirected_seed_is_visited() {
    let mut frontier = frontier_with(limits(9, 100), &[url("/")], &[], true);
    let robots = frontier.next_wave(9).unwrap();
    end_wave(&mut frontier, &robots);
    let wave = frontier.next_wave(9).unwrap();
    frontier.add_redirect(&wave[0], &Url::parse("https://b.example/x").unwrap()).unwrap();
    end_wave(&mut frontier, &wave);
    assert_eq!(paths(&frontier.next_wave(9).unwrap()), ["https://b.example/robots.txt"]);
}

#[test]
fn pages_beyond_max_pages_are_dropped() {
    let mut frontier = frontier(&[url("/")], limits(9, 3));
    let wave = frontier.next_wave(10).unwrap();
    let links: Vec<Url> = (0..100).map(|n| url(&format!("/{n:03}"))).collect();
    frontier.add_links(&wave[0], &links).unwrap();
    assert_eq!(paths(&end_wave(&mut frontier, &wave)), ["/000", "/001"]);
    assert_eq!(frontier.counts().waiting, 2);
    let wave = frontier.next_wave(10).unwrap();
    assert_eq!(wave.len(), 2);
    end_wave(&mut frontier, &wave);
    assert!(frontier.next_wave(10).unwrap().is_empty());
}

#[test]
fn sitemaps_come_before_pages_and_are_limited() {
    let mut frontier = frontier_with(limits(9, 100), &[url("/x")], &[url("/map.xml")], true);
    let wave = frontier.next_wave(10).unwrap();
    assert_eq!(wave, [Visit { kind: VisitKind::Robots, depth: 0, url: url("/robots.txt").into() }]);
    let maps: Vec<Url> =
        (0..20).map(|n| Url::parse(&format!("http://maps.example/{n:02}")).unwrap()).collect();
    frontier.add_sitemaps(&wave[0], &maps).unwrap();
    assert_eq!(end_wave(&mut frontier, &wave).len(), 9, "ten including the one from the options");
    let mut seen = Vec::new();
    loop {
        let wave = frontier.next_wave(10).unwrap();
        if wave[0].kind == VisitKind::Page {
            assert_eq!(paths(&wave), ["/from-map", "/x"].into_iter().rev().collect::<Vec<_>>());
            break;
        }
        assert!(wave.len() <= WAVE_SITEMAPS);
        for visit in &wave {
            frontier
                .add_links(
                    visit,
                    &[url("/from-map"), url("/image.png"), Url::parse("http://maps.example/page").unwrap()],
                )
                .unwrap();
            frontier.add_sitemaps(visit, &[url("/one-too-many")]).unwrap();
        }
        seen.extend(wave.clone());
        end_wave(&mut frontier, &wave);
    }
    assert_eq!((seen.len(), frontier.counts().visited, frontier.counts().waiting), (10, 0, 2));
}

#[test]
fn a_canonical_url_is_claimed_once() {
    let mut frontier = frontier(&[url("/a?x"), url("/b?x"), url("/c?x"), url("/d")], limits(9, 100));
    let wave = frontier.next_wave(10).unwrap();
    let mut claim_canonical =
        |page: usize, canonical: &str| frontier.claim_canonical(&wave[page], &url(canonical)).unwrap();
    assert!(claim_canonical(0, "/page"));
    assert!(!claim_canonical(1, "/page#there"), "the second page with that canonical URL");
    assert!(!claim_canonical(1, "/d"), "/d is visited itself");
    assert!(claim_canonical(2, "/c?x") && claim_canonical(2, "http://other.example/"));
    frontier.add_links(&wave[3], &[url("/page"), url("/more")]).unwrap();
    assert_eq!(frontier.canonical_of(&wave[0]), Some("http://a.example/page"));
    assert_eq!(paths(&end_wave(&mut frontier, &wave)), ["/more"]);
    let wave = frontier.next_wave(10).unwrap();
    frontier.add_links(&wave[0], &[url("/page")]).unwrap();
    assert!(end_wave(&mut frontier, &wave).is_empty(), "a claimed URL stays known");
}

#[test]
fn a_damaged_store_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("frontier.redb");
    let open =
        || Frontier::open(Store::open(&path).unwrap(), limits(9, 100), &[url("/")], &[], false).unwrap();
    let mut first = open();
    let wave = first.next_wave(1).unwrap();
    end_wave(&mut first, &wave);
    first.save().unwrap();
    drop(first);
    let whole = std::fs::read(&path).unwrap();
    for damaged in [b"nonsense".to_vec(), whole[..whole.len() / 2].to_vec(), vec![0x55; whole.len()]] {
        std::fs::write(&path, damaged).unwrap();
        assert_eq!(open().counts().waves, Some(0), "it lacks the wave");
    }
}

/// A page of a random site: it links to, redirects to, or claims the URL of other pages.
#[derive(Debug, Clone)]
enum Answer {
    Links(Vec<usize>),
    Redirect(usize),
    Canonical(usize, Vec<usize>),
}

/// Crawls the site and returns the waves. Before a wave, `kill` may say that the store is lost
/// (`true`, it is rebuilt from the records) or that a fetched wave was not committed (`false`).
fn crawl(
    site: &[Answer],
    max_pages: u64,
    wave_size: usize,
    kill: &[Option<bool>],
    max_pending: usize,
) -> Vec<Vec<Visit>> {
    let name = |n: &usize| url(&format!("/{}", n * 7919 % 1000));
    let number: BTreeMap<String, usize> = (0..site.len()).map(|n| (name(&n).to_string(), n)).collect();
    let fresh = || {
        let store = Store::in_memory(max_pending).unwrap();
        Frontier::open(store, limits(6, max_pages), &[name(&0)], &[], false).unwrap()
    };
    let (mut frontier, mut waves, mut record): (_, _, Vec<WaveRecord>) = (fresh(), Vec::new(), Vec::new());
    loop {
        match kill.get(waves.len()).copied().flatten() {
            Some(true) => {
                frontier = fresh();
                record.iter().for_each(|wave| frontier.record(wave).unwrap());
            }
            Some(false) => {
                let wave = frontier.next_wave(wave_size).unwrap();
                for visit in &wave {
                    frontier.add_links(visit, &[url("/never"), url("/recorded")]).unwrap();
                }
            }
            None => {}
        }
        let wave = frontier.next_wave(wave_size).unwrap();
        if wave.is_empty() {
            return waves;
        }
        for visit in &wave {
            let all = |links: &[usize]| links.iter().map(name).collect::<Vec<_>>();
            match &site[number[&visit.url]] {
                Answer::Links(links) => frontier.add_links(visit, &all(links)).unwrap(),
                Answer::Redirect(target) => frontier.add_redirect(visit, &name(target)).unwrap(),
                Answer::Canonical(own, links) => {
                    frontier.claim_canonical(visit, &name(own)).unwrap();
                    frontier.add_links(visit, &all(links)).unwrap();
                }
            }
        }
        let canonical_of = |visit: &Visit| (visit.clone(), frontier.canonical_of(visit).map(String::from));
        let visits = wave.iter().map(canonical_of).collect();
        let found = frontier.end_wave().unwrap().into_keys().collect();
        record.push(WaveRecord { visits, found });
        frontier.record(record.last().unwrap()).unwrap();
        waves.push(wave);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn an_interrupted_crawl_visits_the_same_waves(
        site in (2usize..60).prop_flat_map(|size| proptest::collection::vec(prop_oneof![
            6 => proptest::collection::vec(0..size, 0..8).prop_map(Answer::Links),
            1 => (0..size).prop_map(Answer::Redirect),
            1 => ((0..size), proptest::collection::vec(0..size, 0..8)).prop_map(|(own, links)| Answer::Canonical(own, links)),
        ], size)),
        max_pages in 1u64..40,
        wave_size in 1usize..10,
        kill in proptest::collection::vec(any::<Option<bool>>(), 40),
        max_pending in 0usize..4000,
    ) {
        // The store is written at each wave, never, and sometimes.
        let whole = crawl(&site, max_pages, wave_size, &[], 0);
        prop_assert_eq!(&whole, &crawl(&site, max_pages, wave_size, &[], usize::MAX));
        prop_assert_eq!(&whole, &crawl(&site, max_pages, wave_size, &kill, max_pending));
        let visited = whole.concat();
        let distinct: HashSet<&String> = visited.iter().map(|visit| &visit.url).collect();
        prop_assert!(distinct.len() == visited.len() && visited.len() as u64 <= max_pages);
    }
}
