//! Storage of datasets: a local folder, or a folder of an object store (`s3://bucket/run`).
//!
//! Datasets access files only through a [`Location`]: a path in a [`Store`].

mod checksums;
mod client;
mod held;
pub mod local;
mod location;
mod ranges;
pub(crate) mod recorded;
mod remote;
mod store;
mod verify;

pub use checksums::BlockSums;
pub(crate) use held::Held;
pub use local::{UNFINISHED, unfinished};
pub use location::{Location, is_url};
pub(crate) use store::LogEnd;
pub use store::{Listing, Log, ParquetFile, Store};
pub use verify::{SeenFiles, Verify};
