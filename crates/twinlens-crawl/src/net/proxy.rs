//! Proxies: one for all requests, or those of the environment.
//!
//! A proxy resolves names itself, so the check of addresses moves to it: only what can be seen in a
//! URL is still checked here.

use std::collections::BTreeMap;

use reqwest::{NoProxy, Proxy};
use url::{Host, Url};

/// The value of the option that takes the proxies of the environment.
const ENVIRONMENT: &str = "environment";
/// Environment variables of proxies. Upper and lower case both occur.
pub(crate) const VARIABLES: &[&str] = &["http_proxy", "https_proxy", "all_proxy", "no_proxy"];

/// The proxies of a client.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Proxies {
    /// For http URLs, and for https URLs.
    http: Option<Url>,
    https: Option<Url>,
    /// Hosts that are contacted directly, in the syntax of `no_proxy`.
    direct: String,
}

impl Proxies {
    /// `option` is the option `proxy`; `environment` has the variables that are set, by their names
    /// in lower case.
    ///
    /// # Errors
    /// What is wrong with the option or with a variable.
    pub(super) fn new(option: Option<&str>, environment: &BTreeMap<String, String>) -> Result<Self, String> {
        let variable = |name: &str| match environment.get(name).map(|value| value.trim()) {
            None | Some("") => Ok(None),
            Some(value) => parse(value).map(Some).map_err(|why| format!("{}: {why}", name.to_uppercase())),
        };
        match option {
            None => Ok(Self::default()),
            Some(ENVIRONMENT) => {
                let all = variable("all_proxy")?;
                Ok(Self {
                    http: variable("http_proxy")?.or(all.clone()),
                    https: variable("https_proxy")?.or(all),
                    direct: environment.get("no_proxy").cloned().unwrap_or_default(),
                })
            }
            Some(proxy) => {
                let proxy = parse(proxy).map_err(|why| format!("`proxy`: {why}"))?;
                Ok(Self { http: Some(proxy.clone()), https: Some(proxy), direct: String::new() })
            }
        }
    }

    /// Checks the option, without the environment.
    pub(super) fn check(option: Option<&str>) -> Result<(), String> {
        Self::new(option, &BTreeMap::new()).map(|_| ())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.http.is_none() && self.https.is_none()
    }

    /// The names of the proxies' hosts, whose addresses may be private.
    pub(super) fn hosts(&self) -> Vec<String> {
        let urls = self.http.iter().chain(&self.https);
        urls.filter_map(|url| url.host_str().map(String::from)).collect()
    }

    /// The rules for the HTTP library. `fixed` are hosts that are contacted directly.
    ///
    /// # Errors
    /// Why the library refuses a proxy.
    pub(super) fn rules<'a>(
        &self,
        fixed: impl Iterator<Item = &'a String>,
    ) -> Result<Vec<Proxy>, reqwest::Error> {
        let fixed = fixed.cloned().collect::<Vec<_>>().join(",");
        let direct = format!("{},{fixed}", self.direct);
        let rule = |proxy: Result<Proxy, reqwest::Error>| {
            proxy.map(|proxy| proxy.no_proxy(NoProxy::from_string(&direct)))
        };
        let http = self.http.iter().map(|url| rule(Proxy::http(url.clone())));
        http.chain(self.https.iter().map(|url| rule(Proxy::https(url.clone())))).collect()
    }

    /// Whether a URL is fetched through a proxy, which then resolves its host.
    pub(super) fn covers(&self, url: &Url) -> bool {
        let proxy = if url.scheme() == "https" { &self.https } else { &self.http };
        proxy.is_some()
    }
}

/// Parses the URL of a proxy; without a scheme it is an HTTP proxy.
fn parse(text: &str) -> Result<Url, String> {
    let with_scheme = if text.contains("://") { text.to_string() } else { format!("http://{text}") };
    match Url::parse(&with_scheme) {
        Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => Ok(url),
        _ => Err(format!(
            "`{}` is not the URL of a proxy: expected `http://host:port`, `https://host:port`, or \
             `\"{ENVIRONMENT}\"` for HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY",
            without_password(text)
        )),
    }
}

/// A URL for messages.
fn without_password(text: &str) -> &str {
    text.rsplit('@').next().unwrap_or(text)
}

/// Whether a name means the machine that resolves it, which is the proxy.
pub(super) fn is_local_name(url: &Url) -> bool {
    let Some(Host::Domain(host)) = url.host() else { return false };
    let host = host.strip_suffix('.').unwrap_or(host);
    host == "localhost" || host.ends_with(".localhost")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxies_come_from_the_option_or_the_environment() {
        let variables = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            pairs.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
        };
        let set = variables(&[("http_proxy", "p:1"), ("all_proxy", "https://q"), ("no_proxy", "x.test")]);
        let shown = |option: Option<&str>, environment: &BTreeMap<String, String>| {
            let url = |url: &Option<Url>| url.as_ref().map_or("-".to_string(), Url::to_string);
            Proxies::new(option, environment)
                .map(|proxies| format!("{} {} {}", url(&proxies.http), url(&proxies.https), proxies.direct))
        };
        assert_eq!(shown(None, &set).unwrap(), "- - ", "the environment counts only when asked");
        assert_eq!(shown(Some("environment"), &set).unwrap(), "http://p:1/ https://q/ x.test");
        assert_eq!(shown(Some("environment"), &variables(&[("http_proxy", " ")])).unwrap(), "- - ");
        assert_eq!(shown(Some("http://u:p@a:3128"), &set).unwrap(), "http://u:p@a:3128/ http://u:p@a:3128/ ");
        let bad = shown(Some("environment"), &variables(&[("https_proxy", "ftp://u:secret@p")])).unwrap_err();
        assert!(bad.starts_with("HTTPS_PROXY: `p` is not") && !bad.contains("secret"), "{bad}");
        for bad in ["", "http://", "socks4://a", "http://[", "a b"] {
            assert!(Proxies::check(Some(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn names_of_the_proxy_itself_are_known() {
        for (url, expected) in [
            ("http://localhost/", true),
            ("http://LocalHost.:80/", true),
            ("http://a.localhost/", true),
            ("http://localhost.test/", false),
            ("http://1.1.1.1/", false),
        ] {
            assert_eq!(is_local_name(&Url::parse(url).unwrap()), expected, "{url}");
        }
    }
}
