//! Files, plain or compressed.

use std::path::Path;

use twinlens_dataset::DatasetError;
use twinlens_dataset::sniff::FileKind;
use twinlens_dataset::unpack::{self, Unpacked};

use crate::error::Result;

/// Opens a file of text or XML, through its compression.
pub(super) fn open(path: &Path) -> Result<Unpacked> {
    let file = unpack::open(path)?;
    match file.kind {
        // A title near the beginning may have control characters.
        FileKind::Text | FileKind::Utf8Bom | FileKind::Xml | FileKind::Binary => Ok(file),
        kind => {
            let expected = "a list or a dump of a wiki";
            Err(DatasetError::WrongKind { path: path.into(), kind, expected }.into())
        }
    }
}
