//! What the client takes and returns.

use reqwest::header::HeaderMap;
use tokio::sync::OwnedSemaphorePermit;
use twinlens_pipeline::budget::Reservation;
use url::Url;

use super::error::FetchError;

/// How the body of a response may be encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContentCoding {
    /// No coding is asked for; one that is sent all the same is undone.
    Identity,
    /// gzip is asked for, as texts shrink; what is sent is undone.
    Gzip,
    /// The bytes of the file on the server: no coding is asked for, and none is undone, as servers
    /// give compressed files a coding.
    Keep,
}

impl ContentCoding {
    /// The `Accept-Encoding` header.
    pub(super) fn accepted(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Identity | Self::Keep => "identity",
        }
    }
}

#[derive(Clone, Copy)]
pub struct Request<'a> {
    pub url: &'a Url,
    /// The `Accept` header.
    pub accept: &'static str,
    /// The longest body, in bytes.
    pub max_bytes: u64,
    /// Truncate a longer body instead of failing.
    pub truncate: bool,
    /// What to do about content codings.
    pub coding: ContentCoding,
    /// Follow redirects; otherwise [`Response::redirect`] is the target.
    pub follow_redirects: bool,
    /// Obey robots.txt and opt-outs, if the options do.
    pub obey_robots: bool,
    /// Send the secret ones of the option `headers`.
    pub send_secrets: bool,
    /// Conditions (`If-None-Match`, `If-Modified-Since`), which allow a [`Response::not_modified`];
    /// or a `Range`, which allows a partial response with a `Content-Range`.
    pub extra_headers: Option<&'a HeaderMap>,
    /// Runs on the headers before the body is read.
    pub check_headers: &'a (dyn Fn(&HeaderMap) -> Result<(), FetchError> + Send + Sync),
}

impl<'a> Request<'a> {
    /// A request that follows redirects and obeys robots.txt.
    pub fn new(url: &'a Url, accept: &'static str, max_bytes: u64) -> Self {
        Self {
            url,
            accept,
            max_bytes,
            truncate: false,
            coding: ContentCoding::Identity,
            follow_redirects: true,
            obey_robots: true,
            send_secrets: true,
            extra_headers: None,
            check_headers: &|_| Ok(()),
        }
    }
}

#[derive(Debug)]
pub struct Response {
    /// The URL after redirects.
    pub url: Url,
    pub headers: HeaderMap,
    /// The target of a redirect that was not followed; the body is then empty.
    pub redirect: Option<Url>,
    /// The status was 304; the body is then empty.
    pub not_modified: bool,
    pub body: Vec<u8>,
    /// The bytes of the body in the budget.
    pub reservation: Reservation,
    /// Counts towards [`ClientDeps::max_open`](super::ClientDeps::max_open) until it is dropped, so
    /// that no more responses arrive than can be processed.
    pub permit: Option<OwnedSemaphorePermit>,
}

impl Response {
    /// A response without a body.
    pub(super) fn empty(url: &Url, headers: HeaderMap) -> Self {
        Self {
            url: url.clone(),
            headers,
            redirect: None,
            not_modified: false,
            body: Vec::new(),
            reservation: Reservation::default(),
            permit: None,
        }
    }
}
