//! The HTTP client against a server that misbehaves in every way: each hazard has its code, and
//! none takes long.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures::future::{BoxFuture, join_all};
use twinlens_crawl::net::{
    Ask, ByteBudget, Client, Directives, FetchError, HttpOptions, Lookup, Reply, Surroundings, SystemLookup,
    Why,
};
use twinlens_testkit::web::HOST;
use twinlens_testkit::{Answer, Site, WebServer};
use url::Url;

/// Options that make a test short; the host `site.test` is the server.
fn options(web: &WebServer) -> HttpOptions {
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

fn around(lookup: Arc<dyn Lookup>, budget: ByteBudget) -> Surroundings {
    Surroundings { lookup, hosts: BTreeMap::new(), budget, open: 1000, trusted: Vec::new(), seed: 7 }
}

fn client(options: HttpOptions) -> Client {
    looking_up(options, Arc::new(SystemLookup))
}

fn looking_up(options: HttpOptions, lookup: Arc<dyn Lookup>) -> Client {
    Client::new(options, around(lookup, ByteBudget::new(1 << 20))).unwrap()
}

async fn get(client: &Client, url: &str) -> Result<Reply, FetchError> {
    let url = Url::parse(url).unwrap();
    let ask = Ask {
        url: &url,
        accept: "image/*",
        max_bytes: 100_000,
        cut: false,
        follow: true,
        robots: true,
        conditions: None,
        check: &|_| Ok(()),
    };
    client.get(ask).await
}

#[tokio::test]
async fn each_hazard_has_its_code() {
    let trickle = |length| Answer::SlowBody { chunk: 10, pause: Duration::from_millis(20), length };
    let long = Answer::body("image/png", vec![b'x'; 100_001]);
    let gzip = Answer::body("image/png", b"\x1f\x8b".to_vec()).header("content-encoding", "gzip");
    let cases = [
        ("endless", Answer::EndlessBody, Why::TooManyBytes),
        ("announced too long", long, Why::TooManyBytes),
        ("slow loris", trickle(50_000), Why::TimeoutBody),
        ("too slow", trickle(90_000), Why::TooSlow),
        ("stalled", Answer::StalledHeaders, Why::TimeoutHeaders),
        ("huge headers", Answer::HugeHeaders, Why::BadResponse),
        ("garbage", Answer::Garbage, Why::BadResponse),
        ("reset", Answer::Reset, Why::Reset),
        ("truncated", Answer::TruncatedBody { length: 100, body: vec![b'x'; 10] }, Why::Truncated),
        ("truncated chunks", Answer::TruncatedChunks, Why::Truncated),
        ("gzip that was not asked for", gzip, Why::ContentEncoding),
        ("a redirect to itself", Answer::redirect("/"), Why::TooManyRedirects),
        ("a redirect to a private address", Answer::redirect("http://10.0.0.1/"), Why::PrivateAddress),
        ("a redirect to loopback", Answer::redirect("http://127.0.0.1:80/"), Why::PrivateAddress),
        ("a redirect to a name of loopback", Answer::redirect("http://localhost/"), Why::PrivateAddress),
        (
            "a redirect to metadata",
            Answer::redirect("http://169.254.169.254/latest/meta-data/"),
            Why::PrivateAddress,
        ),
        ("a redirect to another port of ours", Answer::redirect("http://site.test:22/"), Why::PrivateAddress),
        ("a redirect to a file", Answer::redirect("file:///etc/passwd"), Why::Scheme),
        ("a redirect to nowhere", Answer::status(301), Why::BadRedirect),
        ("a redirect to no URL", Answer::redirect("http://[broken"), Why::BadRedirect),
        ("204", Answer::status(204), Why::HttpUnexpected),
        ("400", Answer::status(400), Why::HttpClientError),
        ("403", Answer::status(403), Why::HttpForbidden),
        ("404", Answer::status(404), Why::HttpNotFound),
        ("410", Answer::status(410), Why::HttpGone),
        ("429", Answer::status(429), Why::HttpTooManyRequests),
        ("500", Answer::status(500), Why::HttpServerError),
    ];
    for (name, answer, why) in cases {
        let web = WebServer::start(Site::new().at("/", answer)).await.unwrap();
        let start = Instant::now();
        let min_rate_after = if why == Why::TooSlow { 0.2 } else { 10.0 };
        let client = client(HttpOptions { min_rate_after, ..options(&web) });
        let error = get(&client, "http://site.test/").await.unwrap_err();
        assert_eq!(error.why, why, "{name}: {error}");
        assert!(start.elapsed() < Duration::from_secs(3), "{name} took {:?}", start.elapsed());
        assert!(!error.detail.is_empty(), "{name}");
    }
}

#[tokio::test]
async fn a_host_that_is_not_there_has_its_code() {
    let web = WebServer::start(Site::new()).await.unwrap();
    let mut closed = options(&web);
    let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    closed.resolve.insert("closed.test".into(), free);
    let client = client(closed);
    for (url, why) in [
        ("http://closed.test/", Why::Connect),
        ("http://no-such-host.invalid/", Why::Dns),
        ("https://site.test/", Why::Tls),
    ] {
        let error = get(&client, url).await.unwrap_err();
        assert_eq!(error.why, why, "{url}: {error}");
    }
}

#[tokio::test]
async fn what_is_well_is_fetched_and_says_who_asks() {
    let site = Site::new().at("/a", Answer::redirect("b#x")).at("/b", Answer::body("text/plain", "hello"));
    let web = WebServer::start(site).await.unwrap();
    let reply = get(&client(options(&web)), "http://site.test/a").await.unwrap();
    assert_eq!((reply.body.as_slice(), reply.url.as_str()), (b"hello".as_slice(), "http://site.test/b"));
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
async fn no_spelling_of_loopback_is_connected_to() {
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
        assert_eq!(error.why, Why::PrivateAddress, "{host}: {error}");
    }
    assert!(web.requests().is_empty(), "nothing may reach the server");
}

/// Answers with other addresses each time.
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
async fn the_address_that_was_checked_is_the_one_that_is_connected_to() {
    let web = WebServer::start(Site::new().at("/", Answer::page("x"))).await.unwrap();
    let allowed = || HttpOptions { allow_private: vec!["127.0.0.1".into()], ..options(&web) };
    let [loopback, private]: [IpAddr; 2] = ["127.0.0.1".parse().unwrap(), "10.0.0.1".parse().unwrap()];
    let url = format!("http://rebound.test:{}/", web.addr().port());

    let lookup = Arc::new(Rebinding(vec![vec![private, loopback], vec![private]], AtomicUsize::new(0)));
    let client = looking_up(allowed(), lookup.clone());
    assert!(get(&client, &url).await.is_ok(), "of several addresses, the allowed one");
    assert_eq!(lookup.1.load(Ordering::SeqCst), 1, "one look-up a connection: nothing to rebind");
    assert_eq!(get(&client, &url).await.unwrap_err().why, Why::PrivateAddress);
    assert_eq!(web.requests().len(), 1);
}

#[tokio::test]
async fn a_busy_server_is_asked_again_when_it_says() {
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
async fn robots_txt_is_asked_for_once_and_obeyed() {
    let rules = "User-agent: twinlens\nDisallow: /private\n";
    let huge = format!("{rules}{}", "# padding\n".repeat(200_000));
    let cases = [
        ("rules", Answer::body("text/plain", rules), Some(Why::RobotsDisallowed), None),
        ("huge", Answer::body("text/plain", huge), Some(Why::RobotsDisallowed), None),
        ("endless", Answer::EndlessBody, None, None),
        ("missing", Answer::status(404), None, None),
        ("forbidden", Answer::status(403), None, None),
        ("server error", Answer::status(500), Some(Why::RobotsUnreachable), Some(Why::RobotsUnreachable)),
        ("stalled", Answer::StalledHeaders, Some(Why::TimeoutHeaders), Some(Why::TimeoutHeaders)),
        ("moved", Answer::redirect("/elsewhere.txt"), Some(Why::RobotsDisallowed), None),
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
        let whys: Vec<Option<Why>> =
            results.into_iter().map(|result| result.err().map(|error| error.why)).collect();
        assert_eq!(whys, [private, public, public, private], "{name}");
        let asked = web.count("/robots.txt");
        assert!(asked == 1 || (name == "moved in a circle" && asked == 6), "{name}: asked {asked} times");
        assert_eq!(web.count("/private"), if private.is_some() { 0 } else { 2 }, "{name}");
    }
}

#[tokio::test]
async fn what_a_host_reserves_is_asked_for_once_and_told() {
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
        let replies = join_all(urls.iter().map(|url| get(&client, url))).await;
        let told: Vec<Option<String>> = replies
            .into_iter()
            .map(|reply| Directives::of_headers(&reply.unwrap().headers, "x").opt_out)
            .collect();
        let words = "/.well-known/tdmrep.json of site.test: tdm-reservation 1 (policy: https://a.test/p)";
        let private = expected.then(|| words.to_string());
        assert_eq!(told, [private.clone(), private, None, None], "{name}");
        let asked = web.count("/.well-known/tdmrep.json");
        assert!(asked == 1 || (name == "moved in a circle" && asked == 6), "{name}: asked {asked} times");
    }
    let web = WebServer::start(Site::new().at("/x", Answer::page("x"))).await.unwrap();
    assert!(get(&client(options(&web)), "http://site.test/x").await.is_ok());
    assert_eq!(web.count("/.well-known/tdmrep.json"), 0, "without opt_outs it is of no interest");
}

#[tokio::test]
async fn a_host_is_spared() {
    let late = Answer::Delayed(Duration::from_millis(150), Box::new(Answer::page("x")));
    let web = WebServer::start(Site::new().at("/late", late).at("/", Answer::page("x"))).await.unwrap();
    let start = Instant::now();
    let two = client(HttpOptions { per_host: 2, ..options(&web) });
    assert!(join_all((0..6).map(|_| get(&two, "http://site.test/late"))).await.iter().all(Result::is_ok));
    assert!(start.elapsed() >= Duration::from_millis(450), "two at a time: {:?}", start.elapsed());

    // By address: a host with a fixed address is ours, and is not spared.
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
        around(Arc::new(SystemLookup), budget.clone()),
    )
    .unwrap();
    let in_flight = Arc::new(AtomicUsize::new(0));
    let fetches = (0..8).map(|_| async {
        let reply = get(&client, "http://site.test/").await.unwrap();
        // Two bodies of 60 kB do not fit in 100 kB.
        assert_eq!(in_flight.fetch_add(1, Ordering::SeqCst), 0);
        tokio::time::sleep(Duration::from_millis(5)).await;
        in_flight.fetch_sub(1, Ordering::SeqCst);
        drop(reply.reserved);
        reply.body.len()
    });
    assert!(join_all(fetches).await.iter().all(|length| *length == 60_000));
    assert!(budget.free() >= 100_000, "all is given back");
}

