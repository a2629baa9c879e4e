//! The gallery as a crawler sees it, over HTTP by its host name.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;
use std::time::Duration;

use reqwest::header::{CONTENT_LENGTH, CONTENT_TYPE, LOCATION, RETRY_AFTER};
use twinlens_gallery::{Gallery, HOST, QUIRKS, serve};

struct Session {
    gallery: Gallery,
    client: reqwest::Client,
}

impl Session {
    async fn new(redirects: reqwest::redirect::Policy) -> Self {
        let gallery = serve().await.unwrap();
        // reqwest builds no client without one, not even for plain HTTP.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder()
            .resolve(HOST, gallery.addr())
            .redirect(redirects)
            .timeout(Duration::from_secs(20))
            .no_proxy()
            .build()
            .unwrap();
        Self { gallery, client }
    }

    async fn get(&self, path: &str) -> reqwest::Response {
        self.client.get(format!("http://{HOST}{path}")).send().await.unwrap()
    }

    async fn text(&self, path: &str) -> String {
        self.get(path).await.text().await.unwrap()
    }
}

/// The double-quoted values of an attribute.
fn values<'a>(html: &'a str, attribute: &str) -> Vec<&'a str> {
    let open = format!(" {attribute}=\"");
    html.split(&open).skip(1).filter_map(|rest| rest.split('"').next()).collect()
}

#[tokio::test]
async fn every_concept_is_linked_and_every_image_is_served() {
    let session = Session::new(reqwest::redirect::Policy::limited(3)).await;
    let mut details = BTreeSet::new();
    let index = session.text("/").await;
    for group in &session.gallery.catalog().groups {
        let path = format!("/{}/", group.slug);
        assert!(index.contains(&format!("href=\"{path}\"")));
        let mut pages = vec![session.text(&path).await];
        for number in 2..=group.concepts.len().div_ceil(60) {
            let next = format!("{path}page-{number}/");
            assert!(pages[0].contains(&next));
            pages.push(session.text(&next).await);
        }
        let linked =
            pages.iter().flat_map(|page| values(page, "href")).filter(|href| href.ends_with(".html"));
        details.extend(linked.map(str::to_owned));
    }
    assert_eq!(details.len(), 1914);

    let (mut images, mut moved) = (BTreeSet::new(), 0);
    for path in &details {
        let page = session.text(path).await;
        // The logo, which is on every page, is not in a figure.
        let figures =
            page.split("<figure>").skip(1).flat_map(|figure| values(figure, "src").into_iter().next());
        for source in figures {
            let response = session.get(source).await;
            assert_eq!(response.status(), 200, "{path}: {source}");
            moved += u32::from(source.starts_with("/img/moved/"));
            assert!(response.url().path() == source.replace("/moved", ""));
            assert!(response.bytes().await.unwrap().starts_with(b"\x89PNG"));
            assert!(images.insert(source.to_owned()), "{source} is shown on two detail pages");
        }
    }
    assert_eq!(images.len(), 3944);
    assert!((20..80).contains(&moved), "{moved} images are linked through a redirect");
    assert_eq!(session.gallery.requests_under("/private/"), 0);
}

