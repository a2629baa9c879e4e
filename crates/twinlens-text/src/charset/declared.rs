//! The charset that a page declares: in its `Content-Type` header, in a `<meta>` tag, or in an XML
//! declaration.
//!
//! The HTML standard ("prescan a byte stream to determine its encoding") searches 1,024 bytes;
//! browsers search the whole head, and so does this.

use encoding_rs::{Encoding, UTF_8, UTF_16BE, UTF_16LE, WINDOWS_1252};

/// Bytes that are searched even if the head ends before.
const PRESCAN: usize = 1024;

/// Elements of the head. Any other tag ends it.
const HEAD: &[&[u8]] = &[
    b"html",
    b"head",
    b"title",
    b"base",
    b"link",
    b"meta",
    b"script",
    b"noscript",
    b"style",
    b"template",
    b"object",
];

/// Elements whose text is not markup.
const RAW_TEXT: &[&[u8]] =
    &[b"script", b"style", b"title", b"textarea", b"xmp", b"iframe", b"noembed", b"noframes"];

/// The charset in a `Content-Type` header.
pub(super) fn in_content_type(content_type: &str) -> Option<&'static Encoding> {
    let (mut quoted, mut escaped) = (false, false);
    let parameters = content_type.split(|c: char| {
        let is_end = c == ';' && !quoted;
        quoted ^= c == '"' && !escaped;
        escaped = c == '\\' && !escaped;
        is_end
    });
    parameters.skip(1).find_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        let value = value.trim().trim_matches(['"', '\'']);
        name.trim().eq_ignore_ascii_case("charset").then(|| encoding(value.as_bytes()))?
    })
}

/// The charset that a page itself declares.
pub(super) fn in_page(page: &[u8]) -> Option<&'static Encoding> {
    in_meta(page).or_else(|| in_xml_declaration(page))
}

fn encoding(label: &[u8]) -> Option<&'static Encoding> {
    // Without the decoder that replaces a whole page by one character.
    Encoding::for_label_no_replacement(label)
}

/// The charset of a declaration that was read as ASCII, which therefore cannot be UTF-16.
fn readable_as_ascii(encoding: &'static Encoding) -> &'static Encoding {
    if encoding == UTF_16BE || encoding == UTF_16LE {
        UTF_8
    } else if encoding == encoding_rs::X_USER_DEFINED {
        WINDOWS_1252
    } else {
        encoding
    }
}

/// HTML standard, "get an XML encoding".
fn in_xml_declaration(page: &[u8]) -> Option<&'static Encoding> {
    let end = page.iter().position(|byte| *byte == b'>')?;
    let declaration = page[..end].strip_prefix(b"<?xml")?;
    let at = find(declaration, b"encoding")? + b"encoding".len();
    let value = declaration[at..].trim_ascii_start().strip_prefix(b"=")?.trim_ascii_start();
    let (quote, value) = value.split_first().filter(|(quote, _)| matches!(quote, b'"' | b'\''))?;
    let label = &value[..value.iter().position(|byte| byte == quote)?];
    encoding(label).map(readable_as_ascii)
}

/// The charset of the first `<meta>` of the head that declares one.
fn in_meta(page: &[u8]) -> Option<&'static Encoding> {
    let (mut at, mut in_head) = (0, true);
    loop {
        at += page.get(at..)?.iter().position(|byte| *byte == b'<')?;
        if !in_head && at >= PRESCAN {
            return None;
        }
        let rest = &page[at..];
        if rest.starts_with(b"<!--") {
            at += 2 + find(&rest[2..], b"-->")? + 3;
            continue;
        }
        let is_end = rest.get(1) == Some(&b'/');
        let from = 1 + usize::from(is_end);
        if !rest.get(from).is_some_and(u8::is_ascii_alphabetic) {
            at += match rest.get(1) {
                Some(b'!' | b'/' | b'?') => rest.iter().position(|byte| *byte == b'>')?,
                _ => 1,
            };
            continue;
        }
        let length = rest[from..].iter().position(|byte| is_space(*byte) || matches!(byte, b'/' | b'>'))?;
        let name = rest[from..from + length].to_ascii_lowercase();
        let mut attributes = Attributes { rest: &rest[from + length..] };
        if name == b"meta" && !is_end {
            if let Some(encoding) = meta_charset(&mut attributes) {
                return Some(encoding);
            }
        } else {
            attributes.by_ref().for_each(drop);
        }
        in_head &= HEAD.contains(&name.as_slice());
        let mut after = attributes.rest;
        if !is_end && RAW_TEXT.contains(&name.as_slice()) {
            after = &after[find_end_tag(after, &name)?..];
        }
        at = page.len() - after.len();
    }
}

