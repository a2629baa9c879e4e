//! Built-in web sites (`sites = ["gallery"]`), served on loopback during a run.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use twinlens_gallery::Gallery;

use crate::errors::Failure;

pub(crate) const GALLERY: &str = "gallery";

/// Running sites; dropping this stops them.
pub(crate) struct Sites {
    /// Addresses by host name.
    pub hosts: Arc<BTreeMap<String, SocketAddr>>,
    _gallery: Option<Gallery>,
}

/// Starts sites by name.
pub(crate) async fn open(names: &[String]) -> Result<Sites, Failure> {
    let mut hosts = BTreeMap::new();
    let mut gallery = None;
    for name in names {
        match name.as_str() {
            GALLERY => {
                let site =
                    twinlens_gallery::serve().await.map_err(|error| Failure::user(error.to_string()))?;
                hosts.insert(twinlens_gallery::HOST.to_string(), site.addr());
                gallery = Some(site);
            }
            // `check` refuses every other name.
            other => return Err(Failure::internal(format!("the site `{other}` has no server"))),
        }
    }
    Ok(Sites { hosts: Arc::new(hosts), _gallery: gallery })
}
