//! Normalizes page URLs.

use url::Url;

/// Removes the fragment, the parameters in `drop_params` (a final star matches any ending), and a
/// query that this leaves empty. The URL parser has normalized the rest.
pub(crate) fn normalize_url(url: &Url, drop_params: &[String]) -> Url {
    let mut url = url.clone();
    url.set_fragment(None);
    let Some(query) = url.query() else { return url };
    let dropped = |pair: &str| {
        let name = pair.split('=').next().unwrap_or_default();
        drop_params.iter().any(|pattern| match pattern.strip_suffix('*') {
            Some(start) => name.get(..start.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(start)),
            None => name.eq_ignore_ascii_case(pattern),
        })
    };
    if query.split('&').any(dropped) {
        let kept: Vec<&str> = query.split('&').filter(|pair| !pair.is_empty() && !dropped(pair)).collect();
        let kept = kept.join("&");
        url.set_query(Some(kept.as_str()).filter(|query| !query.is_empty()));
    }
    url
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fragments_and_tracking_parameters_are_dropped() {
        let drop = ["utm_*", "gclid", "fbclid"].map(String::from);
        let cases = [
            ("http://A.test:80/a/../b#c", "http://a.test/b"),
            ("http://a.test/?", "http://a.test/?"),
            ("http://a.test/?utm_source=x&id=3&UTM_medium=y&fbclid=z", "http://a.test/?id=3"),
            ("http://a.test/?gclid=1", "http://a.test/"),
            ("http://a.test/?b=2&a=1&&c", "http://a.test/?b=2&a=1&&c"),
            ("http://a.test/?utm", "http://a.test/?utm"),
        ];
        for (url, expected) in cases {
            assert_eq!(normalize_url(&Url::parse(url).unwrap(), &drop).as_str(), expected, "{url}");
        }
        assert_eq!(
            normalize_url(&Url::parse("http://a.test/?gclid=1").unwrap(), &[]).as_str(),
            "http://a.test/?gclid=1"
        );
    }
}
