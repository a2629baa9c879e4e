//! The kinds of stages: sources of pairs ([`Crawl`], [`Warc`], [`Table`]), sources of pairs
//! with their images ([`WebDataset`], [`Folder`]), and [`Fetch`].

mod checks;
mod crawl;
mod fetch;
mod files;
mod folder;
mod reading;
mod remote;
mod samples;
mod table;
mod warc;
mod webdataset;

use std::sync::Arc;

use twinlens_pipeline::{Located, RunContext, RunError};

pub use crawl::Crawl;
pub use fetch::{Fetch, VERIFY_CODES, Verify};
pub use folder::Folder;
pub use samples::CODES as SAMPLE_CODES;
pub use table::{CODES as TABLE_CODES, Table};
pub use warc::{CODES as WARC_CODES, Warc};
pub use webdataset::WebDataset;

use crate::net::{ByteBudget, CachedLookup, Client, HttpOptions, Surroundings, SystemLookup};

/// The client of one stage of one run, with so many requests open at a time.
fn client(cx: &RunContext, http: &HttpOptions, budget: ByteBudget, open: usize) -> Result<Client, RunError> {
    let (lookup, hosts) = (Arc::new(CachedLookup::new(Arc::new(SystemLookup))), cx.hosts.as_ref().clone());
    let (trusted, seed) = (Vec::new(), cx.seed_for("network"));
    let around = Surroundings { lookup, hosts, budget, open, trusted, seed };
    Client::new(http.clone(), around)
        .map_err(|why| RunError::user(format!("stage `{}`: http: {why}", cx.stage)))
}

/// An error when the network is taken to be down: better than a ledger full of rejects that are
/// none.
fn reachable(client: &Client, at_end: bool) -> Result<(), RunError> {
    match client.network_down(at_end) {
        None => Ok(()),
        Some(why) => Err(RunError::user_with_hint(
            format!("the network seems to be down: {why}"),
            "run the same command when it is up: nothing of the interrupted split was recorded; \
             `http = { max_unreachable = 1.0 }` goes on regardless",
        )),
    }
}

/// A default that stands in no file.
fn nowhere<T: Default>() -> Located<T> {
    Located::nowhere(T::default())
}
