//! An archived response to rows: decoded, read as a page, its opt-outs honoured.

use std::io::Read;

use url::Url;

use super::Options;
use super::reader::Record;
use super::record::{Fields, Response, media_type};
use crate::html::{self, ImageText};
use crate::net::Directives;

/// What a record gives: the URL of its page, and pairs; none where the record is no page.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Page {
    pub(super) url: String,
    pub(super) pairs: Vec<ImageText>,
}

/// Why a record gives no pairs: a code and the particulars.
pub(super) type Refusal = (&'static str, String);

/// A response, or a bare page (`resource`).
///
/// # Errors
/// Why its pairs cannot be taken, or are not ours to take.
pub(super) fn read(record: &Record, options: &Options) -> Result<Page, Refusal> {
    let header = &record.header;
    let (fields, body) = if header.kind == "resource" {
        (header.fields.clone(), &record.block[..])
    } else {
        let response = Response::parse(&record.block).map_err(|why| ("bad_http", why))?;
        if !matches!(response.status, 200 | 203) {
            return Ok(Page::default());
        }
        (response.fields, response.body)
    };
    let content_type = fields.get("content-type");
    if !is_page(content_type, body) {
        return Ok(Page::default());
    }
    let url = page_url(header.target())?;
    let header_directives = directives(&fields, options);
    let body = decoded(&fields, body, options.max_bytes)?;
    let (text, _) = html::decode(&body, content_type);
    let mut page = html::extract(&text, &url, &options.reading());
    let opt_out = header_directives.opt_out.or(page.directives.opt_out.take());
    match opt_out.filter(|_| options.opt_outs) {
        Some(word) => Err(("opted_out", word)),
        None => Ok(Page { url: url.into(), pairs: page.pairs }),
    }
}

/// The URL of a page, in its normal form.
pub(super) fn page_url(target: &str) -> Result<Url, Refusal> {
    match Url::parse(target) {
        Ok(mut url) if matches!(url.scheme(), "http" | "https") => {
            url.set_fragment(None);
            Ok(url)
        }
        _ => {
            Err(("bad_url", format!("`{}` is no web address", target.chars().take(200).collect::<String>())))
        }
    }
}

/// What the headers say about the use of the page.
fn directives(fields: &Fields, options: &Options) -> Directives {
    let mut directives = Directives::default();
    for words in fields.all("x-robots-tag") {
        directives.add(words, &options.product, "X-Robots-Tag");
    }
    if fields.get("tdm-reservation") == "1" {
        directives.opt_out.get_or_insert_with(|| "TDM-Reservation: 1".into());
    }
    directives
}

/// Whether the content type says so; where there is none, whether the body begins with a tag.
fn is_page(content_type: &str, body: &[u8]) -> bool {
    match media_type(content_type).as_str() {
        "text/html" | "application/xhtml+xml" => true,
        "" => body.trim_ascii_start().first() == Some(&b'<'),
        _ => false,
    }
}

/// The body without its codings. Common Crawl takes them off and says so in other fields; other
/// archives keep them.
fn decoded(fields: &Fields, body: &[u8], max_bytes: u64) -> Result<Vec<u8>, Refusal> {
    let chunked = fields.get("transfer-encoding").to_ascii_lowercase().contains("chunked");
    // Some archives keep the field and not the chunks.
    let body = if chunked { dechunked(body).unwrap_or_else(|| body.to_vec()) } else { body.to_vec() };
    let coding = fields.get("content-encoding").trim().to_ascii_lowercase();
    let mut decoded = Vec::new();
    let read = match coding.as_str() {
        "" | "identity" | "utf-8" => return Ok(body),
        "gzip" | "x-gzip" if !body.starts_with(&[0x1f, 0x8b]) => return Ok(body),
        "gzip" | "x-gzip" => {
            flate2::read::MultiGzDecoder::new(&body[..]).take(max_bytes + 1).read_to_end(&mut decoded)
        }
        "deflate" => flate2::read::ZlibDecoder::new(&body[..]).take(max_bytes + 1).read_to_end(&mut decoded),
        other => return Err(("content_encoding", format!("content coding `{other}`"))),
    };
    // What is decoded before the damage, or before the archive cut the body, is a page as far as it
    // goes.
    match read {
        _ if decoded.len() as u64 > max_bytes => {
            Err(("too_many_bytes", format!("the page is longer than {max_bytes} bytes")))
        }
        Err(error) if decoded.is_empty() => Err(("bad_http", format!("content coding `{coding}`: {error}"))),
        _ => Ok(decoded),
    }
}

/// A chunked body put together (RFC 9112, section 7.1); `None` for one that is not chunked. A last
/// chunk may be cut.
fn dechunked(body: &[u8]) -> Option<Vec<u8>> {
    let (mut whole, mut rest) = (Vec::new(), body);
    loop {
        let end = memchr::memchr(b'\n', rest)?;
        let size = std::str::from_utf8(&rest[..end]).ok()?.split(';').next()?.trim();
        let size = usize::from_str_radix(size, 16).ok()?;
        rest = &rest[end + 1..];
        let chunk = &rest[..size.min(rest.len())];
        whole.extend_from_slice(chunk);
        rest = &rest[chunk.len()..];
        rest = rest.strip_prefix(b"\r\n").or(rest.strip_prefix(b"\n")).unwrap_or(rest);
        if size == 0 || rest.is_empty() {
            return Some(whole);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_put_together() {
        let cases: [(&[u8], Option<&[u8]>); 6] = [
            (b"3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n", Some(b"abcde")),
            (b"3\nabc\n0\n", Some(b"abc")),
            (b"ff\r\ncut", Some(b"cut")),
            (b"ffffffffffffffff\r\ncut", Some(b"cut")),
            (b"<html>\r\n", None),
            (b"", None),
        ];
        for (body, expected) in cases {
            assert_eq!(dechunked(body).as_deref(), expected, "{body:?}");
        }
    }
}
