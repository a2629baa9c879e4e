//! Fetches the visits of a wave, interleaving hosts, and returns them in order.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use tokio::task::JoinError;
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument;
use twinlens_pipeline::RunError;
use url::Url;

use super::visit::{VisitResult, Visitor};
use crate::frontier::Visit;
use crate::net::FetchError;

/// The index of a visit in the wave, and the result of its task.
type TaskResult = (usize, Result<Result<VisitResult, FetchError>, JoinError>);

pub(super) struct WaveFetcher<'a> {
    visitor: &'a Arc<Visitor>,
    wave: &'a [Visit],
    concurrency: usize,
    /// Bytes in `ready`. Beyond `max_buffered`, only the next visit is started.
    buffered: usize,
    max_buffered: usize,
    /// Visits not started yet, hosts interleaved, so that the delay of one host does not block the
    /// others.
    waiting: VecDeque<usize>,
    running: FuturesUnordered<BoxFuture<'static, TaskResult>>,
    /// Visits that finished before their turn.
    ready: BTreeMap<usize, Result<VisitResult, FetchError>>,
    next: usize,
}

impl<'a> WaveFetcher<'a> {
    pub(super) fn new(
        visitor: &'a Arc<Visitor>,
        wave: &'a [Visit],
        concurrency: usize,
        max_buffered: usize,
    ) -> Self {
        Self {
            visitor,
            wave,
            concurrency,
            buffered: 0,
            max_buffered,
            waiting: interleave_hosts(wave),
            running: FuturesUnordered::new(),
            ready: BTreeMap::new(),
            next: 0,
        }
    }

    /// The result of the next visit. Call it once per visit.
    pub(super) async fn next(&mut self) -> Result<Result<VisitResult, FetchError>, RunError> {
        loop {
            if let Some(result) = self.ready.remove(&self.next) {
                self.buffered -= size_of(&result);
                self.next += 1;
                return Ok(result);
            }
            while self.running.len() < self.concurrency && self.start_one() {}
            let Some((index, result)) = self.running.next().await else {
                return Err(RunError::Internal("a wave has no more visits".into()));
            };
            let result = result.map_err(|error| RunError::Internal(error.to_string()))?;
            self.buffered += size_of(&result);
            self.ready.insert(index, result);
        }
    }

    /// Starts a visit; returns whether it could.
    fn start_one(&mut self) -> bool {
        // When too much is buffered, only the visit that everything waits for is started.
        let position = if self.buffered <= self.max_buffered {
            Some(0)
        } else {
            self.waiting.iter().position(|index| *index == self.next)
        };
        let Some(index) = position.and_then(|position| self.waiting.remove(position)) else {
            return false;
        };
        let (visitor, visit) = (self.visitor.clone(), self.wave[index].clone());
        // A task of its own, so that timeouts do not run while another page is written.
        let task = AbortOnDropHandle::new(tokio::spawn(
            async move { visitor.visit(&visit).await }.in_current_span(),
        ));
        self.running.push(Box::pin(async move { (index, task.await) }));
        true
    }
}

/// The indices of a wave's visits, interleaved by host.
fn interleave_hosts(wave: &[Visit]) -> VecDeque<usize> {
    let mut host_index: HashMap<String, usize> = HashMap::new();
    let mut hosts: Vec<VecDeque<usize>> = Vec::new();
    for (index, visit) in wave.iter().enumerate() {
        let host =
            Url::parse(&visit.url).ok().and_then(|url| url.host_str().map(String::from)).unwrap_or_default();
        let position = *host_index.entry(host).or_insert_with(|| {
            hosts.push(VecDeque::new());
            hosts.len() - 1
        });
        hosts[position].push_back(index);
    }
    let mut order = VecDeque::with_capacity(wave.len());
    while !hosts.is_empty() {
        order.extend(hosts.iter_mut().filter_map(VecDeque::pop_front));
        hosts.retain(|host| !host.is_empty());
    }
    order
}

/// Approximate memory of a result, in bytes.
fn size_of(result: &Result<VisitResult, FetchError>) -> usize {
    let urls = |urls: &[Url]| urls.iter().map(|url| url.as_str().len() + 100).sum::<usize>();
    match result {
        Ok(VisitResult::Page { page, .. }) => {
            let pair = |pair: &crate::html::ImageText| pair.image.len() + pair.text.len() + 50;
            urls(&page.links) + page.pairs.iter().map(pair).sum::<usize>()
        }
        Ok(VisitResult::Sitemap(sitemap)) => urls(&sitemap.pages) + urls(&sitemap.sitemaps),
        Ok(VisitResult::Robots(sitemaps)) => urls(sitemaps),
        Ok(VisitResult::Redirect(_)) | Err(_) => 100,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_interleaved() {
        let wave: Vec<Visit> =
            ["http://a/1", "http://a/2", "http://a/3", "http://b/1", "http://c/1", "http://c/2"]
                .map(|url| Visit::page(0, url))
                .to_vec();
        assert_eq!(interleave_hosts(&wave), [0, 3, 4, 1, 5, 2]);
        assert!(interleave_hosts(&[]).is_empty());
    }
}
