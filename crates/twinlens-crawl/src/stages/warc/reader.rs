//! Records of a WARC file, compressed (a gzip member a record, as Common Crawl writes them) or
//! plain.
//!
//! A record is given out only when what follows it is sound: the member's checksum, or the line
//! ends after it. Where that fails, the record is damaged: the reader goes back to where it began
//! and on to the next beginning, so that damage in one record loses that record alone. Nothing is
//! allocated by the say-so of a header.

use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};

use flate2::bufread::GzDecoder;

use super::record::{self, Header};

/// The most bytes of a record that is not kept that are read to get past it; beyond, the next
/// beginning is searched for.
const MAX_SKIP: u64 = 1 << 30;
/// What a gzip member begins with: the magic, and "deflate".
const GZIP: [u8; 3] = [0x1f, 0x8b, 8];

/// One record.
#[derive(Debug)]
pub(super) struct Record {
    /// Where it begins in the file, in bytes: of a compressed one, its member.
    pub(super) offset: u64,
    pub(super) header: Header,
    pub(super) block: Vec<u8>,
}

/// A record that cannot be used.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Damage {
    /// Where it begins in the file, in bytes.
    pub(super) offset: u64,
    pub(super) code: &'static str,
    pub(super) detail: String,
}

#[derive(Debug)]
pub(super) enum Item {
    Record(Record),
    Damaged(Damage),
}

/// Why a record could not be read.
enum Fault {
    /// The file cannot be read: not the record's fault.
    Io(io::Error),
    Damage(&'static str, String),
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        use io::ErrorKind::{InvalidData, InvalidInput, UnexpectedEof};
        match error.kind() {
            UnexpectedEof => Self::Damage("truncated", "the file ends within the record".into()),
            InvalidData | InvalidInput => Self::Damage("damaged_gzip", error.to_string()),
            _ => Self::Io(error),
        }
    }
}

/// Where the reader stands.
#[derive(Debug)]
enum State<R> {
    /// Before a member.
    Between(R),
    /// Within a member that begins at `start`.
    Member { start: u64, member: Box<BufReader<GzDecoder<R>>> },
    /// Before a record of a file that is not compressed.
    Plain(R),
}

/// The records of a file, in order.
#[derive(Debug)]
pub(super) struct Records<R> {
    /// `None` at the end.
    state: Option<State<R>>,
    /// The longest block that is kept, in bytes.
    max_block: u64,
    /// Which records are kept; the others are read past.
    wanted: fn(&Header) -> bool,
}

impl<R: BufRead + Seek> Records<R> {
    /// Reads from the beginning. A file is taken as compressed when it begins so; one that begins
    /// like neither, by its name.
    pub(super) fn new(
        mut input: R,
        named_gz: bool,
        max_block: u64,
        wanted: fn(&Header) -> bool,
    ) -> io::Result<Self> {
        let start = peek(&mut input, 5)?;
        let plain = start == b"WARC/" || !(named_gz || start.starts_with(&GZIP[..2]));
        let state = if plain { State::Plain(input) } else { State::Between(input) };
        Ok(Self { state: Some(state), max_block, wanted })
    }

