//! TLS, and connections that are kept.

use super::*;

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
