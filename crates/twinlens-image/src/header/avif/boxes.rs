//! Boxes of the ISO base media file format (ISO/IEC 14496-12, section 4.2).

use crate::header::walk::Fault;

pub(super) type Kind = [u8; 4];

/// Bytes that are read from the front.
#[derive(Clone, Copy)]
pub(super) struct Cursor<'a>(pub(super) &'a [u8]);

impl<'a> Cursor<'a> {
    pub(super) fn take(&mut self, count: usize) -> Result<&'a [u8], Fault> {
        let (taken, rest) =
            self.0.split_at_checked(count).ok_or(Fault::Damaged("a box is shorter than its content"))?;
        self.0 = rest;
        Ok(taken)
    }

    /// A number of up to eight bytes. One of no bytes is zero.
    pub(super) fn number(&mut self, bytes: usize) -> Result<u64, Fault> {
        Ok(self.take(bytes)?.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    pub(super) fn small(&mut self, bytes: usize) -> Result<u32, Fault> {
        debug_assert!(bytes <= 4);
        Ok(self.number(bytes)? as u32)
    }

    pub(super) fn kind(&mut self) -> Result<Kind, Fault> {
        let bytes = self.take(4)?;
        Ok([bytes[0], bytes[1], bytes[2], bytes[3]])
    }

    /// Version and flags of a full box.
    pub(super) fn version(&mut self) -> Result<(u8, u32), Fault> {
        let word = self.small(4)?;
        Ok(((word >> 24) as u8, word & 0xff_ffff))
    }
}

/// A box: its kind, and its body up to its end or that of the bytes.
pub(super) struct Part<'a> {
    pub(super) kind: Kind,
    pub(super) body: &'a [u8],
    /// Whether the box ends within the bytes.
    pub(super) complete: bool,
}

/// The boxes that follow each other in bytes. Fewer than eight bytes at the end are not a box.
#[derive(Clone, Copy)]
pub(super) struct Parts<'a>(&'a [u8]);

pub(super) fn parts(bytes: &[u8]) -> Parts<'_> {
    Parts(bytes)
}

impl<'a> Iterator for Parts<'a> {
    type Item = Part<'a>;

    fn next(&mut self) -> Option<Part<'a>> {
        let mut cursor = Cursor(self.0);
        let (short, kind) = (cursor.number(4).ok()?, cursor.kind().ok()?);
        let (head, size) = match short {
            0 => (8, self.0.len() as u64),
            1 => (16, cursor.number(8).ok()?),
            size => (8, size),
        };
        let end = usize::try_from(size).unwrap_or(usize::MAX).max(head);
        let complete = end <= self.0.len();
        let body = &self.0[head..end.min(self.0.len())];
        self.0 = &self.0[end.min(self.0.len())..];
        Some(Part { kind, body, complete })
    }
}

/// The boxes in the body of another.
pub(super) fn children(body: &[u8]) -> impl Iterator<Item = Result<(Kind, &[u8]), Fault>> {
    parts(body).map(|part| {
        if part.complete {
            Ok((part.kind, part.body))
        } else {
            Err(Fault::Damaged("a box is longer than the one around it"))
        }
    })
}

/// The first box of a kind in the body of another.
pub(super) fn child<'a>(body: &'a [u8], kind: &Kind) -> Result<Option<&'a [u8]>, Fault> {
    for part in children(body) {
        let (found, body) = part?;
        if found == *kind {
            return Ok(Some(body));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boxes_of_every_kind_of_size_are_read() {
        let bytes = b"\0\0\0\x0aabcdxx\0\0\0\x01long\0\0\0\0\0\0\0\x12yy\0\0\0\0lastzzz";
        let found: Vec<_> = parts(bytes).map(|part| (part.kind, part.body, part.complete)).collect();
        assert_eq!(
            found,
            [
                (*b"abcd", b"xx".as_slice(), true),
                (*b"long", b"yy".as_slice(), true),
                (*b"last", b"zzz".as_slice(), true),
            ]
        );
    }

    #[test]
    fn a_box_that_is_too_long_ends_with_the_bytes_and_one_that_is_too_short_has_no_body() {
        let found: Vec<_> = parts(b"\0\0\0\x03shrt\xff\xff\xff\xffhugexy").collect();
        assert_eq!((found[0].body, found[0].complete), (b"".as_slice(), true));
        assert_eq!((found[1].body, found[1].complete), (b"xy".as_slice(), false));
        assert_eq!(found.len(), 2);
        assert!(child(b"\xff\xff\xff\xffhugexy", b"next").is_err());
    }
}
