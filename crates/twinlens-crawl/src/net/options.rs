//! The `http` table of stages that use the network.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use reqwest::header::{HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use twinlens_pipeline::Secret;

use super::proxy::Proxies;

/// HTTP settings. All times are in seconds.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct HttpOptions {
    /// The User-Agent header: `name/version (contact)`. robots.txt rules are matched against the
    /// name.
    pub user_agent: String,
    /// Headers to send with each request, besides those that the client sets itself. Only those
    /// that give no access (`Accept-Language`, `Referer`, ...) are sent to another origin that a
    /// request is redirected to.
    pub headers: BTreeMap<String, Secret>,
    /// A proxy (`"http://proxy.example:3128"`), or `"environment"` for those in HTTP_PROXY,
    /// HTTPS_PROXY, ALL_PROXY and NO_PROXY. A proxy resolves names itself: it must refuse private
    /// addresses, which are then only recognized here where a URL spells them out.
    pub proxy: Option<String>,
    /// Obey robots.txt.
    pub robots: bool,
    /// Obey X-Robots-Tag and robots meta tags (noai, noimageai, noml, noindex, noimageindex) and
    /// TDM reservations: the header, the meta tag, and `/.well-known/tdmrep.json` of each host,
    /// which is fetched once a day.
    pub opt_outs: bool,
    /// Hosts, addresses, or address blocks (`10.1.0.0/16`) outside the public internet that may be
    /// contacted.
    pub allow_private: Vec<String>,
    /// Fixed addresses of hosts: `"gallery.test" = "127.0.0.1:4000"`. Any address is allowed here.
    pub resolve: BTreeMap<String, SocketAddr>,
    /// Maximum number of simultaneous requests to one host.
    pub per_host: usize,
    /// Minimum time between two requests to one host; a longer `crawl-delay` in its robots.txt is
    /// obeyed. Does not apply to hosts with a fixed address.
    pub delay: f64,
    /// Time limit for resolving and connecting.
    pub connect_timeout: f64,
    /// Time limit from the request to the response headers, including connecting.
    pub headers_timeout: f64,
    /// Time limit for a whole body.
    pub body_timeout: f64,
    /// Minimum transfer rate of a body, in bytes per second; 0 for none.
    pub min_rate: u64,
    /// How long a body may be slower than `min_rate`.
    pub min_rate_after: f64,
    /// Maximum number of redirects to follow.
    pub max_redirects: usize,
    /// Maximum number of retries after a transient failure (no connection, connection lost, 429,
    /// 5xx).
    pub retries: u32,
    /// Longest `Retry-After` to wait for; a longer one fails the request.
    pub max_retry_after: f64,
    /// A host is given up after this many timeouts in a row, at least two for each of its
    /// simultaneous requests: its other requests fail at once, and a quarter of an hour later it is
    /// tried again. 0 never gives up.
    pub host_timeouts: u32,
    /// The run stops, because the network seems to be down, when more than this fraction of fetches
    /// cannot reach their host. 1 never stops.
    pub max_unreachable: f64,
}

impl Default for HttpOptions {
    fn default() -> Self {
        Self {
            user_agent: concat!(
                "twinlens/",
                env!("CARGO_PKG_VERSION"),
                " (+",
                env!("CARGO_PKG_REPOSITORY"),
                ")"
            )
            .into(),
            headers: BTreeMap::new(),
            proxy: None,
            robots: true,
            opt_outs: true,
            allow_private: Vec::new(),
            resolve: BTreeMap::new(),
            per_host: 4,
            delay: 0.1,
            connect_timeout: 10.0,
            headers_timeout: 20.0,
            body_timeout: 60.0,
            min_rate: 1024,
            min_rate_after: 10.0,
            max_redirects: 5,
            retries: 2,
            max_retry_after: 60.0,
            host_timeouts: 10,
            max_unreachable: 0.95,
        }
    }
}

impl HttpOptions {
    /// The product token of the user agent, which robots.txt and X-Robots-Tag address.
    pub fn product(&self) -> &str {
        self.user_agent.split(['/', ' ']).next().unwrap_or_default()
    }

