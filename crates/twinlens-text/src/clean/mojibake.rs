//! Repairs mojibake: text encoded in UTF-8 and decoded in another encoding.
//!
//! The default behaviour of ftfy 6.3 (`fix_encoding`; Robyn Speer, Apache License 2.0): text that
//! looks wrong is re-encoded in each of ten encodings, small losses are repaired, and if the bytes
//! are then valid UTF-8, they are decoded as such.

use super::badness::is_bad;
use super::charsets::{CHARSETS, CP1252, LATIN_1_LIKE};
use regex::bytes::Regex;
use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::LazyLock;

/// UTF-8 sequences whose byte 0xa0 became a space, limited to those that yield likely characters.
const ALTERED: &str = r"(?-u)[\xc2\xc3\xc5\xce\xd0\xd9]\x20|[\xe2\xe3]\x20[\x80-\x84\x86-\x9f\xa1-\xbf]|[\xe0-\xe3][\x80-\x84\x86-\x9f\xa1-\xbf]\x20|\xf0\x20[\x80-\xbf][\x80-\xbf]|\xf0[\x80-\xbf]\x20[\x80-\xbf]|\xf0[\x80-\xbf][\x80-\xbf]\x20";

/// UTF-8 sequences in which bytes became the replacement character (0x1a) or a question mark.
const LOSSY: &str = r"(?-u)[\xc2-\xdf]\x1a|[\xc2-\xc3]\?|\xed[\xa0-\xaf][\x1a?]\xed[\xb0-\xbf][\x1a?\x80-\xbf]|\xed[\xa0-\xaf][\x1a?\x80-\xbf]\xed[\xb0-\xbf][\x1a?]|[\xe0-\xef][\x1a?][\x1a\x80-\xbf]|[\xe0-\xef][\x1a\x80-\xbf][\x1a?]|[\xf0-\xf4][\x1a?][\x1a\x80-\xbf][\x1a\x80-\xbf]|[\xf0-\xf4][\x1a\x80-\xbf][\x1a?][\x1a\x80-\xbf]|[\xf0-\xf4][\x1a\x80-\xbf][\x1a\x80-\xbf][\x1a?]|\x1a";

#[expect(clippy::expect_used, reason = "constant patterns, compiled by every test")]
static PATTERNS: LazyLock<[Regex; 2]> =
    LazyLock::new(|| [ALTERED, LOSSY].map(|pattern| Regex::new(pattern).expect("a valid pattern")));

/// Undoes wrong decodings, however many were applied in turn.
pub(super) fn fix_encoding(text: &str) -> Cow<'_, str> {
    let mut text = Cow::Borrowed(text);
    while !text.is_ascii() && is_bad(&text) {
        match undo_one_decoding(&text) {
            Some(fixed) if fixed != *text => text = Cow::Owned(fixed),
            _ => break,
        }
    }
    text
}

fn undo_one_decoding(text: &str) -> Option<String> {
    for charset in CHARSETS.iter() {
        let Some(mut bytes) = charset.encode(text) else { continue };
        let [altered, lossy] = &*PATTERNS;
        if charset.may_alter_spaces && altered.is_match(&bytes) {
            bytes = restore_spaces(&bytes);
        }
        if charset.is_sloppy {
            bytes = lossy.replace_all(&bytes, &b"\xef\xbf\xbd"[..]).into_owned();
        }
        if let Some(fixed) = decode_utf8_variants(&bytes) {
            return Some(fixed);
        }
    }
    if let Some(fixed) = fix_parts(text).filter(|fixed| fixed != text) {
        return Some(fixed);
    }
    // What remains is Windows-1252 that was decoded as Latin-1. They differ only in control
    // characters.
    Some(fix_controls(text).into_owned())
}

/// Replaces Latin-1's control characters with Windows-1252's characters for the same bytes.
pub(super) fn fix_controls(text: &str) -> Cow<'_, str> {
    let is_control = |c: char| ('\u{80}'..'\u{a0}').contains(&c);
    if !text.contains(is_control) {
        return Cow::Borrowed(text);
    }
    let fix = |c: char| if is_control(c) { CHARSETS[CP1252].decode_high(c as u32 as u8) } else { c };
    Cow::Owned(text.chars().map(fix).collect())
}

/// Turns spaces back into the byte 0xa0 inside UTF-8 sequences. A lone à keeps the space after it
/// (`à la mode`), except in the Portuguese words that begin with à.
fn restore_spaces(bytes: &[u8]) -> Vec<u8> {
    let mut words = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some((first, tail)) = rest.split_first() {
        words.push(*first);
        rest = tail;
        if *first == 0xc3
            && let Some(next) = tail.strip_prefix(b" ")
            && ![&b" "[..], b"quele", b"quela", b"quilo", b"s "].iter().any(|word| next.starts_with(word))
        {
            words.extend_from_slice(b"\xa0 ");
            rest = next;
        }
    }
    let restore = |captures: &regex::bytes::Captures<'_>| -> Vec<u8> {
        captures[0].iter().map(|b| if *b == b' ' { 0xa0 } else { *b }).collect()
    };
    PATTERNS[0].replace_all(&words, restore).into_owned()
}

