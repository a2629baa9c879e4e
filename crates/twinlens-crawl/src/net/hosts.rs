//! What is remembered of each host: its slots, when it may be asked again, its robots.txt, and what
//! it reserves.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep_until};
use url::Url;

use super::error::FetchError;
use super::robots::Rules;
use super::tdm::Reservations;

/// Hosts that are remembered; beyond, those that nobody uses are forgotten.
const REMEMBERED: usize = 4096;

/// What a look at robots.txt gave, and when.
pub(crate) type Looked = Option<(Instant, Result<Arc<Rules>, FetchError>)>;

/// One origin (scheme, host, port).
#[derive(Debug)]
pub(crate) struct Host {
    slots: Arc<Semaphore>,
    next: Mutex<Instant>,
    /// Held while robots.txt is fetched, so that it is fetched once.
    pub(crate) robots: tokio::sync::Mutex<Looked>,
    /// Held while tdmrep.json is fetched; until when what it said is good.
    pub(crate) reservations: tokio::sync::Mutex<Option<(Instant, Arc<Reservations>)>>,
}

impl Host {
    /// Waits for a slot and for the host's turn. At most one request a `delay` starts.
    pub(crate) async fn enter(&self, delay: Duration) -> Option<OwnedSemaphorePermit> {
        let slot = self.slots.clone().acquire_owned().await.ok();
        let turn = {
            let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
            let turn = (*next).max(Instant::now());
            *next = turn + delay;
            turn
        };
        sleep_until(turn).await;
        slot
    }

    /// The host asked to be left alone for a while: all its requests wait, not only the one that it
    /// was told to.
    pub(crate) fn pause(&self, pause: Duration) {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        *next = (*next).max(Instant::now() + pause);
    }

    fn is_idle(&self) -> bool {
        *self.next.lock().unwrap_or_else(PoisonError::into_inner) <= Instant::now()
    }
}

/// All hosts that are remembered.
#[derive(Debug)]
pub(crate) struct Hosts {
    per_host: usize,
    known: Mutex<HashMap<String, Arc<Host>>>,
}

impl Hosts {
    /// At most `per_host` requests a host at a time.
    pub(crate) fn new(per_host: usize) -> Self {
        Self { per_host: per_host.max(1), known: Mutex::default() }
    }

    /// The host of a URL.
    pub(crate) fn of(&self, url: &Url) -> Arc<Host> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= REMEMBERED {
            known.retain(|_, host| Arc::strong_count(host) > 1 || !host.is_idle());
        }
        let host = known.entry(url.origin().ascii_serialization()).or_insert_with(|| {
            Arc::new(Host {
                slots: Arc::new(Semaphore::new(self.per_host)),
                next: Mutex::new(Instant::now()),
                robots: tokio::sync::Mutex::new(None),
                reservations: tokio::sync::Mutex::new(None),
            })
        });
        host.clone()
    }
}
