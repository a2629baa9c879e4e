//! The client: a [`Request`] in, a [`Response`] or a [`FetchError`] out.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use reqwest::header::{
    ACCEPT, ACCEPT_ENCODING, CONTENT_ENCODING, DATE, HeaderMap, HeaderValue, LOCATION, RANGE, RETRY_AFTER,
};
use reqwest::{Certificate, StatusCode};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout, timeout_at};
use url::Url;

use super::address::AddressPolicy;
use super::breaker::Breaker;
use super::budget::{ByteBudget, Reservation};
use super::error::{FetchError, FetchErrorKind};
use super::explain::{classify_body_error, classify_send_error, error_chain};
use super::hosts::{Host, Hosts};
use super::options::{HttpOptions, seconds};
use super::resolve::{GuardedResolver, Lookup};
use super::robots::{self, RobotsRules};
use super::tdm::TdmRules;

/// The pause before the first retry; it doubles with each.
const BACK_OFF: Duration = Duration::from_millis(500);
/// The longest pause that the server did not ask for.
const MAX_BACK_OFF: Duration = Duration::from_secs(60);
/// First reservation for a body of unknown length, in bytes.
const UNKNOWN_LENGTH: u64 = 64 << 10;

/// What the client depends on.
#[derive(Debug)]
pub struct ClientDeps {
    pub lookup: Arc<dyn Lookup>,
    /// Hosts that the run serves itself, with their addresses.
    pub hosts: BTreeMap<String, SocketAddr>,
    /// Bounds the bytes of bodies in flight.
    pub budget: ByteBudget,
    /// Maximum number of requests in flight, to all hosts together.
    pub max_open: usize,
    /// Certificates to trust besides those of the system.
    pub extra_certificates: Vec<Certificate>,
    /// Seed of the jitter between attempts.
    pub seed: u64,
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
    /// Follow redirects; otherwise [`Response::redirect`] is the target.
    pub follow_redirects: bool,
    /// Obey robots.txt and opt-outs, if the options do.
    pub obey_robots: bool,
    /// Conditions (`If-None-Match`, `If-Modified-Since`), which allow a [`Response::not_modified`];
    /// or a `Range`, which allows a partial response with a `Content-Range`.
    pub extra_headers: Option<&'a HeaderMap>,
    /// Runs on the headers before the body is read.
    pub check_headers: &'a (dyn Fn(&HeaderMap) -> Result<(), FetchError> + Send + Sync),
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
    /// Counts towards [`ClientDeps::max_open`] until it is dropped, so that no more responses
    /// arrive than can be processed.
    pub permit: Option<OwnedSemaphorePermit>,
}

/// The HTTP client of one stage of one run.
pub struct Client {
    http: reqwest::Client,
    options: HttpOptions,
    policy: Arc<AddressPolicy>,
    hosts: Hosts,
    open: Arc<Semaphore>,
    budget: ByteBudget,
    breaker: Mutex<Breaker>,
    seed: u64,
    no_tls: Option<String>,
}

impl Client {
    /// # Errors
    /// Names the option that is out of range, or says why the client could not be built.
    pub fn new(options: HttpOptions, deps: ClientDeps) -> Result<Self, String> {
        options.check()?;
        let mut fixed = deps.hosts;
        fixed.extend(options.resolve.clone());
        let policy = Arc::new(AddressPolicy::new(&options.allow_private, fixed)?);
        let builder = || {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
            reqwest::Client::builder()
                .dns_resolver(Arc::new(GuardedResolver {
                    lookup: deps.lookup.clone(),
                    policy: policy.clone(),
                }))
                .tls_certs_merge(deps.extra_certificates.clone())
                .user_agent(options.user_agent.clone())
                .default_headers(headers)
                .redirect(reqwest::redirect::Policy::none())
                .referer(false)
                .connect_timeout(seconds(options.connect_timeout))
                .pool_max_idle_per_host(options.per_host)
                // A proxy would resolve names itself, unchecked.
                .no_proxy()
        };
        let (http, no_tls) = match builder().build() {
            Ok(http) => (http, None),
            // A system without certificates can still use plain http.
            Err(error) => match builder().tls_certs_only([]).build() {
                Ok(http) => (http, Some(error_chain(&error))),
                Err(_) => return Err(error_chain(&error)),
            },
        };
        Ok(Self {
            http,
            no_tls,
            policy,
            hosts: Hosts::new(options.per_host),
            open: Arc::new(Semaphore::new(deps.max_open.clamp(1, Semaphore::MAX_PERMITS))),
            budget: deps.budget,
            breaker: Mutex::new(Breaker::new(options.max_unreachable)),
            seed: deps.seed,
            options,
        })
    }

