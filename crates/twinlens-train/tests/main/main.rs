//! The integration tests: one binary, so that it is linked once.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod data;
mod parallel;
mod processes;
mod stages;
mod support;
mod training;
