//! Whole crawls: sitemaps, canonical URLs, optional captions, and a frontier that is older or newer
//! than the commits after a kill.

use std::os::unix::fs::symlink;

use crate::support::{Lab, gzip, stage};
use twinlens_dataset::protocol::WORK;
use twinlens_testkit::{Answer, Site, WebServer};

/// Two hosts. Many pages of the first are only listed in sitemaps, and some have several URLs.
fn site() -> Site {
    let index = "<sitemapindex><sitemap><loc>http://maps.test/pages.xml.gz</loc></sitemap><sitemap><loc>/gone.xml</loc></sitemap>\
        <sitemap><loc>/html.xml</loc></sitemap></sitemapindex>";
    let pages = "<urlset><url><loc>http://a.test/one.html?utm_source=map</loc></url><url><loc>http://a.test/two.html</loc></url>\
        <url><loc>http://elsewhere.test/</loc></url><url><loc>http://a.test/picture.png</loc></url></urlset>";
    let mut site = Site::new()
        .at("/robots.txt", Answer::body("text/plain", "User-agent: *\nDisallow: /private\nSitemap: /index.xml\n"))
        .at("/index.xml", Answer::body("application/xml", index))
        .at("/pages.xml.gz", Answer::body("application/gzip", gzip(pages.as_bytes())))
        .page("/html.xml", "<html><a href=/x>no sitemap</a></html>")
        .at("/extra.txt", Answer::body("text/plain", "http://a.test/three.html\nhttp://a.test/private/x.html\n"))
        .page("/", "<a href=/one.html?fbclid=1>one</a><a href=/list?page=1>list</a><a href='/list?page=1&sort=up'>list</a>")
        .page("/one.html", "<img src=one.png alt=one>")
        .page("/two.html", "<img src=two.png alt=two><a href=/deep.html>deep</a>")
        .page("/three.html", "<img src=three.png alt=three>")
        .page("/deep.html", "<p>A fox <img src=fox.png aria-label='the fox'></p><script type='application/ld+json'>\
            {\"@type\": \"ImageObject\", \"contentUrl\": \"/ld.png\", \"caption\": \"of json\"}</script>\
            <meta property=og:image content=/og.png><meta property=og:title content=graphed>");
    for sort in ["", "&sort=up"] {
        let html = "<link rel=canonical href='/list?page=1'><img src=/list.png alt=list><a href=/from-list.html>x</a>";
        site = site.page(&format!("/list?page=1{sort}"), html);
    }
    site.page("/from-list.html", "<img src=/l.png alt='from list'>")
}

const CRAWL: &str = r#"
[stages.pages]
kind = "crawl"
seeds = ["http://a.test/"]
sitemaps = ["http://a.test/extra.txt"]
robots_sitemaps = true
canonical = true
drop_params = ["utm_*", "fbclid"]
captions = ["alt", "aria-label", "surrounding", "json-ld", "open-graph"]
wave_pages = 2
http = { retries = 0 }
"#;

#[tokio::test]
async fn sitemaps_canonical_urls_and_optional_captions() {
    let web = WebServer::start(site()).await.unwrap();
    let done = Lab::new().host("a.test", &web).host("maps.test", &web).run(CRAWL).await;
    let visits = done.rows("select kind, depth, replace(url, 'http://', ''), outcome, links from pages.visits order by kind desc, depth, url",
    )
    .await;
    let expected = [
        "sitemap | 0 | a.test/extra.txt | sitemap | 2",
        "sitemap | 0 | a.test/index.xml | sitemap | 3",
        "sitemap | 1 | a.test/gone.xml | http_not_found | 0",
        "sitemap | 1 | a.test/html.xml | bad_sitemap | 0",
        "sitemap | 1 | maps.test/pages.xml.gz | sitemap | 4",
        "robots | 0 | a.test/robots.txt | robots | 1",
        "page | 0 | a.test/ | page | 3",
        "page | 1 | a.test/list?page=1 | page | 1",
        "page | 1 | a.test/list?page=1&sort=up | duplicate | 1",
        "page | 1 | a.test/one.html | page | 0",
        "page | 1 | a.test/private/x.html | robots_disallowed | 0",
        "page | 1 | a.test/three.html | page | 0",
        "page | 1 | a.test/two.html | page | 1",
        "page | 2 | a.test/deep.html | page | 0",
        "page | 2 | a.test/from-list.html | page | 0",
    ];
    assert_eq!(visits, expected);
    for host in ["a.test", "maps.test"] {
        let requests = web.requests();
        let of_host = requests.iter().filter(|request| request.header("host") == Some(host));
        assert_eq!(of_host.filter(|request| request.path == "/robots.txt").count(), 1, "{host}");
    }
    let pairs = done.rows("select replace(url, 'http://a.test', ''), caption, text_source from pages order by url, text_source",
    )
    .await;
    let expected = [
        "/fox.png | the fox | aria-label",
        "/fox.png | A fox | surrounding",
        "/l.png | from list | alt",
        "/ld.png | of json | json-ld",
        "/list.png | list | alt",
        "/list.png | x | surrounding",
        "/og.png | graphed | open-graph",
        "/one.png | one | alt",
        "/three.png | three | alt",
        "/two.png | two | alt",
        "/two.png | deep | surrounding",
    ];
    assert_eq!(pairs, expected);
    let rejects = done.rows("select reject_code, page_url from pages.rejects order by page_url").await;
    let expected = [
        "http_not_found | http://a.test/gone.xml",
        "bad_sitemap | http://a.test/html.xml",
        "robots_disallowed | http://a.test/private/x.html",
    ];
    assert_eq!(rejects, expected);
    let found =
        done.rows("select kind, found_on from pages.frontier where url = 'http://a.test/two.html'").await;
    assert_eq!(found, ["page | http://maps.test/pages.xml.gz"]);
}

