//! Parquet and Arrow files that others wrote. What their headers claim is held against the bytes
//! that they have before a library allocates for it, and a panic of the library is an error that
//! names the file.

mod ipc;
mod pages;
mod parquet;
mod thrift;

pub use self::ipc::ArrowBatches;
pub use self::parquet::{ParquetBatches, check_pages, open_parquet};

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

use crate::sniff::{FileKind, SNIFF_BYTES};

/// The kind and the length of a file, which is left at its start.
fn measure(file: &mut File) -> std::io::Result<(FileKind, u64)> {
    let mut start = Vec::new();
    file.by_ref().take(SNIFF_BYTES as u64).read_to_end(&mut start)?;
    file.seek(SeekFrom::Start(0))?;
    Ok((FileKind::of(&start), file.metadata()?.len()))
}
