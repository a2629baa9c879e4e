//! Lists the members of a tar file (POSIX ustar, with the long names of pax and GNU) by reading
//! only the headers.
//!
//! A damaged header is detected by its checksum. The reader then searches for the next valid one,
//! so only the damaged member is lost.

use std::io::{self, BufRead, Seek, SeekFrom};

/// Size of a tar block, in bytes.
pub(crate) const BLOCK: u64 = 512;
/// Longest content of a long-name header, in bytes.
const MAX_NAME: u64 = 64 << 10;

/// Code: a header is damaged or contradictory.
pub const DAMAGED: &str = "damaged_archive";
/// Code: the file is cut off.
pub const TRUNCATED: &str = "truncated_archive";

/// What [`TarReader`] yields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum TarItem {
    /// A regular file.
    Member(Member),
    /// A member that is neither a regular file nor a directory: its name, and what it is.
    Other(String, &'static str),
    /// A range that cannot be read.
    Damage(Damage),
}

/// A regular file of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Member {
    /// Full name, without a leading `./`.
    pub(crate) name: String,
    /// Offset of its content in the file, in bytes.
    pub(crate) offset: u64,
    /// Length of its content by the header, in bytes.
    pub(crate) size: u64,
    /// Whether the archive holds the whole content.
    pub(crate) is_complete: bool,
}

/// A part of the archive that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Damage {
    /// Offset in the file, in bytes.
    pub(crate) offset: u64,
    /// [`DAMAGED`] or [`TRUNCATED`].
    pub(crate) code: &'static str,
    /// Details.
    pub(crate) detail: String,
}

/// Iterates over the members of an archive in file order, and the damage between them. Holds one
/// header in memory.
#[derive(Debug)]
pub(crate) struct TarReader<R> {
    input: R,
    length: u64,
    at: u64,
    /// The last block was all zeros: the end marker.
    ended: bool,
    done: bool,
    /// What extended headers say about the next member.
    extended: Extended,
}

/// Values of extended headers, which apply to the next member.
#[derive(Debug, Default)]
struct Extended {
    name: Option<String>,
    size: Option<u64>,
    is_sparse: bool,
}

impl<R: BufRead + Seek> TarReader<R> {
    /// Reads an archive of `length` bytes.
    pub(crate) fn new(input: R, length: u64) -> Self {
        Self { input, length, at: 0, ended: false, done: false, extended: Extended::default() }
    }

    fn damage(offset: u64, code: &'static str, detail: &str) -> TarItem {
        TarItem::Damage(Damage { offset, code, detail: detail.into() })
    }

    fn next_item(&mut self) -> io::Result<Option<TarItem>> {
        while self.at < self.length {
            self.input.seek(SeekFrom::Start(self.at))?;
            let mut block = [0; BLOCK as usize];
            if self.length - self.at < BLOCK {
                self.done = true;
                return Ok(Some(Self::damage(self.at, TRUNCATED, "the file ends within a header")));
            }
            self.input.read_exact(&mut block)?;
            if block == [0; BLOCK as usize] {
                (self.ended, self.at) = (true, self.at + BLOCK);
                continue;
            }
            self.ended = false;
            let Some(header) = Header::parse(&block) else {
                let at = self.at;
                self.at = find_header(&mut self.input, at + BLOCK, self.length)?;
                self.extended = Extended::default();
                return Ok(Some(Self::damage(at, DAMAGED, "the header of a member is damaged")));
            };
            if let Some(item) = self.item(header)? {
                return Ok(Some(item));
            }
        }
        self.done = true;
        // The writer was killed: nothing says which members are missing.
        let cut_off = || Self::damage(self.length, TRUNCATED, "the file ends without an end marker");
        Ok((!self.ended).then(cut_off))
    }

    /// What a header announces; `None` for headers about the next member, and for directories,
    /// which hold nothing. Continues after its content.
    fn item(&mut self, header: Header) -> io::Result<Option<TarItem>> {
        let (at, data) = (self.at, self.at + BLOCK);
        if matches!(header.kind, b'x' | b'L') {
            let end = data.saturating_add(header.size);
            self.at = end.checked_next_multiple_of(BLOCK).unwrap_or(u64::MAX);
            if header.size > MAX_NAME || end > self.length {
                return Ok(Some(Self::damage(at, DAMAGED, "the extended header of a member is too long")));
            }
            let mut text = vec![0; header.size as usize];
            self.input.read_exact(&mut text)?;
            if header.kind == b'x' {
                self.extended.read_pax(&text);
            } else {
                self.extended.name = Some(c_string(&text));
            }
            return Ok(None);
        }
        let extended = std::mem::take(&mut self.extended);
        let name = extended.name.unwrap_or(header.name).trim_start_matches("./").to_string();
        let size = extended.size.unwrap_or(header.size);
        let end = data.saturating_add(size);
        self.at = end.checked_next_multiple_of(BLOCK).unwrap_or(u64::MAX);
        let other = |what| Ok(Some(TarItem::Other(name.clone(), what)));
        match header.kind {
            // Directories (the oldest format marks them by their names), global headers, long names
            // of links, labels.
            b'5' | b'g' | b'K' | b'V' => Ok(None),
            b'0' | 0 | b'7' if size == 0 && name.ends_with('/') => Ok(None),
            b'0' | 0 | b'7' if extended.is_sparse => other("a sparse file"),
            b'0' | 0 | b'7' => {
                // A saturated end is out of range as well.
                let is_complete = end <= self.length && end < u64::MAX;
                Ok(Some(TarItem::Member(Member { name, offset: data, size, is_complete })))
            }
            b'1' | b'2' => other("a link"),
            b'3' | b'4' | b'6' => other("a device"),
            b'S' => other("a sparse file"),
            _ => other("a member of an unknown type"),
        }
    }
}

