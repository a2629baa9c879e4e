//! The HTTP client where browsers are lenient, and where users need more than a plain request:
//! malformed headers, content codings, own headers, proxies, dead hosts.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::{BoxFuture, join_all};
use twinlens_crawl::net::{
    ByteBudget, Client, ClientDeps, ContentCoding, FetchErrorKind, HttpOptions, Lookup, Request, SystemLookup,
};
use twinlens_pipeline::Secret;
use twinlens_testkit::{Answer, Site, WebServer};
use url::Url;

use crate::network::addresses::Answering;
use crate::network::{client, deps, get, options};
use crate::support::gzip;

#[tokio::test]
async fn header_lines_that_browsers_forgive_are_forgiven() {
    let lines = [
        ("a name with a space", "con tent: x".to_string()),
        ("a space before the colon", "content : x".into()),
        ("a line without a colon", "nonsense".into()),
        ("an empty name", ": x".into()),
        ("a control character", "x: a\u{1}b".into()),
        ("a folded line", "x: a\n b".into()),
        ("a line of Latin-1", "x: caf\u{e9}".into()),
        ("300 headers", "x: y\n".repeat(300).trim_end().into()),
    ];
    for (name, line) in lines {
        let head = format!("HTTP/1.1 200 OK\n{line}\ncontent-type: text/plain\ncontent-length: 5");
        let web = WebServer::start(Site::new().at("/", Answer::head(&head, b"hello"))).await.unwrap();
        let response = get(&client(options(&web)), "http://site.test/").await;
        let response = response.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(response.body, b"hello", "{name}");
        assert_eq!(response.headers["content-type"], "text/plain", "{name}");
    }
}

#[tokio::test]
async fn content_codings_are_undone() {
    let text = "one two three ".repeat(1000);
    let zlib = {
        let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(text.as_bytes()).unwrap();
        encoder.finish().unwrap()
    };
    let raw = {
        let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(text.as_bytes()).unwrap();
        encoder.finish().unwrap()
    };
    let zstd = zstd::encode_all(text.as_bytes(), 1).unwrap();
    // An uncompressed block, then an empty one.
    let brotli = [&[0xd0, 0x36, 0x10][..], &text.as_bytes()[..878], &[3]].concat();
    let packed = gzip(text.as_bytes());
    let cases: Vec<(&str, Vec<u8>, &[u8])> = vec![
        ("gzip", packed.clone(), text.as_bytes()),
        ("X-GZIP", packed.clone(), text.as_bytes()),
        ("gzip, gzip", gzip(&packed), text.as_bytes()),
        ("aws-chunked, gzip", packed.clone(), text.as_bytes()),
        ("gzip", packed[..packed.len() - 6].to_vec(), text.as_bytes()),
        ("deflate", zlib, text.as_bytes()),
        ("deflate", raw, text.as_bytes()),
        ("zstd", zstd, text.as_bytes()),
        ("br", brotli, &text.as_bytes()[..878]),
        ("none", text.clone().into(), text.as_bytes()),
        ("UTF-8", text.clone().into(), text.as_bytes()),
        ("gzip", text.clone().into(), text.as_bytes()),
        ("br", b"\xff\xd8\xff\xe0 jpeg".to_vec(), b"\xff\xd8\xff\xe0 jpeg"),
    ];
    for (coding, body, expected) in cases {
        let answer = Answer::body("text/plain", body.clone()).header("content-encoding", coding);
        let web = WebServer::start(Site::new().at("/", answer)).await.unwrap();
        let budget = ByteBudget::new(1 << 20);
        let client = Client::new(options(&web), deps(Arc::new(SystemLookup), budget.clone())).unwrap();
        let url = Url::parse("http://site.test/").unwrap();
        for (ask, accepted) in [(ContentCoding::Gzip, "gzip"), (ContentCoding::Identity, "identity")] {
            let request = Request { coding: ask, ..Request::new(&url, "*/*", 100_000) };
            let response = client.get(request).await.unwrap_or_else(|error| panic!("{coding}: {error}"));
            assert_eq!(response.body, expected, "{coding}");
            assert_eq!(web.requests().last().unwrap().header("accept-encoding"), Some(accepted));
        }
        let request = Request { coding: ContentCoding::Keep, ..Request::new(&url, "*/*", 100_000) };
        assert_eq!(client.get(request).await.unwrap().body, body, "{coding}: a file is kept as it is");
        assert!(budget.available() >= 1 << 20, "everything is released");
    }
}