#[tokio::test]
async fn a_dead_network_is_told_from_dead_links() {
    let web = WebServer::start(Site::new().at("/", Answer::page("x"))).await.unwrap();
    let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let hosts =
        |n: u32| -> BTreeMap<String, SocketAddr> { (0..n).map(|n| (format!("h{n}.test"), free)).collect() };
    let dead = client(HttpOptions { resolve: hosts(30), ..options(&web) });
    for n in 0..30 {
        assert_eq!(get(&dead, &format!("http://h{n}.test/")).await.unwrap_err().why, Why::Connect);
    }
    assert!(dead.network_down(false).is_some_and(|why| why.contains("20 of the last 20")));

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
async fn broken_heads_have_their_codes() {
    let ok = "HTTP/1.1 200 OK\n";
    let cases = [
        ("no status", "HTTP/1.1\nx: y".to_string(), Why::BadResponse),
        ("a status of letters", "HTTP/1.1 abc OK".into(), Why::BadResponse),
        ("another protocol", "ICY 200 OK".into(), Why::BadResponse),
        ("HTTP/9.9", "HTTP/9.9 200 OK".into(), Why::BadResponse),
        ("a name with a space", format!("{ok}con tent: x"), Why::BadResponse),
        ("a line without a colon", format!("{ok}nonsense"), Why::BadResponse),
        ("a control character", format!("{ok}x: a\0b"), Why::BadResponse),
        ("a negative length", format!("{ok}content-length: -5"), Why::BadResponse),
        ("a length of words", format!("{ok}content-length: five"), Why::BadResponse),
        ("two lengths", format!("{ok}content-length: 5\ncontent-length: 6"), Why::BadResponse),
        ("a length of 2^70", format!("{ok}content-length: 1180591620717411303424"), Why::BadResponse),
        ("a length of 2^60", format!("{ok}content-length: 1152921504606846976"), Why::TooManyBytes),
        (
            "a chunk of 2^70",
            format!("{ok}transfer-encoding: chunked\n\n400000000000000000\nxx"),
            Why::Truncated,
        ),
        ("a chunk of nonsense", format!("{ok}transfer-encoding: chunked\n\nzz\nxx"), Why::Truncated),
        (
            "another coding",
            format!("{ok}content-encoding: zstd\ncontent-length: 1\n\nx"),
            Why::ContentEncoding,
        ),
        ("300 headers", format!("{ok}{}content-length: 1\n\nx", "x: y\n".repeat(300)), Why::BadResponse),
        ("a location of spaces", "HTTP/1.1 302 Found\nlocation: http:// / /".into(), Why::BadRedirect),
        ("half a head", ok.trim_end().into(), Why::Reset),
    ];
    for (name, head, why) in cases {
        let answer = match name {
            "half a head" => Answer::Raw(head.into_bytes()),
            _ => Answer::head(&head, b""),
        };
        let web = WebServer::start(Site::new().at("/", answer)).await.unwrap();
        let result = get(&client(options(&web)), "http://site.test/").await;
        let found = result.as_ref().err().map(|error| error.why);
        assert_eq!(found, Some(why), "{name}: {result:?}");
    }
}

#[tokio::test]
async fn ten_thousand_redirects_are_not_followed() {
    let web =
        WebServer::start(Site::new().at("/1", Answer::RedirectChain).fallback(|_| Answer::RedirectChain))
            .await
            .unwrap();
    let client = client(HttpOptions { max_redirects: 7, ..options(&web) });
    let error = get(&client, "http://site.test/1").await.unwrap_err();
    assert_eq!((error.why, web.requests().len()), (Why::TooManyRedirects, 8), "{error}");
    assert!(HttpOptions { max_redirects: 10_000, ..HttpOptions::default() }.check().is_err());
}

/// Always answers the same.
#[derive(Debug)]
struct Answering(&'static str);

impl Lookup for Answering {
    fn lookup(&self, _: String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> {
        let answer = self.0.parse().unwrap();
        Box::pin(async move { Ok(vec![answer]) })
    }
}

#[tokio::test]
async fn no_answer_of_dns_leads_inside() {
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
        assert_eq!(error.why, Why::PrivateAddress, "{address}: {error}");
    }
    assert!(web.requests().is_empty());
}

fn over_tls(web: &WebServer, trusted: &[u8]) -> Client {
    let options = HttpOptions { resolve: BTreeMap::from([(HOST.to_string(), web.addr())]), ..options(web) };
    let mut around = around(Arc::new(SystemLookup), ByteBudget::new(1 << 20));
    around.trusted.push(reqwest::Certificate::from_der(trusted).unwrap());
    Client::new(options, around).unwrap()
}

#[tokio::test]
async fn certificates_are_held_to_account() {
    use twinlens_testkit::Certificate::{Expired, Good, OtherHost, SelfSigned};
    for certificate in [SelfSigned, Expired, OtherHost, Good] {
        let site = Site::new().fallback(Answer::page);
        let (web, trusted) = WebServer::start_tls(site, certificate).await.unwrap();
        let client = over_tls(&web, &trusted);
        let urls: Vec<String> = (0..20).map(|number| format!("https://{HOST}/{number}")).collect();
        let replies = join_all(urls.iter().map(|url| get(&client, url))).await;
        for (number, reply) in replies.into_iter().enumerate() {
            match (certificate, reply) {
                (Good, Ok(reply)) => assert_eq!(reply.body, format!("/{number}").as_bytes()),
                (Good, Err(error)) => panic!("{error}"),
                (_, reply) => assert_eq!(reply.unwrap_err().why, Why::Tls, "{certificate:?}"),
            }
        }
        if certificate == Good {
            // Four at a time may have begun before the first connection was known to be of HTTP/2.
            assert!(web.connections() <= 4, "HTTP/2 shares connections: {}", web.connections());
            assert_eq!(web.requests()[0].header("accept"), Some("image/*"));
        } else {
            assert!(web.requests().is_empty(), "{certificate:?}: nothing may be asked");
        }
    }
}

#[tokio::test]
async fn a_handshake_that_never_ends_is_given_up() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let web = WebServer::start(Site::new()).await.unwrap();
    let mut options = options(&web);
    options.resolve.insert("silent.test".into(), silent.local_addr().unwrap());
    (options.connect_timeout, options.headers_timeout) = (0.3, 5.0);
    let error = get(&client(options), "https://silent.test/").await.unwrap_err();
    assert_eq!(error.why, Why::TimeoutConnect, "{error}");
}

#[tokio::test]
async fn connections_are_used_again() {
    let site = Site::new().fallback(|_| Answer::page("x")).keep_alive();
    let web = WebServer::start(site).await.unwrap();
    let client = client(options(&web));
    for number in 0..30 {
        assert!(get(&client, &format!("http://site.test/{number}")).await.is_ok());
    }
    assert_eq!((web.requests().len(), web.connections()), (30, 1));
}

#[tokio::test]
async fn those_that_wait_for_a_slow_host_keep_no_other_waiting() {
    let slow = Answer::Delayed(Duration::from_millis(300), Box::new(Answer::page("x")));
    let web = WebServer::start(Site::new().at("/slow", slow).at("/", Answer::page("x"))).await.unwrap();
    let mut options = options(&web);
    options.per_host = 1;
    options.resolve.insert("slow.test".into(), web.addr());
    let mut around = around(Arc::new(SystemLookup), ByteBudget::new(1 << 20));
    around.open = 2;
    let client = Client::new(options, around).unwrap();
    let start = Instant::now();
    // A reply keeps its place for as long as it is held.
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
    // A budget of less than two of them: each grows, and none waits for ever.
    let budget = ByteBudget::new(150_000);
    let options = HttpOptions { per_host: 16, body_timeout: 20.0, headers_timeout: 20.0, ..options(&web) };
    let client = Client::new(options, around(Arc::new(SystemLookup), budget.clone())).unwrap();
    let replies = join_all(
        (0..16).map(|_| async { get(&client, "http://site.test/").await.map(|reply| reply.body.len()) }),
    );
    let replies = tokio::time::timeout(Duration::from_secs(15), replies).await.unwrap();
    assert!(replies.iter().all(|length| *length == Ok(90_000)), "{replies:?}");
    assert!(budget.free() >= 150_000, "all is given back");
}
