//! Reads the codes of blocks: 64 coefficients each (ITU-T T.81, section F.2.2).
//!
//! Eight bytes are taken at a time where none of them is 255. `None` means that a code is unknown
//! or that a marker is missing. [`Codes::is_beyond`] tells of data that ends early.

use libjpeg_turbo_rs::common::huffman_table::HuffmanTable;
use libjpeg_turbo_rs::common::quant_table::ZIGZAG_ORDER;

/// The place in a block of each coefficient, in the order of the codes. As in libjpeg, those beyond
/// the last take its place: a run of zeros may lead past the end by 15.
const PLACES: [u8; 128] = {
    let mut places = [63; 128];
    let mut at = 0;
    while at < 64 {
        places[at] = ZIGZAG_ORDER[at] as u8;
        at += 1;
    }
    places
};

/// A code has at most 16 bits, and the value after it at most 15.
const LONGEST: u32 = 32;

/// Where the codes are read.
#[derive(Clone, Copy)]
pub(super) struct Codes<'a> {
    bytes: &'a [u8],
    /// The next byte.
    at: usize,
    /// Bits from the uppermost on. Below those that count there may be bits of the next byte.
    bits: u64,
    count: u32,
    /// Bits that follow the data: zeros, which must not be used.
    beyond: u32,
}

/// A block that was read.
#[derive(Clone, Copy)]
pub(super) struct Nonzero {
    /// All places of nonzero coefficients but the first, ORed.
    places: u8,
}

impl Nonzero {
    /// Whether the first coefficient alone is nonzero.
    pub(super) fn is_first_only(self) -> bool {
        self.places == 0
    }

    /// Whether all are in the first row.
    pub(super) fn is_first_row_only(self) -> bool {
        self.places < 8
    }
}

impl<'a> Codes<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0, bits: 0, count: 0, beyond: 0 }
    }

    /// Whether more was read than there is.
    pub(super) fn is_beyond(&self) -> bool {
        self.count < self.beyond
    }

    /// Continues after the marker that ends an interval, which must be next.
    pub(super) fn restart(&mut self) -> Option<()> {
        match self.bytes.get(self.at..)? {
            [0xff, 0xd0..=0xd7, rest @ ..] => *self = Self::new(rest),
            _ => return None,
        }
        Some(())
    }

    /// Reads a block. `first` is the first coefficient of the block before.
    #[inline(always)]
    pub(super) fn read(
        &mut self,
        [first_codes, codes]: [&HuffmanTable; 2],
        first: &mut i16,
        block: &mut [i16; 64],
    ) -> Option<Nonzero> {
        *block = [0; 64];
        self.fill();
        let (size, length) = self.code(first_codes)?;
        self.skip(length);
        *first = first.wrapping_add(self.value(size)?);
        block[0] = *first;
        let (mut index, mut places) = (1, 0);
        while index < 64 {
            self.fill();
            let (short, mut symbol, mut length) = codes.lookup_combined(self.next());
            // A short code, and the bits of its value.
            if short != 0 {
                index += usize::from((short >> 4) as u8 & 15);
                let place = PLACES[index & 127];
                self.skip((short & 15) as u8);
                block[usize::from(place & 63)] = short >> 8;
                places |= place;
                index += 1;
                continue;
            }
            if length == 0 {
                (symbol, length) = codes.lookup(self.next()).ok()?;
            }
            self.skip(length);
            let (zeros, size) = (usize::from(symbol >> 4), symbol & 15);
            if size == 0 {
                if zeros < 15 {
                    break;
                }
                index += 16;
                continue;
            }
            index += zeros;
            let place = PLACES[index & 127];
            block[usize::from(place & 63)] = self.value(size)?;
            places |= place;
            index += 1;
        }
        Some(Nonzero { places })
    }

    /// The symbol of the next code, and its length.
    #[inline(always)]
    fn code(&self, table: &HuffmanTable) -> Option<(u8, u8)> {
        match table.lookup_fast(self.next()) {
            (_, 0) => table.lookup(self.next()).ok(),
            found => Some(found),
        }
    }

    /// A value of `size` bits: those that begin with a zero are negative.
    #[inline(always)]
    fn value(&mut self, size: u8) -> Option<i16> {
        match size {
            0 => Some(0),
            1..=15 => {
                let bits = (self.bits >> (64 - size)) as i32;
                let is_negative = self.bits >> 63 == 0;
                self.skip(size);
                Some((bits + if is_negative { 1 - (1 << size) } else { 0 }) as i16)
            }
            _ => None,
        }
    }

    /// The next 16 bits.
    #[inline(always)]
    fn next(&self) -> u16 {
        (self.bits >> 48) as u16
    }

    #[inline(always)]
    fn skip(&mut self, bits: u8) {
        self.bits <<= bits;
        self.count -= u32::from(bits);
    }

    /// Makes at least [`LONGEST`] bits ready.
    #[inline(always)]
    fn fill(&mut self) {
        if self.count >= LONGEST {
            return;
        }
        match self.bytes.get(self.at..).and_then(<[u8]>::first_chunk) {
            Some(next) if !has_255(u64::from_be_bytes(*next)) => {
                self.bits |= u64::from_be_bytes(*next) >> self.count;
                let bytes = (63 - self.count) / 8;
                self.at += bytes as usize;
                self.count += 8 * bytes;
            }
            // By value, so that the fields can stay in registers.
            _ => *self = self.filled_bytewise(),
        }
    }

    /// Fills up byte by byte, and skips the zero that follows each 255.
    #[cold]
    #[inline(never)]
    fn filled_bytewise(mut self) -> Self {
        while self.count <= 56 {
            let next = match self.bytes.get(self.at..).unwrap_or_default() {
                [0xff, 0, ..] => {
                    self.at += 2;
                    0xff
                }
                // A marker, or the end.
                [0xff, ..] | [] => {
                    self.beyond += 8;
                    0
                }
                [byte, ..] => {
                    self.at += 1;
                    *byte
                }
            };
            self.bits |= u64::from(next) << (56 - self.count);
            self.count += 8;
        }
        self
    }
}

/// Whether one of the bytes is 255.
#[inline(always)]
fn has_255(bytes: u64) -> bool {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    let inverted = !bytes;
    inverted.wrapping_sub(ONES) & bytes & (ONES << 7) != 0
}
