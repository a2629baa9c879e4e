//! Workers: processes that make splits of a run and need no connection to it.
//!
//! All of them see the run directory, in an object store or in a shared folder as `file://`, and
//! tell each other what they do by files in its folder `.workers` ([`board`]). A file is put only
//! if there is none, or written by one process alone: no other operation of a store is needed.
//!
//! The run puts the recipe and the splits of its current unit there ([`driver`]). Whoever makes a
//! split claims it first ([`queue`]). A claim is lost when its holder stops showing that it is
//! alive: each process observes that by its own clock ([`peers`]), so that clocks need not agree. A
//! lost split is claimed again. Should its first holder live after all, two processes make the same
//! split, and the first record of it counts (`twinlens_dataset::split_records`).

mod board;
mod driver;
mod peers;
mod queue;
mod worker;

pub use driver::{SharedRun, Sharing};
pub use worker::{WorkEvent, Worker, is_shared};
