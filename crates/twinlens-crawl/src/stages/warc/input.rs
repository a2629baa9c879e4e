//! A buffered file in which a reader can look ahead and go back cheaply.

use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};

/// Bytes that may always be read again.
const MIN_ALLOWANCE: u64 = 32 << 20;
/// Bytes that may be read again for each byte of progress.
const PER_BYTE: u64 = 4;

/// Bounds what is read again after damage: records may be nested in damaged ones so that each is
/// read to the end of the file.
#[derive(Debug, Default)]
pub(super) struct Allowance {
    used: u64,
}

impl Allowance {
    /// Charges the bytes of a failed attempt that began at byte `start` of the file. Returns
    /// whether they may be read again.
    pub(super) fn charge(&mut self, start: u64, bytes: u64) -> bool {
        self.used = self.used.saturating_add(bytes);
        self.used <= MIN_ALLOWANCE.saturating_add(start.saturating_mul(PER_BYTE))
    }
}

#[derive(Debug)]
pub(super) struct Input<F> {
    buffered: BufReader<F>,
    /// Length of the file.
    length: u64,
}

impl<F: Read + Seek> Input<F> {
    /// A file, read with a buffer of `capacity` bytes.
    pub(super) fn new(mut file: F, capacity: usize) -> io::Result<Self> {
        let length = file.seek(SeekFrom::End(0))?;
        file.seek(SeekFrom::Start(0))?;
        Ok(Self { buffered: BufReader::with_capacity(capacity, file), length })
    }

    pub(super) fn length(&self) -> u64 {
        self.length
    }

    pub(super) fn position(&mut self) -> io::Result<u64> {
        self.buffered.stream_position()
    }

    /// Goes to a position; what is buffered is kept if the position is within it.
    pub(super) fn go_to(&mut self, position: u64) -> io::Result<()> {
        let here = self.position()?;
        match i64::try_from(i128::from(position) - i128::from(here)) {
            Ok(distance) => self.buffered.seek_relative(distance),
            Err(_) => self.buffered.seek(SeekFrom::Start(position)).map(|_| ()),
        }
    }

    /// The next bytes, at most `count`, without consuming them.
    pub(super) fn peek(&mut self, count: usize) -> io::Result<Vec<u8>> {
        let position = self.position()?;
        self.peek_at(position, count)
    }

    /// The bytes at a position, at most `count`, without going there. Few bytes are read, however
    /// large the buffer is.
    pub(super) fn peek_at(&mut self, position: u64, count: usize) -> io::Result<Vec<u8>> {
        let here = self.position()?;
        let buffered = self.buffered.buffer();
        let from = position.checked_sub(here).and_then(|from| usize::try_from(from).ok());
        if let Some(bytes) = from.and_then(|from| buffered.get(from..from.checked_add(count)?)) {
            return Ok(bytes.to_vec());
        }
        let file = self.buffered.get_mut();
        let end_of_buffer = file.stream_position()?;
        file.seek(SeekFrom::Start(position))?;
        let mut bytes = Vec::new();
        file.take(count as u64).read_to_end(&mut bytes)?;
        file.seek(SeekFrom::Start(end_of_buffer))?;
        Ok(bytes)
    }

    /// Goes to the next `pattern`, `skip` bytes into it. Returns `false` at the end of the file.
    pub(super) fn find(&mut self, pattern: &[u8], skip: u64) -> io::Result<bool> {
        // The end of the last buffer, as a pattern may straddle two.
        let mut tail: Vec<u8> = Vec::new();
        loop {
            let position = self.position()?;
            let buffer = self.buffered.fill_buf()?;
            if buffer.is_empty() {
                return Ok(false);
            }
            let (before, read) = (tail.len(), buffer.len());
            // Only the joint of the two buffers is copied.
            tail.extend_from_slice(&buffer[..read.min(pattern.len() - 1)]);
            let found = match memchr::memmem::find(&tail, pattern) {
                Some(at) => Some(position + at as u64 - before as u64),
                None => memchr::memmem::find(buffer, pattern).map(|at| position + at as u64),
            };
            if let Some(found) = found {
                self.go_to(found + skip)?;
                return Ok(true);
            }
            let kept = read.min(pattern.len() - 1);
            tail = if kept == read && read < pattern.len() - 1 {
                let from = tail.len().saturating_sub(pattern.len() - 1);
                tail.split_off(from)
            } else {
                buffer[read - kept..].to_vec()
            };
            self.buffered.consume(read);
        }
    }
}

impl<F: Read + Seek> Read for Input<F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.buffered.read(buffer)
    }
}

impl<F: Read + Seek> BufRead for Input<F> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.buffered.fill_buf()
    }

    fn consume(&mut self, count: usize) {
        self.buffered.consume(count);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn patterns_are_found_across_buffers(
            text in "[ab]{0,60}",
            pattern in "[ab]{1,5}",
            capacity in 1usize..12,
            from in 0usize..60,
        ) {
            let from = from.min(text.len());
            let mut input = Input::new(Cursor::new(text.as_bytes()), capacity).unwrap();
            input.go_to(from as u64).unwrap();
            let expected = text[from..].find(&pattern).map(|at| (from + at) as u64);
            let found = input.find(pattern.as_bytes(), 0).unwrap().then(|| input.position().unwrap());
            prop_assert_eq!(found, expected);
        }

        #[test]
        fn looking_ahead_changes_nothing(
            bytes in proptest::collection::vec(any::<u8>(), 0..60),
            capacity in 1usize..12,
            at in 0u64..80,
            count in 0usize..20,
        ) {
            let mut input = Input::new(Cursor::new(&bytes), capacity).unwrap();
            let mut begin = [0; 3];
            let read = input.read(&mut begin).unwrap();
            let expected: Vec<u8> = bytes.iter().skip(at as usize).take(count).copied().collect();
            prop_assert_eq!(input.peek_at(at, count).unwrap(), expected);
            let mut rest = Vec::new();
            input.read_to_end(&mut rest).unwrap();
            prop_assert_eq!([&begin[..read], &rest[..]].concat(), bytes);
        }
    }
}
