//! The HTTP client against a server that misbehaves in every way: each failure has its code, and
//! none takes long.

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
        seed: 7,
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
async fn no_spelling_of_loopback_is_allowed() {
    let web = WebServer::start(Site::new().at("/", Answer::page("secret"))).await.unwrap();
    let port = web.addr().port();
    let client = client(options(&web));
    for host in [
        "127.0.0.1",
        "127.1",
        "2130706433",
        "0x7f000001",
        "017700000001",
        "[::ffff:127.0.0.1]",
        "[::1]",
        "0.0.0.0",
        "localhost",
        "LOCALHOST",
    ] {
        let error = get(&client, &format!("http://{host}:{port}/")).await.unwrap_err();
        assert_eq!(error.kind, FetchErrorKind::PrivateAddress, "{host}: {error}");
    }
    assert!(web.requests().is_empty(), "nothing may reach the server");
}

/// Returns different addresses each time.
#[derive(Debug)]
struct Rebinding(Vec<Vec<IpAddr>>, AtomicUsize);

impl Lookup for Rebinding {
    fn lookup(&self, _: String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> {
        let call = self.1.fetch_add(1, Ordering::SeqCst);
        let answer = self.0[call.min(self.0.len() - 1)].clone();
        Box::pin(async move { Ok(answer) })
    }
}

#[tokio::test]
async fn connections_go_to_the_checked_address() {
    let web = WebServer::start(Site::new().at("/", Answer::page("x"))).await.unwrap();
    let allowed = || HttpOptions { allow_private: vec!["127.0.0.1".into()], ..options(&web) };
    let [loopback, private]: [IpAddr; 2] = ["127.0.0.1".parse().unwrap(), "10.0.0.1".parse().unwrap()];
    let url = format!("http://rebound.test:{}/", web.addr().port());

    let lookup = Arc::new(Rebinding(vec![vec![private, loopback], vec![private]], AtomicUsize::new(0)));
    let client = looking_up(allowed(), lookup.clone());
    assert!(get(&client, &url).await.is_ok(), "of several addresses, the allowed one");
    assert_eq!(lookup.1.load(Ordering::SeqCst), 1, "one lookup per connection: nothing to rebind");
    assert_eq!(get(&client, &url).await.unwrap_err().kind, FetchErrorKind::PrivateAddress);
    assert_eq!(web.requests().len(), 1);
}

#[tokio::test]
async fn transient_failures_are_retried_after_retry_after() {
    let busy = |status| Answer::status(status).header("retry-after", "1");
    let site = Site::new()
        .at("/429", busy(429))
        .at("/429", Answer::page("x"))
        .at("/503", Answer::status(503))
        .at("/503", Answer::page("x"))
        .at("/reset", Answer::Reset)
        .at("/reset", Answer::page("x"))
        .at("/always", Answer::status(503))
        .at("/long", Answer::status(429).header("retry-after", "3600"))
        .at("/404", Answer::status(404));
    let web = WebServer::start(site).await.unwrap();
    let client = client(HttpOptions { retries: 2, ..options(&web) });
    for (path, ok, requests, at_least) in [
        ("/429", true, 2, 1000),
        ("/503", true, 2, 500),
        ("/reset", true, 2, 500),
        ("/always", false, 3, 1500),
        ("/long", false, 1, 0),
        ("/404", false, 1, 0),
    ] {
        let start = Instant::now();
        let result = get(&client, &format!("http://site.test{path}")).await;
        assert_eq!((result.is_ok(), web.count(path)), (ok, requests), "{path}");
        let took = start.elapsed().as_millis();
        assert!(took >= at_least && took < at_least + 3000, "{path} took {took} ms");
    }
}

#[tokio::test]
async fn robots_txt_is_fetched_once_and_obeyed() {
    let rules = "User-agent: twinlens\nDisallow: /private\n";
    let huge = format!("{rules}{}", "# padding\n".repeat(200_000));
    let cases = [
        ("rules", Answer::body("text/plain", rules), Some(FetchErrorKind::RobotsDisallowed), None),
        ("huge", Answer::body("text/plain", huge), Some(FetchErrorKind::RobotsDisallowed), None),
        ("endless", Answer::EndlessBody, None, None),
        ("missing", Answer::status(404), None, None),
        ("forbidden", Answer::status(403), None, None),
        (
            "server error",
            Answer::status(500),
            Some(FetchErrorKind::RobotsUnreachable),
            Some(FetchErrorKind::RobotsUnreachable),
        ),
        (
            "stalled",
            Answer::StalledHeaders,
            Some(FetchErrorKind::TimeoutHeaders),
            Some(FetchErrorKind::TimeoutHeaders),
        ),
        ("moved", Answer::redirect("/elsewhere.txt"), Some(FetchErrorKind::RobotsDisallowed), None),
        ("moved in a circle", Answer::redirect("/robots.txt"), None, None),
    ];
    for (name, robots, private, public) in cases {
        let page = || Answer::page("x");
        let site =
            Site::new().at("/robots.txt", robots).at("/elsewhere.txt", Answer::body("text/plain", rules));
        let web = WebServer::start(site.at("/private", page()).at("/public", page())).await.unwrap();
        let client = client(HttpOptions { robots: true, ..options(&web) });
        let urls = [
            "http://site.test/private",
            "http://site.test/public",
            "http://site.test/public",
            "http://site.test/private",
        ];
        let results = join_all(urls.iter().map(|url| get(&client, url))).await;
        let kinds: Vec<Option<FetchErrorKind>> =
            results.into_iter().map(|result| result.err().map(|error| error.kind)).collect();
        assert_eq!(kinds, [private, public, public, private], "{name}");
        let asked = web.count("/robots.txt");
        assert!(asked == 1 || (name == "moved in a circle" && asked == 6), "{name}: asked {asked} times");
        assert_eq!(web.count("/private"), if private.is_some() { 0 } else { 2 }, "{name}");
    }
}

#[tokio::test]
async fn tdmrep_json_is_fetched_once_and_reported() {
    let rules = r#"[{"location": "/private", "tdm-reservation": 1, "tdm-policy": "https://a.test/p"}]"#;
    let json = |text: &str| Answer::body("application/json", text);
    let cases = [
        ("rules", json(rules), true),
        ("moved", Answer::redirect("/elsewhere.json"), true),
        ("missing", Answer::status(404), false),
        ("server error", Answer::status(500), false),
        ("not found, in words", Answer::page("<p>Sorry"), false),
        ("endless", Answer::EndlessBody, false),
        ("too long", json(&format!("{rules}{}", " ".repeat(600_000))), false),
        ("moved in a circle", Answer::redirect("/.well-known/tdmrep.json"), false),
        ("stalled", Answer::StalledHeaders, false),
    ];
    for (name, file, expected) in cases {
        let page = || Answer::page("x");
        let site = Site::new()
            .at("/.well-known/tdmrep.json", file)
            .at("/elsewhere.json", json(rules))
            .at("/to-private", Answer::redirect("/private"))
            .at("/private-no-more", page().header("tdm-reservation", "0"))
            .at("/private", page())
            .at("/public", page().header("x-tdmrep-json", "what no server may say"));
        let web = WebServer::start(site).await.unwrap();
        let client = client(HttpOptions { opt_outs: true, ..options(&web) });
        let urls = ["private", "to-private", "private-no-more", "public"]
            .map(|path| format!("http://site.test/{path}"));
        let responses = join_all(urls.iter().map(|url| get(&client, url))).await;
        let opt_outs: Vec<Option<String>> = responses
            .into_iter()
            .map(|response| Directives::from_headers(&response.unwrap().headers, "x").opt_out)
            .collect();
        let words = "/.well-known/tdmrep.json of site.test: tdm-reservation 1 (policy: https://a.test/p)";
        let private = expected.then(|| words.to_string());
        assert_eq!(opt_outs, [private.clone(), private, None, None], "{name}");
        let asked = web.count("/.well-known/tdmrep.json");
        assert!(asked == 1 || (name == "moved in a circle" && asked == 6), "{name}: asked {asked} times");
    }
    let web = WebServer::start(Site::new().at("/x", Answer::page("x"))).await.unwrap();
    assert!(get(&client(options(&web)), "http://site.test/x").await.is_ok());
    assert_eq!(web.count("/.well-known/tdmrep.json"), 0, "not fetched without opt_outs");
}

#[tokio::test]
async fn requests_to_a_host_are_limited() {
    let late = Answer::Delayed(Duration::from_millis(150), Box::new(Answer::page("x")));
    let web = WebServer::start(Site::new().at("/late", late).at("/", Answer::page("x"))).await.unwrap();
    let start = Instant::now();
    let two = client(HttpOptions { per_host: 2, ..options(&web) });
    assert!(join_all((0..6).map(|_| get(&two, "http://site.test/late"))).await.iter().all(Result::is_ok));
    assert!(start.elapsed() >= Duration::from_millis(450), "two at a time: {:?}", start.elapsed());

    // By address: hosts with a fixed address have no delay.
    let start = Instant::now();
    let slowly =
        client(HttpOptions { delay: 0.1, allow_private: vec!["127.0.0.0/8".into()], ..options(&web) });
    assert!(join_all((0..5).map(|_| get(&slowly, &*web.url("/").leak()))).await.iter().all(Result::is_ok));
    assert!(start.elapsed() >= Duration::from_millis(400), "ten a second: {:?}", start.elapsed());
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
async fn a_dead_network_is_not_confused_with_dead_links() {
    let web = WebServer::start(Site::new().at("/", Answer::page("x"))).await.unwrap();
    let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let hosts =
        |n: u32| -> BTreeMap<String, SocketAddr> { (0..n).map(|n| (format!("h{n}.test"), free)).collect() };
    let dead = client(HttpOptions { resolve: hosts(30), ..options(&web) });
    for n in 0..30 {
        assert_eq!(
            get(&dead, &format!("http://h{n}.test/")).await.unwrap_err().kind,
            FetchErrorKind::Connect
        );
    }
    assert!(dead.network_down(false).is_some_and(|kind| kind.contains("20 of the last 20")));

    let mut resolve = hosts(30);
    resolve.insert("site.test".into(), web.addr());
    let links = client(HttpOptions { resolve, ..options(&web) });
    for n in 0..30 {
        assert!(get(&links, &format!("http://h{n}.test/")).await.is_err());
        assert!(get(&links, "http://site.test/").await.is_ok());
    }
    assert_eq!(links.network_down(true), None);
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

/// Always returns the same address.
#[derive(Debug)]
pub(crate) struct Answering(pub(crate) &'static str);

impl Lookup for Answering {
    fn lookup(&self, _: String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> {
        let answer = self.0.parse().unwrap();
        Box::pin(async move { Ok(vec![answer]) })
    }
}

#[tokio::test]
async fn private_addresses_from_dns_are_refused() {
    let web = WebServer::start(Site::new().at("/", Answer::page("secret"))).await.unwrap();
    for address in [
        "127.0.0.1",
        "10.1.2.3",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "::1",
        "::ffff:127.0.0.1",
        "64:ff9b::7f00:1",
        "fd00:ec2::254",
        "fe80::1",
        "ff02::1",
    ] {
        let client = looking_up(options(&web), Arc::new(Answering(address)));
        let url = format!("http://innocent.example:{}/", web.addr().port());
        let error = get(&client, &url).await.unwrap_err();
        assert_eq!(error.kind, FetchErrorKind::PrivateAddress, "{address}: {error}");
    }
    assert!(web.requests().is_empty());
}

fn over_tls(web: &WebServer, trusted: &[u8]) -> Client {
    let options = HttpOptions { resolve: BTreeMap::from([(HOST.to_string(), web.addr())]), ..options(web) };
    let mut deps = deps(Arc::new(SystemLookup), ByteBudget::new(1 << 20));
    deps.extra_certificates.push(reqwest::Certificate::from_der(trusted).unwrap());
    Client::new(options, deps).unwrap()
}

#[tokio::test]
async fn certificates_are_verified() {
    use twinlens_testkit::Certificate::{Expired, Good, OtherHost, SelfSigned};
    for certificate in [SelfSigned, Expired, OtherHost, Good] {
        let site = Site::new().fallback(Answer::page);
        let (web, trusted) = WebServer::start_tls(site, certificate).await.unwrap();
        let client = over_tls(&web, &trusted);
        let urls: Vec<String> = (0..20).map(|number| format!("https://{HOST}/{number}")).collect();
        let responses = join_all(urls.iter().map(|url| get(&client, url))).await;
        for (number, response) in responses.into_iter().enumerate() {
            match (certificate, response) {
                (Good, Ok(response)) => assert_eq!(response.body, format!("/{number}").as_bytes()),
                (Good, Err(error)) => panic!("{error}"),
                (_, response) => {
                    assert_eq!(response.unwrap_err().kind, FetchErrorKind::Tls, "{certificate:?}")
                }
            }
        }
        if certificate == Good {
            // Four may have started before the first connection was known to be HTTP/2.
            assert!(web.connections() <= 4, "HTTP/2 shares connections: {}", web.connections());
            assert_eq!(web.requests()[0].header("accept"), Some("image/*"));
        } else {
            assert!(web.requests().is_empty(), "{certificate:?}: no request may be sent");
        }
    }
}

#[tokio::test]
async fn an_endless_handshake_times_out() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let web = WebServer::start(Site::new()).await.unwrap();
    let mut options = options(&web);
    options.resolve.insert("silent.test".into(), silent.local_addr().unwrap());
    (options.connect_timeout, options.headers_timeout) = (0.3, 5.0);
    let error = get(&client(options), "https://silent.test/").await.unwrap_err();
    assert_eq!(error.kind, FetchErrorKind::TimeoutConnect, "{error}");
}

#[tokio::test]
async fn connections_are_reused() {
    let site = Site::new().fallback(|_| Answer::page("x")).keep_alive();
    let web = WebServer::start(site).await.unwrap();
    let client = client(options(&web));
    for number in 0..30 {
        assert!(get(&client, &format!("http://site.test/{number}")).await.is_ok());
    }
    assert_eq!((web.requests().len(), web.connections()), (30, 1));
}

#[tokio::test]
async fn a_slow_host_does_not_block_others() {
    let slow = Answer::Delayed(Duration::from_millis(300), Box::new(Answer::page("x")));
    let web = WebServer::start(Site::new().at("/slow", slow).at("/", Answer::page("x"))).await.unwrap();
    let mut options = options(&web);
    options.per_host = 1;
    options.resolve.insert("slow.test".into(), web.addr());
    let mut deps = deps(Arc::new(SystemLookup), ByteBudget::new(1 << 20));
    deps.max_open = 2;
    let client = Client::new(options, deps).unwrap();
    let start = Instant::now();
    // A response keeps its permit until it is dropped.
    let slow = join_all((0..5).map(|_| async { get(&client, "http://slow.test/slow").await.is_ok() }));
    let others = async {
        for _ in 0..10 {
            assert!(get(&client, "http://site.test/").await.is_ok());
        }
        start.elapsed()
    };
    let (slow, others) = tokio::join!(slow, others);
    assert!(slow.iter().all(|fetched| *fetched) && start.elapsed() >= Duration::from_millis(1500));
    assert!(others < Duration::from_millis(1000), "{others:?}");
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
