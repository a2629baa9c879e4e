//! Parquet and Arrow files that others wrote. What their headers claim is held against the bytes
//! that they have before a library allocates for it, and a panic of the library is an error that
//! names the file.

mod ipc;
mod pages;
mod parquet;
mod thrift;

pub use self::ipc::ArrowBatches;
pub use self::parquet::{ParquetBatches, check_pages, open_parquet};
