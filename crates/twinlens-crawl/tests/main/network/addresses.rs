//! Only public addresses are connected to.

use super::*;

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
