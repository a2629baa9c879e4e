//! What a host reserves of text and data mining: `/.well-known/tdmrep.json` (W3C TDM Reservation
//! Protocol, final report of the community group, May 2024, section "TDM File on the Origin
//! Server").
//!
//! The file is a list of rules; the first whose `location` matches the path decides. What is not of
//! the protocol reserves nothing, and neither does a file that cannot be had. What the headers of
//! an answer say supersedes the file, and what a page says of itself both.

use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use serde_json::Value;
use tokio::time::Instant;
use url::{Position, Url};

use super::client::{Ask, Client, Reply};
use super::error::{FetchError, Why};
use super::hosts::Host;
use super::robots;
use super::robots_txt::{Pattern, normal_path};

/// Where the file is.
const PATH: &str = "/.well-known/tdmrep.json";
/// The longest file that is read, in bytes.
const MAX_BYTES: u64 = 500 << 10;
/// Under this name stands with the headers of an answer what the file of its host says of it.
pub(crate) const OF_FILE: HeaderName = HeaderName::from_static("x-tdmrep-json");

/// The rules of one host.
#[derive(Debug, Default)]
pub struct Reservations(Vec<Rule>);

#[derive(Debug)]
struct Rule {
    location: Pattern,
    reserved: bool,
    /// Where it can be read who may license the use.
    policy: Option<String>,
}

impl Reservations {
    /// Reads a file. Rules without a location, or whose reservation is neither 1 nor 0, are none.
    pub fn parse(text: &[u8]) -> Self {
        let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
        match serde_json::from_slice(text) {
            Ok(Value::Array(rules)) => Self(rules.iter().filter_map(Rule::of).collect()),
            _ => Self::default(),
        }
    }

    /// Whether the use of a URL is reserved; if so, in words.
    pub fn reserved(&self, url: &Url) -> Option<String> {
        let path = normal_path(&url[Position::BeforePath..Position::AfterQuery]);
        let rule = self.0.iter().find(|rule| rule.location.matches(&path)).filter(|rule| rule.reserved)?;
        let policy = rule.policy.as_ref().map(|policy| format!(" (policy: {policy})")).unwrap_or_default();
        Some(format!("{PATH} of {}: tdm-reservation 1{policy}", url.authority()))
    }

    /// Adds to the headers of the answer for a URL what the file says of it.
    pub(crate) fn tell(&self, url: &Url, headers: &mut HeaderMap) {
        // No server may speak in our name.
        headers.remove(OF_FILE);
        if let Some(words) = self.reserved(url).and_then(|words| HeaderValue::from_str(&words).ok()) {
            headers.insert(OF_FILE, words);
        }
    }
}

impl Rule {
    fn of(rule: &Value) -> Option<Self> {
        let reserved = match rule.get("tdm-reservation")? {
            Value::Number(number) => number.as_u64(),
            Value::String(text) => text.trim().parse().ok(),
            _ => None,
        };
        let reserved = reserved.filter(|reserved| *reserved <= 1)? == 1;
        let location = rule.get("location")?.as_str()?;
        // Of words that could not stand in a header, or fill the ledger, none are told.
        let told = |policy: &&str| policy.len() <= 500 && policy.bytes().all(|byte| byte.is_ascii_graphic());
        let policy = rule.get("tdm-policy").and_then(Value::as_str).filter(told).map(String::from);
        Some(Self { location: Pattern::new(location.as_bytes()), reserved, policy })
    }
}

impl Client {
    /// What a host reserves, looked up when it is not known.
    pub(super) async fn reservations(&self, host: &Host, url: &Url) -> Arc<Reservations> {
        let mut looked = host.reservations.lock().await;
        if let Some((_, found)) = looked.as_ref().filter(|(until, _)| Instant::now() < *until) {
            return found.clone();
        }
        let (found, fresh) = match self.fetch_reservations(url).await {
            Ok(reply) => (Reservations::parse(&reply.body), robots::FRESH),
            // The host does not speak the protocol; one that could not be reached is asked again
            // before long.
            Err(error) if !error.why.may_pass() => (Reservations::default(), robots::FRESH),
            Err(_) => (Reservations::default(), robots::FAILED),
        };
        let found = Arc::new(found);
        *looked = Some((Instant::now() + fresh, found.clone()));
        found
    }

    /// Boxed, as it is part of a fetch.
    fn fetch_reservations<'a>(&'a self, url: &'a Url) -> BoxFuture<'a, Result<Reply, FetchError>> {
        async move {
            let bad = |error: url::ParseError| FetchError::new(Why::BadUrl, format!("{url}: {error}"));
            let file = url.join(PATH).map_err(bad)?;
            let ask = Ask {
                url: &file,
                accept: "application/json, */*;q=0.5",
                max_bytes: MAX_BYTES,
                cut: false,
                follow: true,
                robots: false,
                conditions: None,
                check: &|_| Ok(()),
            };
            self.attempts(ask).await
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reserved(file: &str, path: &str) -> bool {
        let url = Url::parse("http://a.test").unwrap().join(path).unwrap();
        Reservations::parse(file.as_bytes()).reserved(&url).is_some()
    }

    #[test]
    fn the_first_rule_that_matches_decides() {
        let rule = |location: &str, reservation: &str| {
            format!("{{\"location\": \"{location}\", \"tdm-reservation\": {reservation}}}")
        };
        // The example of the report, and its order.
        let file = format!(
            "[{}, {}, {}]",
            rule("/directory-a/", "1"),
            rule("/directory-b/images/*.jpg$", "0"),
            rule("/directory-b/", "1")
        );
        let cases = [
            ("/directory-a/x.pdf", true),
            ("/directory-A/x.pdf", false),
            ("/directory-b/html/x", true),
            ("/directory-b/images/x.jpg", false),
            ("/directory-b/images/x.jpg?large", true),
            ("/directory-c", false),
        ];
        for (path, expected) in cases {
            assert_eq!(reserved(&file, path), expected, "{path}");
        }
        let one = |location: &str, reservation: &str| format!("\u{feff}[{}]", rule(location, reservation));
        let cases = [
            (one("/", "1"), "/any", true),
            (one("*", "\"1\""), "/any", true),
            (one("/path/foo-%24", "1"), "/path/foo-$", true),
            (one("/caf%C3%A9", "1"), "/caf\u{e9}", true),
            (one("/a b", "1"), "/a%20b", true),
            (one("/", "0"), "/any", false),
            (one("/", "2"), "/any", false),
            (one("/", "true"), "/any", false),
            (one("/", "1").replace("location", "path"), "/any", false),
            (format!("[7, null, {}]", rule("/", "1")), "/any", true),
            (rule("/", "1"), "/any", false),
            ("<html>not found</html>".into(), "/any", false),
            (String::new(), "/any", false),
        ];
        for (file, path, expected) in cases {
            assert_eq!(reserved(&file, path), expected, "{file}");
        }
    }

    #[test]
    fn a_policy_is_told() {
        let url = Url::parse("http://a.test:8080/x").unwrap();
        let file = |policy: &str| {
            let file =
                format!("[{{\"location\": \"/\", \"tdm-reservation\": 1, \"tdm-policy\": \"{policy}\"}}]");
            Reservations::parse(file.as_bytes()).reserved(&url).unwrap()
        };
        let said = "/.well-known/tdmrep.json of a.test:8080: tdm-reservation 1";
        assert_eq!(
            file("https://a.test/policy.json"),
            format!("{said} (policy: https://a.test/policy.json)")
        );
        assert_eq!(file("two\\nlines"), said);
    }
}