#[tokio::test]
async fn every_quirk_behaves_as_described() {
    let session = Session::new(reqwest::redirect::Policy::none()).await;
    let attic = session.text("/attic/").await;
    for quirk in QUIRKS {
        assert_eq!(attic.contains(quirk.path), !quirk.path.starts_with("/private/"), "{}", quirk.path);
    }
    let sample = session.get("/img/1f4f7.png").await.bytes().await.unwrap();

    let statuses = [
        ("/attic/moved", 302, "/food-and-drink/red-apple.html"),
        ("/attic/moved-for-good", 301, "/attic/moved"),
        ("/attic/loop", 302, "/attic/loop-back"),
        ("/attic/loop-back", 302, "/attic/loop"),
        ("/img/moved/1f4f7.png", 302, "/img/1f4f7.png"),
        ("/attic/gone", 404, ""),
        ("/img/gone.png", 404, ""),
        ("/never/was", 404, ""),
        ("/attic/broken", 500, ""),
    ];
    for (path, status, location) in statuses {
        let response = session.get(path).await;
        assert_eq!(response.status(), status, "{path}");
        let to = response.headers().get(LOCATION).map_or("", |value| value.to_str().unwrap());
        assert_eq!(to, location, "{path}");
    }

    let busy = session.get("/img/busy.png").await;
    assert_eq!((busy.status().as_u16(), busy.headers()[RETRY_AFTER].to_str().unwrap()), (429, "1"));
    let images = [
        ("/img/busy.png", "image/png", sample.to_vec()),
        ("/img/untyped.png", "application/octet-stream", sample.to_vec()),
        ("/img/damaged.png", "image/png", sample[..sample.len() / 2].to_vec()),
    ];
    for (path, content_type, body) in images {
        let response = session.get(path).await;
        assert_eq!(response.headers()[CONTENT_TYPE], content_type, "{path}");
        assert!(response.bytes().await.unwrap() == body, "{path}");
    }
    let huge = session.get("/img/huge.png").await.bytes().await.unwrap();
    assert_eq!(huge[16..24], [30_000_u32.to_be_bytes(), 30_000_u32.to_be_bytes()].concat());
    let page = session.get("/img/page.png").await;
    assert_eq!(page.headers()[CONTENT_TYPE], "image/png");
    assert!(page.text().await.unwrap().starts_with("<!DOCTYPE html>"));
    for path in ["/img/opted-out.png", "/attic/opted-out"] {
        assert_eq!(session.get(path).await.headers()["x-robots-tag"], "noai, noimageai");
    }
    assert!(session.text("/attic/not-indexed").await.contains("noimageindex"));
    let old = session.get("/attic/windows-1252").await;
    assert_eq!(old.headers()[CONTENT_TYPE], "text/html; charset=windows-1252");
    let old = old.bytes().await.unwrap();
    assert!(old.windows(6).any(|bytes| bytes == b"pi\xf1ata") && std::str::from_utf8(&old).is_err());
}

#[tokio::test]
async fn the_delayed_image_is_complete() {
    let session = Session::new(reqwest::redirect::Policy::none()).await;
    let start = std::time::Instant::now();
    let late = session.get("/img/late.png").await.bytes().await.unwrap();
    assert!(start.elapsed() >= Duration::from_secs(3));
    assert_eq!(late, session.get("/img/1f4f7.png").await.bytes().await.unwrap());
}

#[tokio::test]
async fn requests_for_private_paths_are_counted() {
    let session = Session::new(reqwest::redirect::Policy::none()).await;
    assert!(session.text("/robots.txt").await.contains("Disallow: /private/"));
    assert_eq!(session.gallery.requests_under("/private/"), 0);
    for path in ["/private/", "/private/photo.png", "/private/photo.png?again", "/private/guess"] {
        session.get(path).await;
    }
    assert_eq!(session.gallery.requests_under("/private/"), 4);
    assert_eq!(session.gallery.requests("/private/photo.png"), 2);
}

#[tokio::test]
async fn two_galleries_serve_the_same_bytes() {
    let (one, two) = (
        Session::new(reqwest::redirect::Policy::none()).await,
        Session::new(reqwest::redirect::Policy::none()).await,
    );
    assert_ne!(one.gallery.addr(), two.gallery.addr());
    for path in ["/", "/attic/", "/flags/", "/people-and-body/page-3/", "/people-and-body/waving-hand.html"] {
        assert_eq!(one.text(path).await, two.text(path).await, "{path}");
    }
}

#[tokio::test]
async fn head_has_the_length_and_no_body() {
    let session = Session::new(reqwest::redirect::Policy::none()).await;
    let url = format!("http://{HOST}/img/1f4f7.png");
    let head = session.client.head(&url).send().await.unwrap();
    let length = head.headers()[CONTENT_LENGTH].to_str().unwrap().parse::<usize>().unwrap();
    assert_eq!(head.headers()[CONTENT_TYPE], "image/png");
    assert!(head.bytes().await.unwrap().is_empty());
    assert_eq!(session.get("/img/1f4f7.png").await.bytes().await.unwrap().len(), length);
}

#[tokio::test]
async fn the_server_stops_when_its_handle_is_dropped() {
    let gallery = serve().await.unwrap();
    let addr = gallery.addr();
    drop(gallery);
    for _ in 0..50 {
        if tokio::net::TcpStream::connect(addr).await.is_err() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("still listening on {addr}");
}
