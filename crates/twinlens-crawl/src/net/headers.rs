//! Response headers that the client handles itself.

use std::time::Duration;

use reqwest::header::{CONTENT_ENCODING, DATE, HeaderMap, LOCATION, RETRY_AFTER};
use url::Url;

use super::error::{FetchError, FetchErrorKind};
use crate::coding::{self, Coding};

/// The codings of a body, in the order in which they were applied.
pub(super) fn content_codings(headers: &HeaderMap) -> Result<Vec<Coding>, FetchError> {
    let values = headers.get_all(CONTENT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    coding::parse(values).map_err(|why| FetchError::new(FetchErrorKind::ContentEncoding, why))
}

/// The target of a redirect, without its fragment. Bytes beyond ASCII stand for themselves, in
/// whatever charset, as browsers do. Credentials are not carried to another origin, nor taken from
/// the redirect.
pub(super) fn redirect_target(from: &Url, headers: &HeaderMap) -> Result<Url, FetchError> {
    let bad = |detail: String| FetchError::new(FetchErrorKind::BadRedirect, detail);
    let location = headers.get(LOCATION).ok_or_else(|| bad("a redirect without a target".into()))?;
    let mut target = String::new();
    for byte in location.as_bytes() {
        match byte {
            0x80.. => target.push_str(&format!("%{byte:02X}")),
            byte => target.push(char::from(*byte)),
        }
    }
    let location = target;
    let mut target =
        from.join(&location).map_err(|error| bad(format!("a redirect to `{location}`: {error}")))?;
    target.set_fragment(None);
    let same_origin = target.origin() == from.origin();
    let (user, password) = if same_origin { (from.username(), from.password()) } else { ("", None) };
    // Both fail only for URLs that cannot have credentials.
    let _no_host = (target.set_username(user), target.set_password(password));
    Ok(target)
}

/// Seconds, or a date relative to the server's own `Date`, so that clocks need not agree.
pub(super) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let until = httpdate::parse_http_date(text).ok()?;
    let now = httpdate::parse_http_date(headers.get(DATE)?.to_str().ok()?).ok()?;
    Some(until.duration_since(now).unwrap_or(Duration::ZERO))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_of_redirects_are_resolved() {
        let cases: [(&[u8], Option<&str>); 10] = [
            (b"b#c", Some("http://u:p@a.test/dir/b")),
            (b"/caf\xe9", Some("http://u:p@a.test/caf%E9")),
            (b"/caf\xc3\xa9?\xff", Some("http://u:p@a.test/caf%C3%A9?%FF")),
            (b"http://caf\xc3\xa9.test/", Some("http://xn--caf-dma.test/")),
            (b" /a b\t", Some("http://u:p@a.test/a%20b")),
            (b"//b.test/", Some("http://b.test/")),
            (b"https://a.test/", Some("https://a.test/")),
            (b"http://x:y@b.test/", Some("http://b.test/")),
            (b"http://x:y@a.test/", Some("http://u:p@a.test/")),
            (b"http://[", None),
        ];
        let from = Url::parse("http://u:p@a.test/dir/a").unwrap();
        for (location, expected) in cases {
            let mut headers = HeaderMap::new();
            headers.insert(LOCATION, reqwest::header::HeaderValue::from_bytes(location).unwrap());
            let found = redirect_target(&from, &headers).ok().map(String::from);
            assert_eq!(found.as_deref(), expected, "{}", String::from_utf8_lossy(location));
        }
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let of = |retry: &str, date: Option<&str>| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, retry.parse().unwrap());
            if let Some(date) = date {
                headers.insert(DATE, date.parse().unwrap());
            }
            retry_after(&headers).map(|pause| pause.as_secs())
        };
        let date = Some("Sun, 06 Nov 1994 08:49:00 GMT");
        assert_eq!(of("120", None), Some(120));
        assert_eq!(of("Sun, 06 Nov 1994 08:49:37 GMT", date), Some(37));
        assert_eq!(of("Sun, 06 Nov 1994 08:00:00 GMT", date), Some(0));
        assert_eq!(of("Sun, 06 Nov 1994 08:49:37 GMT", None), None);
        assert_eq!(of("soon", date), None);
    }
}
