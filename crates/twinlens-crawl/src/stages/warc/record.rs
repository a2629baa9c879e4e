//! Parses headers of records (WARC 1.1, section 4; ARC 1 and 2) and of HTTP responses within them.

use std::io::{self, BufRead, Read, Seek};

use super::input::Input;

/// Longest header of a record or a response, in bytes.
const MAX_HEADER: usize = 64 << 10;

/// Header fields by their names in lower case.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Fields(Vec<(String, String)>);

impl Fields {
    /// Parses `name: value` lines; a line that begins with whitespace continues the previous one.
    /// Values that are not UTF-8 are decoded as windows-1252.
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

    /// The first value of a field, by its name in lower case; empty if it is missing.
    pub(super) fn get(&self, name: &str) -> &str {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str()).unwrap_or_default()
    }

    /// All values of a field.
    pub(super) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    /// `response`, `metadata`, ...
    pub(super) kind: String,
    /// Length of the block, in bytes.
    pub(super) length: u64,
    pub(super) fields: Fields,
}

impl Header {
    /// The URL of the record; some writers put it in angle brackets.
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

/// The format of an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Warc,
    /// The format before WARC (Internet Archive, 1996).
    Arc,
}

/// How records of ARC files begin: with a URL.
const ARC_SCHEMES: &[&[u8]] = &[b"http://", b"https://", b"filedesc:", b"dns:", b"ftp://"];
/// Longest header of an ARC record, in bytes.
const MAX_ARC_HEADER: usize = 8 << 10;

impl Format {
    /// The format of an archive or a record that begins like this.
    pub(super) fn of(start: &[u8]) -> Option<Self> {
        match start {
            _ if start.starts_with(b"WARC/") => Some(Self::Warc),
            _ if ARC_SCHEMES.iter().any(|scheme| start.starts_with(scheme)) => Some(Self::Arc),
            _ => None,
        }
    }

    /// Whether a record may begin like this; the bytes may end early.
    pub(super) fn begins(self, bytes: &[u8]) -> bool {
        let begins = |with: &&[u8]| {
            let length = bytes.len().min(with.len());
            bytes[..length] == with[..length]
        };
        match self {
            Self::Warc => begins(&&b"WARC/"[..]),
            Self::Arc => ARC_SCHEMES.iter().any(begins),
        }
    }

    /// Whether a record may end before these line ends and bytes.
    pub(super) fn is_end(self, line_ends: usize, next: &[u8]) -> bool {
        // A WARC record ends with two line ends, or with the next record if a writer left them out.
        next.is_empty() || self.begins(next) || (self == Self::Warc && line_ends >= 4)
    }

    /// Reads the header of a record. The inner error says what is wrong with it.
    pub(super) fn header(self, input: &mut impl BufRead) -> io::Result<Result<Header, String>> {
        match self {
            Self::Warc => header(input),
            Self::Arc => arc_header(input),
        }
    }

    /// Goes to the beginning of the next record, or to the end of the file.
    pub(super) fn find<F: Read + Seek>(self, input: &mut Input<F>) -> io::Result<()> {
        match self {
            Self::Warc => input.find(b"\nWARC/1.", 1).map(|_| ()),
            Self::Arc => {
                // URLs begin many a line of a page.
                while input.find(b"\nhttp", 1)? {
                    let start = input.position()?;
                    let is_header = arc_header(input).is_ok_and(|header| header.is_ok());
                    input.go_to(start)?;
                    if is_header {
                        break;
                    }
                }
                Ok(())
            }
        }
    }
}

/// Skips the line ends after a record, and counts them.
pub(super) fn skip_line_ends(input: &mut impl BufRead) -> io::Result<usize> {
    let mut count = 0;
    while let Some(b'\r' | b'\n') = input.fill_buf()?.first() {
        input.consume(1);
        count += 1;
    }
    Ok(count)
}

/// Reads the header of an ARC record: a line of a URL, an IP address, a date, a media type, in
/// version 2 five more, and the length.
fn arc_header(input: &mut impl BufRead) -> io::Result<Result<Header, String>> {
    let mut line = Vec::new();
    input.by_ref().take(MAX_ARC_HEADER as u64).read_until(b'\n', &mut line)?;
    let line = String::from_utf8_lossy(&line);
    let line = line.trim_end();
    let is_date =
        |text: &str| (8..=17).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    // From the end: a URL may contain spaces.
    let parsed = [5, 10].into_iter().find_map(|count| {
        let words: Vec<&str> = line.rsplitn(count, ' ').collect();
        let (length, date) = (words.first()?.parse().ok()?, words.get(count - 3)?);
        (words.len() == count && is_date(date)).then(|| (words[count - 1], length))
    });
    let Some((url, length)) = parsed else {
        return Ok(Err(format!("the header of an ARC record is `{}`", excerpt(line))));
    };
    let kind = if url.starts_with("http") { "response" } else { "other" };
    let fields = [("warc-target-uri", url), ("content-type", "application/http; msgtype=response")];
    let fields = Fields(fields.map(|(name, value)| (name.to_string(), value.to_string())).to_vec());
    Ok(Ok(Header { kind: kind.into(), length, fields }))
}

