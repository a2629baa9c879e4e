//! Why a fetch failed: a closed list of codes, and the particulars.

use std::time::Duration;

/// A failed fetch of one URL.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct FetchError {
    /// Which kind of failure; gives the code.
    pub why: Why,
    /// The particulars, for people: the address, the status, the limit.
    pub detail: String,
    /// How long the server asks to wait before the next attempt.
    pub retry_after: Option<Duration>,
}

impl FetchError {
    /// A failure with its particulars.
    pub fn new(why: Why, detail: impl Into<String>) -> Self {
        Self { why, detail: detail.into(), retry_after: None }
    }

    /// The code, from the closed list [`Why::ALL`].
    pub fn code(&self) -> &'static str {
        self.why.code()
    }
}

macro_rules! whys {
    ($($(#[doc = $doc:literal])+ $name:ident = $code:literal,)+) => {
        /// The kinds of failure.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Why {
            $($(#[doc = $doc])+ $name,)+
        }

        impl Why {
            /// Every kind.
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// The stable code that stands in the ledger of rejects.
            pub fn code(self) -> &'static str {
                match self {
                    $(Self::$name => $code,)+
                }
            }
        }
    };
}

whys! {
    /// Not a URL.
    BadUrl = "bad_url",
    /// A scheme other than http and https.
    Scheme = "scheme",
    /// An address that is not of the public internet, and not allowed by `allow_private`.
    PrivateAddress = "private_address",
    /// robots.txt forbids it.
    RobotsDisallowed = "robots_disallowed",
    /// robots.txt answers with a server error, which forbids everything (RFC 9309, section
    /// 2.3.1.4).
    RobotsUnreachable = "robots_unreachable",
    /// The owner opted out: X-Robots-Tag, a robots meta tag, or a TDM reservation.
    OptedOut = "opted_out",
    /// The host's name has no address.
    Dns = "dns",
    /// No connection.
    Connect = "connect",
    /// The TLS handshake failed, or the certificate is not valid.
    Tls = "tls",
    /// No connection within the time limit.
    TimeoutConnect = "timeout_connect",
    /// No answer within the time limit.
    TimeoutHeaders = "timeout_headers",
    /// The body did not end within the time limit.
    TimeoutBody = "timeout_body",
    /// The body came slower than the lowest rate.
    TooSlow = "too_slow",
    /// The connection broke.
    Reset = "reset",
    /// The answer is not HTTP, or its headers are too large.
    BadResponse = "bad_response",
    /// The body ended before its announced end.
    Truncated = "truncated",
    /// The body is longer than the limit.
    TooManyBytes = "too_many_bytes",
    /// More redirects than the limit.
    TooManyRedirects = "too_many_redirects",
    /// A redirect without a target, or to what is no URL.
    BadRedirect = "bad_redirect",
    /// A content coding (gzip, br) that was not asked for.
    ContentEncoding = "content_encoding",
    /// A content type that is not what was asked for.
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

impl Why {
    /// Whether another attempt may succeed.
    pub fn may_pass(self) -> bool {
        use Why::*;
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

    /// Whether the host could not be reached at all: what happens to every fetch when the network
    /// is down.
    pub fn is_unreachable(self) -> bool {
        matches!(self, Why::Dns | Why::Connect | Why::TimeoutConnect)
    }

    /// What a status that is neither a success nor a redirect means.
    pub fn of_status(status: u16) -> Self {
        match status {
            401 | 402 | 403 | 407 | 451 => Why::HttpForbidden,
            404 => Why::HttpNotFound,
            410 => Why::HttpGone,
            429 => Why::HttpTooManyRequests,
            400..=499 => Why::HttpClientError,
            500..=599 => Why::HttpServerError,
            _ => Why::HttpUnexpected,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_distinct() {
        let codes: std::collections::BTreeSet<&str> = Why::ALL.iter().map(|why| why.code()).collect();
        assert_eq!(codes.len(), Why::ALL.len());
    }
}
