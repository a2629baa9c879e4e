//! CLIP's caption cleaning: ftfy, two passes of HTML unescaping, collapsed white space, lower case.
//!
//! Every step matches open_clip's tokenizer (ftfy 6.3.1 and Python's `html.unescape`), so token ids
//! match too. Web pages are full of text decoded in the wrong encoding and of entities that were
//! escaped twice.

mod badness;
mod charsets;
mod entities;
mod mojibake;

use std::borrow::Cow;
use unicode_normalization::{IsNormalized, UnicodeNormalization, is_nfc_quick};

/// White space as Python defines it: Unicode's, plus the four ASCII separators.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// Cleans a caption exactly as open_clip's tokenizer does.
pub fn clean_caption(text: &str) -> String {
    let text = fix_text(text);
    let text = entities::unescape(&entities::unescape(&text));
    let words: Vec<&str> = text.split(is_space).filter(|word| !word.is_empty()).collect();
    lowercase(&words.join(" "))
}

/// Lower case by the tables of Unicode 15.1, which Python has up to 3.13: later letters, which the
/// standard library may know, stay as they are, so that token ids depend neither on the compiler
/// nor on what was trained.
fn lowercase(text: &str) -> String {
    if !text.contains(is_later_capital) {
        return text.to_lowercase();
    }
    let mut lower = String::with_capacity(text.len());
    for part in text.split_inclusive(is_later_capital) {
        let known = part.trim_end_matches(is_later_capital);
        lower.push_str(&known.to_lowercase());
        lower.push_str(&part[known.len()..]);
    }
    lower
}

/// Capitals of Unicode 16 to 18.
fn is_later_capital(c: char) -> bool {
    matches!(c, '\u{558}' | '\u{1c89}' | '\u{a7cb}' | '\u{a7cc}' | '\u{a7ce}' | '\u{a7d2}' | '\u{a7d4}' | '\u{a7da}'
        | '\u{a7dc}' | '\u{10d50}'..='\u{10d65}' | '\u{16ea0}'..='\u{16eb8}')
}

/// ftfy's `fix_text`, line by line. A `<` marks the text as HTML: that line and all later ones keep
/// their entities.
fn fix_text(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut is_html = false;
    for line in text.split_inclusive('\n') {
        is_html |= line.contains('<');
        out.push_str(&fix_line(line, is_html));
    }
    out
}

/// Repeats all fixes until the line no longer changes.
fn fix_line(line: &str, is_html: bool) -> String {
    let mut text = line.to_owned();
    loop {
        let unescaped =
            if is_html { Cow::Borrowed(&*text) } else { Cow::Owned(entities::unescape_unambiguous(&text)) };
        let fixed = mojibake::fix_encoding(&unescaped);
        let fixed = mojibake::fix_controls(&fixed);
        let fixed = remove_controls(&remove_terminal_escapes(&fix_line_breaks(&fix_characters(&fixed))));
        let fixed =
            if is_nfc_quick(fixed.chars()) == IsNormalized::Yes { fixed } else { fixed.nfc().collect() };
        if fixed == text {
            return text;
        }
        text = fixed;
    }
}

/// Expands ligatures, normalises half-width and full-width characters, straightens quotes.
fn fix_characters(text: &str) -> Cow<'_, str> {
    let is_unaffected = |c: char| c.is_ascii() || ('\u{a0}'..'\u{132}').contains(&c);
    if text.chars().all(is_unaffected) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\u{149}' => out.push_str("'n"),
            '\u{132}'
            | '\u{133}'
            | '\u{1c4}'..='\u{1cc}'
            | '\u{1f1}'..='\u{1f3}'
            | '\u{fb00}'..='\u{fb06}' => {
                out.push_str(expand_ligature(c));
            }
            '\u{3000}' => out.push(' '),
            '\u{ff01}'..='\u{ffef}' => out.extend(std::iter::once(c).nfkc()),
            '\u{2bc}' | '\u{2018}'..='\u{201b}' => out.push('\''),
            '\u{201c}'..='\u{201f}' => out.push('"'),
            c => out.push(c),
        }
    }
    Cow::Owned(out)
}

fn expand_ligature(c: char) -> &'static str {
    match c {
        '\u{132}' => "IJ",
        '\u{133}' => "ij",
        '\u{1c4}' => "DŽ",
        '\u{1c5}' => "Dž",
        '\u{1c6}' => "dž",
        '\u{1c7}' => "LJ",
        '\u{1c8}' => "Lj",
        '\u{1c9}' => "lj",
        '\u{1ca}' => "NJ",
        '\u{1cb}' => "Nj",
        '\u{1cc}' => "nj",
        '\u{1f1}' => "DZ",
        '\u{1f2}' => "Dz",
        '\u{1f3}' => "dz",
        '\u{fb00}' => "ff",
        '\u{fb01}' => "fi",
        '\u{fb02}' => "fl",
        '\u{fb03}' => "ffi",
        '\u{fb04}' => "ffl",
        '\u{fb05}' => "ſt",
        _ => "st",
    }
}

fn fix_line_breaks(text: &str) -> Cow<'_, str> {
    let is_break = |c: char| matches!(c, '\r' | '\u{2028}' | '\u{2029}' | '\u{85}');
    if !text.contains(is_break) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(text.replace("\r\n", "\n").replace(is_break, "\n"))
}

/// Removes ANSI colour sequences: ESC, `[`, digits and semicolons, a letter.
fn remove_terminal_escapes(text: &str) -> Cow<'_, str> {
    const START: &str = "\u{1b}[";
    if !text.contains(START) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(START) {
        let tail = &rest[at + START.len()..];
        let after = tail.trim_start_matches(|c: char| c == ';' || c.is_numeric());
        if after.starts_with(|c: char| c.is_ascii_alphabetic()) {
            out.push_str(&rest[..at]);
            rest = &after[1..];
        } else {
            out.push_str(&rest[..at + START.len()]);
            rest = tail;
        }
    }
    out.push_str(rest);
    Cow::Owned(out)
}

/// Removes invisible control characters and the byte order mark.
fn remove_controls(text: &str) -> String {
    let is_invisible = |c: char| {
        matches!(c, '\0'..='\u{8}' | '\u{b}' | '\u{e}'..='\u{1f}' | '\u{7f}' | '\u{206a}'..='\u{206f}' | '\u{feff}'
            | '\u{fff9}'..='\u{fffc}')
    };
    text.chars().filter(|c| !is_invisible(*c)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lower_case_does_not_depend_on_the_compiler() {
        // Python 3.13: "".lower()
        let cases = [
            ("ΟΔΟΣ ŞİĞ", "οδος şi\u{307}ğ"),
            ("A\u{558}B\u{58b}", "a\u{558}b\u{58b}"),
            ("\u{1c89}Ж\u{a7dc}\u{10d50}", "\u{1c89}ж\u{a7dc}\u{10d50}"),
        ];
        for (text, expected) in cases {
            assert_eq!(lowercase(text), expected, "{text}");
        }
        let later: String = ('\0'..=char::MAX).filter(|c| is_later_capital(*c)).collect();
        assert_eq!(clean_caption(&later), later);
    }
}