    /// The next record that is wanted, or a damaged one.
    ///
    /// # Errors
    /// When the file itself cannot be read.
    pub(super) fn next(&mut self) -> io::Result<Option<Item>> {
        while let Some(state) = self.state.take() {
            let found = match state {
                State::Between(input) => self.open_member(input)?,
                State::Member { start, member } => self.in_member(start, member)?,
                State::Plain(input) => self.plain(input)?,
            };
            if found.is_some() {
                return Ok(found);
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
        self.next_member(input, start)?;
        let detail = "the bytes are no gzip member".to_string();
        Ok(Some(Item::Damaged(Damage { offset: start, code: "damaged_gzip", detail })))
    }

    fn in_member(
        &mut self,
        start: u64,
        mut member: Box<BufReader<GzDecoder<R>>>,
    ) -> io::Result<Option<Item>> {
        let read = self.record(&mut member, start).and_then(|(item, _)| {
            // Reading to the member's end is what checks its checksum.
            let next = member.fill_buf()?;
            match next.len().min(5) {
                0 => Ok((item, true)),
                length if next[..length] == b"WARC/"[..length] => Ok((item, false)),
                _ => Err(Fault::Damage("damaged_gzip", "what follows the record is no record".into())),
            }
        });
        match read {
            Ok((item, ended)) => {
                self.state = Some(match ended {
                    true => State::Between(member.into_inner().into_inner()),
                    false => State::Member { start, member },
                });
                Ok(item)
            }
            Err(Fault::Io(error)) => Err(error),
            Err(Fault::Damage(code, detail)) => {
                // What was read of the next members, if the damage hid the end of this one, is read
                // again.
                self.next_member(member.into_inner().into_inner(), start)?;
                Ok(Some(Item::Damaged(Damage { offset: start, code, detail })))
            }
        }
    }

    fn plain(&mut self, mut input: R) -> io::Result<Option<Item>> {
        let start = input.stream_position()?;
        if peek(&mut input, 1)?.is_empty() {
            return Ok(None);
        }
        // A record ends with two line ends (section 4); where a writer left them out, the next one
        // tells.
        let read = self.record(&mut input, start).and_then(|(item, line_ends)| match peek(&mut input, 5)? {
            next if line_ends >= 4 || next.is_empty() || next == b"WARC/" => Ok(item),
            _ => Err(Fault::Damage("bad_record", "it does not end where its length says so".into())),
        });
        let item = match read {
            Ok(item) => item,
            Err(Fault::Io(error)) => return Err(error),
            Err(Fault::Damage(code, detail)) => {
                input.seek(SeekFrom::Start(start + 1))?;
                seek_to(&mut input, b"\nWARC/1.", 1)?;
                Some(Item::Damaged(Damage { offset: start, code, detail }))
            }
        };
        self.state = Some(State::Plain(input));
        Ok(item)
    }

    /// Reads one record and the line ends after it, whose bytes are counted. `None` for one that is
    /// not wanted.
    fn record(&self, input: &mut impl BufRead, offset: u64) -> Result<(Option<Item>, usize), Fault> {
        let header = record::header(input)?.map_err(|why| Fault::Damage("bad_record", why))?;
        let length = header.length;
        let wanted = (self.wanted)(&header);
        let mut block = Vec::new();
        if wanted && length <= self.max_block {
            input.by_ref().take(length).read_to_end(&mut block)?;
            if (block.len() as u64) < length {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
        } else if length > MAX_SKIP {
            return Err(Fault::Damage("record_too_long", format!("{length} bytes")));
        } else if io::copy(&mut input.by_ref().take(length), &mut io::sink())? < length {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        let mut line_ends = 0;
        while let Some(b'\r' | b'\n') = input.fill_buf()?.first() {
            input.consume(1);
            line_ends += 1;
        }
        let item = match wanted {
            false => None,
            true if length > self.max_block => {
                let detail = format!("{length} bytes are more than the limit of {}", self.max_block);
                Some(Item::Damaged(Damage { offset, code: "record_too_long", detail }))
            }
            true => Some(Item::Record(Record { offset, header, block })),
        };
        Ok((item, line_ends))
    }

    /// Goes to the first member after `start` that holds a record.
    fn next_member(&mut self, mut input: R, start: u64) -> io::Result<()> {
        let mut from = start + 1;
        loop {
            input.seek(SeekFrom::Start(from))?;
            if !seek_to(&mut input, &GZIP, 0)? {
                return Ok(());
            }
            let found = input.stream_position()?;
            // Compressed bytes may look like a beginning: what they decompress to tells.
            let mut begins = [0; 5];
            let holds_record =
                GzDecoder::new(&mut input).read_exact(&mut begins).is_ok() && &begins == b"WARC/";
            input.seek(SeekFrom::Start(found))?;
            if holds_record {
                self.state = Some(State::Between(input));
                return Ok(());
            }
            from = found + 1;
        }
    }
}

/// The next bytes, at most `count`, without consuming them.
fn peek<R: BufRead + Seek>(input: &mut R, count: usize) -> io::Result<Vec<u8>> {
    // A buffer may end within them: then they are read, and gone back over.
    let buffered = input.fill_buf()?;
    if buffered.len() >= count {
        return Ok(buffered[..count].to_vec());
    }
    let mut bytes = Vec::new();
    input.by_ref().take(count as u64).read_to_end(&mut bytes)?;
    input.seek(SeekFrom::Current(-(bytes.len() as i64)))?;
    Ok(bytes)
}

/// Goes to the next place where `pattern` stands, `skip` bytes into it. Returns whether there is
/// one; if not, it is at the end.
fn seek_to<R: BufRead + Seek>(input: &mut R, pattern: &[u8], skip: u64) -> io::Result<bool> {
    // The end of the last buffer: a pattern may stand across two.
    let mut tail: Vec<u8> = Vec::new();
    loop {
        let buffer = input.fill_buf()?;
        if buffer.is_empty() {
            return Ok(false);
        }
        let (before, read) = (tail.len(), buffer.len());
        tail.extend_from_slice(buffer);
        if let Some(at) = memchr::memmem::find(&tail, pattern) {
            // Where the pattern began in an earlier buffer, this goes back.
            input.seek(SeekFrom::Current(at as i64 - before as i64 + skip as i64))?;
            return Ok(true);
        }
        input.consume(read);
        tail.drain(..tail.len().saturating_sub(pattern.len() - 1));
    }
}

#[cfg(test)]
mod tests;
