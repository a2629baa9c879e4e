//! `twinlens scheduler`, `executor`, `cluster`, and runs whose splits executors make. All of it
//! needs the feature `cluster`.

#[cfg(not(feature = "cluster"))]
mod absent;
#[cfg(feature = "cluster")]
mod present;

#[cfg(not(feature = "cluster"))]
pub(crate) use absent::{connect, executor, scheduler, show};
#[cfg(feature = "cluster")]
pub(crate) use present::{connect, executor, scheduler, show};
