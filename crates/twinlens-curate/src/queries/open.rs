//! Files, plain or compressed.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use crate::error::{CurateError, Result};

/// Opens a file; `.bz2` and `.gz` files are decompressed, including all concatenated streams.
pub(super) fn open(path: &Path) -> Result<Box<dyn BufRead>> {
    let file = File::open(path).map_err(|source| CurateError::Read { path: path.into(), source })?;
    let file = BufReader::with_capacity(1 << 18, file);
    Ok(match path.extension().and_then(|ending| ending.to_str()) {
        Some("bz2") => Box::new(BufReader::with_capacity(1 << 18, bzip2::bufread::MultiBzDecoder::new(file))),
        Some("gz") => Box::new(BufReader::with_capacity(1 << 18, flate2::bufread::MultiGzDecoder::new(file))),
        _ => Box::new(file),
    })
}
