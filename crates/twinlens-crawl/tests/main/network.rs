//! The HTTP client against a server that misbehaves in every way: each failure has its code, and
//! none takes long.

pub(crate) mod addresses;
mod connections;
mod manners;

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures::future::{BoxFuture, join_all};
use twinlens_crawl::net::{
    ByteBudget, Client, ClientDeps, Directives, FetchError, FetchErrorKind, HttpOptions, Lookup, Request,
    Response, SystemLookup,
};
use twinlens_testkit::web::HOST;
use twinlens_testkit::{Answer, Site, WebServer};
use url::Url;

use crate::support::gzip;

/// Options for short tests; the host `site.test` is the server.
pub(crate) fn options(web: &WebServer) -> HttpOptions {
    HttpOptions {
        robots: false,
        opt_outs: false,
        resolve: BTreeMap::from([("site.test".to_string(), web.addr())]),
        connect_timeout: 2.0,
        headers_timeout: 0.5,
        body_timeout: 0.7,
        retries: 0,
        delay: 0.0,
        ..HttpOptions::default()
    }
}

pub(crate) fn deps(lookup: Arc<dyn Lookup>, budget: ByteBudget) -> ClientDeps {
    ClientDeps {
        lookup,
        hosts: BTreeMap::new(),
        budget,
        max_open: 1000,
        extra_certificates: Vec::new(),
        environment: BTreeMap::new(),
        secrets: Default::default(),
        seed: 7,
        sharers: Arc::default(),
        has_own_hosts: false,
    }
}

pub(crate) fn client(options: HttpOptions) -> Client {
    looking_up(options, Arc::new(SystemLookup))
}

fn looking_up(options: HttpOptions, lookup: Arc<dyn Lookup>) -> Client {
    Client::new(options, deps(lookup, ByteBudget::new(1 << 20))).unwrap()
}

pub(crate) async fn get(client: &Client, url: &str) -> Result<Response, FetchError> {
    let url = Url::parse(url).unwrap();
    client.get(Request::new(&url, "image/*", 100_000)).await
}

#[tokio::test]
async fn each_failure_has_its_code() {
    let trickle = |length| Answer::SlowBody { chunk: 10, pause: Duration::from_millis(20), length };
    let long = Answer::body("image/png", vec![b'x'; 100_001]);
    let coded =
        |coding: &str, body: &[u8]| Answer::body("image/png", body).header("content-encoding", coding);
    let cases = [
        ("endless", Answer::EndlessBody, FetchErrorKind::TooManyBytes),
        ("announced too long", long, FetchErrorKind::TooManyBytes),
        ("slow loris", trickle(50_000), FetchErrorKind::TimeoutBody),
        ("too slow", trickle(90_000), FetchErrorKind::TooSlow),
        ("stalled", Answer::StalledHeaders, FetchErrorKind::TimeoutHeaders),
        ("huge headers", Answer::HugeHeaders, FetchErrorKind::BadResponse),
        ("garbage", Answer::Garbage, FetchErrorKind::BadResponse),
        ("reset", Answer::Reset, FetchErrorKind::Reset),
        ("truncated", Answer::TruncatedBody { length: 100, body: vec![b'x'; 10] }, FetchErrorKind::Truncated),
        ("truncated chunks", Answer::TruncatedChunks, FetchErrorKind::Truncated),
        ("a coding that cannot be decoded", coded("compress", b"x"), FetchErrorKind::ContentEncoding),
        ("damaged gzip", coded("gzip", b"\x1f\x8b\x08\0\0\0\0\0\0\x03\xff"), FetchErrorKind::ContentEncoding),
        ("a bomb", coded("gzip", &gzip(&[0; 100_001])), FetchErrorKind::TooManyBytes),
        ("a redirect to itself", Answer::redirect("/"), FetchErrorKind::TooManyRedirects),
        (
            "a redirect to a private address",
            Answer::redirect("http://10.0.0.1/"),
            FetchErrorKind::PrivateAddress,
        ),
        ("a redirect to loopback", Answer::redirect("http://127.0.0.1:80/"), FetchErrorKind::PrivateAddress),
        (
            "a redirect to a name of loopback",
            Answer::redirect("http://localhost/"),
            FetchErrorKind::PrivateAddress,
        ),
        (
            "a redirect to metadata",
            Answer::redirect("http://169.254.169.254/latest/meta-data/"),
            FetchErrorKind::PrivateAddress,
        ),
        (
            "a redirect to another port of ours",
            Answer::redirect("http://site.test:22/"),
            FetchErrorKind::PrivateAddress,
        ),
        ("a redirect to a mail server", Answer::redirect("http://a.test:25/"), FetchErrorKind::BadPort),
        ("a redirect to a file", Answer::redirect("file:///etc/passwd"), FetchErrorKind::Scheme),
        ("a redirect to nowhere", Answer::status(301), FetchErrorKind::BadRedirect),
        ("a redirect to no URL", Answer::redirect("http://[broken"), FetchErrorKind::BadRedirect),
        ("204", Answer::status(204), FetchErrorKind::HttpUnexpected),
        ("400", Answer::status(400), FetchErrorKind::HttpClientError),
        ("403", Answer::status(403), FetchErrorKind::HttpForbidden),
        ("404", Answer::status(404), FetchErrorKind::HttpNotFound),
        ("410", Answer::status(410), FetchErrorKind::HttpGone),
        ("429", Answer::status(429), FetchErrorKind::HttpTooManyRequests),
        ("500", Answer::status(500), FetchErrorKind::HttpServerError),
    ];
    for (name, answer, kind) in cases {
        let web = WebServer::start(Site::new().at("/", answer)).await.unwrap();
        let start = Instant::now();
        let min_rate_after = if kind == FetchErrorKind::TooSlow { 0.2 } else { 10.0 };
        let client = client(HttpOptions { min_rate_after, ..options(&web) });
        let error = get(&client, "http://site.test/").await.unwrap_err();
        assert_eq!(error.kind, kind, "{name}: {error}");
        assert!(start.elapsed() < Duration::from_secs(3), "{name} took {:?}", start.elapsed());
        assert!(!error.detail.is_empty(), "{name}");
    }
}

