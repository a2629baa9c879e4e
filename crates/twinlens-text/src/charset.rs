//! Detects the charset of pages and texts, and decodes them.

use std::borrow::Cow;

use encoding_rs::{Encoding, UTF_8, UTF_16BE, UTF_16LE, WINDOWS_1252};

/// How many bytes are searched for a `<meta charset>` (HTML standard, "prescan a byte stream").
const PRESCAN: usize = 1024;

/// Decodes a page by its byte order mark, else the charset in the `Content-Type` header, else a
/// `<meta>`, else as UTF-8 if valid, else as windows-1252. Undecodable bytes become U+FFFD. Also
/// returns the name of the charset.
pub fn decode_html<'a>(bytes: &'a [u8], content_type: &str) -> (Cow<'a, str>, &'static str) {
    let encoding = Encoding::for_bom(bytes).map(|(encoding, _)| encoding);
    let encoding = encoding.or_else(|| charset_label(content_type.as_bytes()).and_then(Encoding::for_label));
    let encoding = encoding.or_else(|| meta_charset(&bytes[..bytes.len().min(PRESCAN)]));
    let encoding =
        encoding.unwrap_or_else(|| if std::str::from_utf8(bytes).is_ok() { UTF_8 } else { WINDOWS_1252 });
    let (text, used, _) = encoding.decode(bytes);
    (text, used.name())
}

/// Decodes text that is not HTML: by its byte order mark, else as UTF-8 if valid, else as
/// windows-1252.
pub fn decode_text(bytes: &[u8]) -> Cow<'_, str> {
    let valid = std::str::from_utf8(bytes).is_ok();
    let (encoding, bom_length) =
        Encoding::for_bom(bytes).unwrap_or((if valid { UTF_8 } else { WINDOWS_1252 }, 0));
    encoding.decode_without_bom_handling(&bytes[bom_length..]).0
}

/// The charset in a `<meta>` tag. A tag that is readable as ASCII cannot be UTF-16, whatever it
/// says.
fn meta_charset(head: &[u8]) -> Option<&'static Encoding> {
    let lower = head.to_ascii_lowercase();
    let mut rest = lower.as_slice();
    while let Some(at) = find(rest, b"<meta") {
        let tag = &rest[at..];
        let tag = &tag[..tag.iter().position(|byte| *byte == b'>').unwrap_or(tag.len())];
        if let Some(encoding) = charset_label(tag).and_then(Encoding::for_label) {
            return Some(if encoding == UTF_16BE || encoding == UTF_16LE { UTF_8 } else { encoding });
        }
        rest = &rest[at + 5..];
    }
    None
}

/// The label after `charset=`, quoted or not.
fn charset_label(text: &[u8]) -> Option<&[u8]> {
    let lower = text.to_ascii_lowercase();
    let at = find(&lower, b"charset")? + b"charset".len();
    let value = text[at..].trim_ascii_start().strip_prefix(b"=")?.trim_ascii_start();
    let value = value.strip_prefix(b"\"").or(value.strip_prefix(b"'")).unwrap_or(value);
    let end = value.iter().position(|byte| b"\"' ;>/\t\r\n".contains(byte)).unwrap_or(value.len());
    (end > 0).then(|| &value[..end])
}

fn find(text: &[u8], word: &[u8]) -> Option<usize> {
    text.windows(word.len()).position(|window| window == word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn charset_sources_have_an_order() {
        let cases: [(&[u8], &str, &str, &str); 10] = [
            (b"\xef\xbb\xbfna\xc3\xafve", "text/html; charset=iso-8859-1", "naïve", "UTF-8"),
            (b"na\xefve", "text/html; charset=iso-8859-1", "naïve", "windows-1252"),
            (b"na\xefve", "text/html; Charset = \"ISO-8859-1\"; x=y", "naïve", "windows-1252"),
            (b"<meta charset=utf-8>na\xc3\xafve", "text/html", "<meta charset=utf-8>naïve", "UTF-8"),
            (b"<meta charset='koi8-r'>\xce", "text/html", "<meta charset='koi8-r'>н", "KOI8-R"),
            (
                b"<meta content='text/html; charset=shift_jis'>\x83n",
                "",
                "<meta content='text/html; charset=shift_jis'>ハ",
                "Shift_JIS",
            ),
            (b"<meta charset=utf-16>na\xc3\xafve", "", "<meta charset=utf-16>naïve", "UTF-8"),
            (b"na\xc3\xafve", "text/html", "naïve", "UTF-8"),
            (b"na\xefve", "text/html", "naïve", "windows-1252"),
            (b"\xff\xfea\0b\0", "", "ab", "UTF-16LE"),
        ];
        for (bytes, content_type, text, name) in cases {
            assert_eq!(decode_html(bytes, content_type), (text.into(), name), "{bytes:?} {content_type}");
        }
    }

    #[test]
    fn plain_text_is_not_searched_for_a_meta_charset() {
        let cases: [(&[u8], &str); 4] = [
            (b"<meta charset=koi8-r>caf\xc3\xa9", "<meta charset=koi8-r>caf\u{e9}"),
            (b"caf\xe9", "caf\u{e9}"),
            (b"\xef\xbb\xbfcaf\xc3\xa9", "caf\u{e9}"),
            (b"\xfe\xff\0a", "a"),
        ];
        for (bytes, text) in cases {
            assert_eq!(decode_text(bytes), text, "{bytes:?}");
        }
    }

    #[test]
    fn an_unknown_charset_is_ignored() {
        assert_eq!(decode_html(b"na\xc3\xafve", "text/html; charset=klingon").1, "UTF-8");
        assert_eq!(decode_html(b"<meta charset=><meta charset=koi8-r>", "").1, "KOI8-R");
    }
}