    /// # Errors
    /// Names the option that is out of range, and the range.
    pub fn check(&self) -> Result<(), String> {
        let times = [
            ("connect_timeout", self.connect_timeout, 0.001),
            ("headers_timeout", self.headers_timeout, 0.001),
            ("body_timeout", self.body_timeout, 0.001),
            ("delay", self.delay, 0.0),
            ("max_retry_after", self.max_retry_after, 0.0),
            ("min_rate_after", self.min_rate_after, 0.0),
        ];
        for (name, value, min) in times {
            if !(min..=86_400.0).contains(&value) {
                return Err(format!("`{name}` must be from {min} to 86400 seconds, not {value}"));
            }
        }
        let counts = [
            ("per_host", self.per_host, 1..=1000),
            ("retries", self.retries as usize, 0..=10),
            ("max_redirects", self.max_redirects, 0..=50),
        ];
        for (name, value, range) in counts {
            if !range.contains(&value) {
                let (min, max) = range.into_inner();
                return Err(format!("`{name}` must be from {min} to {max}, not {value}"));
            }
        }
        if !(0.5..=1.0).contains(&self.max_unreachable) {
            return Err(format!("`max_unreachable` must be from 0.5 to 1.0, not {}", self.max_unreachable));
        }
        let token = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if self.product().is_empty()
            || !self.product().chars().all(token)
            || self.user_agent.chars().any(|c| !(' '..='~').contains(&c))
        {
            return Err(format!(
                "`user_agent` must look like `name/1.0 (contact)`, not `{}`",
                self.user_agent
            ));
        }
        if !["@", "http://", "https://"].iter().any(|mark| self.user_agent.contains(mark)) {
            return Err(format!(
                "`user_agent` must contain an e-mail address or a URL, as in `name/1.0 (me@example.org)`, not `{}`",
                self.user_agent
            ));
        }
        self.header_map()?;
        Proxies::check(self.proxy.as_deref())?;
        super::address::AddressPolicy::new(&self.allow_private, BTreeMap::new()).map(|_| ())
    }

    /// The timeouts in a row after which a host is given up; 0 for never.
    pub(super) fn timeouts_in_a_row(&self) -> u32 {
        // A short failure of the network hits all requests in flight.
        let in_flight = u32::try_from(2 * self.per_host).unwrap_or(u32::MAX);
        if self.host_timeouts == 0 { 0 } else { self.host_timeouts.max(in_flight) }
    }

    /// The option `headers`.
    ///
    /// # Errors
    /// Names the header that is malformed, or that the client sets itself.
    pub(super) fn header_map(&self) -> Result<HeaderMap, String> {
        let mut headers = HeaderMap::new();
        for (name, value) in &self.headers {
            let parsed =
                HeaderName::from_bytes(name.as_bytes()).ok().zip(HeaderValue::from_str(value.reveal()).ok());
            let Some((name, mut value)) = parsed else {
                return Err(format!("`headers`: `{name}` is not a valid name and value of a header"));
            };
            if OWN_HEADERS.contains(&name.as_str()) {
                let hint = if name == USER_AGENT { ": set `user_agent`" } else { "" };
                return Err(format!("`headers`: the client sets `{name}` itself{hint}"));
            }
            // Libraries that log headers leave it out.
            value.set_sensitive(true);
            headers.insert(name, value);
        }
        Ok(headers)
    }
}

/// Headers that the client sets itself, or that describe the connection.
const OWN_HEADERS: &[&str] = &[
    "accept",
    "accept-encoding",
    "connection",
    "content-length",
    "expect",
    "host",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "proxy-authorization",
    "range",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
];

/// The duration of an option that [`HttpOptions::check`] has accepted.
pub(crate) fn seconds(value: f64) -> Duration {
    Duration::try_from_secs_f64(value).unwrap_or(Duration::ZERO)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_options_are_named() {
        let default = HttpOptions::default;
        let headers = |name: &str, value: &str| BTreeMap::from([(name.to_string(), Secret::new(value))]);
        assert_eq!(default().check(), Ok(()));
        assert_eq!(default().product(), "twinlens");
        let cases = [
            ("connect_timeout", HttpOptions { connect_timeout: 0.0, ..default() }),
            ("body_timeout", HttpOptions { body_timeout: f64::NAN, ..default() }),
            ("delay", HttpOptions { delay: -1.0, ..default() }),
            ("per_host", HttpOptions { per_host: 0, ..default() }),
            ("retries", HttpOptions { retries: 11, ..default() }),
            ("max_unreachable", HttpOptions { max_unreachable: 0.1, ..default() }),
            ("user_agent", HttpOptions { user_agent: " ".into(), ..default() }),
            ("user_agent", HttpOptions { user_agent: "a/1 (\n)".into(), ..default() }),
            ("e-mail", HttpOptions { user_agent: "a/1".into(), ..default() }),
            ("max_redirects", HttpOptions { max_redirects: 51, ..default() }),
            ("proxy", HttpOptions { proxy: Some("ftp://x".into()), ..default() }),
            ("x y", HttpOptions { headers: headers("x y", "z"), ..default() }),
            ("`x`", HttpOptions { headers: headers("x", "a\nb"), ..default() }),
            ("user_agent", HttpOptions { headers: headers("User-Agent", "x"), ..default() }),
            ("10.0.0.0/99", HttpOptions { allow_private: vec!["10.0.0.0/99".into()], ..default() }),
        ];
        for (name, options) in cases {
            assert!(options.check().unwrap_err().contains(name), "{name}");
        }
    }
}
