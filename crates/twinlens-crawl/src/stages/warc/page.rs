//! From an archived response to pairs, honouring opt-outs.

use url::Url;

use super::reader::Record;
use super::record::{Fields, Response, media_type};
use crate::coding::{self, DecodeError};
use crate::html::{self, ExtractOptions, ImageText, TextSourceSet};
use crate::net::Directives;

#[derive(Debug, Clone)]
pub(super) struct ReadOptions {
    pub(super) captions: TextSourceSet,
    pub(super) opt_outs: bool,
    pub(super) product: String,
    /// Longest block, and longest page, in bytes.
    pub(super) max_bytes: u64,
}

impl ReadOptions {
    pub(super) fn extract_options(&self) -> ExtractOptions<'_> {
        ExtractOptions { product: &self.product, captions: self.captions }
    }
}

/// URL and pairs of a page; empty if the record is not a page.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Page {
    pub(super) url: String,
    /// The charset in which it was decoded; `None` if it came decoded.
    pub(super) charset: Option<&'static str>,
    pub(super) pairs: Vec<ImageText>,
}

/// Why a record has no pairs: reject code and details.
pub(super) type Rejection = (&'static str, String);

/// Reads a response or a bare page (`resource`).
///
/// # Errors
/// The page cannot be read, or its owner opted out.
pub(super) fn read(record: &Record, options: &ReadOptions) -> Result<Page, Rejection> {
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
    let from_headers = header_directives(&fields, options);
    let body = decode_body(&fields, body, options.max_bytes)?;
    let host = url.host_str().unwrap_or_default();
    let (text, charset) = twinlens_text::decode_html(&body, content_type, host);
    let mut page = html::extract(&text, &url, &options.extract_options());
    let opt_out = from_headers.opt_out.or(page.directives.opt_out.take());
    match opt_out.filter(|_| options.opt_outs) {
        Some(word) => Err(("opted_out", word)),
        None => Ok(Page { url: url.into(), charset: Some(charset), pairs: page.pairs }),
    }
}

/// The URL of a page without its fragment.
pub(super) fn page_url(target: &str) -> Result<Url, Rejection> {
    match Url::parse(target) {
        Ok(mut url) if matches!(url.scheme(), "http" | "https") => {
            url.set_fragment(None);
            Ok(url)
        }
        _ => Err((
            "bad_url",
            format!("`{}` is not an http(s) URL", target.chars().take(200).collect::<String>()),
        )),
    }
}

/// The directives in the headers.
fn header_directives(fields: &Fields, options: &ReadOptions) -> Directives {
    let mut directives = Directives::default();
    for words in fields.all("x-robots-tag") {
        directives.add(words, &options.product, "X-Robots-Tag");
    }
    if fields.get("tdm-reservation") == "1" {
        directives.opt_out.get_or_insert_with(|| "TDM-Reservation: 1".into());
    }
    directives
}

/// Whether the content type is HTML, or is missing and the body begins with a tag.
fn is_page(content_type: &str, body: &[u8]) -> bool {
    match media_type(content_type).as_str() {
        "text/html" | "application/xhtml+xml" => true,
        "" => body.trim_ascii_start().first() == Some(&b'<'),
        _ => false,
    }
}

/// Decodes the transfer and content codings. Common Crawl has removed them and renamed their
/// fields; other archives keep them, some of them the fields alone.
fn decode_body(fields: &Fields, body: &[u8], max_bytes: u64) -> Result<Vec<u8>, Rejection> {
    let chunked = fields.get("transfer-encoding").to_ascii_lowercase().contains("chunked");
    let joined = if chunked { join_chunks(body) } else { None };
    let codings = coding::parse(fields.all("content-encoding")).map_err(|why| ("content_encoding", why))?;
    coding::decode(&codings, joined.as_deref().unwrap_or(body), max_bytes).map_err(|error| match error {
        DecodeError::TooLong => ("too_many_bytes", format!("the page is longer than {max_bytes} bytes")),
        DecodeError::Damaged(why) => ("bad_http", why),
    })
}

/// Joins a chunked body (RFC 9112, section 7.1), whose last chunk may be truncated; `None` if it is
/// not chunked.
fn join_chunks(body: &[u8]) -> Option<Vec<u8>> {
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
    fn chunks_are_joined() {
        let cases: [(&[u8], Option<&[u8]>); 6] = [
            (b"3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n", Some(b"abcde")),
            (b"3\nabc\n0\n", Some(b"abc")),
            (b"ff\r\ncut", Some(b"cut")),
            (b"ffffffffffffffff\r\ncut", Some(b"cut")),
            (b"<html>\r\n", None),
            (b"", None),
        ];
        for (body, expected) in cases {
            assert_eq!(join_chunks(body).as_deref(), expected, "{body:?}");
        }
    }
}
