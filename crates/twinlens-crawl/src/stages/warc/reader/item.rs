//! A record of an archive, or why it cannot be used.

use std::io;

use super::super::record::Header;

#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) place: Place,
    pub(crate) header: Header,
    pub(crate) block: Vec<u8>,
}

/// Where a record is in its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    /// Byte offset of the record, or of its member.
    pub(crate) offset: u64,
    /// Byte offset in the decompressed member, if the record is not its first.
    pub(crate) within: Option<u64>,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "byte {}", self.offset)?;
        self.within.map_or(Ok(()), |within| write!(f, ", decompressed byte {within}"))
    }
}

/// A record that cannot be used.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct DamagedRecord {
    pub(crate) place: Place,
    pub(crate) code: &'static str,
    pub(crate) detail: String,
}

#[derive(Debug)]
pub(crate) enum Item {
    Record(Record),
    Damaged(DamagedRecord),
}

/// Why a record could not be read.
pub(super) enum RecordError {
    /// The file cannot be read.
    Io(io::Error),
    /// Its compression is damaged.
    Compression(String),
    Damage(&'static str, String),
}

impl From<io::Error> for RecordError {
    fn from(error: io::Error) -> Self {
        use io::ErrorKind::{InvalidData, InvalidInput, UnexpectedEof};
        match error.kind() {
            UnexpectedEof => Self::Damage("truncated", "the file ends within the record".into()),
            InvalidData | InvalidInput => Self::Compression(error.to_string()),
            _ => Self::Io(error),
        }
    }
}

/// A damaged record as an item.
pub(super) fn damaged(place: Place, code: &'static str, detail: String) -> Option<Item> {
    Some(Item::Damaged(DamagedRecord { place, code, detail }))
}