#[tokio::test]
async fn a_minimum_rate_of_0_is_none() {
    let silent = Answer::SlowBody { chunk: 10, pause: Duration::from_millis(300), length: 30 };
    let web = WebServer::start(Site::new().at("/", silent)).await.unwrap();
    for (min_rate, expected) in [(0, None), (1000, Some(FetchErrorKind::TooSlow))] {
        let limits = HttpOptions { min_rate, min_rate_after: 0.05, body_timeout: 5.0, ..options(&web) };
        let found = get(&client(limits), "http://site.test/").await;
        assert_eq!(found.err().map(|error| error.kind), expected, "{min_rate}");
    }
}

#[tokio::test]
async fn unreachable_hosts_have_their_codes() {
    let web = WebServer::start(Site::new()).await.unwrap();
    let mut closed = options(&web);
    let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    closed.resolve.insert("closed.test".into(), free);
    let client = client(closed);
    for (url, kind) in [
        ("http://closed.test/", FetchErrorKind::Connect),
        ("http://no-such-host.invalid/", FetchErrorKind::Dns),
        ("https://site.test/", FetchErrorKind::Tls),
    ] {
        let error = get(&client, url).await.unwrap_err();
        assert_eq!(error.kind, kind, "{url}: {error}");
    }
}

#[tokio::test]
async fn redirects_are_followed_and_requests_identify_us() {
    let site = Site::new().at("/a", Answer::redirect("b#x")).at("/b", Answer::body("text/plain", "hello"));
    let web = WebServer::start(site).await.unwrap();
    let response = get(&client(options(&web)), "http://site.test/a").await.unwrap();
    assert_eq!(
        (response.body.as_slice(), response.url.as_str()),
        (b"hello".as_slice(), "http://site.test/b")
    );
    let request = &web.requests()[0];
    assert_eq!(request.header("user-agent"), Some(HttpOptions::default().user_agent.as_str()));
    assert!(
        request
            .header("user-agent")
            .is_some_and(|agent| agent.starts_with("twinlens/") && agent.contains("http"))
    );
    assert_eq!(request.header("accept-encoding"), Some("identity"));
    assert_eq!(request.header("host"), Some("site.test"));
}

#[tokio::test]
async fn bytes_are_reserved_before_they_are_read() {
    let web =
        WebServer::start(Site::new().at("/", Answer::body("image/png", vec![b'x'; 60_000]))).await.unwrap();
    let budget = ByteBudget::new(100_000);
    let client = Client::new(
        HttpOptions { per_host: 8, body_timeout: 5.0, headers_timeout: 5.0, ..options(&web) },
        deps(Arc::new(SystemLookup), budget.clone()),
    )
    .unwrap();
    let in_flight = Arc::new(AtomicUsize::new(0));
    let fetches = (0..8).map(|_| async {
        let response = get(&client, "http://site.test/").await.unwrap();
        // Two bodies of 60 kB do not fit in 100 kB.
        assert_eq!(in_flight.fetch_add(1, Ordering::SeqCst), 0);
        tokio::time::sleep(Duration::from_millis(5)).await;
        in_flight.fetch_sub(1, Ordering::SeqCst);
        drop(response.reservation);
        response.body.len()
    });
    assert!(join_all(fetches).await.iter().all(|length| *length == 60_000));
    assert!(budget.available() >= 100_000, "everything is released");
}