    pub fn options(&self) -> &HttpOptions {
        &self.options
    }

    /// Fetches one URL, with retries.
    pub async fn get(&self, request: Request<'_>) -> Result<Response, FetchError> {
        let result = self.get_with_retries(request).await;
        let mut host = DefaultHasher::new();
        request.url.host_str().hash(&mut host);
        let failure = result.as_ref().err().filter(|error| error.kind.is_unreachable());
        let mut breaker = self.breaker.lock().unwrap_or_else(PoisonError::into_inner);
        breaker.record(host.finish(), failure.map(|error| error.detail.as_str()));
        result
    }

    /// Why the network seems to be down, if it does. Call this after each failure, and with
    /// `at_end` after a piece of work.
    pub fn network_down(&self, at_end: bool) -> Option<String> {
        let breaker = self.breaker.lock().unwrap_or_else(PoisonError::into_inner);
        match breaker.tripped() {
            Some(why) => Some(why.to_string()),
            None => {
                (at_end && breaker.reached_no_host()).then(|| "none of the hosts could be reached".into())
            }
        }
    }

    pub(super) async fn get_with_retries(&self, request: Request<'_>) -> Result<Response, FetchError> {
        let mut jitter = DefaultHasher::new();
        request.url.as_str().hash(&mut jitter);
        let mut jitter = ChaCha8Rng::seed_from_u64(self.seed ^ jitter.finish());
        let mut attempt = 0;
        loop {
            let error = match self.get_following(request).await {
                Err(error) if error.kind.is_transient() && attempt < self.options.retries => error,
                done => return done,
            };
            let pause = match error.retry_after {
                Some(asked) if asked > seconds(self.options.max_retry_after) => {
                    let detail = format!(
                        "{}; Retry-After is {} s, more than the limit",
                        error.detail,
                        asked.as_secs()
                    );
                    return Err(FetchError { detail, ..error });
                }
                Some(asked) => asked,
                None => (BACK_OFF * 2u32.saturating_pow(attempt)).min(MAX_BACK_OFF),
            };
            tokio::time::sleep(pause.mul_f64(jitter.random_range(1.0..1.5))).await;
            attempt += 1;
        }
    }

    /// One attempt, including redirects.
    async fn get_following(&self, request: Request<'_>) -> Result<Response, FetchError> {
        let mut url = request.url.clone();
        for _ in 0..=self.options.max_redirects {
            let response = self.get_once(Request { url: &url, ..request }).await?;
            match &response.redirect {
                Some(target) if request.follow_redirects => url = target.clone(),
                _ => return Ok(response),
            }
        }
        let detail = format!("more than {} redirects, the last to {url}", self.options.max_redirects);
        Err(FetchError::new(FetchErrorKind::TooManyRedirects, detail))
    }

    /// One request.
    async fn get_once(&self, request: Request<'_>) -> Result<Response, FetchError> {
        self.policy.check_url(request.url)?;
        if let (Some(why), "https") = (&self.no_tls, request.url.scheme()) {
            return Err(FetchError::new(FetchErrorKind::Tls, why.clone()));
        }
        let host = self.hosts.get(request.url);
        let ours = request.url.host_str().is_some_and(|host| self.policy.fixed_address(host).is_some());
        let mut delay = if ours { Duration::ZERO } else { seconds(self.options.delay) };
        if request.obey_robots && self.options.robots {
            let robots_rules = self.robots_rules(&host, request.url).await?;
            robots_rules.check(request.url).map_err(|why| match *robots_rules {
                RobotsRules::Unavailable(_) => FetchError::new(FetchErrorKind::RobotsUnreachable, why),
                _ => FetchError::new(FetchErrorKind::RobotsDisallowed, why),
            })?;
            delay = delay.max(robots_rules.delay());
        }
        let tdm_rules = if request.obey_robots && self.options.opt_outs {
            self.tdm_rules(&host, request.url).await
        } else {
            Arc::default()
        };
        let _slot = host.acquire(delay).await;
        // Only after the host's slot, so that requests waiting for a slow host do not block others.
        // The semaphore is never closed.
        let permit = self.open.clone().acquire_owned().await.ok();
        let conditions = request.extra_headers.cloned().unwrap_or_default();
        let sent =
            self.http.get(request.url.clone()).header(ACCEPT, request.accept).headers(conditions).send();
        let http = match timeout(seconds(self.options.headers_timeout), sent).await {
            Ok(http) => http.map_err(|error| classify_send_error(request.url, &error))?,
            Err(_) => {
                let detail = format!("no response within {} s", self.options.headers_timeout);
                return Err(FetchError::new(FetchErrorKind::TimeoutHeaders, detail));
            }
        };
        let mut response = self.read_response(&host, request, &tdm_rules, http).await?;
        response.permit = permit;
        Ok(response)
    }