/// The charset that a `<meta>` tag declares: in `charset`, or in `content` beside
/// `http-equiv="content-type"`.
fn meta_charset(attributes: &mut Attributes<'_>) -> Option<&'static Encoding> {
    let (mut http_equiv, mut content, mut charset) = (None, None, None);
    for (name, value) in attributes {
        let known = match name.to_ascii_lowercase().as_slice() {
            b"http-equiv" => &mut http_equiv,
            b"content" => &mut content,
            b"charset" => &mut charset,
            _ => continue,
        };
        known.get_or_insert(value);
    }
    let label = match charset {
        Some(label) => label,
        None => {
            let is_pragma = http_equiv?.trim_ascii().eq_ignore_ascii_case(b"content-type");
            content.filter(|_| is_pragma).and_then(label_in_content)?
        }
    };
    encoding(label.trim_ascii()).map(readable_as_ascii)
}

/// HTML standard, "extracting a character encoding from a meta element".
fn label_in_content(content: &[u8]) -> Option<&[u8]> {
    let lower = content.to_ascii_lowercase();
    let mut at = 0;
    loop {
        at += find(&lower[at..], b"charset")? + b"charset".len();
        let Some(value) = content[at..].trim_ascii_start().strip_prefix(b"=") else { continue };
        let value = value.trim_ascii_start();
        return match value.first()? {
            quote @ (b'"' | b'\'') => {
                let value = &value[1..];
                Some(&value[..value.iter().position(|byte| byte == quote)?])
            }
            _ => value.split(|byte| is_space(*byte) || *byte == b';').next(),
        };
    }
}

/// The attributes of a tag, as name and value; `rest` is then what follows them, which begins with
/// `>` if the tag is closed.
struct Attributes<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (&'a [u8], &'a [u8]);

    /// HTML standard, "get an attribute".
    fn next(&mut self) -> Option<Self::Item> {
        let skip = |bytes: &'a [u8], is_skipped: fn(u8) -> bool| {
            let from = bytes.iter().position(|byte| !is_skipped(*byte)).unwrap_or(bytes.len());
            &bytes[from..]
        };
        let split = |bytes: &'a [u8], is_end: fn(u8) -> bool| {
            bytes.split_at(bytes.iter().position(|byte| is_end(*byte)).unwrap_or(bytes.len()))
        };
        self.rest = skip(self.rest, |byte| is_space(byte) || byte == b'/');
        if matches!(self.rest.first(), None | Some(b'>')) {
            return None;
        }
        // A name may begin with `=`.
        let end = |byte: u8| is_space(byte) || matches!(byte, b'/' | b'>' | b'=');
        let (name, rest) = self.rest.split_at(1 + split(&self.rest[1..], end).0.len());
        let Some(value) = skip(rest, is_space).strip_prefix(b"=") else {
            self.rest = rest;
            return Some((name, b""));
        };
        let value = skip(value, is_space);
        let (value, rest) = match value.first() {
            Some(quote @ (b'"' | b'\'')) => {
                let value = &value[1..];
                let end = value.iter().position(|byte| byte == quote).unwrap_or(value.len());
                (&value[..end], value.get(end + 1..).unwrap_or_default())
            }
            _ => split(value, |byte| is_space(byte) || byte == b'>'),
        };
        self.rest = rest;
        Some((name, value))
    }
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b'\t' | b'\n' | b'\x0c' | b'\r' | b' ')
}

fn find(text: &[u8], word: &[u8]) -> Option<usize> {
    text.windows(word.len()).position(|window| window == word)
}