impl Extended {
    /// Reads a pax header: records of `length key=value` (POSIX.1-2017, pax).
    fn read_pax(&mut self, mut text: &[u8]) {
        while let Some(space) = text.iter().position(|byte| *byte == b' ') {
            let length = std::str::from_utf8(&text[..space]).ok().and_then(|length| length.parse().ok());
            let record = length.and_then(|length: usize| text.get(space + 1..length).zip(text.get(length..)));
            let Some((record, rest)) = record else { return };
            if let Some(path) = record.strip_prefix(b"path=") {
                self.name = Some(String::from_utf8_lossy(path).trim_end_matches('\n').to_string());
            } else if let Some(size) = record.strip_prefix(b"size=") {
                self.size = std::str::from_utf8(size).ok().and_then(|size| size.trim().parse().ok());
            } else if record.starts_with(b"GNU.sparse.") {
                self.is_sparse = true;
            }
            text = rest;
        }
    }
}

impl<R: BufRead + Seek> Iterator for TarReader<R> {
    type Item = io::Result<TarItem>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let item = self.next_item();
        self.done |= item.is_err();
        item.transpose()
    }
}

/// Whether a file starts like a tar archive: with the magic of POSIX and GNU, or with a header
/// whose checksum is right.
pub(crate) fn is_header(start: &[u8]) -> bool {
    let block = start.first_chunk::<{ BLOCK as usize }>();
    block.is_some_and(|block| {
        &block[257..262] == b"ustar"
            || (block.iter().any(|byte| *byte != 0) && Header::parse(block).is_some())
    })
}

struct Header {
    name: String,
    size: u64,
    kind: u8,
}

impl Header {
    /// `None` when the checksum is wrong.
    fn parse(block: &[u8; BLOCK as usize]) -> Option<Self> {
        let sum = |signed: bool| {
            block.iter().enumerate().fold(0i64, |sum, (at, byte)| {
                // The checksum field counts as spaces.
                let byte = if (148..156).contains(&at) { b' ' } else { *byte };
                sum + if signed { i64::from(byte as i8) } else { i64::from(byte) }
            })
        };
        let stored = i64::try_from(number(&block[148..156])?).ok()?;
        if stored != sum(false) && stored != sum(true) {
            return None;
        }
        let mut name = c_string(&block[..100]);
        let prefix = c_string(&block[345..500]);
        // GNU stores times where ustar has the prefix.
        if &block[257..263] == b"ustar\0" && !prefix.is_empty() {
            name = format!("{prefix}/{name}");
        }
        Some(Self { name, size: number(&block[124..136])?, kind: block[156] })
    }
}

/// Parses a number in octal or, if the first bit is set, in base 256.
fn number(field: &[u8]) -> Option<u64> {
    if field.first().is_some_and(|byte| byte & 0x80 != 0) {
        let (high, low) = field.split_at_checked(field.len().saturating_sub(8))?;
        let small = high
            .split_first()
            .is_some_and(|(first, rest)| *first == 0x80 && rest.iter().all(|byte| *byte == 0));
        return small.then(|| low.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)));
    }
    let text = std::str::from_utf8(field).ok()?.trim_matches(['\0', ' ']);
    if text.is_empty() { Some(0) } else { u64::from_str_radix(text, 8).ok() }
}

/// The text before the first zero byte.
fn c_string(field: &[u8]) -> String {
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    String::from_utf8_lossy(&field[..end]).into_owned()
}

/// Offset of the first valid header at or after `at`.
fn find_header<R: BufRead + Seek>(input: &mut R, mut at: u64, length: u64) -> io::Result<u64> {
    input.seek(SeekFrom::Start(at))?;
    let mut block = [0; BLOCK as usize];
    while at + BLOCK <= length {
        input.read_exact(&mut block)?;
        // Without the magic, which old headers lack, image bytes could pass for a header.
        if &block[257..262] == b"ustar" && Header::parse(&block).is_some() {
            return Ok(at);
        }
        at += BLOCK;
    }
    // The caller then reports the missing end marker.
    Ok(length)
}
