//! Resolves host names and checks the addresses. The connection goes to the address that was
//! checked, so DNS rebinding (a different answer the second time) gains nothing.

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
use super::error::{FetchError, FetchErrorKind};

/// Looks up the addresses of a host.
pub trait Lookup: Debug + Send + Sync {
    /// All addresses of the host in order of preference.
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

/// How long addresses are cached: the system's resolver does not give their time to live.
const TTL: Duration = Duration::from_secs(300);
/// How long a failure is cached: as long as the first pause between attempts of a fetch.
const FAILURE_TTL: Duration = Duration::from_millis(500);
/// Names in the cache.
const MAX_NAMES: usize = 10_000;
/// Simultaneous lookups: each lookup of the system occupies a thread.
const MAX_LOOKUPS: usize = 64;

/// Caches the answers of another [`Lookup`]. Each name is looked up once at a time, and few names
/// at a time. Cached addresses are still checked for each connection.
#[derive(Debug, Clone)]
pub struct CachedLookup(Arc<Cache>);

#[derive(Debug)]
struct Cache {
    inner: Arc<dyn Lookup>,
    lookups: Semaphore,
    ttl: Duration,
    failure_ttl: Duration,
    names: Mutex<HashMap<String, Arc<CacheEntry>>>,
}

/// The cached result for a name; locked during its lookup.
type CacheEntry = tokio::sync::Mutex<Option<(Instant, Result<Vec<IpAddr>, (io::ErrorKind, String)>)>>;

impl CachedLookup {
    pub fn new(inner: Arc<dyn Lookup>) -> Self {
        Self::with_ttls(inner, TTL, FAILURE_TTL)
    }

    fn with_ttls(inner: Arc<dyn Lookup>, ttl: Duration, failure_ttl: Duration) -> Self {
        let (lookups, names) = (Semaphore::new(MAX_LOOKUPS), Mutex::default());
        Self(Arc::new(Cache { inner, lookups, ttl, failure_ttl, names }))
    }
}

impl Cache {
    fn entry(&self, host: &str) -> Arc<CacheEntry> {
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        if names.len() >= MAX_NAMES && !names.contains_key(host) {
            // Drops all that are not being looked up; a full cache is rare.
            names.retain(|_, entry| Arc::strong_count(entry) > 1);
        }
        names.entry(host.to_string()).or_default().clone()
    }

    async fn lookup(&self, host: String) -> io::Result<Vec<IpAddr>> {
        let entry = self.entry(&host);
        let mut entry = entry.lock().await;
        if let Some((when, result)) = &*entry {
            let ttl = if result.is_ok() { self.ttl } else { self.failure_ttl };
            if when.elapsed() < ttl {
                return result.clone().map_err(|(kind, text)| io::Error::new(kind, text));
            }
        }
        // The semaphore is never closed.
        let _turn = self.lookups.acquire().await.ok();
        let result = self.inner.lookup(host).await.map_err(|error| (error.kind(), error.to_string()));
        *entry = Some((Instant::now(), result.clone()));
        result.map_err(|(kind, text)| io::Error::new(kind, text))
    }
}

impl Lookup for CachedLookup {
    fn lookup(&self, host: String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> {
        let cache = self.0.clone();
        async move { cache.lookup(host).await }.boxed()
    }
}

/// A resolver that returns only allowed addresses.
#[derive(Debug, Clone)]
pub(super) struct GuardedResolver {
    pub(super) lookup: Arc<dyn Lookup>,
    pub(super) policy: Arc<AddressPolicy>,
}

impl GuardedResolver {
    /// The allowed addresses of a host. A fixed address comes with its port, which overrides the
    /// scheme's.
    async fn addresses(self, host: String) -> Result<Vec<SocketAddr>, FetchError> {
        if let Some(addr) = self.policy.fixed_address(&host) {
            return Ok(vec![addr]);
        }
        let dns = |reason: String| FetchError::new(FetchErrorKind::Dns, format!("{host}: {reason}"));
        let addresses = self.lookup.lookup(host.clone()).await.map_err(|error| dns(error.to_string()))?;
        let mut refused = None;
        let mut allowed = Vec::new();
        for ip in addresses {
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
        let result = self.clone().addresses(name.as_str().to_ascii_lowercase());
        async move { Ok(Box::new(result.await?.into_iter()) as Addrs) }.boxed()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures::future::join_all;

    use super::*;

    /// Counts its calls; names with a `!` have no address.
    #[derive(Debug, Default)]
    struct CountingLookup(AtomicUsize);

    impl Lookup for Arc<CountingLookup> {
        fn lookup(&self, host: String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> {
            let count = self.0.fetch_add(1, Ordering::SeqCst);
            async move {
                tokio::task::yield_now().await;
                if host.contains('!') {
                    Err(io::Error::other(format!("no address at lookup {count}")))
                } else {
                    Ok(vec![IpAddr::from([8, 8, 8, 8])])
                }
            }
            .boxed()
        }
    }

    #[tokio::test]
    async fn names_are_cached_until_they_expire() {
        let counting = Arc::new(CountingLookup::default());
        let inner: Arc<dyn Lookup> = Arc::new(counting.clone());
        let cached = CachedLookup::with_ttls(inner.clone(), TTL, Duration::ZERO);
        let lookups = || counting.0.load(Ordering::SeqCst);
        let all = join_all((0..100).map(|_| cached.lookup("a.test".into()))).await;
        assert!(all.iter().all(Result::is_ok) && lookups() == 1, "{} lookups", lookups());
        assert!(
            cached.lookup("!.test".into()).await.is_err() && cached.lookup("!.test".into()).await.is_err()
        );
        assert!(cached.lookup("a.test".into()).await.is_ok());
        assert_eq!(lookups(), 3, "failures expire sooner");
        let cached = CachedLookup::with_ttls(inner, Duration::ZERO, TTL);
        let all = join_all((0..100).map(|_| cached.lookup("!.test".into()))).await;
        assert!(all.iter().all(Result::is_err) && lookups() == 4, "{} lookups", lookups());
        assert!(cached.lookup("a.test".into()).await.is_ok() && cached.lookup("a.test".into()).await.is_ok());
        assert_eq!(lookups(), 6, "an expired answer is looked up again");
    }

    #[tokio::test]
    async fn the_cache_is_bounded() {
        let cached = CachedLookup::new(Arc::new(Arc::new(CountingLookup::default())));
        for wave in 0..3 {
            let names = (0..MAX_NAMES).map(|name| cached.lookup(format!("{wave}-{name}.test")));
            join_all(names).await;
        }
        assert!(cached.0.names.lock().unwrap().len() <= MAX_NAMES);
    }
}
