//! The bits of entropy-coded JPEG data, and the codes in them (ITU-T T.81, annexes C and F).

use crate::error::ImageError;
use crate::sniff::Format;

/// The error of a damaged file.
pub(super) fn damaged(reason: impl Into<String>) -> ImageError {
    ImageError::DecodeFailed { format: Format::Jpeg, reason: reason.into() }
}

/// A table of codes as a file has it: how many there are of each length, and their symbols.
pub(super) struct CodeTable {
    counts: [u8; 16],
    symbols: Vec<u8>,
}

impl CodeTable {
    /// Reads the table at the start of `bytes`, and how many bytes it has.
    pub(super) fn read(bytes: &[u8]) -> Result<(Self, usize), ImageError> {
        let cut = || damaged("a table of codes is cut off");
        let counts: [u8; 16] = bytes.get(..16).and_then(|counts| counts.try_into().ok()).ok_or_else(cut)?;
        let length = counts.iter().map(|count| usize::from(*count)).sum::<usize>();
        let symbols = bytes.get(16..16 + length).ok_or_else(cut)?.to_vec();
        Ok((Self { counts, symbols }, 16 + length))
    }

    /// The symbol and the length of the code at the start of each 16 bits; length 0 where none is.
    pub(super) fn lookup(&self) -> Result<Lookup, ImageError> {
        let mut lookup = vec![(0, 0); 1 << 16];
        let (mut at, mut symbols) = (0, self.symbols.iter());
        for (length, count) in (1_u8..).zip(self.counts) {
            for symbol in symbols.by_ref().take(usize::from(count)) {
                let end = at + (1 << (16 - length));
                let codes = lookup.get_mut(at..end).ok_or_else(|| damaged("more codes than there can be"))?;
                codes.fill((*symbol, length));
                at = end;
            }
        }
        Ok(Lookup(lookup))
    }
}

/// See [`CodeTable::lookup`].
pub(super) struct Lookup(Vec<(u8, u8)>);

/// Copies chosen bits of one run of bits to another.
pub(super) struct BitCopy<'a> {
    from: &'a [u8],
    /// The next bit of `from`.
    at: usize,
    to: Vec<u8>,
    /// Bits that wait for a full byte, and their number.
    waiting: (u64, u32),
}

impl<'a> BitCopy<'a> {
    pub(super) fn new(from: &'a [u8]) -> Self {
        Self { from, at: 0, to: Vec::with_capacity(from.len()), waiting: (0, 0) }
    }

    /// Reads a code, and copies it if `keep`.
    pub(super) fn code(&mut self, codes: &Lookup, keep: bool) -> Result<u8, ImageError> {
        let (symbol, length) = codes.0[self.next_bits(16) as usize];
        if length == 0 {
            return Err(damaged("a code that no table has"));
        }
        self.bits(u32::from(length), keep)?;
        Ok(symbol)
    }

    /// Reads at most 16 bits, and copies them if `keep`.
    pub(super) fn bits(&mut self, count: u32, keep: bool) -> Result<(), ImageError> {
        if self.at + count as usize > 8 * self.from.len() {
            return Err(damaged("a scan ends before its last block"));
        }
        if keep && count > 0 {
            let (bits, waiting) = (u64::from(self.next_bits(count)), self.waiting.1 + count);
            self.waiting = (self.waiting.0 << count | bits, waiting);
            while self.waiting.1 >= 8 {
                self.waiting.1 -= 8;
                self.to.push((self.waiting.0 >> self.waiting.1) as u8);
            }
        }
        self.at += count as usize;
        Ok(())
    }

    /// The next 1 to 16 bits; zeros after the end.
    fn next_bits(&self, count: u32) -> u32 {
        let byte = |index: usize| self.from.get(self.at / 8 + index).copied().unwrap_or(0);
        let window = u32::from_be_bytes([byte(0), byte(1), byte(2), 0]);
        window << (self.at % 8) >> (32 - count)
    }

    /// The copied bits, filled up with ones to whole bytes.
    pub(super) fn finish(mut self) -> Vec<u8> {
        let (bits, count) = self.waiting;
        if count > 0 {
            let fill = 8 - count;
            self.to.push((bits << fill | ((1 << fill) - 1)) as u8);
        }
        self.to
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_found_and_copied() {
        // 0 is `7`, 10 is `8`, 110 is `9`.
        let table = [1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7, 8, 9, 99];
        let (table, length) = CodeTable::read(&table).unwrap();
        let codes = table.lookup().unwrap();
        assert_eq!(length, 19);
        // 110 10 0 10 | 11 ...
        let bytes = [0b1101_0010, 0b1111_1111];
        let mut copy = BitCopy::new(&bytes);
        let found: Vec<u8> =
            [true, false, true, true].into_iter().map(|keep| copy.code(&codes, keep).unwrap()).collect();
        assert_eq!(found, [9, 8, 7, 8]);
        copy.bits(2, true).unwrap();
        assert!(copy.code(&codes, true).is_err(), "no code is 111111");
        assert!(copy.bits(7, true).is_err(), "six are left");
        // 110 0 10 11
        assert_eq!(copy.finish(), [0b1100_1011]);
    }

    #[test]
    fn bits_that_fill_no_byte_are_followed_by_ones() {
        let mut copy = BitCopy::new(&[0b1010_0000, 0]);
        copy.bits(11, true).unwrap();
        assert_eq!(copy.finish(), [0b1010_0000, 0b0001_1111]);
        assert!(BitCopy::new(&[1]).finish().is_empty());
    }

    #[test]
    fn tables_that_cannot_be_are_refused() {
        assert!(CodeTable::read(&[1; 15]).is_err() && CodeTable::read(&[1; 31]).is_err());
        let three_of_one_bit = [3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3];
        assert!(CodeTable::read(&three_of_one_bit).unwrap().0.lookup().is_err());
    }
}