/// Decodes UTF-8 and its variants: CESU-8 (a character beyond 16 bits as two three-byte surrogates)
/// and a two-byte NUL.
fn decode_utf8_variants(bytes: &[u8]) -> Option<String> {
    if let Ok(text) = std::str::from_utf8(bytes) {
        return Some(text.to_owned());
    }
    let mut text = String::with_capacity(bytes.len());
    let mut rest = bytes;
    while !rest.is_empty() {
        let valid = match std::str::from_utf8(rest) {
            Ok(valid) => valid.len(),
            Err(error) => error.valid_up_to(),
        };
        text.push_str(std::str::from_utf8(&rest[..valid]).ok()?);
        rest = match &rest[valid..] {
            [] => &[],
            [0xc0, 0x80, tail @ ..] => {
                text.push('\0');
                tail
            }
            [0xed, a @ 0xa0..=0xaf, b @ 0x80..=0xbf, 0xed, c @ 0xb0..=0xbf, d @ 0x80..=0xbf, tail @ ..] => {
                let [a, b, c, d] = [*a, *b, *c, *d].map(u32::from);
                let bits = (a & 0xf) << 16 | (b & 0x3f) << 10 | (c & 0xf) << 6 | d & 0x3f;
                text.push(char::from_u32(bits + 0x1_0000)?);
                tail
            }
            _ => return None,
        };
    }
    Some(text)
}

/// The characters that UTF-8 bytes become when decoded in an encoding similar to Latin-1.
struct Utf8Lookalikes {
    /// Lead bytes of two-, three- and four-byte sequences.
    lead: [HashSet<char>; 3],
    /// Continuation bytes; also the space, which may have been a no-break space.
    continuation: HashSet<char>,
    /// Continuation bytes without punctuation, which is often meant literally.
    strict_continuation: HashSet<char>,
}

static LOOKALIKES: LazyLock<Utf8Lookalikes> = LazyLock::new(|| {
    let latin_1_like = || CHARSETS.iter().take(LATIN_1_LIKE);
    let decode_all = |bytes: &mut dyn Iterator<Item = u8>| -> HashSet<char> {
        bytes.flat_map(|byte| latin_1_like().map(move |charset| charset.decode_high(byte))).collect()
    };
    let mut continuation = decode_all(&mut (0x80..0xc0));
    let is_strict = |c: &char| !"–—―‘’‚“”„•…".contains(*c);
    let strict_continuation = continuation.iter().copied().filter(is_strict).collect();
    continuation.insert(' ');
    // Assigned four-byte characters begin with 0xf0, a few with 0xf3.
    let lead = [
        decode_all(&mut (0xc2..0xe0)),
        decode_all(&mut (0xe0..0xf0)),
        decode_all(&mut [0xf0, 0xf3].into_iter()),
    ];
    Utf8Lookalikes { lead, continuation, strict_continuation }
});

/// Decodes the parts of a text that look like UTF-8 where no encoding fits the whole text.
fn fix_parts(text: &str) -> Option<String> {
    let (chars, lookalikes) = (text.char_indices().collect::<Vec<_>>(), &*LOOKALIKES);
    let is_in = |set: &HashSet<char>, i: usize| chars.get(i).is_some_and(|(_, c)| set.contains(c));
    // Length of the UTF-8 sequence that starts at `i`.
    let sequence_len = |i: usize| {
        (2..=4).find(|len| {
            is_in(&lookalikes.lead[len - 2], i)
                && (i + 1..i + len).all(|next| is_in(&lookalikes.continuation, next))
        })
    };
    let at = |i: usize| chars.get(i).map_or(text.len(), |(at, _)| *at);
    let (mut out, mut done, mut i) = (String::with_capacity(text.len()), 0, 0);
    while i < chars.len() {
        let mut end = i;
        if i == 0 || !is_in(&lookalikes.strict_continuation, i - 1) {
            while let Some(len) = sequence_len(end) {
                end += len;
            }
        }
        if end == i {
            i += 1;
            continue;
        }
        let part = &text[at(i)..at(end)];
        if part.len() < text.len() && is_bad(part) {
            out.push_str(&text[done..at(i)]);
            out.push_str(&fix_encoding(part));
            done = at(end);
        }
        i = end;
    }
    out.push_str(&text[done..]);
    (done > 0).then_some(out)
}
