//! What stands at the head of a record (WARC 1.1, section 4) and of an HTTP response within one.

use std::io::{self, BufRead, Read};

/// Longest head of a record or a response, in bytes.
const MAX_HEAD: usize = 64 << 10;

/// The fields of a head that are looked at, by their names in lower case.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Fields(Vec<(String, String)>);

impl Fields {
    /// Reads `name: value` lines; a line that begins with white space goes on with the one before.
    /// Values that are not UTF-8 are taken as windows-1252.
    fn parse(lines: &[u8]) -> Self {
        let mut fields: Vec<(String, String)> = Vec::new();
        for line in lines.split(|byte| *byte == b'\n') {
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            let text = match std::str::from_utf8(line) {
                Ok(text) => text.into(),
                Err(_) => encoding_rs::WINDOWS_1252.decode_without_bom_handling(line).0,
            };
            match (text.starts_with([' ', '\t']), fields.last_mut(), text.split_once(':')) {
                (true, Some((_, value)), _) => {
                    value.push(' ');
                    value.push_str(text.trim());
                }
                (false, _, Some((name, value))) => {
                    fields.push((name.trim().to_ascii_lowercase(), value.trim().to_string()));
                }
                _ => {}
            }
        }
        Self(fields)
    }

    /// The first value of a field, by its name in lower case; empty when there is none.
    pub(super) fn get(&self, name: &str) -> &str {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str()).unwrap_or_default()
    }

    /// All values of a field.
    pub(super) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// The head of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    /// `response`, `metadata`, ...
    pub(super) kind: String,
    /// Length of the block, in bytes.
    pub(super) length: u64,
    pub(super) fields: Fields,
}

impl Header {
    /// The URL that the record is about; some writers set it in angle brackets.
    pub(super) fn target(&self) -> &str {
        self.fields.get("warc-target-uri").trim_start_matches('<').trim_end_matches('>')
    }

    /// The media type of the block, in lower case, without parameters.
    pub(super) fn media_type(&self) -> String {
        media_type(self.fields.get("content-type"))
    }
}

/// A media type in lower case, without parameters.
pub(super) fn media_type(content_type: &str) -> String {
    content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// Reads the head of a record. The inner error says what is wrong with it.
pub(super) fn header(input: &mut impl BufRead) -> io::Result<Result<Header, String>> {
    let head = match head(input)? {
        Ok(head) => head,
        Err(why) => return Ok(Err(why)),
    };
    if !head.starts_with(b"WARC/") {
        return Ok(Err("a record begins with `WARC/`".into()));
    }
    let fields = Fields::parse(&head);
    let length = fields.get("content-length");
    Ok(match (length.parse(), fields.get("warc-type").to_ascii_lowercase()) {
        (Err(_), _) => Err(format!("Content-Length is `{}`", short(length))),
        (_, kind) if kind.is_empty() => Err("no WARC-Type".into()),
        (Ok(length), kind) => Ok(Header { kind, length, fields }),
    })
}

/// Lines up to and without an empty one.
fn head(input: &mut impl BufRead) -> io::Result<Result<Vec<u8>, String>> {
    let mut head = Vec::new();
    loop {
        let start = head.len();
        let room = (MAX_HEAD - start) as u64;
        input.by_ref().take(room).read_until(b'\n', &mut head)?;
        if head.last() != Some(&b'\n') {
            return match head.len() < MAX_HEAD {
                true => Err(io::ErrorKind::UnexpectedEof.into()),
                false => Ok(Err(format!("the head is longer than {MAX_HEAD} bytes"))),
            };
        }
        if matches!(&head[start..], b"\n" | b"\r\n") {
            head.truncate(start);
            return Ok(Ok(head));
        }
        if start == 0 && !head.starts_with(b"WARC/") {
            return Ok(Err("a record begins with `WARC/`".into()));
        }
    }
}

/// An HTTP response.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Response<'a> {
    pub(super) status: u16,
    pub(super) fields: Fields,
    pub(super) body: &'a [u8],
}

impl<'a> Response<'a> {
    /// Takes a response apart (RFC 9112, section 2).
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn parse(block: &'a [u8]) -> Result<Self, String> {
        let end = [&b"\r\n\r\n"[..], b"\n\n"]
            .iter()
            .filter_map(|end| memchr::memmem::find(block, end).map(|at| (at, at + end.len())))
            .min();
        // A response without a body may lack the empty line.
        let (head, body) = match end {
            Some((head, body)) => (&block[..head], &block[body..]),
            None => (block, &block[block.len()..]),
        };
        if head.len() > MAX_HEAD {
            return Err(format!("the head is longer than {MAX_HEAD} bytes"));
        }
        let line = head.split(|byte| *byte == b'\n').next().unwrap_or_default();
        let line = String::from_utf8_lossy(line);
        let mut words = line.split_ascii_whitespace();
        let status = match (words.next(), words.next().map(str::parse)) {
            (Some(version), Some(Ok(status))) if version.starts_with("HTTP/") => status,
            _ => return Err(format!("the status line is `{}`", short(&line))),
        };
        Ok(Self { status, fields: Fields::parse(&head[head.len().min(line.len())..]), body })
    }
}

/// The beginning of a text, for a message.
fn short(text: &str) -> String {
    text.trim().chars().take(60).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_read_as_they_are_written() {
        let read = |text: &str| header(&mut text.as_bytes()).unwrap();
        let found = read("WARC/1.0\r\nwarc-type: Response\r\nContent-Length:  12\r\nWARC-Target-URI: <http://a/>\r\nContent-Type: application/http;\r\n msgtype=response\r\n\r\nrest").unwrap();
        assert_eq!((found.kind.as_str(), found.length, found.target()), ("response", 12, "http://a/"));
        assert_eq!(found.media_type(), "application/http");
        assert_eq!(found.fields.get("content-type"), "application/http; msgtype=response");
        let cases = [
            ("WARC/1.0\r\nWARC-Type: x\r\n\r\n", "Content-Length is ``"),
            ("WARC/1.0\r\nWARC-Type: x\r\nContent-Length: -1\r\n\r\n", "Content-Length is `-1`"),
            ("WARC/1.0\nContent-Length: 1\n\n", "no WARC-Type"),
            ("HTTP/1.1 200 OK\r\n\r\n", "begins with"),
        ];
        for (text, why) in cases {
            assert!(read(text).unwrap_err().contains(why), "{text}");
        }
        let long = format!("WARC/1.0\r\nx: {}\r\n\r\n", "y".repeat(MAX_HEAD));
        assert!(read(&long).unwrap_err().contains("longer"));
        let cut = header(&mut "WARC/1.0\r\nWARC-Ty".as_bytes()).unwrap_err();
        assert_eq!(cut.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn responses_are_taken_apart() {
        let found =
            Response::parse(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nX: \xe9\r\n\r\n<p>\n\n").unwrap();
        assert_eq!((found.status, found.body), (200, &b"<p>\n\n"[..]));
        assert_eq!((found.fields.get("content-type"), found.fields.get("x")), ("text/html", "é"));
        assert_eq!(Response::parse(b"HTTP/1.0 404\n\n").unwrap().status, 404);
        assert_eq!(Response::parse(b"HTTP/1.0 204 No Content").unwrap().body, b"");
        for bad in [&b""[..], b"\r\n\r\n", b"HTTP/1.1 OK\r\n\r\n", b"<html>\xff"] {
            assert!(Response::parse(bad).is_err(), "{bad:?}");
        }
    }
}
