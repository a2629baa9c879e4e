//! The HTTP client, built for a hostile web. All network access goes through it.
//!
//! Every hop of a fetch is checked before a byte is sent: the scheme, robots.txt, and each address
//! that the host resolves to; the connection goes to the address that was checked. Times, bytes,
//! rates, redirects, retries and requests per host are bounded, and the bytes of a body are
//! reserved before they are read.

mod address;
mod body;
mod breaker;
mod client;
mod directives;
mod error;
mod explain;
mod headers;
mod hosts;
mod options;
mod proxy;
mod request;
mod resolve;
mod robots;
mod robots_txt;
mod tdm;

pub use client::{Client, ClientDeps};
pub use directives::Directives;
pub(crate) use error::PASSING_CODES;
pub use error::{FetchError, FetchErrorKind};
pub use options::HttpOptions;
pub(crate) use proxy::VARIABLES as PROXY_VARIABLES;
pub use request::{ContentCoding, Request, Response};
pub use resolve::{CachedLookup, Lookup, SystemLookup};
pub(crate) use tdm::TDMREP_HEADER;
pub use twinlens_pipeline::budget::{ByteBudget, Reservation};
