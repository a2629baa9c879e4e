//! What stands where in a tar file (POSIX ustar, with the long names of pax and GNU): the heads
//! alone are read.
//!
//! A head that is damaged is found by its checksum, and the next sound one is searched for: its
//! member is lost, and those after it are not.

use std::io::{self, BufRead, Seek, SeekFrom};

/// The unit of a tar file, in bytes.
pub const BLOCK: u64 = 512;
/// Longest head of a long name, in bytes.
const MAX_NAME: u64 = 64 << 10;

/// A head is damaged, or says what cannot be.
pub const DAMAGED: &str = "damaged_archive";
/// The file ends before it should.
pub const TRUNCATED: &str = "truncated_archive";

/// What stands at one place of a tar file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// A regular file.
    Member(Member),
    /// Something that cannot be read.
    Damage(Damage),
}

/// A regular file of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its whole name, without `./` before it.
    pub name: String,
    /// Where its bytes begin.
    pub data: u64,
    /// How many bytes its head tells.
    pub size: u64,
    /// Whether the archive holds all of them.
    pub whole: bool,
}

/// A place that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// The byte.
    pub at: u64,
    /// [`DAMAGED`] or [`TRUNCATED`].
    pub code: &'static str,
    /// The particulars.
    pub why: String,
}

/// The members of an archive of `length` bytes, in order, and what is damaged between them. Memory
/// holds one head.
#[derive(Debug)]
pub struct Members<R> {
    input: R,
    length: u64,
    at: u64,
    /// The last block was one of zeros: the end mark.
    ended: bool,
    done: bool,
    long_name: Option<String>,
}

impl<R: BufRead + Seek> Members<R> {
    /// Of an archive of `length` bytes.
    pub fn new(input: R, length: u64) -> Self {
        Self { input, length, at: 0, ended: false, done: false, long_name: None }
    }

    /// The archive, to read what a member holds.
    pub fn into_inner(self) -> R {
        self.input
    }

    fn damage(at: u64, code: &'static str, why: &str) -> Found {
        Found::Damage(Damage { at, code, why: why.into() })
    }

    fn find(&mut self) -> io::Result<Option<Found>> {
        while self.at < self.length {
            self.input.seek(SeekFrom::Start(self.at))?;
            let mut block = [0; BLOCK as usize];
            if self.length - self.at < BLOCK {
                self.done = true;
                return Ok(Some(Self::damage(self.at, TRUNCATED, "the file ends within a head")));
            }
            self.input.read_exact(&mut block)?;
            if block == [0; BLOCK as usize] {
                (self.ended, self.at) = (true, self.at + BLOCK);
                continue;
            }
            self.ended = false;
            let Some(head) = Head::of(&block) else {
                let at = self.at;
                self.at = next_head(&mut self.input, at + BLOCK, self.length)?;
                self.long_name = None;
                return Ok(Some(Self::damage(at, DAMAGED, "the head of a member is damaged")));
            };
            let data = self.at + BLOCK;
            let end = data.saturating_add(head.size);
            self.at = end.checked_next_multiple_of(BLOCK).unwrap_or(u64::MAX);
            match head.kind {
                b'x' | b'L' if head.size <= MAX_NAME && end <= self.length => {
                    let mut text = vec![0; head.size as usize];
                    self.input.read_exact(&mut text)?;
                    let name = if head.kind == b'x' { pax_path(&text) } else { Some(c_string(&text)) };
                    self.long_name = name.or(self.long_name.take());
                }
                b'0' | 0 | b'7' => {
                    let name = self.long_name.take().unwrap_or(head.name);
                    let name = name.trim_start_matches("./").to_string();
                    // What would reach beyond all numbers is not whole either.
                    let whole = end <= self.length && end < u64::MAX;
                    return Ok(Some(Found::Member(Member { name, data, size: head.size, whole })));
                }
                _ => {}
            }
        }
        self.done = true;
        // A writer that was killed: what was not written is not told.
        let cut = || Self::damage(self.length, TRUNCATED, "the file ends without an end mark");
        Ok((!self.ended).then(cut))
    }
}

impl<R: BufRead + Seek> Iterator for Members<R> {
    type Item = io::Result<Found>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let found = self.find();
        self.done |= found.is_err();
        found.transpose()
    }
}

/// The head of a member.
struct Head {
    name: String,
    size: u64,
    kind: u8,
}

impl Head {
    /// `None` when the checksum is wrong.
    fn of(block: &[u8; BLOCK as usize]) -> Option<Self> {
        let sum = |signed: bool| {
            block.iter().enumerate().fold(0i64, |sum, (at, byte)| {
                // The checksum itself counts as spaces.
                let byte = if (148..156).contains(&at) { b' ' } else { *byte };
                sum + if signed { i64::from(byte as i8) } else { i64::from(byte) }
            })
        };
        let told = i64::try_from(number(&block[148..156])?).ok()?;
        if told != sum(false) && told != sum(true) {
            return None;
        }
        let mut name = c_string(&block[..100]);
        let prefix = c_string(&block[345..500]);
        // GNU keeps times where ustar has the prefix.
        if &block[257..263] == b"ustar\0" && !prefix.is_empty() {
            name = format!("{prefix}/{name}");
        }
        Some(Self { name, size: number(&block[124..136])?, kind: block[156] })
    }
}

/// A number in octal; or, where the first bit is set, in base 256.
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

/// A text up to its zero byte.
fn c_string(field: &[u8]) -> String {
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    String::from_utf8_lossy(&field[..end]).into_owned()
}

/// The `path` of a pax head: records of `length key=value` (POSIX.1-2017, pax).
fn pax_path(mut text: &[u8]) -> Option<String> {
    loop {
        let space = text.iter().position(|byte| *byte == b' ')?;
        let length: usize = std::str::from_utf8(&text[..space]).ok()?.parse().ok()?;
        let record = text.get(space + 1..length)?;
        if let Some(path) = record.strip_prefix(b"path=") {
            return Some(String::from_utf8_lossy(path).trim_end_matches('\n').to_string());
        }
        text = &text[length..];
    }
}

/// Where the next sound head stands, from `at` on.
fn next_head<R: BufRead + Seek>(input: &mut R, mut at: u64, length: u64) -> io::Result<u64> {
    input.seek(SeekFrom::Start(at))?;
    let mut block = [0; BLOCK as usize];
    while at + BLOCK <= length {
        input.read_exact(&mut block)?;
        // Old heads have no magic; without one, an image's bytes would be taken for a head once in
        // a while.
        if &block[257..262] == b"ustar" && Head::of(&block).is_some() {
            return Ok(at);
        }
        at += BLOCK;
    }
    // Not the end: that the file has no end mark is told.
    Ok(length)
}
