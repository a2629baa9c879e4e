//! Reads the records of a web archive: WARC or ARC, plain or compressed with gzip or zstd (one
//! member per record, as most archives are, or the whole file at once).
//!
//! A record is only returned if what follows it is valid: the end of its member, or another record.
//! Otherwise it is damaged, and the reader searches for the next record from the start of this one,
//! so that damage in one record does not lose others. What is read again is bounded
//! ([`Allowance`]), so that the work is linear in the length of the file. Lengths in headers are
//! not trusted for allocation.

mod codec;
mod compressed;
mod item;
mod member;
mod plain;

use std::io::{self, Read, Seek};

use self::codec::Codec;
pub(super) use self::item::{DamagedRecord, Item, Record};
use self::member::{Between, Member};
use super::input::{Allowance, Input};
use super::record::{Format, Header};

/// What to read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Selection {
    /// Longest block, in bytes.
    pub(super) max_block: u64,
    /// Which records to return; others are skipped.
    pub(super) is_wanted: fn(&Header) -> bool,
}

#[derive(Debug)]
enum State<F> {
    /// Before a member.
    Between(Between<F>),
    Member(Box<Member<F>>),
    /// Before a record of an uncompressed file.
    Plain(Input<F>, Format),
}

/// The records of a file, in order.
#[derive(Debug)]
pub(super) struct Records<F> {
    /// `None` at the end.
    state: Option<State<F>>,
    selection: Selection,
    allowance: Allowance,
    /// What comes before the next record.
    pending: Option<Item>,
    /// Records that could be read, wanted or not.
    intact: u64,
}

impl<F: Read + Seek> Records<F> {
    /// The first bytes tell how the file is compressed, or else its name does.
    pub(super) fn new(mut input: Input<F>, name: &str, selection: Selection) -> io::Result<Self> {
        let start = input.peek(16)?;
        let codec = match Format::of(&start) {
            Some(_) => None,
            None => Codec::of(&start).or_else(|| Codec::named(name)),
        };
        let state = match codec {
            Some(codec) => State::Between(Between::new(input, codec)),
            None => State::Plain(input, Format::of(&start).unwrap_or(Format::Warc)),
        };
        Ok(Self { state: Some(state), selection, allowance: Allowance::default(), pending: None, intact: 0 })
    }

    /// The number of records that could be read so far, wanted or not.
    pub(super) fn intact(&self) -> u64 {
        self.intact
    }

    /// The next record that is wanted or damaged.
    ///
    /// # Errors
    /// When the file itself cannot be read.
    pub(super) fn next(&mut self) -> io::Result<Option<Item>> {
        if let Some(item) = self.pending.take() {
            return Ok(Some(item));
        }
        while let Some(state) = self.state.take() {
            let item = match state {
                State::Between(between) => self.open_member(between)?,
                State::Member(member) => self.next_in_member(member)?,
                State::Plain(input, format) => self.next_plain(input, format)?,
            };
            if item.is_some() {
                return Ok(item);
            }
            if let Some(item) = self.pending.take() {
                return Ok(Some(item));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests;
