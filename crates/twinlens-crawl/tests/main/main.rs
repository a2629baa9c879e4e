//! The integration tests: one binary, so that it is linked once.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod archives;
mod crawling;
mod damaged;
mod frontier;
mod hostile;
mod leniency;
mod local;
mod network;
mod samples;
mod sources;
mod stages;
mod support;
mod tables;
