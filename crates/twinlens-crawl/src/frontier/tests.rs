use proptest::prelude::*;

use super::*;

fn url(path: &str) -> Url {
    Url::parse("http://a.example/").unwrap().join(path).unwrap()
}

fn paths(wave: &[Visit]) -> Vec<&str> {
    wave.iter().map(|visit| visit.url.trim_start_matches("http://a.example")).collect()
}

fn bounds(max_depth: u32, max_pages: u64) -> Bounds {
    Bounds { max_depth, max_pages, max_sitemaps: 10, ..Bounds::default() }
}

fn frontier_with(bounds: Bounds, seeds: &[Url], sitemaps: &[Url], robots: bool) -> Frontier {
    Frontier::open(Store::in_memory(1000).unwrap(), bounds, seeds, sitemaps, robots).unwrap()
}

fn frontier(seeds: &[Url], bounds: Bounds) -> Frontier {
    frontier_with(bounds, seeds, &[], false)
}

/// Ends a wave as the stage does, without claims.
fn end(frontier: &mut Frontier, wave: &[Visit]) -> Vec<Visit> {
    let claimed = |visit: &Visit| (visit.clone(), frontier.claimed(visit).map(String::from));
    let visits = wave.iter().map(claimed).collect();
    let found: Vec<Visit> = frontier.end_wave().unwrap().into_keys().collect();
    frontier.record(&Recorded { visits, found: found.clone() }).unwrap();
    found
}

#[test]
fn waves_go_by_depth_and_url() {
    let mut frontier = frontier(&[url("/")], Bounds { hosts: vec!["c.example".into()], ..bounds(2, 100) });
    let wave = frontier.next_wave(10).unwrap();
    assert_eq!(paths(&wave), ["/"]);
    let links =
        ["/z", "/b#x", "/b", "/", "/a.PNG", "http://b.example/", "http://c.example/", "/deep.html"].map(url);
    frontier.links(&wave[0], &links).unwrap();
    end(&mut frontier, &wave);
    let wave = frontier.next_wave(2).unwrap();
    assert_eq!(paths(&wave), ["/b", "/deep.html"]);
    assert_eq!(frontier.next_wave(2).unwrap(), wave, "a wave that is not recorded is taken again");
    end(&mut frontier, &wave);
    let wave = frontier.next_wave(10).unwrap();
    assert_eq!(paths(&wave), ["/z", "http://c.example/"]);
    frontier.links(&wave[0], &[url("/at-two")]).unwrap();
    assert_eq!(end(&mut frontier, &wave).len(), 1);
    let wave = frontier.next_wave(10).unwrap();
    frontier.links(&wave[0], &[url("/at-three")]).unwrap();
    assert!(end(&mut frontier, &wave).is_empty());
    assert!(frontier.next_wave(10).unwrap().is_empty());
}

#[test]
fn the_scope_is_kept() {
    let links =
        ["/b/d/e", "/bb", "/b/", "http://www.a.example/", "http://xa.example/", "http://example/"].map(url);
    let cases = [
        (Scope::Prefix, vec!["/b/", "/b/d/e"]),
        (Scope::Host, vec!["/b/", "/b/d/e", "/bb"]),
        (Scope::Subdomains, vec!["/b/", "/b/d/e", "/bb", "http://www.a.example/"]),
    ];
    for (scope, expected) in cases {
        let mut frontier = frontier(&[url("/b/c.html?q=/x/")], Bounds { scope, ..bounds(9, 100) });
        let wave = frontier.next_wave(1).unwrap();
        frontier.links(&wave[0], &links).unwrap();
        end(&mut frontier, &wave);
        assert_eq!(paths(&frontier.next_wave(9).unwrap()), expected, "{scope:?}");
    }
}

#[test]
fn where_a_seed_points_to_is_a_seed() {
    let elsewhere = Url::parse("https://www.b.example/").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let open = || {
        let store = Store::open(&dir.path().join("frontier.redb")).unwrap();
        Frontier::open(store, bounds(9, 100), &[url("/")], &[], false).unwrap()
    };
    let mut first = open();
    let wave = first.next_wave(1).unwrap();
    first.redirect(&wave[0], &elsewhere).unwrap();
    assert_eq!(end(&mut first, &wave), [Visit::page(0, elsewhere.as_str())]);
    first.save().unwrap();
    drop(first);
    // A frontier that is opened again has the same scope.
    let mut again = open();
    assert_eq!((again.counts().waves, again.counts().visited), (Some(1), 1));
    let wave = again.next_wave(1).unwrap();
    again.links(&wave[0], &[elsewhere.join("/x").unwrap()]).unwrap();
    again
        .redirect(&Visit { depth: 1, ..wave[0].clone() }, &Url::parse("http://d.example/").unwrap())
        .unwrap();
    assert_eq!(end(&mut again, &wave), [Visit::page(1, "https://www.b.example/x")]);
}

