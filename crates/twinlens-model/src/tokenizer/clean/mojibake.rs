//! Text that was encoded in UTF-8 and decoded in something else, put right.
//!
//! What ftfy 6.3 does by default (`fix_encoding`; Robyn Speer, Apache License 2.0): where text
//! looks wrong, it is encoded again in each of ten encodings, small losses on the way are made
//! good, and if the bytes are then UTF-8, that was meant.

use super::badness::is_bad;
use super::charsets::{CHARSETS, CP1252, LIKE_LATIN_1};
use regex::bytes::Regex;
use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::LazyLock;

/// Bytes of UTF-8 whose 0xa0 became a space, where that gives likely characters.
const ALTERED: &str = r"(?-u)[\xc2\xc3\xc5\xce\xd0\xd9]\x20|[\xe2\xe3]\x20[\x80-\x84\x86-\x9f\xa1-\xbf]|[\xe0-\xe3][\x80-\x84\x86-\x9f\xa1-\xbf]\x20|\xf0\x20[\x80-\xbf][\x80-\xbf]|\xf0[\x80-\xbf]\x20[\x80-\xbf]|\xf0[\x80-\xbf][\x80-\xbf]\x20";

/// Bytes of UTF-8 some of which became the replacement character (0x1a), or one a question mark.
const LOSSY: &str = r"(?-u)[\xc2-\xdf]\x1a|[\xc2-\xc3]\?|\xed[\xa0-\xaf][\x1a?]\xed[\xb0-\xbf][\x1a?\x80-\xbf]|\xed[\xa0-\xaf][\x1a?\x80-\xbf]\xed[\xb0-\xbf][\x1a?]|[\xe0-\xef][\x1a?][\x1a\x80-\xbf]|[\xe0-\xef][\x1a\x80-\xbf][\x1a?]|[\xf0-\xf4][\x1a?][\x1a\x80-\xbf][\x1a\x80-\xbf]|[\xf0-\xf4][\x1a\x80-\xbf][\x1a?][\x1a\x80-\xbf]|[\xf0-\xf4][\x1a\x80-\xbf][\x1a\x80-\xbf][\x1a?]|\x1a";

#[expect(clippy::expect_used, reason = "constant patterns, compiled by every test")]
static PATTERNS: LazyLock<[Regex; 2]> =
    LazyLock::new(|| [ALTERED, LOSSY].map(|pattern| Regex::new(pattern).expect("a valid pattern")));

/// Puts the encoding of `text` right, as often as it was mistaken.
pub fn fix_encoding(text: &str) -> Cow<'_, str> {
    let mut text = Cow::Borrowed(text);
    while !text.is_ascii() && is_bad(&text) {
        match step(&text) {
            Some(fixed) if fixed != *text => text = Cow::Owned(fixed),
            _ => break,
        }
    }
    text
}

fn step(text: &str) -> Option<String> {
    for charset in CHARSETS.iter() {
        let Some(mut bytes) = charset.encode(text) else { continue };
        let [altered, lossy] = &*PATTERNS;
        if charset.spaces && altered.is_match(&bytes) {
            bytes = restore_spaces(&bytes);
        }
        if charset.sloppy {
            bytes = lossy.replace_all(&bytes, &b"\xef\xbf\xbd"[..]).into_owned();
        }
        if let Some(fixed) = decode(&bytes) {
            return Some(fixed);
        }
    }
    if let Some(fixed) = fix_pieces(text).filter(|fixed| fixed != text) {
        return Some(fixed);
    }
    // What is left is Latin-1 that should have been read as Windows-1252: only control characters
    // tell them apart.
    Some(fix_controls(text).into_owned())
}

/// Control characters of Latin-1 become what Windows-1252 has in their place.
pub fn fix_controls(text: &str) -> Cow<'_, str> {
    let is_control = |c: char| ('\u{80}'..'\u{a0}').contains(&c);
    if !text.contains(is_control) {
        return Cow::Borrowed(text);
    }
    let fix = |c: char| if is_control(c) { CHARSETS[CP1252].high(c as u32 as u8) } else { c };
    Cow::Owned(text.chars().map(fix).collect())
}

