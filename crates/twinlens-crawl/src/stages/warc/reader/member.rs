//! Members of a compressed file (of gzip; frames of zstd), and what is between them.

use std::io::{self, BufRead, BufReader, Cursor, Read, Seek};

use super::super::input::Input;
use super::super::record::Format;
use super::codec::{Codec, Counted, Decoder, ZSTD};

/// Compressed bytes of which the beginning of a record must come for a member to be recognized.
const PROBE_GZIP: u64 = 1 << 10;
const PROBE_ZSTD: u64 = 256 << 10;
/// The first bytes of the frame with the dictionary of a `.warc.zst` file (IIPC, "Zstandard
/// compression for WARC").
const DICTIONARY: [u8; 4] = [0x5d, 0x2a, 0x4d, 0x18];
/// Longest dictionary, in bytes.
const MAX_DICTIONARY: u64 = 8 << 20;

/// Between two members.
#[derive(Debug)]
pub(super) struct Between<F> {
    pub(super) input: Input<F>,
    pub(super) codec: Codec,
    /// Of zstd; empty if there is none.
    pub(super) dictionary: Vec<u8>,
    /// What the members hold, once one was read.
    pub(super) format: Option<Format>,
}

impl<F: Read + Seek> Between<F> {
    pub(super) fn new(input: Input<F>, codec: Codec) -> Self {
        Self { input, codec, dictionary: Vec::new(), format: None }
    }

    /// Reads a skippable frame; it may hold a dictionary, which may be compressed.
    pub(super) fn read_skippable(&mut self) -> io::Result<bool> {
        let head = self.input.peek(8)?;
        let (Some(Codec::Zstd), [magic @ .., a, b, c, d]) = (Codec::of(&head), &head[..]) else {
            return Ok(false);
        };
        if *magic == ZSTD {
            return Ok(false);
        }
        let length = u64::from(u32::from_le_bytes([*a, *b, *c, *d]));
        let content = self.input.position()? + 8;
        if *magic == DICTIONARY && length <= MAX_DICTIONARY {
            let mut bytes = self.input.peek_at(content, length as usize)?;
            if bytes.starts_with(&ZSTD) {
                let mut plain = Vec::new();
                zstd::Decoder::with_buffer(&bytes[..])?.take(MAX_DICTIONARY).read_to_end(&mut plain)?;
                bytes = plain;
            }
            self.dictionary = bytes;
        }
        self.input.go_to((content + length).min(self.input.length()))?;
        Ok(true)
    }

    /// Whether a record begins in the member at the position. Compressed bytes may look like a
    /// member: what they decompress to decides. Also returns the bytes looked at.
    pub(super) fn holds_record(&mut self, position: u64) -> io::Result<(bool, u64)> {
        self.input.go_to(position)?;
        let limit = if self.codec == Codec::Gzip { PROBE_GZIP } else { PROBE_ZSTD };
        let probe = (&mut self.input).take(limit);
        let mut begin = [0; 16];
        let read = self
            .codec
            .decoder(probe, &self.dictionary)
            .and_then(|mut decoder| decoder.read_exact(&mut begin));
        let seen = self.input.position()? - position;
        self.input.go_to(position)?;
        let format = read.ok().and_then(|()| Format::of(&begin));
        Ok((format.is_some() && self.format.is_none_or(|known| Some(known) == format), seen))
    }
}

/// Within a member.
#[derive(Debug)]
pub(super) struct Member<F> {
    pub(super) start: u64,
    /// Decompressed bytes that come next, before those of the decoder.
    pub(super) pushed_back: Cursor<Vec<u8>>,
    pub(super) decoder: BufReader<Counted<Decoder<Input<F>>>>,
    pub(super) codec: Codec,
    pub(super) dictionary: Vec<u8>,
    pub(super) format: Format,
}

impl<F: Read + Seek> Member<F> {
    /// Bytes decompressed and consumed so far.
    pub(super) fn position(&self) -> u64 {
        let ahead = self.pushed_back.get_ref().len() as u64 - self.pushed_back.position();
        self.decoder.get_ref().bytes - self.decoder.buffer().len() as u64 - ahead
    }

    pub(super) fn reader(&mut self) -> impl BufRead + '_ {
        (&mut self.pushed_back).chain(&mut self.decoder)
    }

    pub(super) fn into_between(self) -> Between<F> {
        Between {
            input: self.decoder.into_inner().inner.into_inner(),
            codec: self.codec,
            dictionary: self.dictionary,
            format: Some(self.format),
        }
    }

    /// Goes to the next record after a damaged one. Returns `false` at the end of the member.
    pub(super) fn find_record(&mut self) -> io::Result<bool> {
        const BEGIN: &[u8] = b"\nWARC/1.";
        let mut matched = 0;
        loop {
            let mut reader = self.reader();
            let buffer = reader.fill_buf()?;
            if buffer.is_empty() {
                return Ok(false);
            }
            let (length, mut used) = (buffer.len(), 0);
            while used < length && matched < BEGIN.len() {
                // Only the first byte of the pattern is a line end.
                matched = if buffer[used] == BEGIN[matched] {
                    matched + 1
                } else {
                    usize::from(buffer[used] == b'\n')
                };
                used += 1;
            }
            reader.consume(used);
            drop(reader);
            if matched == BEGIN.len() {
                self.push_back(&BEGIN[1..]);
                return Ok(true);
            }
        }
    }

    /// Puts bytes before what comes next.
    pub(super) fn push_back(&mut self, bytes: &[u8]) {
        let rest = self.pushed_back.get_ref()[self.pushed_back.position() as usize..].to_vec();
        self.pushed_back = Cursor::new([bytes, &rest].concat());
    }
}