#[test]
fn the_host_that_a_seed_points_to_is_asked_for_sitemaps() {
    let mut frontier = frontier_with(bounds(9, 100), &[url("/")], &[], true);
    let robots = frontier.next_wave(9).unwrap();
    end(&mut frontier, &robots);
    let wave = frontier.next_wave(9).unwrap();
    frontier.redirect(&wave[0], &Url::parse("https://b.example/x").unwrap()).unwrap();
    end(&mut frontier, &wave);
    assert_eq!(paths(&frontier.next_wave(9).unwrap()), ["https://b.example/robots.txt"]);
}

#[test]
fn what_cannot_be_reached_is_forgotten() {
    let mut frontier = frontier(&[url("/")], bounds(9, 3));
    let wave = frontier.next_wave(10).unwrap();
    let links: Vec<Url> = (0..100).map(|n| url(&format!("/{n:03}"))).collect();
    frontier.links(&wave[0], &links).unwrap();
    assert_eq!(paths(&end(&mut frontier, &wave)), ["/000", "/001"]);
    assert_eq!(frontier.counts().waiting, 2);
    let wave = frontier.next_wave(10).unwrap();
    assert_eq!(wave.len(), 2);
    end(&mut frontier, &wave);
    assert!(frontier.next_wave(10).unwrap().is_empty());
}

#[test]
fn sitemaps_come_before_pages_and_are_bounded() {
    let mut frontier = frontier_with(bounds(9, 100), &[url("/x")], &[url("/map.xml")], true);
    let wave = frontier.next_wave(10).unwrap();
    assert_eq!(wave, [Visit { kind: Kind::Robots, depth: 0, url: url("/robots.txt").into() }]);
    let maps: Vec<Url> =
        (0..20).map(|n| Url::parse(&format!("http://maps.example/{n:02}")).unwrap()).collect();
    frontier.sitemaps(&wave[0], &maps).unwrap();
    assert_eq!(end(&mut frontier, &wave).len(), 9, "ten with that of the options");
    let mut seen = Vec::new();
    loop {
        let wave = frontier.next_wave(10).unwrap();
        if wave[0].kind == Kind::Page {
            assert_eq!(paths(&wave), ["/from-map", "/x"].into_iter().rev().collect::<Vec<_>>());
            break;
        }
        assert!(wave.len() <= WAVE_SITEMAPS);
        for visit in &wave {
            frontier
                .links(
                    visit,
                    &[url("/from-map"), url("/image.png"), Url::parse("http://maps.example/page").unwrap()],
                )
                .unwrap();
            frontier.sitemaps(visit, &[url("/one-too-many")]).unwrap();
        }
        seen.extend(wave.clone());
        end(&mut frontier, &wave);
    }
    assert_eq!((seen.len(), frontier.counts().visited, frontier.counts().waiting), (10, 0, 2));
}

#[test]
fn a_page_speaks_for_its_own_url_once() {
    let mut frontier = frontier(&[url("/a?x"), url("/b?x"), url("/c?x"), url("/d")], bounds(9, 100));
    let wave = frontier.next_wave(10).unwrap();
    let mut claim = |page: usize, canonical: &str| frontier.claim(&wave[page], &url(canonical)).unwrap();
    assert!(claim(0, "/page"));
    assert!(!claim(1, "/page#there"), "the second page of that name");
    assert!(!claim(1, "/d"), "that is visited for itself");
    assert!(claim(2, "/c?x") && claim(2, "http://other.example/"));
    frontier.links(&wave[3], &[url("/page"), url("/more")]).unwrap();
    assert_eq!(frontier.claimed(&wave[0]), Some("http://a.example/page"));
    assert_eq!(paths(&end(&mut frontier, &wave)), ["/more"]);
    let wave = frontier.next_wave(10).unwrap();
    frontier.links(&wave[0], &[url("/page")]).unwrap();
    assert!(end(&mut frontier, &wave).is_empty(), "what is claimed stays known");
}

