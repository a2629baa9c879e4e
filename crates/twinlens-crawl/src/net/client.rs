//! The client: a [`Request`] in, a [`Response`] or a [`FetchError`] out.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::SocketAddr;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use reqwest::header::{ACCEPT, ACCEPT_ENCODING, HeaderMap, HeaderValue, RANGE};
use reqwest::{Certificate, StatusCode};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};
use tracing::{debug, warn};
use twinlens_pipeline::secrets::is_secret_header;
use twinlens_pipeline::{ByteBudget, Secrets};
use url::Url;

use super::address::AddressPolicy;
use super::body::{decode_body, read_body};
use super::breaker::Breaker;
use super::error::{FetchError, FetchErrorKind};
use super::explain::{classify_send_error, error_chain};
use super::headers::{content_codings, redirect_target, retry_after};
use super::hosts::{Host, Hosts};
use super::options::{HttpOptions, seconds};
use super::proxy::Proxies;
use super::request::{ContentCoding, Request, Response};
use super::resolve::{GuardedResolver, Lookup};
use super::robots::{self, RobotsRules};
use super::tdm::{self, TdmRules};

/// The pause before the first retry; it doubles with each.
const BACK_OFF: Duration = Duration::from_millis(500);
/// The longest pause that the server did not ask for.
const MAX_BACK_OFF: Duration = Duration::from_secs(60);

/// Headers of a response that are read; browsers limit only their bytes.
const MAX_HEADERS: usize = 1000;

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
    /// Environment variables of proxies, by their names in lower case.
    pub environment: BTreeMap<String, String>,
    /// Seed of the jitter between attempts.
    pub seed: u64,
    /// How many processes share the limits per host; 0 means 1.
    pub sharers: Arc<AtomicUsize>,
    /// Whether no other process asks the hosts that this one is told to ask. Redirects may lead to
    /// any host.
    pub has_own_hosts: bool,
    /// What messages must not tell.
    pub secrets: Arc<Secrets>,
}

/// The HTTP client of one stage of one run.
pub struct Client {
    http: reqwest::Client,
    options: HttpOptions,
    /// The option `headers`.
    headers: HeaderMap,
    proxies: Proxies,
    policy: Arc<AddressPolicy>,
    hosts: Hosts,
    has_own_hosts: bool,
    open: Arc<Semaphore>,
    budget: ByteBudget,
    breaker: Mutex<Breaker>,
    seed: u64,
    no_tls: Option<String>,
    secrets: Arc<Secrets>,
}

