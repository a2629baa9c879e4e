//! The integration tests: one binary, so that it is linked once.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::PathBuf;

mod avif;
mod bombs;
mod formats;
mod hostile;
mod jpeg;
mod odd;
mod pillow;
#[cfg(feature = "libwebp")]
mod webp;

#[global_allocator]
static ALLOCATOR: twinlens_testkit::memory::Counting = twinlens_testkit::memory::Counting;

fn fixture(name: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
