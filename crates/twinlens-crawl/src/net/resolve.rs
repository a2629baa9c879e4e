//! Host names to addresses, checked: the connection goes to the very address that was checked, so that a name which answers
//! differently the second time (DNS rebinding) gains nothing.

use std::fmt::Debug;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

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

/// A resolver that lets only allowed addresses through.
#[derive(Debug, Clone)]
pub(crate) struct GuardedResolver {
    pub(crate) lookup: Arc<dyn Lookup>,
    pub(crate) policy: Arc<AddressPolicy>,
}

impl GuardedResolver {
    /// The allowed addresses of a host; a fixed one with its port, which stands in for the scheme's.
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
