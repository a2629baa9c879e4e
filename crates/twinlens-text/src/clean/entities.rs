//! Decoding of HTML character references (entities), as Python's `html.unescape` and ftfy do it.

use std::collections::HashMap;
use std::sync::LazyLock;
use web_atoms::NAMED_ENTITIES;

/// Decodes a named reference (`amp;`; legacy names also without the semicolon).
fn decode_named(name: &str) -> Option<String> {
    // The table also holds every prefix of a name, mapped to 0.
    let &(first, second) = NAMED_ENTITIES.get(name).filter(|chars| chars.0 != 0)?;
    Some([first, second].into_iter().filter(|c| *c != 0).filter_map(char::from_u32).collect())
}

/// The numbers 0x80 to 0x9f as HTML reads them: Windows-1252's characters; undefined ones map to
/// themselves.
const C1: [u32; 32] = [
    0x20ac, 0x81, 0x201a, 0x192, 0x201e, 0x2026, 0x2020, 0x2021, 0x2c6, 0x2030, 0x160, 0x2039, 0x152, 0x8d,
    0x17d, 0x8f, 0x90, 0x2018, 0x2019, 0x201c, 0x201d, 0x2022, 0x2013, 0x2014, 0x2dc, 0x2122, 0x161, 0x203a,
    0x153, 0x9d, 0x17e, 0x178,
];

/// Decodes a numeric reference; `None` for a number that Python drops.
fn decode_numeric(number: u32) -> Option<char> {
    let number = match number {
        0 => 0xfffd,
        0x80..0xa0 => C1[number as usize - 0x80],
        1..=8 | 0xb | 0xe..=0x1f | 0x7f | 0xfdd0..=0xfdef => return None,
        _ if number <= 0x10_ffff && number & 0xfffe == 0xfffe => return None,
        _ => number,
    };
    // Surrogates and numbers beyond Unicode.
    Some(char::from_u32(number).unwrap_or('\u{fffd}'))
}

/// Decodes the reference at the start of `text`, which follows an `&`: the replacement, and the
/// reference's length in bytes.
fn decode_reference(text: &str) -> Option<(String, usize)> {
    if let Some(number) = text.strip_prefix('#') {
        let (digits, radix) = match number.strip_prefix(['x', 'X']) {
            Some(digits) => (digits, 16),
            None => (number, 10),
        };
        let len = digits.bytes().take_while(|b| (*b as char).is_digit(radix)).count();
        if len == 0 {
            return None;
        }
        let value = digits.bytes().take(len).filter_map(|b| (b as char).to_digit(radix));
        let value = value.fold(0u32, |n, digit| n.saturating_mul(radix).saturating_add(digit));
        let end = text.len() - digits.len() + len;
        let end = end + usize::from(text[end..].starts_with(';'));
        return Some((decode_numeric(value).map(String::from).unwrap_or_default(), end));
    }
    let is_delimiter = |c: char| matches!(c, '\t' | '\n' | '\u{c}' | ' ' | '<' | '&' | '#' | ';');
    let name = text.char_indices().take_while(|(_, c)| !is_delimiter(*c)).take(32);
    let mut ends: Vec<usize> = name.map(|(at, c)| at + c.len_utf8()).collect();
    let last = *ends.last()?;
    if text[last..].starts_with(';') {
        ends.push(last + 1);
    }
    // The whole name, or its longest known prefix of at least two characters.
    let whole = ends.len() - 1;
    (0..ends.len())
        .rev()
        .filter(|i| *i == whole || *i > 0)
        .find_map(|i| decode_named(&text[..ends[i]]).map(|chars| (chars, ends[i])))
}

/// Decodes every reference, including those without a semicolon.
pub(super) fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('&') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        match decode_reference(rest) {
            None => out.push('&'),
            Some((replacement, len)) => {
                out.push_str(&replacement);
                rest = &rest[len..];
            }
        }
    }
    out.push_str(rest);
    out
}

/// Upper-case names that HTML does not define but whose lower-case form it does: `NTILDE;`.
static UPPERCASE_NAMES: LazyLock<HashMap<String, String>> = LazyLock::new(|| {
    let lower = NAMED_ENTITIES.keys().filter(|name| name.ends_with(';') && **name == name.to_lowercase());
    let uppercase = |name: &&str| {
        let (upper, chars) = (name.to_uppercase(), decode_named(name)?);
        let reference = format!("&{upper}");
        (unescape(&reference) == reference).then(|| (upper, chars.to_uppercase()))
    };
    lower.filter_map(uppercase).collect()
});

/// Decodes only unambiguous references: complete, with a semicolon; upper-case names too.
pub(super) fn unescape_unambiguous(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('&') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let name = &rest[1..];
        let hash = usize::from(name.starts_with('#'));
        let len = hash + name[hash..].bytes().take_while(u8::is_ascii_alphanumeric).count();
        let is_complete = (1..=24).contains(&(len - hash)) && name[len..].starts_with(';');
        let name = &name[..if is_complete { len + 1 } else { 0 }];
        let decoded = if hash == 1 && is_complete {
            // The whole of it must be a number.
            decode_reference(name)
                .filter(|(chars, end)| *end == name.len() && chars != ";")
                .map(|(chars, _)| chars)
        } else {
            decode_named(name).or_else(|| UPPERCASE_NAMES.get(name).cloned())
        };
        match decoded {
            Some(chars) => {
                out.push_str(&chars);
                rest = &rest[1 + name.len()..];
            }
            None => {
                out.push('&');
                rest = &rest[1..];
            }
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected values are from Python's `html.unescape`.
    #[test]
    fn references_are_decoded_as_in_python() {
        for (text, want) in [
            ("&amp;amp; &amp &ampx &notit; &notin; &noti", "&amp; & &x ¬it; ∉ ¬i"),
            (
                "&#65;&#x42;&#X43 &#0; &#128; &#129; &#xd800; &#x110000; &#1; &#99999999999;",
                "ABC \u{fffd} € \u{81} \u{fffd} \u{fffd}  \u{fffd}",
            ),
            ("a & b &; &# &#x; &unknown; &", "a & b &; &# &#x; &unknown; &"),
            ("&lt;&gt;&quot;&nbsp;&eacute;&NotEqualTilde;", "<>\"\u{a0}é≂\u{338}"),
        ] {
            assert_eq!(unescape(text), want);
        }
    }

    #[test]
    fn ambiguous_references_are_kept() {
        for (text, want) in [
            ("this&not that &not; &NTILDE; &EACUTE; &GT &amp;lt;", "this&not that ¬ Ñ É &GT &lt;"),
            ("&#x2019; &#65;x &#65x; &szlig; &SZLIG;", "’ Ax &#65x; ß SS"),
        ] {
            assert_eq!(unescape_unambiguous(text), want);
        }
    }
}
