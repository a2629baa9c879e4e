//! Runs of small pipelines with stages of their own.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod following;
mod generations;
mod passes;
