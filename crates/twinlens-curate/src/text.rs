//! Text normalisation for matching.
//!
//! Queries and captions go through the same [`Normalizer`]. A rule that is applied to one side only
//! loses matches: "St. Louis", "Yahoo!", "(puppy)" and "Dog" all fail if only captions have their
//! punctuation separated.
//!
//! There are two forms. [`Normalizer::display`] is shown in query lists: Unicode NFKC, typographic
//! quotes and dashes as ASCII, case folded, white space collapsed. [`Normalizer::tokens`] is
//! searched: the display form split into tokens, with one space before, between and after them. A
//! token is a run of letters and digits, or one punctuation mark or symbol, or one character of a
//! script written without spaces. So every word boundary is a space, and a query occurs in a text
//! exactly if its token form is a substring of the text's.
//!
//! Both forms are idempotent.

use unicode_normalization::UnicodeNormalization;
use unicode_normalization::char::is_combining_mark;

/// The rules of normalisation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Normalizer {
    /// Whether "Dog" and "dog" are the same word.
    pub fold_case: bool,
}

impl Default for Normalizer {
    fn default() -> Self {
        Self { fold_case: true }
    }
}

impl Normalizer {
    /// The readable normal form: "  The “St. Louis”\tArch" becomes `the "st. louis" arch`.
    #[must_use]
    pub fn display(self, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        for c in self.fold(text).chars() {
            match class(c) {
                Class::Space if out.is_empty() || out.ends_with(' ') => {}
                Class::Space => out.push(' '),
                _ => out.push(c),
            }
        }
        if out.ends_with(' ') {
            out.pop();
        }
        out
    }

    /// The searchable normal form, with a space at both ends: "The St. Louis Arch" becomes ` the st
    /// . louis arch `. A text without tokens gives the empty string.
    #[must_use]
    pub fn tokens(self, text: &str) -> String {
        let mut out = String::new();
        self.tokens_into(text, &mut out);
        out
    }

    /// [`tokens`](Self::tokens) into a reused buffer.
    pub fn tokens_into(self, text: &str, out: &mut String) {
        out.clear();
        if text.is_ascii() {
            self.ascii_tokens(text, out);
        } else {
            // Normalisation never composes, reorders or joins across a space, so words are
            // independent. Most words of most captions are ASCII, even if one is not.
            for words in text.split(' ') {
                if words.is_ascii() { self.ascii_tokens(words, out) } else { self.unicode_tokens(words, out) }
            }
        }
        if !out.is_empty() {
            out.push(' ');
        }
    }

    /// The version of the logic, and the rules: part of the key of cache files. Raise the version
    /// when the same text gives another token form.
    #[must_use]
    pub fn version(self) -> [u8; 2] {
        [1, u8::from(self.fold_case)]
    }

    /// Appends tokens, each with a space before it. The reference implementation of
    /// [`ascii_tokens`](Self::ascii_tokens), for any text.
    fn unicode_tokens(self, text: &str, out: &mut String) {
        let mut previous = Class::Space;
        for c in self.fold(text).chars() {
            let class = class(c);
            let joins = match class {
                Class::Space => {
                    previous = Class::Space;
                    continue;
                }
                Class::Word => previous == Class::Word,
                Class::Alone => false,
                // A mark belongs to the character before it; it neither begins nor ends a token.
                Class::Mark => previous != Class::Space,
            };
            if !joins {
                out.push(' ');
            }
            out.push(c);
            previous = match class {
                Class::Mark if joins => previous,
                Class::Mark => Class::Word,
                other => other,
            };
        }
    }

    fn ascii_tokens(self, text: &str, out: &mut String) {
        out.reserve(text.len() + 2);
        let mut in_word = false;
        for byte in text.bytes() {
            if byte.is_ascii_alphanumeric() {
                if !in_word {
                    out.push(' ');
                }
                out.push(if self.fold_case { byte.to_ascii_lowercase() } else { byte } as char);
                in_word = true;
            } else {
                in_word = false;
                if byte.is_ascii_punctuation() {
                    out.push(' ');
                    out.push(byte as char);
                }
            }
        }
    }

    /// NFKC, invisible characters dropped, quotes and dashes made ASCII, case folded.
    fn fold(self, text: &str) -> String {
        let plain = text.nfkc().filter(|c| !is_invisible(*c)).map(plain_punctuation);
        if self.fold_case {
            // Lower, upper, lower: "ß", "ẞ" and "SS" fold to "ss", both sigmas to "σ". Folding
            // decomposes a few letters ("ΐ"), hence the second NFKC; the NFD before it keeps the
            // order of marks canonical.
            plain
                .nfd()
                .flat_map(char::to_lowercase)
                .flat_map(char::to_uppercase)
                .flat_map(char::to_lowercase)
                .nfkc()
                .collect()
        } else {
            plain.nfkc().collect()
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    /// Separates tokens.
    Space,
    /// Forms a token with adjacent word characters.
    Word,
    /// A token by itself: punctuation, symbols, characters of scripts written without spaces.
    Alone,
    /// Belongs to the token before it.
    Mark,
}

fn class(c: char) -> Class {
    if c.is_whitespace() || c.is_control() || c == '\u{200b}' {
        Class::Space
    } else if is_combining_mark(c) {
        Class::Mark
    } else if c.is_alphanumeric() && !is_unspaced(c) {
        Class::Word
    } else {
        Class::Alone
    }
}

/// Characters that neither show nor separate: soft hyphens, joiners, direction and variation marks,
/// the byte order mark. (Not the zero-width space U+200B, which marks a word boundary.)
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{180b}'..='\u{180f}' | '\u{200c}'..='\u{200f}'
        | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}'
        | '\u{e0000}'..='\u{e0fff}')
}

