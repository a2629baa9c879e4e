//! One URL to one stored image.

use std::sync::Arc;

use reqwest::header::HeaderMap;
use tokio::sync::oneshot;
use twinlens_image::{Encode, ImageError, Limits, ProcessedImage, Resize, probe, process};
use twinlens_pipeline::run::events::Progress;
use twinlens_pipeline::{Clock, RunContext, RunError};
use url::Url;

use crate::net::{Ask, ByteBudget, Client, Directives, FetchError, HttpOptions, Reply, Reservation, Why};

/// What becomes of an image.
#[derive(Debug)]
pub(super) struct Options {
    pub(super) limits: Limits,
    pub(super) resize: Resize,
    pub(super) encode: Encode,
    pub(super) concurrency: usize,
}

/// Fetches and decodes images: what all splits of a stage share.
#[derive(Debug)]
pub(super) struct Images {
    client: Client,
    product: String,
    options: Arc<Options>,
    pixels: ByteBudget,
    /// Threads of their own: on the runtime's, work goes round among as many as there ever were,
    /// and the allocator keeps the pages of large images for each.
    decoders: rayon::ThreadPool,
    clock: Clock,
    progress: Progressing,
}

/// [`Progress`] has no `Debug`.
struct Progressing(Progress);

impl std::fmt::Debug for Progressing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Progress")
    }
}

/// An image and the moment at which it came, in microseconds.
#[derive(Debug)]
pub(super) struct Fetched {
    pub(super) image: ProcessedImage,
    pub(super) at: i64,
    /// The place of `image` in the byte budget, until it is in a batch.
    pub(super) held: Reservation,
}

/// Why there is none: a code and the particulars.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) code: &'static str,
    pub(super) detail: String,
}

impl Images {
    pub(super) fn open(cx: &RunContext, http: &HttpOptions, options: Options) -> Result<Self, RunError> {
        let half = cx.bytes_in_flight as u64 / 2;
        let threads = std::thread::available_parallelism().map_or(1, |threads| threads.get());
        let decoders = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|number| format!("decoder {number}"))
            .build()
            .map_err(|error| RunError::Internal(format!("no threads to decode on: {error}")))?;
        Ok(Self {
            client: super::super::client(cx, http, ByteBudget::new(half), options.concurrency)?,
            product: http.product().to_string(),
            pixels: ByteBudget::new(half),
            decoders,
            options: Arc::new(options),
            clock: cx.clock,
            progress: Progressing(cx.progress.clone()),
        })
    }

    /// An error when the network is taken to be down.
    pub(super) fn reachable(&self, at_end: bool) -> Result<(), RunError> {
        super::super::reachable(&self.client, at_end)
    }

    /// Fetches and processes one image.
    pub(super) async fn get(&self, url: &str) -> Result<Fetched, Refusal> {
        let reply = self.download(url).await.map_err(|error| {
            let detail =
                if url.is_empty() { error.detail.clone() } else { format!("{url}: {}", error.detail) };
            Refusal { code: error.code(), detail }
        })?;
        self.progress.0.bytes(reply.body.len() as u64);
        let at = self.clock.micros();
        let image = self.process(reply).await;
        image
            .map(|(image, held)| Fetched { image, at, held })
            .map_err(|error| Refusal { code: error.code(), detail: format!("{url}: {error}") })
    }

    async fn download(&self, url: &str) -> Result<Reply, FetchError> {
        let url = match Url::parse(url) {
            Ok(url) => url,
            Err(_) if url.is_empty() => return Err(FetchError::new(Why::BadUrl, "the row has no URL")),
            Err(error) => return Err(FetchError::new(Why::BadUrl, error.to_string())),
        };
        let check = |headers: &HeaderMap| match Directives::of_headers(headers, &self.product).opt_out {
            Some(word) if self.client.options().opt_outs => Err(FetchError::new(Why::OptedOut, word)),
            _ => Ok(()),
        };
        let ask = Ask {
            url: &url,
            accept: "image/webp,image/png,image/jpeg,image/*;q=0.5,*/*;q=0.1",
            max_bytes: self.options.limits.max_bytes,
            cut: false,
            follow: true,
            robots: true,
            conditions: None,
            check: &check,
        };
        self.client.get(ask).await
    }

    async fn process(&self, mut reply: Reply) -> Result<(ProcessedImage, Reservation), ImageError> {
        let header = probe(&reply.body, &self.options.limits)?;
        let reserved = self.pixels.reserve(header.decode_bytes).await;
        let options = self.options.clone();
        let (done, image) = oneshot::channel();
        let work = move || {
            let (_pixels, _open) = (reserved, reply.open);
            let image = process(&reply.body, &options.limits, &options.resize, &options.encode)?;
            // What is stored is smaller than what came, but for small images that are made larger.
            reply.reserved.shrink(image.bytes.len() as u64);
            Ok((image, reply.reserved))
        };
        // Nobody waits any more when the run was stopped.
        self.decoders.spawn(move || drop(done.send(work())));
        // `process` catches panics; this is a pool that shuts down, and the row is not recorded.
        image.await.unwrap_or_else(|error| Err(ImageError::BadOptions(error.to_string())))
    }
}
