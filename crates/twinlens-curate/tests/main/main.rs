//! The integration tests: one binary, so that it is linked once.
#![allow(clippy::unwrap_used, reason = "a failing test may panic")]

#[cfg(unix)]
mod command;
mod contracts;
mod notes;
mod pipeline;
mod query_list;
mod runs;