/// Typographic variants that NFKC keeps distinct although keyboards and editors interchange them.
fn plain_punctuation(c: char) -> char {
    match c {
        '‘' | '’' | '‚' | '‛' | 'ʼ' | '′' => '\'',
        '“' | '”' | '„' | '‟' | '″' => '"',
        '‐'..='―' | '−' => '-',
        other => other,
    }
}

/// Letters of scripts that put no space between words: Thai, Lao, Myanmar, Khmer, the Tai scripts,
/// Javanese, kana, bopomofo, Yi, Han.
fn is_unspaced(c: char) -> bool {
    matches!(c, '\u{0e00}'..='\u{0eff}' | '\u{1000}'..='\u{109f}' | '\u{1780}'..='\u{17ff}'
        | '\u{1950}'..='\u{19ff}' | '\u{1a20}'..='\u{1aaf}' | '\u{3005}'..='\u{3007}' | '\u{3021}'..='\u{312f}'
        | '\u{31a0}'..='\u{31ff}' | '\u{3400}'..='\u{4dbf}' | '\u{4e00}'..='\u{a4cf}' | '\u{a980}'..='\u{a9ff}'
        | '\u{aa60}'..='\u{aadf}' | '\u{f900}'..='\u{faff}' | '\u{1b000}'..='\u{1b16f}' | '\u{20000}'..='\u{3ffff}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn queries_match_captions() {
        let fold = Normalizer::default();
        for (query, caption) in [
            ("St. Louis", "The Arch in St.  Louis, Missouri"),
            ("Yahoo!", "YAHOO! headquarters"),
            ("puppy", "a (puppy)"),
            ("Dog", "hot dog"),
            ("dog", "DOG."),
            ("new york", "New\u{a0}York\tat night"),
            ("don't", "Don’t panic"),
            ("t-shirt", "A T‑Shirt"),
            ("café", "cafe\u{301}"),
            ("straße", "STRASSE"),
            ("ΟΔΟΣ", "οδος"),
            ("ﬁsh", "FISH"),
            ("cooperate", "co\u{ad}operate"),
            ("柴犬", "かわいい柴犬の写真"),
            ("iphone", "iPhoneケース"),
            ("ภาพ", "รูปภาพ"),
            ("c++", "C++ in a day"),
        ] {
            let (query, caption) = (fold.tokens(query), fold.tokens(caption));
            assert!(caption.contains(&query), "{query:?} is not in {caption:?}");
        }
    }

    #[test]
    fn only_whole_words_match() {
        let fold = Normalizer::default();
        for (query, caption) in [
            ("cat", "concatenate"),
            ("new york", "new, york"),
            ("c++", "C and more"),
            ("café", "cafe"),
            ("ก", "กำ"),
        ] {
            let (query, caption) = (fold.tokens(query), fold.tokens(caption));
            assert!(!caption.contains(&query), "{query:?} is in {caption:?}");
        }
        assert!(!Normalizer { fold_case: false }.tokens("Dog").contains("dog"));
    }

    #[test]
    fn forms() {
        let fold = Normalizer::default();
        assert_eq!(fold.display("  The “St. Louis”\tArch\n"), "the \"st. louis\" arch");
        assert_eq!(fold.tokens("The “St. Louis”\tArch\n"), " the \" st . louis \" arch ");
        assert_eq!(fold.tokens("柴犬 2匹"), " 柴 犬 2 匹 ");
        assert_eq!(fold.tokens(" \u{200b}\u{feff} "), "");
        assert_eq!(Normalizer { fold_case: false }.display("Yahoo!"), "Yahoo!");
    }

    proptest! {
        #[test]
        fn normalisation_is_idempotent(text in "\\PC{0,24}|.{0,24}", fold_case: bool) {
            let rules = Normalizer { fold_case };
            let (shown, cut) = (rules.display(&text), rules.tokens(&text));
            prop_assert_eq!(rules.display(&shown), shown.clone());
            prop_assert_eq!(rules.tokens(&cut), cut.clone());
            prop_assert_eq!(rules.tokens(&shown), cut);
        }

        #[test]
        fn words_are_independent(text in "[ a-cB.!é\u{301}\u{308}\u{200b}犬ﬁẞΣ ´]{0,32}|.{0,24}", fold_case: bool) {
            let rules = Normalizer { fold_case };
            let mut whole = String::new();
            rules.unicode_tokens(&text, &mut whole);
            if !whole.is_empty() {
                whole.push(' ');
            }
            prop_assert_eq!(rules.tokens(&text), whole);
        }

        #[test]
        fn ascii_tokens_agree_with_the_reference(text in "[ -~\\t\\n\\x00\\x7f]{0,48}", fold_case: bool) {
            let rules = Normalizer { fold_case };
            let (mut fast, mut plain) = (String::new(), String::new());
            rules.ascii_tokens(&text, &mut fast);
            rules.unicode_tokens(&text, &mut plain);
            prop_assert_eq!(fast, plain);
        }
    }
}
