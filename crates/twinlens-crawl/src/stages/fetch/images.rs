//! From a URL or path to a stored image.

use std::sync::Arc;

use reqwest::header::HeaderMap;
use tokio::sync::oneshot;
use twinlens_image::{Encode, ImageError, Limits, Repaired, Resize, probe, process, repair, sha256_hex};
use twinlens_pipeline::run::events::Progress;
use twinlens_pipeline::{Clock, Located, RunContext, RunError};
use url::Url;

use super::body::{Body, Rejection};
use super::local::LocalFiles;
use super::stored::{FetchedImage, Originals, Stored};
use crate::net::{
    ByteBudget, Client, Directives, FetchError, FetchErrorKind, HttpOptions, Request, Reservation, Response,
};

#[derive(Debug)]
pub(super) struct ImageOptions {
    pub(super) limits: Limits,
    pub(super) resize: Resize,
    pub(super) encode: Encode,
    pub(super) lenient: bool,
    pub(super) originals: Originals,
    pub(super) concurrency: usize,
    /// Whether no other process asks the hosts of its rows.
    pub(super) has_own_hosts: bool,
}

/// Fetches and decodes images; shared by all splits of a stage.
#[derive(Debug)]
pub(super) struct ImageFetcher {
    client: Client,
    files: LocalFiles,
    product: String,
    options: Arc<ImageOptions>,
    pixels: ByteBudget,
    /// A pool of its own: the blocking pool of the runtime has many threads, and the allocator
    /// would keep memory of large images for each.
    decoders: rayon::ThreadPool,
    clock: Clock,
    progress: DebugProgress,
}

/// [`Progress`] has no `Debug`.
struct DebugProgress(Progress);

impl std::fmt::Debug for DebugProgress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Progress")
    }
}

impl ImageFetcher {
    /// Fetches URLs, and reads files below the folders `local`.
    pub(super) fn open(
        cx: &RunContext,
        http: &HttpOptions,
        local: &[Located<String>],
        options: ImageOptions,
    ) -> Result<Self, RunError> {
        let half = cx.bytes_in_flight as u64 / 2;
        let bodies = ByteBudget::new(half);
        let threads = std::thread::available_parallelism().map_or(1, |threads| threads.get());
        let decoders = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|number| format!("decoder {number}"))
            .build()
            .map_err(|error| RunError::Internal(format!("cannot start decoder threads: {error}")))?;
        Ok(Self {
            files: LocalFiles::open(cx, local, bodies.clone())?,
            client: crate::stages::network::client(
                cx,
                http,
                bodies,
                options.concurrency,
                options.has_own_hosts,
            )?,
            product: http.product().to_string(),
            pixels: ByteBudget::new(half),
            decoders,
            options: Arc::new(options),
            clock: cx.clock,
            progress: DebugProgress(cx.progress.clone()),
        })
    }

    /// Fails if the network seems to be down.
    pub(super) fn check_reachable(&self, at_end: bool) -> Result<(), RunError> {
        crate::stages::network::check_reachable(&self.client, at_end)
    }

    pub(super) async fn get(&self, url: &str) -> Result<FetchedImage, Rejection> {
        let body = match self.files.read(url, self.options.limits.max_bytes).await {
            Some(body) => body?,
            None => self.download(url).await.map(Body::from).map_err(|error| {
                let detail =
                    if url.is_empty() { error.detail.clone() } else { format!("{url}: {}", error.detail) };
                Rejection { code: error.code(), detail }
            })?,
        };
        self.progress.0.bytes(body.bytes.len() as u64);
        let fetched_at = self.clock.micros();
        let image = self.process(body).await;
        image
            .map(|(stored, reservation)| FetchedImage { stored, fetched_at, reservation })
            .map_err(|error| Rejection { code: error.code(), detail: format!("{url}: {error}") })
    }

    async fn download(&self, url: &str) -> Result<Response, FetchError> {
        let url = match Url::parse(url) {
            Ok(url) => url,
            Err(_) if url.is_empty() => {
                return Err(FetchError::new(FetchErrorKind::BadUrl, "the row has no URL"));
            }
            Err(error) => return Err(FetchError::new(FetchErrorKind::BadUrl, error.to_string())),
        };
        if !url.username().is_empty() || url.password().is_some() {
            let why = "a user or password in the URL of a row is not sent";
            return Err(FetchError::new(FetchErrorKind::Credentials, why));
        }
        let check = |headers: &HeaderMap| match Directives::from_headers(headers, &self.product).opt_out {
            Some(word) if self.client.options().opt_outs => {
                Err(FetchError::new(FetchErrorKind::OptedOut, word))
            }
            _ => Ok(()),
        };
        let accept = "image/webp,image/png,image/jpeg,image/*;q=0.5,*/*;q=0.1";
        let max_bytes = self.options.limits.max_bytes;
        let request = Request { check_headers: &check, ..Request::new(&url, accept, max_bytes) };
        self.client.get(request).await
    }

    async fn process(&self, mut body: Body) -> Result<(Stored, Reservation), ImageError> {
        let repaired = if self.options.lenient { repair(&body.bytes) } else { None };
        let bytes = repaired.as_ref().map_or(&body.bytes[..], |repaired| &repaired.bytes);
        let header = match probe(bytes, &self.options.limits) {
            Err(ImageError::UnsupportedFormat(_)) if self.options.originals == Originals::Keep => {
                return Ok(original(body));
            }
            header => header?,
        };
        let pixels = self.pixels.reserve(header.decode_bytes).await;
        let options = self.options.clone();
        let (sender, image) = oneshot::channel();
        let work = move || {
            let (_pixels, _permit) = (pixels, body.permit.take());
            let image = options.process(&body.bytes, repaired.as_ref());
            if matches!(image, Err(ImageError::UnsupportedFormat(_))) && options.originals == Originals::Keep
            {
                return Ok(original(body));
            }
            let stored = image?;
            // The stored image is usually smaller than the body.
            body.reservation.shrink(stored.bytes().len() as u64);
            Ok((stored, body.reservation))
        };
        // The receiver is gone if the run was stopped.
        self.decoders.spawn(move || drop(sender.send(work())));
        // `process` catches panics, so the pool is shutting down, and the row is not recorded.
        image.await.unwrap_or_else(|error| Err(ImageError::BadOptions(error.to_string())))
    }
}

impl ImageOptions {
    fn process(&self, body: &[u8], repaired: Option<&Repaired>) -> Result<Stored, ImageError> {
        let bytes = repaired.map_or(body, |repaired| &repaired.bytes);
        let mut image = process(bytes, &self.limits, &self.resize, &self.encode)?;
        if repaired.is_some() {
            image.sha256 = sha256_hex(body);
        }
        Ok(Stored::Image(image, repaired.map(|repaired| repaired.damage.clone())))
    }
}

/// The body as it came.
fn original(body: Body) -> (Stored, Reservation) {
    let sha256 = sha256_hex(&body.bytes);
    (Stored::Original { bytes: body.bytes, sha256 }, body.reservation)
}
