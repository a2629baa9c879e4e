//! Text and data mining reservations of a host: `/.well-known/tdmrep.json` (W3C TDM Reservation
//! Protocol, final report of the community group, May 2024, section "TDM File on the Origin
//! Server").
//!
//! The file is a list of rules; the first whose `location` matches the path wins. Malformed rules
//! and missing files reserve nothing. Response headers override the file, and a page's meta tags
//! override both.

use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use serde_json::Value;
use url::{Position, Url};

use super::robots_txt::{Pattern, normal_path};

pub(super) const PATH: &str = "/.well-known/tdmrep.json";
pub(super) const ACCEPT: &str = "application/json, */*;q=0.5";
/// Longest file, in bytes.
pub(super) const MAX_BYTES: u64 = 500 << 10;
/// Pseudo-header that the client adds to a response whose URL the host's file reserves.
pub(crate) const TDMREP_HEADER: HeaderName = HeaderName::from_static("x-tdmrep-json");

/// The rules of one host.
#[derive(Debug, Default)]
pub(super) struct TdmRules(Vec<Rule>);

#[derive(Debug)]
struct Rule {
    location: Pattern,
    reserved: bool,
    /// URL of the licensing policy.
    policy: Option<String>,
}

impl TdmRules {
    /// Parses a file. Rules without a location, or whose reservation is neither 1 nor 0, are
    /// ignored.
    pub(super) fn parse(text: &[u8]) -> Self {
        let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
        match serde_json::from_slice(text) {
            Ok(Value::Array(rules)) => Self(rules.iter().filter_map(Rule::of).collect()),
            _ => Self::default(),
        }
    }

    /// A description of the reservation if the use of the URL is reserved.
    pub(super) fn reserved(&self, url: &Url) -> Option<String> {
        let path = normal_path(&url[Position::BeforePath..Position::AfterQuery]);
        let rule = self.0.iter().find(|rule| rule.location.matches(&path)).filter(|rule| rule.reserved)?;
        let policy = rule.policy.as_ref().map(|policy| format!(" (policy: {policy})")).unwrap_or_default();
        Some(format!("{PATH} of {}: tdm-reservation 1{policy}", url.authority()))
    }

    /// Adds the pseudo-header to the response headers if the URL is reserved.
    pub(crate) fn annotate(&self, url: &Url, headers: &mut HeaderMap) {
        // The server must not set the pseudo-header itself.
        headers.remove(TDMREP_HEADER);
        if let Some(words) = self.reserved(url).and_then(|words| HeaderValue::from_str(&words).ok()) {
            headers.insert(TDMREP_HEADER, words);
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
        // The policy goes into a header and into rejects.
        let is_safe =
            |policy: &&str| policy.len() <= 500 && policy.bytes().all(|byte| byte.is_ascii_graphic());
        let policy = rule.get("tdm-policy").and_then(Value::as_str).filter(is_safe).map(String::from);
        Some(Self { location: Pattern::new(location.as_bytes()), reserved, policy })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reserved(file: &str, path: &str) -> bool {
        let url = Url::parse("http://a.test").unwrap().join(path).unwrap();
        TdmRules::parse(file.as_bytes()).reserved(&url).is_some()
    }

    #[test]
    fn the_first_matching_rule_wins() {
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
    fn the_policy_is_part_of_the_description() {
        let url = Url::parse("http://a.test:8080/x").unwrap();
        let file = |policy: &str| {
            let file =
                format!("[{{\"location\": \"/\", \"tdm-reservation\": 1, \"tdm-policy\": \"{policy}\"}}]");
            TdmRules::parse(file.as_bytes()).reserved(&url).unwrap()
        };
        let prefix = "/.well-known/tdmrep.json of a.test:8080: tdm-reservation 1";
        assert_eq!(
            file("https://a.test/policy.json"),
            format!("{prefix} (policy: https://a.test/policy.json)")
        );
        assert_eq!(file("two\\nlines"), prefix);
    }
}
