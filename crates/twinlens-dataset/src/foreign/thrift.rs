//! Walks structs of Thrift's compact protocol, in which Parquet writes its headers, without
//! allocating: lists may not claim more items than there are bytes.

/// Deepest nesting of structs and lists. (The metadata of Parquet nest seven deep.)
const MAX_DEPTH: usize = 32;

/// Why a walk ends early.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ThriftError {
    /// The bytes end within the struct.
    Truncated,
    /// No writer writes this.
    Malformed,
}

/// Types of fields.
const STOP: u8 = 0;
const BYTE: u8 = 3;
const I16: u8 = 4;
const I32: u8 = 5;
const I64: u8 = 6;
const DOUBLE: u8 = 7;
const BINARY: u8 = 8;
const LIST: u8 = 9;
const SET: u8 = 10;
const MAP: u8 = 11;
const STRUCT: u8 = 12;

/// A position in bytes of the compact protocol.
#[derive(Debug)]
pub(super) struct Walker<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Walker<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// Bytes walked so far.
    pub(super) fn position(&self) -> usize {
        self.at
    }

    fn byte(&mut self) -> Result<u8, ThriftError> {
        let byte = *self.bytes.get(self.at).ok_or(ThriftError::Truncated)?;
        self.at += 1;
        Ok(byte)
    }

    fn advance(&mut self, bytes: u64) -> Result<(), ThriftError> {
        let left = self.bytes.len() - self.at;
        let bytes = usize::try_from(bytes).ok().filter(|bytes| *bytes <= left);
        self.at += bytes.ok_or(ThriftError::Truncated)?;
        Ok(())
    }

    fn varint(&mut self) -> Result<u64, ThriftError> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(ThriftError::Malformed)
    }

    /// A whole number (of a field of 16, 32 or 64 bits).
    pub(super) fn integer(&mut self) -> Result<i64, ThriftError> {
        let value = self.varint()?;
        Ok((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    /// Walks a struct. `field` gets the number of each field and may read its value, an integer or
    /// a struct; it returns whether it did.
    pub(super) fn fields(
        &mut self,
        field: &mut dyn FnMut(&mut Self, i64) -> Result<bool, ThriftError>,
    ) -> Result<(), ThriftError> {
        self.fields_at(0, field)
    }

    /// Walks over a struct.
    pub(super) fn skip_struct(&mut self) -> Result<(), ThriftError> {
        self.fields(&mut |_, _| Ok(false))
    }

    fn fields_at(
        &mut self,
        depth: usize,
        field: &mut dyn FnMut(&mut Self, i64) -> Result<bool, ThriftError>,
    ) -> Result<(), ThriftError> {
        if depth > MAX_DEPTH {
            return Err(ThriftError::Malformed);
        }
        let mut number = 0;
        loop {
            let header = self.byte()?;
            let kind = header & 0x0f;
            if kind == STOP {
                return Ok(());
            }
            number = match header >> 4 {
                0 => self.integer()?,
                difference => number + i64::from(difference),
            };
            let is_read = matches!(kind, I16 | I32 | I64 | STRUCT) && field(self, number)?;
            if !is_read {
                self.skip(kind, depth)?;
            }
        }
    }

    /// Walks over the value of a field.
    fn skip(&mut self, kind: u8, depth: usize) -> Result<(), ThriftError> {
        match kind {
            // The type is the value.
            1 | 2 => Ok(()),
            _ => self.skip_item(kind, depth),
        }
    }

    /// Walks over a value, which in a list has a byte even if it is a boolean.
    fn skip_item(&mut self, kind: u8, depth: usize) -> Result<(), ThriftError> {
        match kind {
            1 | 2 | BYTE => self.advance(1),
            I16 | I32 | I64 => self.varint().map(|_| ()),
            DOUBLE => self.advance(8),
            BINARY => {
                let length = self.varint()?;
                self.advance(length)
            }
            LIST | SET => {
                let header = self.byte()?;
                let length = match header >> 4 {
                    15 => self.varint()?,
                    length => u64::from(length),
                };
                self.skip_items(length, &[header & 0x0f], depth)
            }
            MAP => match self.varint()? {
                0 => Ok(()),
                length => {
                    let kinds = self.byte()?;
                    self.skip_items(length, &[kinds >> 4, kinds & 0x0f], depth)
                }
            },
            STRUCT => self.fields_at(depth + 1, &mut |_, _| Ok(false)),
            _ => Err(ThriftError::Malformed),
        }
    }

    fn skip_items(&mut self, length: u64, kinds: &[u8], depth: usize) -> Result<(), ThriftError> {
        if depth > MAX_DEPTH {
            return Err(ThriftError::Malformed);
        }
        // Each item takes a byte at least.
        if length > (self.bytes.len() - self.at) as u64 {
            return Err(ThriftError::Truncated);
        }
        for _ in 0..length {
            for kind in kinds {
                self.skip_item(*kind, depth + 1)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn structs_are_walked_and_claims_are_checked() {
        // 1: i32 = -3; 2: binary "ab"; 4: struct { 1: i64 = 300 }; 20: list<i32> [1, 2]; 21: true
        let bytes = [0x15, 5, 0x18, 2, b'a', b'b', 0x2c, 0x16, 0xd8, 4, 0, 0x09, 40, 0x25, 2, 4, 0x11, 0, 99];
        let mut walker = Walker::new(&bytes);
        let mut seen = Vec::new();
        walker
            .fields(&mut |walker, number| {
                match number {
                    1 => seen.push(walker.integer()?),
                    4 => walker.fields(&mut |walker, _| {
                        walker.integer().map(|value| seen.push(value)).map(|()| true)
                    })?,
                    _ => return Ok(false),
                }
                Ok(true)
            })
            .unwrap();
        assert_eq!((seen, walker.position()), (vec![-3, 300], bytes.len() - 1));
        for end in 0..bytes.len() - 1 {
            assert_eq!(Walker::new(&bytes[..end]).skip_struct(), Err(ThriftError::Truncated), "{end}");
        }
        // A list of 2^31 structs.
        let list = [0x19, 0xfc, 0xff, 0xff, 0xff, 0xff, 7, 0];
        assert_eq!(Walker::new(&list).skip_struct(), Err(ThriftError::Truncated));
        assert_eq!(Walker::new(&[0x1c; 1000]).skip_struct(), Err(ThriftError::Malformed));
    }

    proptest! {
        #[test]
        fn any_bytes_are_walked_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Walker::new(&bytes).skip_struct();
        }
    }
}
