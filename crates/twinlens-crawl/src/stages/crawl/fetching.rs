//! The visits of a wave: fetched with the hosts in turn, given out in the wave's order.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use tokio::task::JoinError;
use tokio_util::task::AbortOnDropHandle;
use twinlens_pipeline::RunError;
use url::Url;

use super::visit::{Visited, Visitor};
use crate::frontier::Visit;
use crate::net::FetchError;

/// The place of a visit, and what its task gave.
type Fetched = (usize, Result<Result<Visited, FetchError>, JoinError>);

/// A wave that is being fetched.
pub(super) struct Fetching<'a> {
    visitor: &'a Arc<Visitor>,
    wave: &'a [Visit],
    concurrency: usize,
    /// Bytes of visits that have come before their turn, and how many there may be before no visit
    /// is begun but the next.
    held: usize,
    most_held: usize,
    /// Visits that have not begun, with the hosts in turn: the politeness that one asks for does
    /// not keep the others waiting.
    waiting: VecDeque<usize>,
    running: FuturesUnordered<BoxFuture<'static, Fetched>>,
    /// Visits that have come before their turn.
    ready: BTreeMap<usize, Result<Visited, FetchError>>,
    next: usize,
}

impl<'a> Fetching<'a> {
    pub(super) fn new(
        visitor: &'a Arc<Visitor>,
        wave: &'a [Visit],
        concurrency: usize,
        most_held: usize,
    ) -> Self {
        Self {
            visitor,
            wave,
            concurrency,
            held: 0,
            most_held,
            waiting: in_turn(wave),
            running: FuturesUnordered::new(),
            ready: BTreeMap::new(),
            next: 0,
        }
    }

    /// What the next visit of the wave gave. Call it once a visit.
    pub(super) async fn next(&mut self) -> Result<Result<Visited, FetchError>, RunError> {
        loop {
            if let Some(found) = self.ready.remove(&self.next) {
                self.held -= size(&found);
                self.next += 1;
                return Ok(found);
            }
            while self.running.len() < self.concurrency && self.begin_one() {}
            let Some((index, found)) = self.running.next().await else {
                return Err(RunError::Internal("a wave has fewer visits than it had".into()));
            };
            let found = found.map_err(|error| RunError::Internal(error.to_string()))?;
            self.held += size(&found);
            self.ready.insert(index, found);
        }
    }

    /// Begins a visit; returns whether one could be.
    fn begin_one(&mut self) -> bool {
        // When much waits for its turn, only the visit that all wait for is begun.
        let place = match self.held <= self.most_held {
            true => 0,
            false => match self.waiting.iter().position(|index| *index == self.next) {
                Some(place) => place,
                None => return false,
            },
        };
        let Some(index) = self.waiting.remove(place) else { return false };
        let (visitor, visit) = (self.visitor.clone(), self.wave[index].clone());
        // A task of its own: the time-outs of a page do not run while another one is being written.
        let task = AbortOnDropHandle::new(tokio::spawn(async move { visitor.visit(&visit).await }));
        self.running.push(Box::pin(async move { (index, task.await) }));
        true
    }
}

/// The places of a wave's visits, the hosts in turn, each host's in their order.
fn in_turn(wave: &[Visit]) -> VecDeque<usize> {
    let mut places: HashMap<String, usize> = HashMap::new();
    let mut hosts: Vec<VecDeque<usize>> = Vec::new();
    for (index, visit) in wave.iter().enumerate() {
        let host =
            Url::parse(&visit.url).ok().and_then(|url| url.host_str().map(String::from)).unwrap_or_default();
        let place = *places.entry(host).or_insert_with(|| {
            hosts.push(VecDeque::new());
            hosts.len() - 1
        });
        hosts[place].push_back(index);
    }
    let mut order = VecDeque::with_capacity(wave.len());
    while !hosts.is_empty() {
        order.extend(hosts.iter_mut().filter_map(VecDeque::pop_front));
        hosts.retain(|host| !host.is_empty());
    }
    order
}

/// About how many bytes a visit takes in memory.
fn size(found: &Result<Visited, FetchError>) -> usize {
    let urls = |urls: &[Url]| urls.iter().map(|url| url.as_str().len() + 100).sum::<usize>();
    match found {
        Ok(Visited::Page { page, .. }) => {
            let pair = |pair: &crate::html::ImageText| pair.image.len() + pair.text.len() + 50;
            urls(&page.links) + page.pairs.iter().map(pair).sum::<usize>()
        }
        Ok(Visited::Sitemap(sitemap)) => urls(&sitemap.pages) + urls(&sitemap.sitemaps),
        Ok(Visited::Robots(sitemaps)) => urls(sitemaps),
        Ok(Visited::Redirect(_)) | Err(_) => 100,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_take_turns() {
        let wave: Vec<Visit> =
            ["http://a/1", "http://a/2", "http://a/3", "http://b/1", "http://c/1", "http://c/2"]
                .map(|url| Visit::page(0, url))
                .to_vec();
        assert_eq!(in_turn(&wave), [0, 3, 4, 1, 5, 2]);
        assert!(in_turn(&[]).is_empty());
    }
}