#[test]
fn a_damaged_store_is_made_anew() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("frontier.redb");
    let open =
        || Frontier::open(Store::open(&path).unwrap(), bounds(9, 100), &[url("/")], &[], false).unwrap();
    let mut first = open();
    let wave = first.next_wave(1).unwrap();
    end(&mut first, &wave);
    first.save().unwrap();
    drop(first);
    let whole = std::fs::read(&path).unwrap();
    for damaged in [b"nonsense".to_vec(), whole[..whole.len() / 2].to_vec(), vec![0x55; whole.len()]] {
        std::fs::write(&path, damaged).unwrap();
        assert_eq!(open().counts().waves, Some(0), "it lacks the wave, which the record has");
    }
}

/// A random site: page `n` links to, redirects to, or gives as its own URL that of others.
#[derive(Debug, Clone)]
enum Answer {
    Links(Vec<usize>),
    Redirect(usize),
    Canonical(usize, Vec<usize>),
}

/// Crawls it. Before each wave for which `kill` says so, the store is dropped: all of it, or what
/// it took in last. It is brought up to date from the record, as after a kill. Returns the waves.
/// `gathered` says how many bytes of changes are in memory before they are written.
fn crawl(
    site: &[Answer],
    max_pages: u64,
    wave_size: usize,
    kill: &[Option<bool>],
    gathered: usize,
) -> Vec<Vec<Visit>> {
    let name = |n: &usize| url(&format!("/{}", n * 7919 % 1000));
    let number: BTreeMap<String, usize> = (0..site.len()).map(|n| (name(&n).to_string(), n)).collect();
    let fresh = || {
        let store = Store::in_memory(gathered).unwrap();
        Frontier::open(store, bounds(6, max_pages), &[name(&0)], &[], false).unwrap()
    };
    let (mut frontier, mut waves, mut record): (_, _, Vec<Recorded>) = (fresh(), Vec::new(), Vec::new());
    loop {
        match kill.get(waves.len()).copied().flatten() {
            // Nothing is left.
            Some(true) => {
                frontier = fresh();
                record.iter().for_each(|wave| frontier.record(wave).unwrap());
            }
            // A wave was fetched and not committed.
            Some(false) => {
                let wave = frontier.next_wave(wave_size).unwrap();
                for visit in &wave {
                    frontier.links(visit, &[url("/never"), url("/recorded")]).unwrap();
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
                Answer::Links(links) => frontier.links(visit, &all(links)).unwrap(),
                Answer::Redirect(target) => frontier.redirect(visit, &name(target)).unwrap(),
                Answer::Canonical(own, links) => {
                    frontier.claim(visit, &name(own)).unwrap();
                    frontier.links(visit, &all(links)).unwrap();
                }
            }
        }
        let claimed = |visit: &Visit| (visit.clone(), frontier.claimed(visit).map(String::from));
        let visits = wave.iter().map(claimed).collect();
        let found = frontier.end_wave().unwrap().into_keys().collect();
        record.push(Recorded { visits, found });
        frontier.record(record.last().unwrap()).unwrap();
        waves.push(wave);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn an_interrupted_crawl_is_the_same_crawl(
        site in (2usize..60).prop_flat_map(|size| proptest::collection::vec(prop_oneof![
            6 => proptest::collection::vec(0..size, 0..8).prop_map(Answer::Links),
            1 => (0..size).prop_map(Answer::Redirect),
            1 => ((0..size), proptest::collection::vec(0..size, 0..8)).prop_map(|(own, links)| Answer::Canonical(own, links)),
        ], size)),
        max_pages in 1u64..40,
        wave_size in 1usize..10,
        kill in proptest::collection::vec(any::<Option<bool>>(), 40),
        gathered in 0usize..4000,
    ) {
        // Written at each wave, never, and now and then.
        let whole = crawl(&site, max_pages, wave_size, &[], 0);
        prop_assert_eq!(&whole, &crawl(&site, max_pages, wave_size, &[], usize::MAX));
        prop_assert_eq!(&whole, &crawl(&site, max_pages, wave_size, &kill, gathered));
        let visited = whole.concat();
        let distinct: HashSet<&String> = visited.iter().map(|visit| &visit.url).collect();
        prop_assert!(distinct.len() == visited.len() && visited.len() as u64 <= max_pages);
    }
}
