//! Runs: what is done with a checked pipeline in a run directory.

pub mod events;
pub mod output;