impl Client {
    /// # Errors
    /// Names the option that is out of range, or says why the client could not be built.
    pub fn new(options: HttpOptions, deps: ClientDeps) -> Result<Self, String> {
        options.check()?;
        let mut fixed = deps.hosts;
        fixed.extend(options.resolve.clone());
        let proxies = Proxies::new(options.proxy.as_deref(), &deps.environment)?;
        let policy = AddressPolicy::new(&options.allow_private, fixed)?.with_proxies(proxies.hosts());
        let policy = Arc::new(policy);
        let rules = proxies.rules(policy.fixed_hosts()).map_err(|error| error_chain(&error))?;
        if !proxies.is_empty() {
            warn!("names are resolved by the proxy, which must refuse private addresses itself");
        }
        twinlens_dataset::tls::provide();
        let builder = || {
            let builder = reqwest::Client::builder()
                .dns_resolver(Arc::new(GuardedResolver {
                    lookup: deps.lookup.clone(),
                    policy: policy.clone(),
                }))
                .tls_certs_merge(deps.extra_certificates.clone())
                .user_agent(options.user_agent.clone())
                .redirect(reqwest::redirect::Policy::none())
                .referer(false)
                .connect_timeout(seconds(options.connect_timeout))
                .pool_max_idle_per_host(options.per_host)
                // One malformed line does not make a response unusable, as in browsers.
                .http1_ignore_invalid_headers_in_responses(true)
                .http1_allow_obsolete_multiline_headers_in_responses(true)
                .http1_allow_spaces_after_header_name_in_responses(true)
                .http1_max_headers(MAX_HEADERS)
                // Only the proxies of the option: they resolve names themselves, unchecked.
                .no_proxy();
            rules.iter().cloned().fold(builder, reqwest::ClientBuilder::proxy)
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
            hosts: Hosts::new(options.per_host, deps.sharers),
            has_own_hosts: deps.has_own_hosts,
            open: Arc::new(Semaphore::new(deps.max_open.clamp(1, Semaphore::MAX_PERMITS))),
            budget: deps.budget,
            breaker: Mutex::new(Breaker::new(options.max_unreachable)),
            seed: deps.seed,
            secrets: deps.secrets,
            headers: options.header_map()?,
            proxies,
            options,
        })
    }

    pub fn options(&self) -> &HttpOptions {
        &self.options
    }

    /// Fetches one URL, with retries.
    pub async fn get(&self, request: Request<'_>) -> Result<Response, FetchError> {
        let started = Instant::now();
        let result = self.get_with_retries(request).await;
        let seconds = started.elapsed().as_secs_f64();
        let result = result
            .map_err(|error| FetchError { detail: self.secrets.hide(&error.detail).into_owned(), ..error });
        let url = self.secrets.hide(request.url.as_str());
        match &result {
            Ok(response) => debug!(%url, bytes = response.body.len(), seconds, "fetched"),
            Err(error) => debug!(%url, %error, seconds, "failed"),
        }
        self.record_outcome(request.url, result.as_ref().err());
        result
    }

    /// The sitemaps that a host's robots.txt lists, as written, and the URL that they are relative
    /// to.
    ///
    /// # Errors
    /// Why robots.txt could not be fetched.
    pub async fn robots_sitemaps(&self, url: &Url) -> Result<(Url, Vec<String>), FetchError> {
        let rules = self.robots_rules(&self.hosts.get(url), url).await;
        self.record_outcome(url, rules.as_ref().err());
        rules?.sitemaps()
    }

    fn record_outcome(&self, url: &Url, error: Option<&FetchError>) {
        let mut host = DefaultHasher::new();
        url.host_str().hash(&mut host);
        let failure = error.filter(|error| error.kind.is_unreachable());
        let mut breaker = self.breaker.lock().unwrap_or_else(PoisonError::into_inner);
        breaker.record(host.finish(), failure.map(|error| error.detail.as_str()));
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

    async fn get_with_retries(&self, request: Request<'_>) -> Result<Response, FetchError> {
        let mut jitter = DefaultHasher::new();
        request.url.as_str().hash(&mut jitter);
        let mut jitter = ChaCha8Rng::seed_from_u64(self.seed ^ jitter.finish());
        let mut attempt = 0;
        loop {
            let error = match self.get_following(request).await {
                Err(error) if error.kind.is_transient() && attempt < self.options.retries => error,
                done => return done,
            };
            if self.hosts.get(request.url).given_up().is_some() {
                return Err(error);
            }
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
            let send_secrets = request.send_secrets && url.origin() == request.url.origin();
            let alone = self.has_own_hosts && url.host() == request.url.host();
            let response = self.get_once(Request { url: &url, send_secrets, ..request }, alone).await?;
            match &response.redirect {
                Some(target) if request.follow_redirects => url = target.clone(),
                _ => return Ok(response),
            }
        }
        let detail = format!("more than {} redirects, the last to {url}", self.options.max_redirects);
        Err(FetchError::new(FetchErrorKind::TooManyRedirects, detail))
    }

    /// One request; `alone` if no other process asks this host.
    async fn get_once(&self, request: Request<'_>, alone: bool) -> Result<Response, FetchError> {
        self.policy.check_url(request.url)?;
        if let (Some(why), "https") = (&self.no_tls, request.url.scheme()) {
            return Err(FetchError::new(FetchErrorKind::Tls, why.clone()));
        }
        let ours = request.url.host_str().is_some_and(|host| self.policy.fixed_address(host).is_some());
        if !ours && self.proxies.covers(request.url) {
            self.policy.check_proxied(request.url)?;
        }
        let host = self.hosts.get(request.url);
        let mut delay = if ours { Duration::ZERO } else { seconds(self.options.delay) };
        if request.obey_robots && self.options.robots {
            let rules = self.robots_rules(&host, request.url).await?;
            rules.check(request.url)?;
            delay = delay.max(rules.delay());
        }
        let tdm_rules = if request.obey_robots && self.options.opt_outs {
            self.tdm_rules(&host, request.url).await
        } else {
            Arc::default()
        };
        let _slot = host.acquire(delay, alone).await;
        // Only now: this request may have waited while others timed out.
        if let Some(error) = host.given_up() {
            return Err(error);
        }
        // Only after the host's slot, so that requests waiting for a slow host do not block others.
        // The semaphore is never closed.
        let permit = self.open.clone().acquire_owned().await.ok();
        let response = self.exchange(&host, request, &tdm_rules).await;
        host.record(response.as_ref().err(), self.options.timeouts_in_a_row());
        Ok(Response { permit, ..response? })
    }

    /// Sends a request and reads the response.
    async fn exchange(
        &self,
        host: &Host,
        request: Request<'_>,
        tdm_rules: &TdmRules,
    ) -> Result<Response, FetchError> {
        let sent = self.http.get(request.url.clone()).headers(self.request_headers(&request)).send();
        let http = match timeout(seconds(self.options.headers_timeout), sent).await {
            Ok(http) => http.map_err(|error| classify_send_error(request.url, &error))?,
            Err(_) => {
                let detail = format!("no response within {} s", self.options.headers_timeout);
                return Err(FetchError::new(FetchErrorKind::TimeoutHeaders, detail));
            }
        };
        self.read_response(host, request, tdm_rules, http).await
    }

    fn request_headers(&self, request: &Request<'_>) -> HeaderMap {
        let mut headers = self.headers.clone();
        if !request.send_secrets {
            for name in self.headers.keys().filter(|name| is_secret_header(name.as_str())) {
                headers.remove(name);
            }
        }
        headers.insert(ACCEPT, HeaderValue::from_static(request.accept));
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static(request.coding.accepted()));
        headers.extend(request.extra_headers.cloned().unwrap_or_default());
        headers
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
        // One byte more than is parsed, so that a longer file is recognized.
        let max_bytes = robots::MAX_BYTES + 1;
        let result = match self.get_file(url, robots::PATH, robots::ACCEPT, max_bytes, true).await {
            Ok(response) => Ok(RobotsRules::parse(self.options.product(), &response.body, response.url)),
            Err(error) => RobotsRules::from_error(error),
        };
        let result = result.map(Arc::new);
        *cached = Some((Instant::now(), result.clone()));
        result
    }

    /// The TDM rules of a host, fetched if they are not cached.
    async fn tdm_rules(&self, host: &Host, url: &Url) -> Arc<TdmRules> {
        let mut cached = host.tdm_rules.lock().await;
        if let Some((_, rules)) = cached.as_ref().filter(|(until, _)| Instant::now() < *until) {
            return rules.clone();
        }
        let (rules, ttl) = match self.get_file(url, tdm::PATH, tdm::ACCEPT, tdm::MAX_BYTES, false).await {
            Ok(response) => (TdmRules::parse(&response.body), robots::TTL),
            // The host does not use the protocol. After a transient failure the file is fetched
            // again soon.
            Err(error) if !error.kind.is_transient() => (TdmRules::default(), robots::TTL),
            Err(_) => (TdmRules::default(), robots::FAILURE_TTL),
        };
        let rules = Arc::new(rules);
        *cached = Some((Instant::now() + ttl, rules.clone()));
        rules
    }

    /// Fetches a file of the host of `url` that has rules for robots. Boxed because a fetch awaits
    /// it.
    fn get_file<'a>(
        &'a self,
        url: &'a Url,
        path: &'a str,
        accept: &'static str,
        max_bytes: u64,
        truncate: bool,
    ) -> BoxFuture<'a, Result<Response, FetchError>> {
        async move {
            let file = url
                .join(path)
                .map_err(|error| FetchError::new(FetchErrorKind::BadUrl, format!("{url}: {error}")))?;
            let request = Request {
                truncate,
                obey_robots: false,
                send_secrets: false,
                ..Request::new(&file, accept, max_bytes)
            };
            self.get_with_retries(request).await
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
        if let 301 | 302 | 303 | 307 | 308 = status.as_u16() {
            let redirect = Some(redirect_target(request.url, &headers)?);
            return Ok(Response { redirect, ..Response::empty(request.url, headers) });
        }
        if status == StatusCode::NOT_MODIFIED && request.extra_headers.is_some() {
            return Ok(Response { not_modified: true, ..Response::empty(request.url, headers) });
        }
        let is_part = status == StatusCode::PARTIAL_CONTENT
            && request.extra_headers.is_some_and(|extra| extra.contains_key(RANGE));
        if !is_part && !matches!(status, StatusCode::OK | StatusCode::NON_AUTHORITATIVE_INFORMATION) {
            return Err(self.status_error(host, status.as_u16(), &headers));
        }
        let codings = match request.coding {
            ContentCoding::Keep => Vec::new(),
            ContentCoding::Identity | ContentCoding::Gzip => content_codings(&headers)?,
        };
        (request.check_headers)(&headers)?;
        let body = read_body(http, &request, &self.options, &self.budget).await?;
        let (body, reservation) = decode_body(&codings, body, &request, &self.budget).await?;
        Ok(Response { body, reservation, ..Response::empty(request.url, headers) })
    }

    /// The error of a status; a `Retry-After` delays all requests to the host.
    fn status_error(&self, host: &Host, status: u16, headers: &HeaderMap) -> FetchError {
        let mut error = FetchError::new(FetchErrorKind::from_status(status), format!("HTTP {status}"));
        if matches!(status, 429 | 503) {
            error.retry_after = retry_after(headers);
            let limit = seconds(self.options.max_retry_after);
            if let Some(pause) = error.retry_after.filter(|pause| *pause <= limit) {
                host.pause(pause);
            }
        }
        error
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("options", &self.options).finish_non_exhaustive()
    }
}
