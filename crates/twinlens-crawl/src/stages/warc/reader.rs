//! Reads the records of a WARC file, plain or compressed (one gzip member per record, as Common
//! Crawl writes them).
//!
//! A record is only returned if what follows it is valid: the checksum of the member, or the line
//! ends. Otherwise the record is damaged: the reader searches for the next record from the start of
//! this one, so that damage in one record does not lose others. Lengths in headers are not trusted
//! for allocation.

use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};

use flate2::bufread::GzDecoder;

use super::record::{self, Header};

/// Longest unwanted record that is read past, in bytes; beyond, the next record is searched for.
const MAX_SKIP: u64 = 1 << 30;
/// The first bytes of a gzip member: magic number and "deflate".
const GZIP: [u8; 3] = [0x1f, 0x8b, 8];

#[derive(Debug)]
pub(super) struct Record {
    /// Byte offset in the file of the record, or of its gzip member.
    pub(super) offset: u64,
    pub(super) header: Header,
    pub(super) block: Vec<u8>,
}

/// A record that cannot be used.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct DamagedRecord {
    /// Byte offset in the file.
    pub(super) offset: u64,
    pub(super) code: &'static str,
    pub(super) detail: String,
}

#[derive(Debug)]
pub(super) enum Item {
    Record(Record),
    Damaged(DamagedRecord),
}

/// Why a record could not be read.
enum RecordError {
    /// The file cannot be read.
    Io(io::Error),
    Damage(&'static str, String),
}

impl From<io::Error> for RecordError {
    fn from(error: io::Error) -> Self {
        use io::ErrorKind::{InvalidData, InvalidInput, UnexpectedEof};
        match error.kind() {
            UnexpectedEof => Self::Damage("truncated", "the file ends within the record".into()),
            InvalidData | InvalidInput => Self::Damage("damaged_gzip", error.to_string()),
            _ => Self::Io(error),
        }
    }
}

#[derive(Debug)]
enum State<R> {
    /// Before a member.
    Between(R),
    /// Within the member at byte `start`.
    Member { start: u64, member: Box<BufReader<GzDecoder<R>>> },
    /// Before a record of an uncompressed file.
    Plain(R),
}

/// The records of a file, in order.
#[derive(Debug)]
pub(super) struct Records<R> {
    /// `None` at the end.
    state: Option<State<R>>,
    /// Longest block, in bytes.
    max_block: u64,
    /// Which records to return; others are skipped.
    is_wanted: fn(&Header) -> bool,
}

impl<R: BufRead + Seek> Records<R> {
    /// The first bytes tell whether the file is compressed, or else its name.
    pub(super) fn new(
        mut input: R,
        named_gz: bool,
        max_block: u64,
        is_wanted: fn(&Header) -> bool,
    ) -> io::Result<Self> {
        let start = peek(&mut input, 5)?;
        let is_plain = start == b"WARC/" || !(named_gz || start.starts_with(&GZIP[..2]));
        let state = if is_plain { State::Plain(input) } else { State::Between(input) };
        Ok(Self { state: Some(state), max_block, is_wanted })
    }

    /// The next record that is wanted or damaged.
    ///
    /// # Errors
    /// When the file itself cannot be read.
    pub(super) fn next(&mut self) -> io::Result<Option<Item>> {
        while let Some(state) = self.state.take() {
            let item = match state {
                State::Between(input) => self.open_member(input)?,
                State::Member { start, member } => self.next_in_member(start, member)?,
                State::Plain(input) => self.next_plain(input)?,
            };
            if item.is_some() {
                return Ok(item);
            }
        }
        Ok(None)
    }

    fn open_member(&mut self, mut input: R) -> io::Result<Option<Item>> {
        let start = input.stream_position()?;
        let magic = peek(&mut input, GZIP.len())?;
        if magic.is_empty() {
            return Ok(None);
        }
        if magic == GZIP {
            self.state =
                Some(State::Member { start, member: Box::new(BufReader::new(GzDecoder::new(input))) });
            return Ok(None);
        }
        self.skip_to_member(input, start)?;
        let detail = "not a gzip member".to_string();
        Ok(Some(Item::Damaged(DamagedRecord { offset: start, code: "damaged_gzip", detail })))
    }

    fn next_in_member(
        &mut self,
        start: u64,
        mut member: Box<BufReader<GzDecoder<R>>>,
    ) -> io::Result<Option<Item>> {
        let read = self.read_record(&mut member, start).and_then(|(item, _)| {
            // Reading to the end of the member verifies its checksum.
            let next = member.fill_buf()?;
            match next.len().min(5) {
                0 => Ok((item, true)),
                length if next[..length] == b"WARC/"[..length] => Ok((item, false)),
                _ => Err(RecordError::Damage("damaged_gzip", "the record is not followed by another".into())),
            }
        });
        match read {
            Ok((item, ended)) => {
                self.state = Some(if ended {
                    State::Between(member.into_inner().into_inner())
                } else {
                    State::Member { start, member }
                });
                Ok(item)
            }
            Err(RecordError::Io(error)) => Err(error),
            Err(RecordError::Damage(code, detail)) => {
                // If the damage hid the end of this member, parts of the next ones were consumed.
                self.skip_to_member(member.into_inner().into_inner(), start)?;
                Ok(Some(Item::Damaged(DamagedRecord { offset: start, code, detail })))
            }
        }
    }