#[tokio::test]
async fn optional_features_are_off_by_default() {
    let web = WebServer::start(site()).await.unwrap();
    let pipeline = stage("pages", "crawl", "seeds = [\"http://a.test/\"]\nhttp = { retries = 0 }");
    let done = Lab::new().host("a.test", &web).run(&pipeline).await;
    let pairs =
        done.rows("select caption, text_source, count(*) from pages group by all order by caption").await;
    assert_eq!(pairs, ["from list | alt | 1", "list | alt | 2"]);
    let one = done.rows("select url from pages.visits where url like '%one%'").await;
    assert_eq!(one, ["http://a.test/one.html?fbclid=1"]);
    assert_eq!((web.count("/robots.txt"), web.count("/index.xml")), (1, 0));
}

#[tokio::test]
async fn a_crawl_resumes_whatever_the_state_of_its_frontier() {
    let web = WebServer::start(site()).await.unwrap();
    let lab = || Lab::new().host("a.test", &web).host("maps.test", &web);
    let expected = lab().run(CRAWL).await.files();
    // The store between two runs is kept, lost, damaged, or some waves old.
    for fate in ["kept", "lost", "damaged", "old"] {
        let lab = lab();
        let store = lab.path("run/pages").join(WORK).join("frontier.redb");
        let mut first = None;
        for stops in 0.. {
            assert!(stops < 30, "each run commits a wave");
            if let Some(done) = lab.run_until(1, CRAWL).await {
                assert!(stops >= 5, "{fate}: it was interrupted {stops} times");
                assert_eq!(done.files(), expected, "{fate}");
                break;
            }
            let now = std::fs::read(&store).unwrap();
            match fate {
                "lost" => std::fs::remove_file(&store).unwrap(),
                "damaged" => std::fs::write(&store, &now[..now.len() / 3]).unwrap(),
                "old" => std::fs::write(&store, first.get_or_insert(now)).unwrap(),
                _ => {}
            }
        }
    }
}

#[tokio::test]
async fn a_crawl_ends_at_max_rows() {
    let web = WebServer::start(site()).await.unwrap();
    let lab = |rows| Lab::new().host("a.test", &web).host("maps.test", &web).max_rows(rows);
    let by_visit = "select page_url, url, text_source from pages union all \
                    select page_url, reject_code, '' from pages.rejects";
    let mut all = lab(None).run(CRAWL).await.rows(by_visit).await;
    all.sort();
    let mut before = 0;
    for most in [0, 1, 4, 9, 1000] {
        let (once, parts) = (lab(Some(most)).run(CRAWL).await, lab(Some(most)));
        let stopped = loop {
            if let Some(done) = parts.run_until(1, CRAWL).await {
                break done;
            }
        };
        assert_eq!(once.files(), stopped.files(), "interruptions make no difference");
        let rows = once.rows(by_visit).await;
        assert_eq!(rows.len(), all.len().min(most as usize));
        assert!(rows.iter().all(|row| all.binary_search(row).is_ok()));
        let visits = once.rows("select url from pages.visits").await.len();
        assert!(visits >= before && (most > 0) == (visits > 0), "unneeded pages are not visited");
        before = visits;
    }
}

#[tokio::test]
async fn a_repeated_crawl_only_downloads_changes() {
    // The first response of each page is complete; the second may be a 304.
    let page = |html: &str, etag: &str| Answer::page(html).header("etag", etag);
    let site = Site::new()
        .at(
            "/",
            page("<a href=/same.html>a</a><a href=/other.html>b</a><a href=/bare.html>c</a>", "\"home\""),
        )
        .at("/", Answer::status(304).header("etag", "\"home 2\""))
        .at("/same.html", page("<img src=/s.png alt=same>", "\"s\"").header("x-robots-tag", "nofollow"))
        .at("/same.html", Answer::status(304))
        .at(
            "/other.html",
            Answer::page("<img src=/o.png alt=old>").header("last-modified", "Sun, 06 Nov 1994 08:49:37 GMT"),
        )
        .at("/other.html", page("<img src=/o.png alt=new>", "\"o\""))
        .page("/bare.html", "<img src=/b.png alt=bare>");
    let web = WebServer::start(site).await.unwrap();
    let pipeline = stage("pages", "crawl", "seeds = [\"http://a.test/\"]\ncache = \"cache/pages\"");
    let cache = tempfile::tempdir().unwrap();
    let captions = async || {
        let lab = Lab::new().host("a.test", &web);
        symlink(cache.path(), lab.path("cache")).unwrap();
        lab.run(&pipeline).await.rows("select caption from pages order by caption").await
    };
    assert_eq!(captions().await, ["bare", "old", "same"]);
    let asked = web.requests().len();
    assert_eq!(captions().await, ["bare", "new", "same"]);
    let requests = web.requests().split_off(asked);
    let conditions = |path: &str| {
        let request = requests.iter().find(|request| request.path == path).unwrap();
        (request.header("if-none-match"), request.header("if-modified-since"))
    };
    assert_eq!(conditions("/"), (Some("\"home\""), None));
    assert_eq!(conditions("/same.html"), (Some("\"s\""), None));
    assert_eq!(conditions("/other.html"), (None, Some("Sun, 06 Nov 1994 08:49:37 GMT")));
    assert_eq!(conditions("/bare.html"), (None, None));
}
