//! Records of delimited text (CSV, TSV): read as Python's `csv` module reads them.

use memchr::{memchr, memchr2, memchr3};

/// How fields are delimited and quoted. All are ASCII characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Dialect {
    pub(super) delimiter: u8,
    /// Encloses fields that hold delimiters or line ends; doubled, it stands for itself. Without
    /// one, every line is a record.
    pub(super) quote: Option<u8>,
    /// Takes the next character literally.
    pub(super) escape: Option<u8>,
}

/// The fields of a record, without quotes and escapes.
#[derive(Debug, Default)]
pub(super) struct Record {
    text: Vec<u8>,
    ends: Vec<usize>,
    /// Whether something stood between a closing quote and the delimiter: the quote was probably
    /// no quote.
    pub(super) has_stray_quote: bool,
}

/// Where a record ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RecordEnd {
    /// After so many bytes, of which the last are the line end.
    At(usize),
    /// Not within the given bytes.
    Beyond { in_quotes: bool },
    /// It has more fields than asked for.
    TooManyFields,
}

impl Record {
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    pub(super) fn field(&self, index: usize) -> &[u8] {
        let start = if index == 0 { 0 } else { self.ends[index - 1] };
        &self.text[start..self.ends[index]]
    }

    fn clear(&mut self) {
        self.text.clear();
        self.ends.clear();
        self.has_stray_quote = false;
    }
}

impl Dialect {
    /// Reads the record at the start of `bytes`; `is_end` says that nothing follows them.
    pub(super) fn parse(
        &self,
        bytes: &[u8],
        is_end: bool,
        max_fields: usize,
        record: &mut Record,
    ) -> RecordEnd {
        record.clear();
        let mut at = 0;
        loop {
            if let Some(quote) = self.quote.filter(|quote| bytes.get(at) == Some(quote)) {
                match self.quoted(quote, &bytes[at + 1..], is_end, record) {
                    Some(length) => at += 1 + length,
                    None => return RecordEnd::Beyond { in_quotes: true },
                }
                if let Some(next) = bytes.get(at)
                    && ![self.delimiter, b'\n', b'\r'].contains(next)
                {
                    // Whatever it is, it is not an escape.
                    record.has_stray_quote = true;
                    record.text.push(*next);
                    at += 1;
                }
            }
            match self.unquoted(&bytes[at..], is_end, record) {
                FieldEnd::Delimiter(length) => at += length,
                FieldEnd::Line(length) => {
                    record.ends.push(record.text.len());
                    return RecordEnd::At(at + length);
                }
                FieldEnd::Beyond => return RecordEnd::Beyond { in_quotes: false },
            }
            record.ends.push(record.text.len());
            if record.ends.len() >= max_fields {
                return RecordEnd::TooManyFields;
            }
        }
    }

    /// Reads what stands in quotes, and the closing quote. Returns its length; `None` if it does
    /// not close.
    fn quoted(&self, quote: u8, bytes: &[u8], is_end: bool, record: &mut Record) -> Option<usize> {
        let mut at = 0;
        loop {
            let rest = &bytes[at..];
            let length = match self.escape {
                Some(escape) => memchr2(quote, escape, rest)?,
                None => memchr(quote, rest)?,
            };
            record.text.extend_from_slice(&rest[..length]);
            let next = rest.get(length + 1).copied();
            if rest[length] != quote || next == Some(quote) {
                record.text.push(next?);
                at += length + 2;
            } else if next.is_none() && !is_end {
                // The next byte may be a second quote.
                return None;
            } else {
                return Some(at + length + 1);
            }
        }
    }