/// Spaces that were no-break spaces inside of UTF-8 become those again. A lone à keeps a space
/// behind it (`à la mode`), but for the Portuguese words that begin with it.
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
    let restored = |found: &regex::bytes::Captures<'_>| -> Vec<u8> {
        found[0].iter().map(|b| if *b == b' ' { 0xa0 } else { *b }).collect()
    };
    PATTERNS[0].replace_all(&words, restored).into_owned()
}

/// UTF-8, and its variants: characters beyond 16 bits as two surrogates of three bytes each, and
/// NUL as two bytes.
fn decode(bytes: &[u8]) -> Option<String> {
    if let Ok(text) = std::str::from_utf8(bytes) {
        return Some(text.to_owned());
    }
    let mut text = String::with_capacity(bytes.len());
    let mut rest = bytes;
    while !rest.is_empty() {
        let plain = match std::str::from_utf8(rest) {
            Ok(plain) => plain.len(),
            Err(error) => error.valid_up_to(),
        };
        text.push_str(std::str::from_utf8(&rest[..plain]).ok()?);
        rest = match &rest[plain..] {
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

/// The characters that bytes of UTF-8 become in encodings that resemble Latin-1.
struct Clues {
    /// Those that begin a character of two, three and four bytes.
    first: [HashSet<char>; 3],
    /// Those that go on with one; a space, too, which may have been a no-break space.
    next: HashSet<char>,
    /// Of the latter those that do not often stand for themselves: no punctuation.
    strict: HashSet<char>,
}

static CLUES: LazyLock<Clues> = LazyLock::new(|| {
    let like_latin_1 = || CHARSETS.iter().take(LIKE_LATIN_1);
    let of = |bytes: &mut dyn Iterator<Item = u8>| -> HashSet<char> {
        bytes.flat_map(|byte| like_latin_1().map(move |charset| charset.high(byte))).collect()
    };
    let mut next = of(&mut (0x80..0xc0));
    let strict = next.iter().copied().filter(|c| !"–—―‘’‚“”„•…".contains(*c)).collect();
    next.insert(' ');
    // Of the characters of four bytes, those in use begin with 0xf0, and a few with 0xf3.
    let first = [of(&mut (0xc2..0xe0)), of(&mut (0xe0..0xf0)), of(&mut [0xf0, 0xf3].into_iter())];
    Clues { first, next, strict }
});

/// Decodes the parts of a text that look like UTF-8, where no encoding serves the whole.
fn fix_pieces(text: &str) -> Option<String> {
    let (chars, clues) = (text.char_indices().collect::<Vec<_>>(), &*CLUES);
    let is = |set: &HashSet<char>, i: usize| chars.get(i).is_some_and(|(_, c)| set.contains(c));
    // How many characters from `i` on are one character of UTF-8.
    let one = |i: usize| {
        (2..=4).find(|len| is(&clues.first[len - 2], i) && (i + 1..i + len).all(|next| is(&clues.next, next)))
    };
    let at = |i: usize| chars.get(i).map_or(text.len(), |(at, _)| *at);
    let (mut out, mut done, mut i) = (String::with_capacity(text.len()), 0, 0);
    while i < chars.len() {
        let mut end = i;
        if i == 0 || !is(&clues.strict, i - 1) {
            while let Some(len) = one(end) {
                end += len;
            }
        }
        if end == i {
            i += 1;
            continue;
        }
        let piece = &text[at(i)..at(end)];
        if piece.len() < text.len() && is_bad(piece) {
            out.push_str(&text[done..at(i)]);
            out.push_str(&fix_encoding(piece));
            done = at(end);
        }
        i = end;
    }
    out.push_str(&text[done..]);
    (done > 0).then_some(out)
}
