//! The data loader: batches from shards, prepared in other threads.
//!
//! The pairs of a batch depend only on the seed and the layout of the data ([`sampler`]); threads,
//! budgets and the cache affect when a batch is ready, not its content. The position in the data is
//! the step number.
//!
//! Memory holds at most two windows of encoded images (`shuffle_bytes` each), the deferred pairs,
//! the prefetched batches, and images being decoded, whose memory is reserved first.
//!
//! An image that cannot be decoded is found when it is first used. It is recorded once
//! ([`reject_log`]), and another pair of the same window takes its place in every batch, so that
//! the other pairs do not move. At the end all rejected rows go to the ledger, so every input row
//! is either trained on or rejected.

mod buffers;
mod cache;
mod disk_vec;
mod feed;
mod loader;
mod pair;
mod pairs;
mod parquet;
mod reject_log;
mod sampler;
mod stream;
mod transform;
mod webdataset;
mod windows;

pub use buffers::Pixels;
pub use feed::RawBatch;
pub use loader::{Data, DataOptions, Input};
pub(crate) use pair::holds_captions;
pub(crate) use parquet::CAPTIONS_HINT;

pub use pair::{Captions, Columns};
pub use pairs::{DataContext, Source};
pub use stream::{BatchOptions, PairSet, PairStream};
