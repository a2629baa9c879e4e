//! Response headers that the client handles itself.

use std::time::Duration;

use reqwest::header::{CONTENT_ENCODING, DATE, HeaderMap, HeaderValue, LOCATION, RETRY_AFTER};
use url::Url;

use super::error::{FetchError, FetchErrorKind};

/// Refuses a content coding: none was requested.
pub(super) fn check_content_coding(headers: &HeaderMap) -> Result<(), FetchError> {
    let coding = headers.get(CONTENT_ENCODING).map(HeaderValue::as_bytes).unwrap_or_default();
    if coding.is_empty() || coding.eq_ignore_ascii_case(b"identity") {
        return Ok(());
    }
    let detail = format!("content coding `{}`, which was not requested", String::from_utf8_lossy(coding));
    Err(FetchError::new(FetchErrorKind::ContentEncoding, detail))
}

/// The target of a redirect, without its fragment.
pub(super) fn redirect_target(from: &Url, headers: &HeaderMap) -> Result<Url, FetchError> {
    let bad = |detail: String| FetchError::new(FetchErrorKind::BadRedirect, detail);
    let location = headers.get(LOCATION).ok_or_else(|| bad("a redirect without a target".into()))?;
    let location = String::from_utf8_lossy(location.as_bytes());
    let mut target =
        from.join(&location).map_err(|error| bad(format!("a redirect to `{location}`: {error}")))?;
    target.set_fragment(None);
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
