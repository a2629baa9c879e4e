//! A window over a stream of bytes: what is read but not yet used.

use std::io::{self, Error, ErrorKind, Read};

/// Bytes that are read at least, if there are so many.
const CHUNK: usize = 64 << 10;

pub(super) struct Window<R> {
    input: R,
    bytes: Vec<u8>,
    /// Where the unused bytes begin.
    start: usize,
    /// Position of `start` in the stream.
    offset: u64,
    is_end: bool,
    /// An error behind the bytes that were read.
    error: Option<Error>,
}

impl<R: Read> Window<R> {
    /// `offset` is the position of `input` in the stream.
    pub(super) fn new(input: R, offset: u64) -> Self {
        Self { input, bytes: Vec::new(), start: 0, offset, is_end: false, error: None }
    }

    /// The unused bytes.
    pub(super) fn rest(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    /// Position of the unused bytes in the stream.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// Whether the unused bytes are the last ones.
    pub(super) fn is_end(&self) -> bool {
        self.is_end
    }

    /// Marks bytes as used.
    pub(super) fn advance(&mut self, bytes: usize) {
        self.start += bytes;
        self.offset += bytes as u64;
    }

    /// Reads more, at least as many bytes as there are: who scans the unused bytes again after each
    /// call does linear work.
    ///
    /// # Errors
    /// Those of the input, after everything before them was used.
    pub(super) fn fill(&mut self) -> io::Result<()> {
        if let Some(error) = self.error.take() {
            return Err(error);
        }
        self.bytes.drain(..self.start);
        self.start = 0;
        let unused = self.bytes.len();
        let target = unused + unused.max(CHUNK);
        self.bytes.resize(target, 0);
        let mut read = unused;
        while read < target {
            match self.input.read(&mut self.bytes[read..]) {
                Ok(0) => {
                    self.is_end = true;
                    break;
                }
                Ok(more) => read += more,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    self.error = Some(error);
                    break;
                }
            }
        }
        self.bytes.truncate(read);
        match self.error.take_if(|_| read == unused) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// Reads until there are unused bytes; false at the end.
    pub(super) fn has_more(&mut self) -> io::Result<bool> {
        while self.rest().is_empty() && !self.is_end {
            self.fill()?;
        }
        Ok(!self.rest().is_empty())
    }

    /// Marks everything up to the next line end as used, without keeping it.
    pub(super) fn skip_line(&mut self) -> io::Result<()> {
        while self.has_more()? {
            if let Some(end) = memchr::memchr(b'\n', self.rest()) {
                self.advance(end + 1);
                break;
            }
            self.advance(self.rest().len());
        }
        Ok(())
    }
}