/// Reads the header of a WARC record.
fn header(input: &mut impl BufRead) -> io::Result<Result<Header, String>> {
    let block = match header_block(input)? {
        Ok(block) => block,
        Err(why) => return Ok(Err(why)),
    };
    if !block.starts_with(b"WARC/") {
        return Ok(Err("a record begins with `WARC/`".into()));
    }
    let fields = Fields::parse(&block);
    let length = fields.get("content-length");
    Ok(match (length.parse(), fields.get("warc-type").to_ascii_lowercase()) {
        (Err(_), _) => Err(format!("Content-Length is `{}`", excerpt(length))),
        (_, kind) if kind.is_empty() => Err("no WARC-Type".into()),
        (Ok(length), kind) => Ok(Header { kind, length, fields }),
    })
}

/// Lines up to an empty one.
fn header_block(input: &mut impl BufRead) -> io::Result<Result<Vec<u8>, String>> {
    let mut block = Vec::new();
    loop {
        let start = block.len();
        let room = (MAX_HEADER - start) as u64;
        let read = input.by_ref().take(room).read_until(b'\n', &mut block)?;
        if read == 0 || block.last() != Some(&b'\n') {
            if block.len() < MAX_HEADER {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            return Ok(Err(format!("the header is longer than {MAX_HEADER} bytes")));
        }
        if matches!(&block[start..], b"\n" | b"\r\n") {
            block.truncate(start);
            return Ok(Ok(block));
        }
        if start == 0 && !block.starts_with(b"WARC/") {
            return Ok(Err("a record begins with `WARC/`".into()));
        }
        // Damage: the next record would be lost, and read again for each record before it.
        if start > 0 && block[start..].starts_with(b"WARC/") {
            return Ok(Err("the header is not complete".into()));
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
    /// Parses a response (RFC 9112, section 2).
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
        if head.len() > MAX_HEADER {
            return Err(format!("the header is longer than {MAX_HEADER} bytes"));
        }
        let line = head.split(|byte| *byte == b'\n').next().unwrap_or_default();
        let line = String::from_utf8_lossy(line);
        let mut words = line.split_ascii_whitespace();
        let status = match (words.next(), words.next().map(str::parse)) {
            (Some(version), Some(Ok(status))) if version.starts_with("HTTP/") => status,
            _ => return Err(format!("the status line is `{}`", excerpt(&line))),
        };
        Ok(Self { status, fields: Fields::parse(&head[head.len().min(line.len())..]), body })
    }
}

/// The beginning of a text, for messages.
fn excerpt(text: &str) -> String {
    text.trim().chars().take(60).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn record_headers_are_parsed() {
        let read = |text: &str| header(&mut text.as_bytes()).unwrap();
        let parsed = read("WARC/1.0\r\nwarc-type: Response\r\nContent-Length:  12\r\nWARC-Target-URI: <http://a/>\r\nContent-Type: application/http;\r\n msgtype=response\r\n\r\nrest").unwrap();
        assert_eq!((parsed.kind.as_str(), parsed.length, parsed.target()), ("response", 12, "http://a/"));
        assert_eq!(parsed.media_type(), "application/http");
        assert_eq!(parsed.fields.get("content-type"), "application/http; msgtype=response");
        let cases = [
            ("WARC/1.0\r\nWARC-Type: x\r\n\r\n", "Content-Length is ``"),
            ("WARC/1.0\r\nWARC-Type: x\r\nContent-Length: -1\r\n\r\n", "Content-Length is `-1`"),
            ("WARC/1.0\nContent-Length: 1\n\n", "no WARC-Type"),
            ("HTTP/1.1 200 OK\r\n\r\n", "begins with"),
        ];
        for (text, why) in cases {
            assert!(read(text).unwrap_err().contains(why), "{text}");
        }
        let long = format!("WARC/1.0\r\nx: {}\r\n\r\n", "y".repeat(MAX_HEADER));
        assert!(read(&long).unwrap_err().contains("longer"));
        for cut in ["WARC/1.0\r\nWARC-Ty", "WARC/1.0\r\nWARC-Type: x\r\n", "WARC/1.0\n"] {
            let error = header(&mut cut.as_bytes()).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{cut:?}");
        }
        let next = read("WARC/1.0\r\nWARC-Type: x\r\nWARC/1.0\r\n\r\n").unwrap_err();
        assert_eq!(next, "the header is not complete");
    }

    #[test]
    fn responses_are_parsed() {
        let parsed =
            Response::parse(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nX: \xe9\r\n\r\n<p>\n\n").unwrap();
        assert_eq!((parsed.status, parsed.body), (200, &b"<p>\n\n"[..]));
        assert_eq!((parsed.fields.get("content-type"), parsed.fields.get("x")), ("text/html", "é"));
        assert_eq!(Response::parse(b"HTTP/1.0 404\n\n").unwrap().status, 404);
        assert_eq!(Response::parse(b"HTTP/1.0 204 No Content").unwrap().body, b"");
        for bad in [&b""[..], b"\r\n\r\n", b"HTTP/1.1 OK\r\n\r\n", b"<html>\xff"] {
            assert!(Response::parse(bad).is_err(), "{bad:?}");
        }
    }
}