    /// Reads up to a delimiter or line end.
    fn unquoted(&self, bytes: &[u8], is_end: bool, record: &mut Record) -> FieldEnd {
        let special = [self.delimiter, b'\n', b'\r'];
        let mut at = 0;
        loop {
            let rest = &bytes[at..];
            let found = match self.escape {
                None => memchr3(special[0], special[1], special[2], rest),
                Some(escape) => rest.iter().position(|byte| *byte == escape || special.contains(byte)),
            };
            let length = found.unwrap_or(rest.len());
            record.text.extend_from_slice(&rest[..length]);
            at += length;
            let next = rest.get(length + 1).copied();
            match rest.get(length) {
                None if is_end => return FieldEnd::Line(at),
                None => return FieldEnd::Beyond,
                Some(byte) if *byte == self.delimiter => return FieldEnd::Delimiter(at + 1),
                Some(b'\n') => return FieldEnd::Line(at + 1),
                // Half of a line end, or of an escape.
                Some(_) if next.is_none() && !is_end => return FieldEnd::Beyond,
                Some(b'\r') if next == Some(b'\n') => return FieldEnd::Line(at + 2),
                Some(b'\r') if next.is_none() || self.quote.is_some() => return FieldEnd::Line(at + 1),
                // Without quotes only `\n` ends a line: captions may hold control characters.
                Some(b'\r') => {
                    record.text.push(b'\r');
                    at += 1;
                }
                Some(escape) => {
                    record.text.push(next.unwrap_or(*escape));
                    at += 1 + usize::from(next.is_some());
                }
            }
        }
    }
}

enum FieldEnd {
    /// The length with the delimiter.
    Delimiter(usize),
    /// The length with the line end.
    Line(usize),
    Beyond,
}

#[cfg(test)]
mod tests {
    use super::*;

    const CSV: Dialect = Dialect { delimiter: b',', quote: Some(b'"'), escape: None };
    const TSV: Dialect = Dialect { delimiter: b'\t', quote: None, escape: None };
    const ESCAPED: Dialect = Dialect { escape: Some(b'\\'), ..CSV };

    fn fields(record: &Record) -> Vec<String> {
        (0..record.len()).map(|n| String::from_utf8_lossy(record.field(n)).into_owned()).collect()
    }

    #[test]
    fn records_are_read_as_by_python() {
        let cases: &[(Dialect, &str, &[&str], usize)] = &[
            (CSV, "a,b\nc", &["a", "b"], 4),
            (CSV, "a,b\r\nc", &["a", "b"], 5),
            (CSV, "a,b\rc", &["a", "b"], 4),
            (CSV, "a,", &["a", ""], 2),
            (CSV, "\"a\nb\",\"\"\n", &["a\nb", ""], 9),
            (CSV, "\"a \"\"b\"\" c\",d", &["a \"b\" c", "d"], 13),
            (CSV, "12\" vinyl,\"best of\" show", &["12\" vinyl", "best of show"], 24),
            (
                ESCAPED,
                "\"he said \\\"hi\\\", and left\",x\\,y\\\nz\n",
                &["he said \"hi\", and left", "x,y\nz"],
                35,
            ),
            (TSV, "\"a\t12\" b\rc\r\n", &["\"a", "12\" b\rc"], 12),
        ];
        for (dialect, text, expected, length) in cases {
            let mut record = Record::default();
            let end = dialect.parse(text.as_bytes(), true, 99, &mut record);
            assert_eq!(
                (fields(&record), end),
                (expected.iter().map(ToString::to_string).collect(), RecordEnd::At(*length)),
                "{text:?}"
            );
            // Cut anywhere, it is the same record or asks for more.
            for cut in 0..*length {
                let end = dialect.parse(&text.as_bytes()[..cut], false, 99, &mut record);
                assert!(
                    matches!(end, RecordEnd::Beyond { .. }) || cut + 1 >= *length,
                    "{text:?} cut at {cut}"
                );
            }
        }
    }

    #[test]
    fn what_does_not_close_is_told() {
        let mut record = Record::default();
        assert_eq!(CSV.parse(b"a,\"b\nc,d\n", true, 9, &mut record), RecordEnd::Beyond { in_quotes: true });
        assert_eq!(CSV.parse(b"a,b,c,d\n", true, 3, &mut record), RecordEnd::TooManyFields);
        assert_eq!(CSV.parse(b"\"a\nb\"c\n", true, 9, &mut record), RecordEnd::At(7));
        assert!(record.has_stray_quote);
    }
}