/// Where the end tag of an element whose text is not markup begins.
fn find_end_tag(text: &[u8], name: &[u8]) -> Option<usize> {
    let mut tags = text.iter().enumerate().filter(|(_, byte)| **byte == b'<').map(|(at, _)| at);
    tags.find(|at| {
        let tag = text[at + 1..].strip_prefix(b"/");
        tag.and_then(|tag| tag.get(..name.len())).is_some_and(|found| found.eq_ignore_ascii_case(name))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_real_declarations_count() {
        let filler = "x".repeat(3000);
        let cases: [(&str, Option<&str>); 27] = [
            ("<meta charset=koi8-r>", Some("KOI8-R")),
            ("<META CharSet = \" Shift_JIS \" />", Some("Shift_JIS")),
            ("<meta content='text/html; charset=shift_jis' http-equiv=Content-Type>", Some("Shift_JIS")),
            ("<meta http-equiv=content-type content='charset charset = \"big5\"'>", Some("Big5")),
            ("<meta http-equiv=content-type content='charset=\"big5'>", None),
            ("<meta content='text/html; charset=gbk'>", None),
            ("<meta httpequiv=ContentType content='text/html; charset=gbk'>", None),
            ("<meta name=description content='all about charset=big5'><meta charset=gbk>", Some("GBK")),
            ("<meta name=x charset=gbk>", Some("GBK")),
            ("<meta charset=x><meta charset=gbk>", Some("GBK")),
            ("<meta charset=gbk charset=big5>", Some("GBK")),
            ("<!-- <meta charset=koi8-r> --><meta charset=gbk>", Some("GBK")),
            ("<!--><meta charset=gbk>", Some("GBK")),
            ("<!-- <meta charset=gbk>", None),
            ("<metadata charset=koi8-r>", None),
            ("</meta charset=koi8-r>", None),
            ("<a title='<meta charset=koi8-r>'>", None),
            ("<script>'<meta charset=koi8-r>'</SCRIPT ><meta charset=gbk>", Some("GBK")),
            ("<title><meta charset=koi8-r></title>", None),
            ("<!doctype html x='<meta charset=big5>'><meta charset=gbk>", Some("GBK")),
            ("<meta charset=utf-16le>", Some("UTF-8")),
            ("<meta charset=x-user-defined>", Some("windows-1252")),
            ("<?xml version='1.0' encoding = \"Shift_JIS\"?><html>", Some("Shift_JIS")),
            ("<?xml version='1.0' encoding='Shift_JIS'?><meta charset=gbk>", Some("GBK")),
            (" <?xml encoding='gbk'?>", None),
            ("<?xml encoding=gbk?>", None),
            ("<body><meta charset=gbk>", Some("GBK")),
        ];
        for (html, expected) in cases {
            assert_eq!(in_page(html.as_bytes()).map(Encoding::name), expected, "{html}");
        }
        let late = [
            (format!("<head><script>{filler}</script><meta charset=gbk>"), Some("GBK")),
            (format!("<head><!--{filler}--><meta charset=gbk>"), Some("GBK")),
            (format!("<head></head><body>{filler}<meta charset=gbk>"), None),
            (format!("<script>{filler}<meta charset=gbk>"), None),
            (format!("<p {filler}"), None),
        ];
        for (html, expected) in late {
            assert_eq!(
                in_page(html.as_bytes()).map(Encoding::name),
                expected,
                "{}",
                html.replace(&filler, "…")
            );
        }
    }

    #[test]
    fn parameters_of_the_content_type_are_parsed() {
        let cases = [
            ("text/html; charset=gbk", Some("GBK")),
            ("text/html;CHARSET=\"gbk\";x", Some("GBK")),
            ("text/html; x=\"; charset=big5\"; charset=gbk", Some("GBK")),
            ("text/html; charset=x; charset=gbk", Some("GBK")),
            ("charset=gbk", None),
            ("text/html; xcharset=gbk", None),
            ("", None),
        ];
        for (content_type, expected) in cases {
            assert_eq!(in_content_type(content_type).map(Encoding::name), expected, "{content_type}");
        }
    }
}
