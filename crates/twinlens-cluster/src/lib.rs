//! Makes the splits of a run on other machines, by Apache Ballista.
//!
//! Ballista places splits on executors, tries those of a lost executor again, and cancels them;
//! what it runs is one plan node of ours ([`node`]), which makes a split by the code that a run
//! uses itself. The run ([`driver`]) sends one job per split, since a job of many loses the rows of
//! those that a lost executor had made, and records what comes back. Scheduler ([`scheduler`]) and
//! executors ([`executor`]) are processes of the same build.
//!
//! Without the feature `ballista` the crate is empty.

#![cfg(feature = "ballista")]

pub mod address;
mod client;
pub mod driver;
mod engine;
pub mod executor;
mod node;
mod request;
pub mod scheduler;
pub mod seal;
pub mod status;
mod units;
mod watch;

pub use address::Address;
pub use driver::{ClusterRun, Connection};
pub use seal::Key;
