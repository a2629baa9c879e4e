//! The one way to the network: a client for a hostile web.
//!
//! Every hop of every fetch is checked before a byte is sent: the scheme, robots.txt, and each
//! address that the host resolves to; the connection goes to the address that was checked. Times,
//! bytes, rates, redirects, retries and requests a host are bounded, and the bytes of a body are
//! reserved before they are read.

mod address;
mod breaker;
mod budget;
mod client;
mod error;
mod explain;
mod hosts;
mod options;
mod resolve;
mod robots;
mod robots_txt;
mod tdm;

pub use address::{AddressPolicy, forbidden};
pub use breaker::Breaker;
pub use budget::{ByteBudget, Reservation};
pub use client::{Ask, Client, Reply, Surroundings};
pub use error::{FetchError, Why};
pub use options::HttpOptions;
pub use resolve::{CachedLookup, Lookup, SystemLookup};
pub use robots::{Directives, Rules};
pub use robots_txt::RobotsTxt;
pub(crate) use tdm::OF_FILE;
pub use tdm::Reservations;