#[tokio::test]
async fn own_headers_are_sent_and_secrets_stay_at_their_origin() {
    let site = Site::new()
        .at("/away", Answer::redirect("http://other.test/x"))
        .at("/near", Answer::redirect("/x"))
        .fallback(|_| Answer::page("x"));
    let web = WebServer::start(site).await.unwrap();
    let mut options = options(&web);
    options.resolve.insert("other.test".into(), web.addr());
    let set = [("Accept-Language", "de"), ("X-Key", "k"), ("Authorization", "Bearer t"), ("cookie", "c=1")];
    options.headers = set.iter().map(|(name, value)| (name.to_string(), Secret::new(*value))).collect();
    let seen = |web: &WebServer| {
        let requests = web.requests();
        let request = requests.last().unwrap();
        ["accept-language", "x-key", "authorization", "cookie"]
            .map(|name| request.header(name).map(String::from))
    };
    let all = ["de", "k", "Bearer t", "c=1"].map(|value| Some(value.to_string()));
    let client = client(options.clone());
    for (path, expected) in
        [("/x", all.clone()), ("/near", all.clone()), ("/away", [all[0].clone(), None, None, None])]
    {
        get(&client, &format!("http://site.test{path}")).await.unwrap();
        assert_eq!(seen(&web), expected, "{path}");
    }
    options.headers.clear();
    let client = self::client(options);
    for (path, expected) in [("/x", Some("Basic dTpw")), ("/near", Some("Basic dTpw")), ("/away", None)] {
        get(&client, &format!("http://u:p@site.test{path}")).await.unwrap();
        assert_eq!(seen(&web)[2].as_deref(), expected, "credentials of a URL, {path}");
    }
}

#[tokio::test]
async fn a_proxy_gets_the_requests_and_resolves_names() {
    let site = Site::new()
        .at("http://remote.test/x", Answer::page("by proxy"))
        .at("http://remote.test/away", Answer::redirect("http://10.0.0.1/"))
        .at("/x", Answer::page("direct"));
    let web = WebServer::start(site).await.unwrap();
    let proxy = format!("http://user:pw@proxy.test:{}", web.addr().port());
    #[derive(Debug)]
    struct OnlyProxy;
    impl Lookup for OnlyProxy {
        fn lookup(&self, host: String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> {
            assert!(host == "proxy.test" || host == "direct.test", "{host} is not resolved here");
            Box::pin(async { Ok(vec!["127.0.0.1".parse().unwrap()]) })
        }
    }
    let variables = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
    };
    let environment = variables(&[("http_proxy", &proxy), ("no_proxy", "direct.test")]);
    for (option, environment) in [(proxy.as_str(), BTreeMap::new()), ("environment", environment)] {
        let is_environment = !environment.is_empty();
        let options = HttpOptions { proxy: Some(option.into()), ..options(&web) };
        let deps = ClientDeps { environment, ..deps(Arc::new(OnlyProxy), ByteBudget::new(1 << 20)) };
        let client = Client::new(options, deps).unwrap();
        assert_eq!(get(&client, "http://remote.test/x").await.unwrap().body, b"by proxy");
        let authorization = web.requests().last().unwrap().header("proxy-authorization").map(String::from);
        assert_eq!(authorization.as_deref(), Some("Basic dXNlcjpwdw=="));
        let body = get(&client, "http://site.test/x").await.unwrap().body;
        assert_eq!(body, b"direct", "hosts with a fixed address are contacted directly");
        for url in ["http://localhost/", "http://127.0.0.1/", "http://remote.test/away", "http://a.test:25/"]
        {
            let kind = get(&client, url).await.unwrap_err().kind;
            assert!(
                matches!(kind, FetchErrorKind::PrivateAddress | FetchErrorKind::BadPort),
                "{url}: {kind:?}"
            );
        }
        if is_environment {
            let error = get(&client, "http://direct.test/").await.unwrap_err();
            assert_eq!(error.kind, FetchErrorKind::PrivateAddress, "what is resolved here is checked");
        }
    }
    let unused = ClientDeps {
        environment: variables(&[("http_proxy", &proxy)]),
        ..deps(Arc::new(Answering("10.0.0.1")), ByteBudget::new(1 << 20))
    };
    let error = get(&Client::new(options(&web), unused).unwrap(), "http://remote.test/x").await.unwrap_err();
    assert_eq!(error.kind, FetchErrorKind::PrivateAddress, "the environment counts only when asked");
}

#[tokio::test]
async fn a_host_that_only_times_out_is_given_up() {
    let site = Site::new().at("/ok", Answer::page("x")).fallback(|_| Answer::StalledHeaders);
    let web = WebServer::start(site).await.unwrap();
    let mut options =
        HttpOptions { headers_timeout: 0.1, host_timeouts: 6, per_host: 2, retries: 1, ..options(&web) };
    options.resolve.insert("live.test".into(), web.addr());
    let client = client(options.clone());
    let start = Instant::now();
    let urls: Vec<String> = (0..1000).map(|number| format!("http://site.test/{number}")).collect();
    let errors = join_all(urls.iter().map(|url| get(&client, url))).await;
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    assert!(web.requests().len() < 20, "{} requests", web.requests().len());
    let kinds = errors.into_iter().map(|result| result.unwrap_err());
    let given_up = kinds.inspect(|error| assert_eq!(error.kind, FetchErrorKind::TimeoutHeaders, "{error}"));
    let given_up = given_up.filter(|error| error.detail.contains("given up after 6 timeouts in a row"));
    assert!(given_up.count() > 900);
    assert!(get(&client, "http://live.test/ok").await.is_ok(), "other hosts are not affected");

    let patient = self::client(HttpOptions { host_timeouts: 2, per_host: 1, retries: 0, ..options });
    for _ in 0..3 {
        assert!(get(&patient, "http://live.test/1").await.is_err());
        assert!(get(&patient, "http://live.test/ok").await.is_ok(), "an answer resets the count");
    }
}
