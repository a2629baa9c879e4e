//! Arrow contracts, shards, the manifest, the SQL catalog, the training reader, and datasets out in
//! other formats.
//!
//! A dataset is a folder: `manifest.jsonl`, one folder of Parquet shards for each of its tables
//! (`data` is the main one, `rejects` the ledger), and artifacts (files that are not tables).
//! Invariants: only what the manifest records exists; a recorded file is never changed; nothing
//! half-written is ever visible under its final name.

#![warn(missing_docs)]

mod blocking;
pub mod catalog;
mod chunks;
pub mod conform;
pub mod contracts;
pub mod dataset;
pub mod error;
pub mod export;
pub mod foreign;
pub mod guard;
pub mod image_column;
pub mod manifest;
pub mod protocol;
mod ranges;
pub mod reader;
pub mod row_groups;
pub mod samples;
pub mod secret_urls;
pub mod shard;
pub mod sniff;
pub mod split_records;
pub mod storage;
mod tar;
pub mod tls;
pub mod types;
pub mod unpack;
pub mod variants;
pub mod writer;

pub use blocking::{Panicked, blocking};
pub use dataset::Dataset;
pub use error::DatasetError;
pub use image_column::ImageColumn;
pub use protocol::{Begin, Commit, Entry, FileEntry, MAIN, REJECTS};
pub use writer::{DatasetWriter, SplitWriter};