    fn next_plain(&mut self, mut input: R) -> io::Result<Option<Item>> {
        let start = input.stream_position()?;
        if peek(&mut input, 1)?.is_empty() {
            return Ok(None);
        }
        // A record ends with two line ends (section 4), or with the next record if a writer left
        // them out.
        let read =
            self.read_record(&mut input, start).and_then(|(item, line_ends)| match peek(&mut input, 5)? {
                next if line_ends >= 4 || next.is_empty() || next == b"WARC/" => Ok(item),
                _ => {
                    Err(RecordError::Damage("bad_record", "it does not end where its length says so".into()))
                }
            });
        let item = match read {
            Ok(item) => item,
            Err(RecordError::Io(error)) => return Err(error),
            Err(RecordError::Damage(code, detail)) => {
                input.seek(SeekFrom::Start(start + 1))?;
                seek_to(&mut input, b"\nWARC/1.", 1)?;
                Some(Item::Damaged(DamagedRecord { offset: start, code, detail }))
            }
        };
        self.state = Some(State::Plain(input));
        Ok(item)
    }

    /// Reads one record and the line ends after it, which are counted; `None` if it is not wanted.
    fn read_record(
        &self,
        input: &mut impl BufRead,
        offset: u64,
    ) -> Result<(Option<Item>, usize), RecordError> {
        let header = record::header(input)?.map_err(|why| RecordError::Damage("bad_record", why))?;
        let length = header.length;
        let is_wanted = (self.is_wanted)(&header);
        let mut block = Vec::new();
        if is_wanted && length <= self.max_block {
            input.by_ref().take(length).read_to_end(&mut block)?;
            if (block.len() as u64) < length {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
        } else if length > MAX_SKIP {
            return Err(RecordError::Damage("record_too_long", format!("{length} bytes")));
        } else if io::copy(&mut input.by_ref().take(length), &mut io::sink())? < length {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        let mut line_ends = 0;
        while let Some(b'\r' | b'\n') = input.fill_buf()?.first() {
            input.consume(1);
            line_ends += 1;
        }
        let item = if !is_wanted {
            None
        } else if length > self.max_block {
            let detail = format!("{length} bytes are more than the limit of {}", self.max_block);
            Some(Item::Damaged(DamagedRecord { offset, code: "record_too_long", detail }))
        } else {
            Some(Item::Record(Record { offset, header, block }))
        };
        Ok((item, line_ends))
    }

    /// Skips to the first member after `start` that holds a record.
    fn skip_to_member(&mut self, mut input: R, start: u64) -> io::Result<()> {
        let mut from = start + 1;
        loop {
            input.seek(SeekFrom::Start(from))?;
            if !seek_to(&mut input, &GZIP, 0)? {
                return Ok(());
            }
            let item = input.stream_position()?;
            // Compressed bytes may look like a member: check what they decompress to.
            let mut begins = [0; 5];
            let holds_record =
                GzDecoder::new(&mut input).read_exact(&mut begins).is_ok() && &begins == b"WARC/";
            input.seek(SeekFrom::Start(item))?;
            if holds_record {
                self.state = Some(State::Between(input));
                return Ok(());
            }
            from = item + 1;
        }
    }
}

/// The next bytes, at most `count`, without consuming them.
fn peek<R: BufRead + Seek>(input: &mut R, count: usize) -> io::Result<Vec<u8>> {
    // They may straddle the end of the buffer: read them and seek back.
    let buffered = input.fill_buf()?;
    if buffered.len() >= count {
        return Ok(buffered[..count].to_vec());
    }
    let mut bytes = Vec::new();
    input.by_ref().take(count as u64).read_to_end(&mut bytes)?;
    input.seek(SeekFrom::Current(-(bytes.len() as i64)))?;
    Ok(bytes)
}

/// Seeks to the next `pattern`, `skip` bytes into it. Returns `false` at the end of the file.
fn seek_to<R: BufRead + Seek>(input: &mut R, pattern: &[u8], skip: u64) -> io::Result<bool> {
    // The end of the last buffer, as a pattern may straddle two.
    let mut tail: Vec<u8> = Vec::new();
    loop {
        let buffer = input.fill_buf()?;
        if buffer.is_empty() {
            return Ok(false);
        }
        let (before, read) = (tail.len(), buffer.len());
        tail.extend_from_slice(buffer);
        if let Some(at) = memchr::memmem::find(&tail, pattern) {
            // Seeks back if the pattern began in an earlier buffer.
            input.seek(SeekFrom::Current(at as i64 - before as i64 + skip as i64))?;
            return Ok(true);
        }
        input.consume(read);
        tail.drain(..tail.len().saturating_sub(pattern.len() - 1));
    }
}

#[cfg(test)]
mod tests;
