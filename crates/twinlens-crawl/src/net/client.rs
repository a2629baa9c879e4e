//! The client: one URL in, one body or one [`FetchError`] out.

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
use reqwest::{Certificate, Response, StatusCode};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout, timeout_at};
use url::Url;

use super::address::AddressPolicy;
use super::breaker::Breaker;
use super::budget::{ByteBudget, Reservation};
use super::error::{FetchError, Why};
use super::explain::{broken, explain, one_line};
use super::hosts::{Host, Hosts};
use super::options::{HttpOptions, seconds};
use super::resolve::{GuardedResolver, Lookup};
use super::robots::{self, Rules};
use super::tdm::Reservations;

/// The first pause before another attempt; it doubles.
const BACK_OFF: Duration = Duration::from_millis(500);
/// The longest pause that is our own idea.
const MAX_BACK_OFF: Duration = Duration::from_secs(60);
/// What is reserved for the beginning of a body that does not tell its length, in bytes.
const BEGINNING: u64 = 64 << 10;

/// What the client is given from outside.
#[derive(Debug)]
pub struct Surroundings {
    /// Resolves host names.
    pub lookup: Arc<dyn Lookup>,
    /// Hosts that the run serves itself, at fixed addresses.
    pub hosts: BTreeMap<String, SocketAddr>,
    /// Bytes of bodies that may be in flight.
    pub budget: ByteBudget,
    /// Requests that may be in flight, at all hosts together.
    pub open: usize,
    /// Certificates that are trusted besides those of the system.
    pub trusted: Vec<Certificate>,
    /// The seed of the jitter between attempts.
    pub seed: u64,
}

/// What is asked for.
#[derive(Clone, Copy)]
pub struct Ask<'a> {
    /// The URL.
    pub url: &'a Url,
    /// The `Accept` header.
    pub accept: &'static str,
    /// The longest body that is taken, in bytes.
    pub max_bytes: u64,
    /// Take the beginning of a longer body instead of refusing it.
    pub cut: bool,
    /// Follow redirects; otherwise [`Reply::redirect`] says where to.
    pub follow: bool,
    /// Obey robots.txt (if the options say so at all).
    pub robots: bool,
    /// Conditions (`If-None-Match`, `If-Modified-Since`): where nothing has changed, the reply is
    /// [`Reply::unchanged`]. Or a `Range`: the reply may be that part, which its `Content-Range`
    /// tells.
    pub conditions: Option<&'a HeaderMap>,
    /// Looks at the headers before the body is read.
    pub check: &'a (dyn Fn(&HeaderMap) -> Result<(), FetchError> + Send + Sync),
}

/// What came.
#[derive(Debug)]
pub struct Reply {
    /// The URL that answered, after the redirects.
    pub url: Url,
    /// The headers.
    pub headers: HeaderMap,
    /// Where a redirect points that was not followed; the body is empty then.
    pub redirect: Option<Url>,
    /// Nothing has changed since what the conditions name (304); the body is empty then.
    pub unchanged: bool,
    /// The body.
    pub body: Vec<u8>,
    /// The body's place in the byte budget.
    pub reserved: Reservation,
    /// The request's place among those that are open: it stays taken until the reply is done with,
    /// so that no more comes than can be worked on.
    pub open: Option<OwnedSemaphorePermit>,
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
    /// A client with checked options.
    ///
    /// # Errors
    /// The option that makes no sense, or what keeps a client from being built.
    pub fn new(options: HttpOptions, around: Surroundings) -> Result<Self, String> {
        options.check()?;
        let mut served = around.hosts;
        served.extend(options.resolve.clone());
        let policy = Arc::new(AddressPolicy::new(&options.allow_private, served)?);
        let builder = || {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
            reqwest::Client::builder()
                .dns_resolver(Arc::new(GuardedResolver {
                    lookup: around.lookup.clone(),
                    policy: policy.clone(),
                }))
                .tls_certs_merge(around.trusted.clone())
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
            // A system without certificates can still fetch over plain http.
            Err(error) => match builder().tls_certs_only([]).build() {
                Ok(http) => (http, Some(one_line(&error))),
                Err(_) => return Err(one_line(&error)),
            },
        };
        Ok(Self {
            http,
            no_tls,
            policy,
            hosts: Hosts::new(options.per_host),
            open: Arc::new(Semaphore::new(around.open.clamp(1, Semaphore::MAX_PERMITS))),
            budget: around.budget,
            breaker: Mutex::new(Breaker::new(options.max_unreachable)),
            seed: around.seed,
            options,
        })
    }

