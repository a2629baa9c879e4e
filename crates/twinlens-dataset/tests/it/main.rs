//! Datasets as other crates use them.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod export;
mod floats;
mod foreign;
mod integrity;
mod locations;
