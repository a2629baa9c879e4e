//! Why a fetch failed: a closed list of codes, and the details.

use std::time::Duration;

use twinlens_dataset::Panicked;

/// A failed fetch of one URL.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct FetchError {
    /// Determines the code.
    pub kind: FetchErrorKind,
    /// Details for people: the address, the status, the limit.
    pub detail: String,
    /// How long the server asks to wait before the next attempt.
    pub retry_after: Option<Duration>,
}

impl From<Panicked> for FetchError {
    fn from(panic: Panicked) -> Self {
        Self::new(FetchErrorKind::BadResponse, panic.to_string())
    }
}

impl FetchError {
    pub fn new(kind: FetchErrorKind, detail: impl Into<String>) -> Self {
        Self { kind, detail: detail.into(), retry_after: None }
    }

    pub fn code(&self) -> &'static str {
        self.kind.code()
    }
}

macro_rules! fetch_error_kinds {
    ($($(#[doc = $doc:literal])+ $name:ident = $code:literal,)+) => {
        /// The kinds of failure.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum FetchErrorKind {
            $($(#[doc = $doc])+ $name,)+
        }

        impl FetchErrorKind {
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// The stable reject code.
            pub fn code(self) -> &'static str {
                match self {
                    $(Self::$name => $code,)+
                }
            }
        }
    };
}

fetch_error_kinds! {
    /// Not a URL.
    BadUrl = "bad_url",
    /// A URL of a row has a user or a password.
    Credentials = "credentials_in_url",
    /// A scheme other than http and https.
    Scheme = "scheme",
    /// An address outside the public internet that `allow_private` does not list.
    PrivateAddress = "private_address",
    /// A port of another protocol than HTTP, which browsers refuse too.
    BadPort = "bad_port",
    /// Disallowed by robots.txt.
    RobotsDisallowed = "robots_disallowed",
    /// robots.txt gives a server error, which disallows everything (RFC 9309, section 2.3.1.4).
    RobotsUnreachable = "robots_unreachable",
    /// The owner opted out: X-Robots-Tag, a robots meta tag, or a TDM reservation.
    OptedOut = "opted_out",
    /// The host name does not resolve.
    Dns = "dns",
    /// No connection.
    Connect = "connect",
    /// The TLS handshake failed, or the certificate is not valid.
    Tls = "tls",
    /// No connection within the time limit.
    TimeoutConnect = "timeout_connect",
    /// No response headers within the time limit.
    TimeoutHeaders = "timeout_headers",
    /// The body did not end within the time limit.
    TimeoutBody = "timeout_body",
    /// The body arrived more slowly than `min_rate`.
    TooSlow = "too_slow",
    /// The connection broke.
    Reset = "reset",
    /// The response is not HTTP, or its headers are too large.
    BadResponse = "bad_response",
    /// The body ended before its announced length.
    Truncated = "truncated",
    /// The body is longer than the limit.
    TooManyBytes = "too_many_bytes",
    /// More redirects than the limit.
    TooManyRedirects = "too_many_redirects",
    /// A redirect without a target, or to something that is not a URL.
    BadRedirect = "bad_redirect",
    /// A content coding that cannot be decoded, or a body that is damaged within its coding.
    ContentEncoding = "content_encoding",
    /// A content type that was not requested.
    ContentType = "content_type",
    /// 401, 402, 403, 407, 451.
    HttpForbidden = "http_forbidden",
    /// 404.
    HttpNotFound = "http_not_found",
    /// 410.
    HttpGone = "http_gone",
    /// 429, after the retries.
    HttpTooManyRequests = "http_too_many_requests",
    /// Another 4xx.
    HttpClientError = "http_client_error",
    /// 5xx, after the retries.
    HttpServerError = "http_server_error",
    /// A status that makes no sense here (204, 206, 304).
    HttpUnexpected = "http_unexpected",
}

/// The codes of failures that may pass with time: of the network, and of servers that are down or
/// busy.
pub(crate) const PASSING_CODES: &[&str] = &[
    "robots_unreachable",
    "dns",
    "connect",
    "timeout_connect",
    "timeout_headers",
    "timeout_body",
    "too_slow",
    "reset",
    "truncated",
    "http_too_many_requests",
    "http_server_error",
];

impl FetchErrorKind {
    /// Whether another attempt may succeed.
    pub fn is_transient(self) -> bool {
        use FetchErrorKind::*;
        matches!(
            self,
            Dns | Connect
                | TimeoutConnect
                | TimeoutHeaders
                | Reset
                | Truncated
                | HttpTooManyRequests
                | HttpServerError
        )
    }

    /// Whether the host could not be reached at all, as happens to every fetch when the network is
    /// down.
    pub fn is_unreachable(self) -> bool {
        matches!(self, FetchErrorKind::Dns | FetchErrorKind::Connect | FetchErrorKind::TimeoutConnect)
    }

    /// Whether the server took too long.
    pub fn is_timeout(self) -> bool {
        use FetchErrorKind::*;
        matches!(self, TimeoutConnect | TimeoutHeaders | TimeoutBody | TooSlow)
    }

    /// The kind of a status that is neither a success nor a redirect.
    pub fn from_status(status: u16) -> Self {
        match status {
            401 | 402 | 403 | 407 | 451 => FetchErrorKind::HttpForbidden,
            404 => FetchErrorKind::HttpNotFound,
            410 => FetchErrorKind::HttpGone,
            429 => FetchErrorKind::HttpTooManyRequests,
            400..=499 => FetchErrorKind::HttpClientError,
            500..=599 => FetchErrorKind::HttpServerError,
            _ => FetchErrorKind::HttpUnexpected,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_distinct() {
        let codes: std::collections::BTreeSet<&str> =
            FetchErrorKind::ALL.iter().map(|kind| kind.code()).collect();
        assert_eq!(codes.len(), FetchErrorKind::ALL.len());
    }
}