    /// The options.
    pub fn options(&self) -> &HttpOptions {
        &self.options
    }

    /// Fetches one URL, with retries.
    pub async fn get(&self, ask: Ask<'_>) -> Result<Reply, FetchError> {
        let result = self.attempts(ask).await;
        let mut host = DefaultHasher::new();
        ask.url.host_str().hash(&mut host);
        let failure = result.as_ref().err().filter(|error| error.why.is_unreachable());
        let mut breaker = self.breaker.lock().unwrap_or_else(PoisonError::into_inner);
        breaker.record(host.finish(), failure.map(|error| error.detail.as_str()));
        result
    }

    /// Why the network is taken to be down, if it is. Ask after each failure, and (`at_end`) after
    /// a piece of work.
    pub fn network_down(&self, at_end: bool) -> Option<String> {
        let breaker = self.breaker.lock().unwrap_or_else(PoisonError::into_inner);
        match breaker.tripped() {
            Some(why) => Some(why.to_string()),
            None => (at_end && breaker.reached_nobody()).then(|| "none of the hosts could be reached".into()),
        }
    }

    pub(super) async fn attempts(&self, ask: Ask<'_>) -> Result<Reply, FetchError> {
        let mut jitter = DefaultHasher::new();
        ask.url.as_str().hash(&mut jitter);
        let mut jitter = ChaCha8Rng::seed_from_u64(self.seed ^ jitter.finish());
        let mut attempt = 0;
        loop {
            let error = match self.hops(ask).await {
                Err(error) if error.why.may_pass() && attempt < self.options.retries => error,
                done => return done,
            };
            let pause = match error.retry_after {
                Some(asked) if asked > seconds(self.options.max_retry_after) => {
                    let detail = format!(
                        "{}; it asks to wait {} s, more than the limit",
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

    /// One attempt, through its redirects.
    async fn hops(&self, ask: Ask<'_>) -> Result<Reply, FetchError> {
        let mut url = ask.url.clone();
        for _ in 0..=self.options.max_redirects {
            let reply = self.hop(Ask { url: &url, ..ask }).await?;
            match &reply.redirect {
                Some(target) if ask.follow => url = target.clone(),
                _ => return Ok(reply),
            }
        }
        let detail = format!("more than {} redirects, the last to {url}", self.options.max_redirects);
        Err(FetchError::new(Why::TooManyRedirects, detail))
    }

    /// One request.
    async fn hop(&self, ask: Ask<'_>) -> Result<Reply, FetchError> {
        self.policy.check_url(ask.url)?;
        if let (Some(why), "https") = (&self.no_tls, ask.url.scheme()) {
            return Err(FetchError::new(Why::Tls, why.clone()));
        }
        let host = self.hosts.of(ask.url);
        let ours = ask.url.host_str().is_some_and(|host| self.policy.served(host).is_some());
        let mut delay = if ours { Duration::ZERO } else { seconds(self.options.delay) };
        if ask.robots && self.options.robots {
            let rules = self.rules(&host, ask.url).await?;
            rules.check(ask.url).map_err(|why| match *rules {
                Rules::Unavailable(_) => FetchError::new(Why::RobotsUnreachable, why),
                _ => FetchError::new(Why::RobotsDisallowed, why),
            })?;
            delay = delay.max(rules.delay());
        }
        let reservations = match ask.robots && self.options.opt_outs {
            true => self.reservations(&host, ask.url).await,
            false => Arc::default(),
        };
        let _slot = host.enter(delay).await;
        // After the host's turn: those that wait for a slow host keep nobody else waiting. The
        // semaphore is never closed.
        let open = self.open.clone().acquire_owned().await.ok();
        let conditions = ask.conditions.cloned().unwrap_or_default();
        let request = self.http.get(ask.url.clone()).header(ACCEPT, ask.accept).headers(conditions);
        let response = match timeout(seconds(self.options.headers_timeout), request.send()).await {
            Ok(response) => response.map_err(|error| explain(ask.url, &error))?,
            Err(_) => {
                let detail = format!("no answer within {} s", self.options.headers_timeout);
                return Err(FetchError::new(Why::TimeoutHeaders, detail));
            }
        };
        let mut reply = self.reply(&host, ask, &reservations, response).await?;
        reply.open = open;
        Ok(reply)
    }

    /// The rules of a host, fetched when they are not known.
    async fn rules(&self, host: &Host, url: &Url) -> Result<Arc<Rules>, FetchError> {
        let mut looked = host.robots.lock().await;
        if let Some((when, result)) = &*looked {
            let fresh = if result.is_ok() { robots::FRESH } else { robots::FAILED };
            if when.elapsed() < fresh {
                return result.clone();
            }
        }
        let result = self.fetch_rules(url).await;
        *looked = Some((Instant::now(), result.clone()));
        result
    }

    /// Boxed, since a fetch may fetch robots.txt, which is a fetch.
    fn fetch_rules<'a>(&'a self, url: &'a Url) -> BoxFuture<'a, Result<Arc<Rules>, FetchError>> {
        async move {
            let bad = |error: url::ParseError| FetchError::new(Why::BadUrl, format!("{url}: {error}"));
            let robots = url.join("/robots.txt").map_err(bad)?;
            let ask = Ask {
                url: &robots,
                accept: "text/plain, */*;q=0.5",
                // One byte more than is used, so that a file beyond the limit is known as one.
                max_bytes: robots::MAX_BYTES + 1,
                cut: true,
                follow: true,
                robots: false,
                conditions: None,
                check: &|_| Ok(()),
            };
            match self.attempts(ask).await {
                Ok(reply) => Ok(Arc::new(Rules::parse(self.options.product(), &reply.body))),
                Err(error) => rules_without_file(error).map(Arc::new),
            }
        }
        .boxed()
    }

    async fn reply(
        &self,
        host: &Host,
        ask: Ask<'_>,
        reservations: &Reservations,
        response: Response,
    ) -> Result<Reply, FetchError> {
        let (status, mut headers) = (response.status(), response.headers().clone());
        reservations.tell(ask.url, &mut headers);
        let bare = |headers, redirect, unchanged| Reply {
            url: ask.url.clone(),
            headers,
            redirect,
            unchanged,
            body: Vec::new(),
            reserved: Reservation::default(),
            open: None,
        };
        if let 301 | 302 | 303 | 307 | 308 = status.as_u16() {
            let redirect = Some(redirect_target(ask.url, &headers)?);
            return Ok(bare(headers, redirect, false));
        }
        if status == StatusCode::NOT_MODIFIED && ask.conditions.is_some() {
            return Ok(bare(headers, None, true));
        }
        let part = status == StatusCode::PARTIAL_CONTENT
            && ask.conditions.is_some_and(|conditions| conditions.contains_key(RANGE));
        if !part && !matches!(status, StatusCode::OK | StatusCode::NON_AUTHORITATIVE_INFORMATION) {
            let why = Why::of_status(status.as_u16());
            let mut error = FetchError::new(why, format!("HTTP {}", status.as_u16()));
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
                format!("content coding `{}`, which was not asked for", String::from_utf8_lossy(coding));
            return Err(FetchError::new(Why::ContentEncoding, detail));
        }
        (ask.check)(&headers)?;
        let (body, reserved) = self.body(ask, response).await?;
        Ok(Reply {
            url: ask.url.clone(),
            headers,
            redirect: None,
            unchanged: false,
            body,
            reserved,
            open: None,
        })
    }

    /// Reads a body within its limits; its bytes are reserved before they are read.
    async fn body(&self, ask: Ask<'_>, mut response: Response) -> Result<(Vec<u8>, Reservation), FetchError> {
        let length = response.content_length();
        let too_many =
            || FetchError::new(Why::TooManyBytes, format!("the body is longer than {} bytes", ask.max_bytes));
        if length.is_some_and(|length| length > ask.max_bytes) && !ask.cut {
            return Err(too_many());
        }
        let expected = length.unwrap_or(BEGINNING).min(ask.max_bytes);
        let mut reserved = self.budget.reserve(expected).await;
        let mut body = Vec::new();
        let start = Instant::now();
        let mut end = start + seconds(self.options.body_timeout);
        let mut patience = start + seconds(self.options.min_rate_after);
        loop {
            // When the bytes so far would be fewer than the lowest rate allows.
            let slow =
                patience + Duration::from_secs_f64(body.len() as f64 / self.options.min_rate.max(1) as f64);
            let chunk = match timeout_at(end.min(slow), response.chunk()).await {
                Ok(Ok(Some(chunk))) => chunk,
                Ok(Ok(None)) => break,
                Ok(Err(error)) => return Err(broken(&error, body.len(), length)),
                // Neither says how much came: the ledger would differ from run to run.
                Err(_) if slow < end => {
                    let detail = format!("slower than {} bytes a second", self.options.min_rate);
                    return Err(FetchError::new(Why::TooSlow, detail));
                }
                Err(_) => {
                    let detail = format!("the body did not end within {} s", self.options.body_timeout);
                    return Err(FetchError::new(Why::TimeoutBody, detail));
                }
            };
            if length.is_none() {
                let (asked, needed) = (Instant::now(), (body.len() + chunk.len()) as u64);
                // In steps that double, as a buffer grows.
                self.budget.grow(&mut reserved, needed.next_power_of_two().min(ask.max_bytes)).await;
                // To wait for our own budget is not the server's fault.
                (end, patience) = (end + asked.elapsed(), patience + asked.elapsed());
            } else if body.capacity() == 0 {
                // Not before something came: servers that announce much and send nothing are cheap.
                body.reserve_exact(expected as usize);
            }
            let room = (ask.max_bytes as usize).saturating_sub(body.len());
            if chunk.len() <= room {
                body.extend_from_slice(&chunk);
            } else if ask.cut {
                body.extend_from_slice(&chunk[..room]);
                break;
            } else {
                return Err(too_many());
            }
        }
        reserved.shrink(body.len() as u64);
        Ok((body, reserved))
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("options", &self.options).finish_non_exhaustive()
    }
}

/// What holds for a host whose robots.txt cannot be had.
fn rules_without_file(error: FetchError) -> Result<Rules, FetchError> {
    match error.why {
        // RFC 9309, sections 2.3.1.2 and 2.3.1.3: a missing file, and too many redirects, allow
        // everything.
        Why::HttpForbidden
        | Why::HttpNotFound
        | Why::HttpGone
        | Why::HttpClientError
        | Why::TooManyRedirects => Ok(Rules::None),
        // Section 2.3.1.4: a server error forbids everything.
        Why::HttpServerError | Why::HttpTooManyRequests | Why::HttpUnexpected => {
            Ok(Rules::Unavailable(format!("robots.txt: {}", error.detail)))
        }
        // A host that cannot be reached at all is reported as that.
        _ => Err(FetchError { detail: format!("robots.txt: {}", error.detail), ..error }),
    }
}

fn redirect_target(from: &Url, headers: &HeaderMap) -> Result<Url, FetchError> {
    let bad = |what: String| FetchError::new(Why::BadRedirect, what);
    let location = headers.get(LOCATION).ok_or_else(|| bad("a redirect without a target".into()))?;
    let location = String::from_utf8_lossy(location.as_bytes());
    let mut target =
        from.join(&location).map_err(|error| bad(format!("a redirect to `{location}`: {error}")))?;
    target.set_fragment(None);
    Ok(target)
}

/// Seconds, or a date; the latter is compared with the server's own `Date`, so that clocks need not
/// agree.
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