    /// The rules of a host, fetched if they are not cached.
    async fn robots_rules(&self, host: &Host, url: &Url) -> Result<Arc<RobotsRules>, FetchError> {
        let mut cached = host.robots.lock().await;
        if let Some((when, result)) = &*cached {
            let ttl = if result.is_ok() { robots::TTL } else { robots::FAILURE_TTL };
            if when.elapsed() < ttl {
                return result.clone();
            }
        }
        let result = self.fetch_robots(url).await;
        *cached = Some((Instant::now(), result.clone()));
        result
    }

    /// Boxed because a fetch awaits it.
    fn fetch_robots<'a>(&'a self, url: &'a Url) -> BoxFuture<'a, Result<Arc<RobotsRules>, FetchError>> {
        async move {
            let bad =
                |error: url::ParseError| FetchError::new(FetchErrorKind::BadUrl, format!("{url}: {error}"));
            let robots = url.join("/robots.txt").map_err(bad)?;
            let request = Request {
                url: &robots,
                accept: "text/plain, */*;q=0.5",
                // One byte more than is parsed, so that a longer file is recognized.
                max_bytes: robots::MAX_BYTES + 1,
                truncate: true,
                follow_redirects: true,
                obey_robots: false,
                extra_headers: None,
                check_headers: &|_| Ok(()),
            };
            match self.get_with_retries(request).await {
                Ok(response) => Ok(Arc::new(RobotsRules::parse(self.options.product(), &response.body))),
                Err(error) => rules_without_file(error).map(Arc::new),
            }
        }
        .boxed()
    }

    async fn read_response(
        &self,
        host: &Host,
        request: Request<'_>,
        tdm_rules: &TdmRules,
        http: reqwest::Response,
    ) -> Result<Response, FetchError> {
        let (status, mut headers) = (http.status(), http.headers().clone());
        tdm_rules.annotate(request.url, &mut headers);
        let empty = |headers, redirect, not_modified| Response {
            url: request.url.clone(),
            headers,
            redirect,
            not_modified,
            body: Vec::new(),
            reservation: Reservation::default(),
            permit: None,
        };
        if let 301 | 302 | 303 | 307 | 308 = status.as_u16() {
            let redirect = Some(redirect_target(request.url, &headers)?);
            return Ok(empty(headers, redirect, false));
        }
        if status == StatusCode::NOT_MODIFIED && request.extra_headers.is_some() {
            return Ok(empty(headers, None, true));
        }
        let is_part = status == StatusCode::PARTIAL_CONTENT
            && request.extra_headers.is_some_and(|conditions| conditions.contains_key(RANGE));
        if !is_part && !matches!(status, StatusCode::OK | StatusCode::NON_AUTHORITATIVE_INFORMATION) {
            let kind = FetchErrorKind::from_status(status.as_u16());
            let mut error = FetchError::new(kind, format!("HTTP {}", status.as_u16()));
            if matches!(status.as_u16(), 429 | 503) {
                error.retry_after = retry_after(&headers);
                if let Some(pause) =
                    error.retry_after.filter(|pause| *pause <= seconds(self.options.max_retry_after))
                {
                    host.pause(pause);
                }
            }
            return Err(error);
        }
        let coding = headers.get(CONTENT_ENCODING).map(HeaderValue::as_bytes).unwrap_or(b"identity");
        if !coding.eq_ignore_ascii_case(b"identity") && !coding.is_empty() {
            let detail =
                format!("content coding `{}`, which was not requested", String::from_utf8_lossy(coding));
            return Err(FetchError::new(FetchErrorKind::ContentEncoding, detail));
        }
        (request.check_headers)(&headers)?;
        let (body, reservation) = self.read_body(request, http).await?;
        Ok(Response {
            url: request.url.clone(),
            headers,
            redirect: None,
            not_modified: false,
            body,
            reservation,
            permit: None,
        })
    }

