//! The HTTP client of a stage.

use std::collections::BTreeMap;
use std::sync::Arc;

use twinlens_pipeline::{RunContext, RunError};

use crate::net::{ByteBudget, CachedLookup, Client, ClientDeps, HttpOptions, PROXY_VARIABLES, SystemLookup};

/// The client of one stage of one run, with at most `max_open` requests in flight; `has_own_hosts`
/// if no other process asks the hosts of its rows.
pub(super) fn client(
    cx: &RunContext,
    http: &HttpOptions,
    budget: ByteBudget,
    max_open: usize,
    has_own_hosts: bool,
) -> Result<Client, RunError> {
    let deps = ClientDeps {
        lookup: Arc::new(CachedLookup::new(Arc::new(SystemLookup))),
        hosts: cx.hosts.as_ref().clone(),
        budget,
        max_open,
        extra_certificates: Vec::new(),
        environment: proxy_variables(),
        seed: cx.seed_for("network"),
        sharers: cx.sharers.clone(),
        has_own_hosts,
        secrets: cx.secrets.clone(),
    };
    Client::new(http.clone(), deps)
        .map_err(|why| RunError::user(format!("stage `{}`: http: {why}", cx.stage)))
}

/// The environment variables of proxies that are set.
fn proxy_variables() -> BTreeMap<String, String> {
    let value = |name: &str| std::env::var(name).or_else(|_| std::env::var(name.to_uppercase())).ok();
    PROXY_VARIABLES.iter().filter_map(|name| Some((name.to_string(), value(name)?))).collect()
}

/// Fails if the network seems to be down, instead of rejecting every row.
pub(super) fn check_reachable(client: &Client, at_end: bool) -> Result<(), RunError> {
    match client.network_down(at_end) {
        None => Ok(()),
        Some(why) => Err(RunError::user_with_hint(
            format!("the network seems to be down: {why}"),
            "run the same command when it is up (the interrupted split was not committed); \
             `http = { max_unreachable = 1.0 }` disables this check",
        )),
    }
}
