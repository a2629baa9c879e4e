//! Host names to addresses, checked: the connection goes to the very address that was checked, so
//! that a name which answers differently the second time (DNS rebinding) gains nothing.

use std::collections::HashMap;
use std::fmt::Debug;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::address::AddressPolicy;
use super::error::{FetchError, Why};

/// Asks for the addresses of a host.
pub trait Lookup: Debug + Send + Sync {
    /// All addresses of the host, in the order of preference.
    fn lookup(&self, host: String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>>;
}

/// The system's resolver.
#[derive(Debug, Clone, Copy)]
pub struct SystemLookup;

impl Lookup for SystemLookup {
    fn lookup(&self, host: String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> {
        async move { Ok(tokio::net::lookup_host((host, 0)).await?.map(|addr| addr.ip()).collect()) }.boxed()
    }
}

/// How long addresses are good for: the system's resolver does not tell their time to live.
const FRESH: Duration = Duration::from_secs(300);
/// How long a failure is: as long as the first of the pauses between the attempts of a fetch.
const FAILED: Duration = Duration::from_millis(500);
/// Names that are remembered.
const REMEMBERED: usize = 10_000;
/// Names that are asked for at a time: each look-up of the system occupies a thread.
const AT_ONCE: usize = 64;

/// Remembers what another [`Lookup`] answered: each name is asked for once at a time, and few names
/// at a time. What is remembered is checked at each connection all the same.
#[derive(Debug, Clone)]
pub struct CachedLookup(Arc<Cache>);

#[derive(Debug)]
struct Cache {
    inner: Arc<dyn Lookup>,
    at_once: Semaphore,
    /// How long an answer is good for, and how long a failure.
    fresh: Duration,
    failed: Duration,
    names: Mutex<HashMap<String, Arc<Known>>>,
}

/// What is known of a name; locked while it is asked for.
type Known = tokio::sync::Mutex<Option<(Instant, Result<Vec<IpAddr>, (io::ErrorKind, String)>)>>;

impl CachedLookup {
    /// Remembers the answers of `inner`.
    pub fn new(inner: Arc<dyn Lookup>) -> Self {
        Self::for_times(inner, FRESH, FAILED)
    }

    fn for_times(inner: Arc<dyn Lookup>, fresh: Duration, failed: Duration) -> Self {
        let (at_once, names) = (Semaphore::new(AT_ONCE), Mutex::default());
        Self(Arc::new(Cache { inner, at_once, fresh, failed, names }))
    }
}

impl Cache {
    fn known(&self, host: &str) -> Arc<Known> {
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        if names.len() >= REMEMBERED && !names.contains_key(host) {
            // Those that nobody is asking for; a full memory is rare enough to begin anew.
            names.retain(|_, known| Arc::strong_count(known) > 1);
        }
        names.entry(host.to_string()).or_default().clone()
    }

    async fn lookup(&self, host: String) -> io::Result<Vec<IpAddr>> {
        let known = self.known(&host);
        let mut known = known.lock().await;
        if let Some((when, answer)) = &*known {
            let fresh = if answer.is_ok() { self.fresh } else { self.failed };
            if when.elapsed() < fresh {
                return answer.clone().map_err(|(kind, text)| io::Error::new(kind, text));
            }
        }
        // The semaphore is never closed.
        let _turn = self.at_once.acquire().await.ok();
        let answer = self.inner.lookup(host).await.map_err(|error| (error.kind(), error.to_string()));
        *known = Some((Instant::now(), answer.clone()));
        answer.map_err(|(kind, text)| io::Error::new(kind, text))
    }
}

impl Lookup for CachedLookup {
    fn lookup(&self, host: String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> {
        let cache = self.0.clone();
        async move { cache.lookup(host).await }.boxed()
    }
}

/// A resolver that lets only allowed addresses through.
#[derive(Debug, Clone)]
pub(crate) struct GuardedResolver {
    pub(crate) lookup: Arc<dyn Lookup>,
    pub(crate) policy: Arc<AddressPolicy>,
}

impl GuardedResolver {
    /// The allowed addresses of a host; a fixed one with its port, which stands in for the
    /// scheme's.
    async fn addresses(self, host: String) -> Result<Vec<SocketAddr>, FetchError> {
        if let Some(addr) = self.policy.served(&host) {
            return Ok(vec![addr]);
        }
        let dns = |reason: String| FetchError::new(Why::Dns, format!("{host}: {reason}"));
        let found = self.lookup.lookup(host.clone()).await.map_err(|error| dns(error.to_string()))?;
        let mut refused = None;
        let mut allowed = Vec::new();
        for ip in found {
            match self.policy.check(&host, ip) {
                Ok(()) => allowed.push(SocketAddr::new(ip, 0)),
                Err(error) => refused = Some(error),
            }
        }
        match (allowed.is_empty(), refused) {
            (false, _) => Ok(allowed),
            (true, Some(refused)) => Err(refused),
            (true, None) => Err(dns("no addresses".into())),
        }
    }
}

impl Resolve for GuardedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let answer = self.clone().addresses(name.as_str().to_ascii_lowercase());
        async move { Ok(Box::new(answer.await?.into_iter()) as Addrs) }.boxed()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures::future::join_all;

    use super::*;

    /// Counts how often it is asked; names with a `!` have no address.
    #[derive(Debug, Default)]
    struct Counting(AtomicUsize);

    impl Lookup for Arc<Counting> {
        fn lookup(&self, host: String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> {
            let count = self.0.fetch_add(1, Ordering::SeqCst);
            async move {
                tokio::task::yield_now().await;
                match host.contains('!') {
                    true => Err(io::Error::other(format!("no address at question {count}"))),
                    false => Ok(vec![IpAddr::from([8, 8, 8, 8])]),
                }
            }
            .boxed()
        }
    }

    #[tokio::test]
    async fn a_name_is_asked_for_once_and_again_when_it_is_old() {
        let counting = Arc::new(Counting::default());
        let inner: Arc<dyn Lookup> = Arc::new(counting.clone());
        let cached = CachedLookup::for_times(inner.clone(), FRESH, Duration::ZERO);
        let asked = || counting.0.load(Ordering::SeqCst);
        let all = join_all((0..100).map(|_| cached.lookup("a.test".into()))).await;
        assert!(all.iter().all(Result::is_ok) && asked() == 1, "{} questions", asked());
        assert!(
            cached.lookup("!.test".into()).await.is_err() && cached.lookup("!.test".into()).await.is_err()
        );
        assert!(cached.lookup("a.test".into()).await.is_ok());
        assert_eq!(asked(), 3, "failures are forgotten sooner");
        let cached = CachedLookup::for_times(inner, Duration::ZERO, FRESH);
        let all = join_all((0..100).map(|_| cached.lookup("!.test".into()))).await;
        assert!(all.iter().all(Result::is_err) && asked() == 4, "{} questions", asked());
        assert!(cached.lookup("a.test".into()).await.is_ok() && cached.lookup("a.test".into()).await.is_ok());
        assert_eq!(asked(), 6, "an answer that is old is asked for again");
    }

    #[tokio::test]
    async fn the_memory_is_bounded() {
        let cached = CachedLookup::new(Arc::new(Arc::new(Counting::default())));
        for wave in 0..3 {
            let names = (0..REMEMBERED).map(|name| cached.lookup(format!("{wave}-{name}.test")));
            join_all(names).await;
        }
        assert!(cached.0.names.lock().unwrap().len() <= REMEMBERED);
    }
}