    /// Reads a body within its limits; its bytes are reserved before they are read.
    async fn read_body(
        &self,
        request: Request<'_>,
        mut http: reqwest::Response,
    ) -> Result<(Vec<u8>, Reservation), FetchError> {
        let length = http.content_length();
        let too_long = || {
            FetchError::new(
                FetchErrorKind::TooManyBytes,
                format!("the body is longer than {} bytes", request.max_bytes),
            )
        };
        if length.is_some_and(|length| length > request.max_bytes) && !request.truncate {
            return Err(too_long());
        }
        let expected = length.unwrap_or(UNKNOWN_LENGTH).min(request.max_bytes);
        let mut reservation = self.budget.reserve(expected).await;
        let mut body = Vec::new();
        let start = Instant::now();
        let mut end = start + seconds(self.options.body_timeout);
        let mut grace_end = start + seconds(self.options.min_rate_after);
        loop {
            // When the bytes so far fall below the minimum rate.
            let slow =
                grace_end + Duration::from_secs_f64(body.len() as f64 / self.options.min_rate.max(1) as f64);
            let chunk = match timeout_at(end.min(slow), http.chunk()).await {
                Ok(Ok(Some(chunk))) => chunk,
                Ok(Ok(None)) => break,
                Ok(Err(error)) => return Err(classify_body_error(&error, body.len(), length)),
                // Neither message has the byte count: rejects would differ from run to run.
                Err(_) if slow < end => {
                    let detail = format!("slower than {} bytes per second", self.options.min_rate);
                    return Err(FetchError::new(FetchErrorKind::TooSlow, detail));
                }
                Err(_) => {
                    let detail = format!("the body did not end within {} s", self.options.body_timeout);
                    return Err(FetchError::new(FetchErrorKind::TimeoutBody, detail));
                }
            };
            if length.is_none() {
                let (waiting, needed) = (Instant::now(), (body.len() + chunk.len()) as u64);
                // Doubles, as buffers do.
                self.budget.grow(&mut reservation, needed.next_power_of_two().min(request.max_bytes)).await;
                // Waiting for our own budget is not the server's fault.
                (end, grace_end) = (end + waiting.elapsed(), grace_end + waiting.elapsed());
            } else if body.capacity() == 0 {
                // Only now that bytes arrived: a large announced length alone must not cost memory.
                body.reserve_exact(expected as usize);
            }
            let room = (request.max_bytes as usize).saturating_sub(body.len());
            if chunk.len() <= room {
                body.extend_from_slice(&chunk);
            } else if request.truncate {
                body.extend_from_slice(&chunk[..room]);
                break;
            } else {
                return Err(too_long());
            }
        }
        reservation.shrink(body.len() as u64);
        Ok((body, reservation))
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("options", &self.options).finish_non_exhaustive()
    }
}

/// The rules of a host whose robots.txt could not be fetched.
fn rules_without_file(error: FetchError) -> Result<RobotsRules, FetchError> {
    match error.kind {
        // RFC 9309, sections 2.3.1.2 and 2.3.1.3: a missing file and too many redirects allow
        // everything.
        FetchErrorKind::HttpForbidden
        | FetchErrorKind::HttpNotFound
        | FetchErrorKind::HttpGone
        | FetchErrorKind::HttpClientError
        | FetchErrorKind::TooManyRedirects => Ok(RobotsRules::Absent),
        // Section 2.3.1.4: a server error disallows everything.
        FetchErrorKind::HttpServerError
        | FetchErrorKind::HttpTooManyRequests
        | FetchErrorKind::HttpUnexpected => {
            Ok(RobotsRules::Unavailable(format!("robots.txt: {}", error.detail)))
        }
        // An unreachable host is reported as such.
        _ => Err(FetchError { detail: format!("robots.txt: {}", error.detail), ..error }),
    }
}

fn redirect_target(from: &Url, headers: &HeaderMap) -> Result<Url, FetchError> {
    let bad = |what: String| FetchError::new(FetchErrorKind::BadRedirect, what);
    let location = headers.get(LOCATION).ok_or_else(|| bad("a redirect without a target".into()))?;
    let location = String::from_utf8_lossy(location.as_bytes());
    let mut target =
        from.join(&location).map_err(|error| bad(format!("a redirect to `{location}`: {error}")))?;
    target.set_fragment(None);
    Ok(target)
}

/// Seconds, or a date relative to the server's own `Date`, so that clocks need not agree.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
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
