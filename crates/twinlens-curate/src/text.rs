//! How text is normalised before words are looked for in it.
//!
//! Queries and captions go through the same [`Normalizer`]; a rule applied to one side alone is the
//! classic way to lose matches ("St. Louis", "Yahoo!", "(puppy)" and "Dog" all fail where only
//! captions have their punctuation set off).
//!
//! Two forms exist. [`Normalizer::display`] is what a query list shows: Unicode NFKC, typographic
//! quotes and dashes in their ASCII form, case folded, white space collapsed.
//! [`Normalizer::tokens`] is what is searched: the display form cut into tokens with one space
//! before, between and after them. A token is a run of letters and digits, or one punctuation mark
//! or symbol, or one character of a script that is written without spaces. So "word boundary" means
//! "space" everywhere, and a query occurs in a text exactly where its token form is a substring of
//! the text's.
//!
//! Both forms are idempotent: normalising what is normalised changes nothing.

use unicode_normalization::UnicodeNormalization;
use unicode_normalization::char::is_combining_mark;

/// The rules by which text is normalised. Cheap to copy.
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
    /// . louis arch `. A text without any token gives the empty string.
    #[must_use]
    pub fn tokens(self, text: &str) -> String {
        let mut out = String::new();
        self.tokens_into(text, &mut out);
        out
    }

    /// [`tokens`](Self::tokens) into a buffer that is reused from text to text.
    pub fn tokens_into(self, text: &str, out: &mut String) {
        out.clear();
        if text.is_ascii() {
            self.ascii_tokens(text, out);
        } else {
            // Nothing is composed, reordered or joined across a space: the words between two can be
            // cut apart. Most words of most captions are ASCII, even where one is not.
            for words in text.split(' ') {
                if words.is_ascii() { self.ascii_tokens(words, out) } else { self.unicode_tokens(words, out) }
            }
        }
        if !out.is_empty() {
            out.push(' ');
        }
    }

    /// What a file that was made with these rules is marked with: the rules, and the version of
    /// their logic. Raise the version when the same text gives another token form.
    #[must_use]
    pub fn version(self) -> [u8; 2] {
        [1, u8::from(self.fold_case)]
    }

    /// Appends tokens, each with a space before it; the general way, whose fast twin is
    /// [`ascii_tokens`](Self::ascii_tokens).
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
                // A mark belongs to the character before it, whatever that is; it neither opens nor
                // closes a token.
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
            // decomposes a few letters ("ΐ"), hence NFKC once more; NFD before it keeps the order
            // of marks canonical.
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
    /// Separates tokens and is no part of any.
    Space,
    /// Forms a token with the word characters beside it.
    Word,
    /// A token by itself: punctuation, symbols, characters of scripts written without spaces.
    Alone,
    /// Part of the token before it.
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

/// Characters that show nothing and separate nothing: soft hyphens, joiners, direction and
/// variation marks, the byte order mark. (The zero-width space U+200B is not among them: it marks a
/// word boundary.)
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{180b}'..='\u{180f}' | '\u{200c}'..='\u{200f}'
        | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}'
        | '\u{e0000}'..='\u{e0fff}')
}

/// Typographic variants that NFKC leaves apart although keyboards and editors exchange them freely.
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
    fn both_sides_meet() {
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
    fn words_are_whole() {
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
        fn normalising_twice_changes_nothing(text in "\\PC{0,24}|.{0,24}", fold_case: bool) {
            let rules = Normalizer { fold_case };
            let (shown, cut) = (rules.display(&text), rules.tokens(&text));
            prop_assert_eq!(rules.display(&shown), shown.clone());
            prop_assert_eq!(rules.tokens(&cut), cut.clone());
            prop_assert_eq!(rules.tokens(&shown), cut);
        }

        #[test]
        fn cutting_at_spaces_changes_nothing(text in "[ a-cB.!é\u{301}\u{308}\u{200b}犬ﬁẞΣ ´]{0,32}|.{0,24}", fold_case: bool) {
            let rules = Normalizer { fold_case };
            let mut whole = String::new();
            rules.unicode_tokens(&text, &mut whole);
            if !whole.is_empty() {
                whole.push(' ');
            }
            prop_assert_eq!(rules.tokens(&text), whole);
        }

        #[test]
        fn the_ascii_way_agrees_with_the_general_way(text in "[ -~\\t\\n\\x00\\x7f]{0,48}", fold_case: bool) {
            let rules = Normalizer { fold_case };
            let (mut fast, mut plain) = (String::new(), String::new());
            rules.ascii_tokens(&text, &mut fast);
            rules.unicode_tokens(&text, &mut plain);
            prop_assert_eq!(fast, plain);
        }
    }
}
