//! State per host: open requests, when the next one may start, robots.txt and TDM rules.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep_until};
use url::Url;

use super::error::FetchError;
use super::robots::RobotsRules;
use super::tdm::TdmRules;

/// Hosts that are kept; beyond that, idle ones are dropped.
const MAX_HOSTS: usize = 4096;

/// More processes than this share no further.
const MAX_SHARERS: usize = 100_000;

/// How long a host that only times out is given up.
const GIVE_UP: Duration = Duration::from_secs(15 * 60);

/// The timeouts of a host since its last answer.
#[derive(Debug, Default)]
struct Timeouts {
    in_a_row: u32,
    /// The last one, and until when the host is given up because of it.
    given_up: Option<(Instant, FetchError)>,
}

/// The result of fetching robots.txt, and when.
pub(super) type CachedRobots = Option<(Instant, Result<Arc<RobotsRules>, FetchError>)>;

/// One origin (scheme, host, port).
#[derive(Debug)]
pub(super) struct Host {
    slots: Arc<Semaphore>,
    per_host: usize,
    sharers: Arc<AtomicUsize>,
    next_at: Mutex<Instant>,
    timeouts: Mutex<Timeouts>,
    /// Locked while robots.txt is fetched, so that it is fetched once.
    pub(super) robots: tokio::sync::Mutex<CachedRobots>,
    /// Locked while tdmrep.json is fetched. The rules, and when they expire.
    pub(super) tdm_rules: tokio::sync::Mutex<Option<(Instant, Arc<TdmRules>)>>,
}

impl Host {
    /// Waits for a slot, and until `delay` has passed since the last request started. Where several
    /// processes make the splits of a run, each takes its share: of the slots, but at least one,
    /// and of the requests per second. A process that asks a host `alone` takes all.
    pub(super) async fn acquire(&self, delay: Duration, alone: bool) -> Option<OwnedSemaphorePermit> {
        let sharers = if alone { 1 } else { self.sharers.load(Ordering::Relaxed) };
        let sharers = sharers.clamp(1, MAX_SHARERS);
        let delay = delay * sharers as u32;
        // The more share, the more slots a request takes: their number may change at any time.
        let slots = sharers.min(self.per_host) as u32;
        let slot = self.slots.clone().acquire_many_owned(slots).await.ok();
        let at = {
            let mut next_at = self.next_at.lock().unwrap_or_else(PoisonError::into_inner);
            let at = (*next_at).max(Instant::now());
            *next_at = at + delay;
            at
        };
        sleep_until(at).await;
        slot
    }

    /// Delays all requests to the host, not only the one that got the `Retry-After`.
    pub(super) fn pause(&self, pause: Duration) {
        let mut next_at = self.next_at.lock().unwrap_or_else(PoisonError::into_inner);
        *next_at = (*next_at).max(Instant::now() + pause);
    }

    /// The error of each request while the host is given up.
    pub(super) fn given_up(&self) -> Option<FetchError> {
        let timeouts = self.timeouts.lock().unwrap_or_else(PoisonError::into_inner);
        let (until, error) = timeouts.given_up.as_ref()?;
        (Instant::now() < *until).then(|| error.clone())
    }

    /// Records the outcome of an attempt. The host is given up after `limit` timeouts in a row; 0
    /// never gives up. Once it was given up, one more timeout suffices.
    pub(super) fn record(&self, error: Option<&FetchError>, limit: u32) {
        let mut timeouts = self.timeouts.lock().unwrap_or_else(PoisonError::into_inner);
        match error {
            Some(error) if error.kind.is_timeout() => {
                timeouts.in_a_row = timeouts.in_a_row.saturating_add(1);
                if limit > 0 && timeouts.in_a_row >= limit {
                    let detail =
                        format!("{}; the host is given up after {limit} timeouts in a row", error.detail);
                    timeouts.given_up = Some((Instant::now() + GIVE_UP, FetchError::new(error.kind, detail)));
                }
            }
            // No answer either.
            Some(error) if error.kind.is_unreachable() => {}
            _ => *timeouts = Timeouts::default(),
        }
    }

    fn is_idle(&self) -> bool {
        *self.next_at.lock().unwrap_or_else(PoisonError::into_inner) <= Instant::now()
    }
}

#[derive(Debug)]
pub(super) struct Hosts {
    per_host: usize,
    sharers: Arc<AtomicUsize>,
    hosts: Mutex<HashMap<String, Arc<Host>>>,
}

impl Hosts {
    /// Allows at most `per_host` requests to a host at a time, by all `sharers` together.
    pub(super) fn new(per_host: usize, sharers: Arc<AtomicUsize>) -> Self {
        Self { per_host: per_host.max(1), sharers, hosts: Mutex::default() }
    }

    pub(super) fn get(&self, url: &Url) -> Arc<Host> {
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        if hosts.len() >= MAX_HOSTS {
            hosts.retain(|_, host| Arc::strong_count(host) > 1 || !host.is_idle());
        }
        let host = hosts.entry(url.origin().ascii_serialization()).or_insert_with(|| {
            Arc::new(Host {
                slots: Arc::new(Semaphore::new(self.per_host)),
                per_host: self.per_host,
                sharers: self.sharers.clone(),
                next_at: Mutex::new(Instant::now()),
                timeouts: Mutex::default(),
                robots: tokio::sync::Mutex::new(None),
                tdm_rules: tokio::sync::Mutex::new(None),
            })
        });
        host.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(sharers: usize) -> Arc<Host> {
        Hosts::new(4, Arc::new(AtomicUsize::new(sharers))).get(&Url::parse("http://a.example/").unwrap())
    }

    #[tokio::test]
    async fn processes_share_what_a_host_may_be_asked() {
        for (sharers, at_a_time) in [(0, 4), (1, 4), (2, 2), (3, 1), (4, 1), (9, 1)] {
            let (host, mut open) = (host(sharers), Vec::new());
            for _ in 0..at_a_time {
                open.push(host.acquire(Duration::ZERO, false).await);
            }
            let one_more =
                tokio::time::timeout(Duration::from_millis(20), host.acquire(Duration::ZERO, false));
            assert!(one_more.await.is_err(), "{sharers} processes");
            open.pop();
            drop(host.acquire(Duration::ZERO, false).await.unwrap());
        }
        let (host, started) = (host(3), Instant::now());
        for _ in 0..3 {
            drop(host.acquire(Duration::from_millis(40), false).await);
        }
        assert!(started.elapsed() >= Duration::from_millis(2 * 3 * 40));
    }
}
