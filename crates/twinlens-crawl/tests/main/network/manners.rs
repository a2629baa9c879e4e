//! Retries, robots.txt, opt-outs and limits of requests.

use super::*;

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
