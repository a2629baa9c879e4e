//! Repairs JSON that careless programs write.

use std::borrow::Cow;

use crate::charset::decode_text;

/// Decodes and repairs JSON, so that a strict parser accepts what other parsers do: bytes that are
/// not UTF-8 are decoded by their looks; `NaN` and infinities, which Python writes, become `null`;
/// escapes of lone surrogates (`\ud83d` without its second half), which occur in truncated texts,
/// become U+FFFD; control characters within strings are escaped.
pub fn repair_json(bytes: &[u8]) -> Cow<'_, str> {
    match decode_text(bytes) {
        Cow::Borrowed(text) => repair(text),
        Cow::Owned(text) => Cow::Owned(repair(&text).into_owned()),
    }
}

fn repair(text: &str) -> Cow<'_, str> {
    let mut repaired = String::new();
    // What precedes `rest[done..]` is in `repaired`.
    let (mut done, mut at, mut in_string) = (0, 0, false);
    while let Some(byte) = text.as_bytes().get(at) {
        let (length, replacement) = match byte {
            b'"' => {
                in_string = !in_string;
                (1, None)
            }
            b'\\' if in_string => escape(&text[at..]),
            0..0x20 if in_string => (1, Some(format!("\\u{byte:04x}"))),
            b'N' | b'I' | b'-' if !in_string => not_a_number(&text[at..]),
            _ => (1, None),
        };
        if let Some(replacement) = replacement {
            repaired.push_str(&text[done..at]);
            repaired.push_str(&replacement);
            done = at + length;
        }
        at += length;
    }
    if done == 0 {
        return Cow::Borrowed(text);
    }
    repaired.push_str(&text[done..]);
    Cow::Owned(repaired)
}

/// The length of the escape that a text begins with, and what replaces it.
fn escape(text: &str) -> (usize, Option<String>) {
    let unit = |text: &str| {
        text.strip_prefix("\\u")
            .and_then(|text| text.get(..4))
            .and_then(|hex| u16::from_str_radix(hex, 16).ok())
    };
    match unit(text) {
        Some(0xd800..=0xdbff) if matches!(text.get(6..).and_then(unit), Some(0xdc00..=0xdfff)) => (12, None),
        Some(0xd800..=0xdfff) => (6, Some("\\ufffd".into())),
        Some(_) => (6, None),
        // An escape of one character, which may be a backslash or a quote.
        None => (1 + text[1..].chars().next().map_or(0, char::len_utf8), None),
    }
}

/// The length of the word that a text begins with, and what replaces it.
fn not_a_number(text: &str) -> (usize, Option<String>) {
    let word = ["NaN", "Infinity", "-Infinity"].iter().find(|word| text.starts_with(**word));
    word.map_or((1, None), |word| (word.len(), Some("null".into())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_strict_parsers_refuse_is_repaired() {
        let cases: [(&[u8], &str); 12] = [
            (br#"{"a": 1}"#, r#"{"a": 1}"#),
            (br#"["a \ud83d\ude00 b"]"#, r#"["a \ud83d\ude00 b"]"#),
            (br#"["a \ud83d b"]"#, r#"["a \ufffd b"]"#),
            (br#"["\ud83d\n"]"#, r#"["\ufffd\n"]"#),
            (br#"["\ude00\ud83d\ud83d\ude00"]"#, r#"["\ufffd\ufffd\ud83d\ude00"]"#),
            (br#"["\\ud83d \u00e9 \"NaN"]"#, r#"["\\ud83d \u00e9 \"NaN"]"#),
            (br#"{"NaN": NaN, "b": [-Infinity, Infinity, -1]}"#, r#"{"NaN": null, "b": [null, null, -1]}"#),
            (b"[\"a\tb\n\"]\n", "[\"a\\u0009b\\u000a\"]\n"),
            (b"\xef\xbb\xbf[\"caf\xc3\xa9\"]", "[\"caf\u{e9}\"]"),
            (b"[\"caf\xe9\"]", "[\"caf\u{e9}\"]"),
            (br#"["\u12"#, r#"["\u12"#),
            ("[\"\\é\"".as_bytes(), "[\"\\é\""),
        ];
        for (bytes, expected) in cases {
            assert_eq!(repair_json(bytes), expected);
        }
    }
}