#[tokio::test]
async fn malformed_responses_have_their_codes() {
    let ok = "HTTP/1.1 200 OK\n";
    let cases = [
        ("no status", "HTTP/1.1\nx: y".to_string(), FetchErrorKind::BadResponse),
        ("a status of letters", "HTTP/1.1 abc OK".into(), FetchErrorKind::BadResponse),
        ("another protocol", "ICY 200 OK".into(), FetchErrorKind::BadResponse),
        ("HTTP/9.9", "HTTP/9.9 200 OK".into(), FetchErrorKind::BadResponse),
        ("a negative length", format!("{ok}content-length: -5"), FetchErrorKind::BadResponse),
        ("a length of words", format!("{ok}content-length: five"), FetchErrorKind::BadResponse),
        ("two lengths", format!("{ok}content-length: 5\ncontent-length: 6"), FetchErrorKind::BadResponse),
        (
            "a length of 2^70",
            format!("{ok}content-length: 1180591620717411303424"),
            FetchErrorKind::BadResponse,
        ),
        (
            "a length of 2^60",
            format!("{ok}content-length: 1152921504606846976"),
            FetchErrorKind::TooManyBytes,
        ),
        (
            "a chunk of 2^70",
            format!("{ok}transfer-encoding: chunked\n\n400000000000000000\nxx"),
            FetchErrorKind::Truncated,
        ),
        (
            "a chunk of nonsense",
            format!("{ok}transfer-encoding: chunked\n\nzz\nxx"),
            FetchErrorKind::Truncated,
        ),
        (
            "3000 headers",
            format!("{ok}{}content-length: 1\n\nx", "x: y\n".repeat(3000)),
            FetchErrorKind::BadResponse,
        ),
        (
            "a location of spaces",
            "HTTP/1.1 302 Found\nlocation: http:// / /".into(),
            FetchErrorKind::BadRedirect,
        ),
        ("half a head", ok.trim_end().into(), FetchErrorKind::Reset),
    ];
    for (name, head, kind) in cases {
        let answer = match name {
            "half a head" => Answer::Raw(head.into_bytes()),
            _ => Answer::head(&head, b""),
        };
        let web = WebServer::start(Site::new().at("/", answer)).await.unwrap();
        let result = get(&client(options(&web)), "http://site.test/").await;
        let found = result.as_ref().err().map(|error| error.kind);
        assert_eq!(found, Some(kind), "{name}: {result:?}");
    }
}

#[tokio::test]
async fn redirects_are_limited() {
    let web =
        WebServer::start(Site::new().at("/1", Answer::RedirectChain).fallback(|_| Answer::RedirectChain))
            .await
            .unwrap();
    let client = client(HttpOptions { max_redirects: 7, ..options(&web) });
    let error = get(&client, "http://site.test/1").await.unwrap_err();
    assert_eq!((error.kind, web.requests().len()), (FetchErrorKind::TooManyRedirects, 8), "{error}");
    assert!(HttpOptions { max_redirects: 10_000, ..HttpOptions::default() }.check().is_err());
}

#[tokio::test]
async fn bodies_without_a_length_share_the_budget() {
    let chunked = || {
        let body = format!("{:x}\r\n{}\r\n0\r\n\r\n", 90_000, "x".repeat(90_000));
        Answer::head("HTTP/1.1 200 OK\ntransfer-encoding: chunked", body.as_bytes())
    };
    let web = WebServer::start(Site::new().at("/", chunked())).await.unwrap();
    // The budget is smaller than two bodies: each grows, and none deadlocks.
    let budget = ByteBudget::new(150_000);
    let options = HttpOptions { per_host: 16, body_timeout: 20.0, headers_timeout: 20.0, ..options(&web) };
    let client = Client::new(options, deps(Arc::new(SystemLookup), budget.clone())).unwrap();
    let responses = join_all(
        (0..16)
            .map(|_| async { get(&client, "http://site.test/").await.map(|response| response.body.len()) }),
    );
    let responses = tokio::time::timeout(Duration::from_secs(15), responses).await.unwrap();
    assert!(responses.iter().all(|length| *length == Ok(90_000)), "{responses:?}");
    assert!(budget.available() >= 150_000, "everything is released");
}
