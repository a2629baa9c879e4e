//! Cleans texts of pages.

use std::borrow::Cow;
use std::cell::RefCell;

use html5ever::tendril::StrTendril;
use html5ever::tokenizer::states::{RawKind, State};
use html5ever::tokenizer::{BufferQueue, Token, TokenSink, TokenSinkResult, Tokenizer, TokenizerOpts};

/// Collapses whitespace (including no-break spaces) to single spaces, trims, and drops control
/// characters and [invisible](is_invisible) ones.
pub fn collapse_whitespace(text: &str) -> String {
    let mut collapsed = String::with_capacity(text.len());
    for word in text.split(|c: char| c.is_whitespace()) {
        let start = collapsed.len();
        if start > 0 {
            collapsed.push(' ');
        }
        let word_start = collapsed.len();
        collapsed.extend(word.chars().filter(|c| !c.is_control() && !is_invisible(*c)));
        if collapsed.len() == word_start {
            collapsed.truncate(start);
        }
    }
    collapsed
}

/// Drops characters that cannot be seen and mean nothing by themselves: soft hyphens, places where
/// a line may or must not break, marks of the writing direction, byte order marks. The joiners
/// U+200C and U+200D stay: they change the shapes of letters and make emojis.
pub fn drop_invisible(text: &str) -> Cow<'_, str> {
    if text.is_ascii() || !text.contains(is_invisible) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(text.chars().filter(|c| !is_invisible(*c)).collect())
}

/// Whether a character has no glyph and no meaning of its own: soft hyphens, places where a line
/// may or must not break, marks of the writing direction. The joiners U+200C and U+200D are not
/// among them: they change the shapes of letters and make emojis.
fn is_invisible(c: char) -> bool {
    matches!(c,
        '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}'
        | '\u{2060}'..='\u{2064}' | '\u{2066}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}')
}

/// Resolves character references. Captions get this a second time, after parsing: many pages escape
/// twice (`R&amp;amp;D`), and a caption that is meant to show `&amp;` is rarer than a mistake.
pub fn unescape_html(text: &str) -> Cow<'_, str> {
    if !text.contains('&') {
        return Cow::Borrowed(text);
    }
    // In the RCDATA state with no open element, the tokenizer only recognizes character references.
    let state = Some(State::RawData(RawKind::Rcdata));
    let options = TokenizerOpts { initial_state: state, discard_bom: false, ..TokenizerOpts::default() };
    let tokenizer = Tokenizer::new(TextSink::default(), options);
    let input = BufferQueue::default();
    input.push_back(StrTendril::from(text));
    let _done = tokenizer.feed(&input);
    tokenizer.end();
    Cow::Owned(tokenizer.sink.0.into_inner())
}

#[derive(Default)]
struct TextSink(RefCell<String>);

impl TokenSink for TextSink {
    type Handle = ();

    fn process_token(&self, token: Token, _line: u64) -> TokenSinkResult<()> {
        match token {
            Token::CharacterTokens(text) => self.0.borrow_mut().push_str(&text),
            Token::NullCharacterToken => self.0.borrow_mut().push('\u{fffd}'),
            _ => {}
        }
        TokenSinkResult::Continue
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whitespace_collapses() {
        for (text, expected) in
            [("", ""), (" \t\n", ""), (" a \u{a0} b\r\nc ", "a b c"), ("a\u{0}b \u{7} c", "ab c")]
        {
            assert_eq!(collapse_whitespace(text), expected, "{text:?}");
        }
    }

    #[test]
    fn invisible_characters_are_dropped() {
        let cases = [
            ("zero\u{200b}width soft\u{ad}hyphen", "zerowidth softhyphen"),
            ("\u{feff}mark \u{200b} alone", "mark alone"),
            ("\u{202e}abc\u{202c} \u{2067}שלום\u{2069}\u{200f}", "abc שלום"),
            ("\u{200b}\u{200e}", ""),
            ("👩\u{200d}🚒 می\u{200c}خواهم ❤\u{fe0f}", "👩\u{200d}🚒 می\u{200c}خواهم ❤\u{fe0f}"),
        ];
        for (text, expected) in cases {
            assert_eq!(collapse_whitespace(text), expected, "{text:?}");
            assert_eq!(collapse_whitespace(&drop_invisible(text)), expected, "{text:?}");
        }
        assert!(matches!(drop_invisible("a \t👩\u{200d}🚒"), Cow::Borrowed(_)));
        assert_eq!(drop_invisible("a \n\u{200b} b"), "a \n b", "white space stays as it is");
    }

    #[test]
    fn references_are_resolved_once() {
        let cases = [
            ("plain", "plain"),
            ("R&amp;D", "R&D"),
            ("R&amp;amp;D", "R&amp;D"),
            ("&#39;tis &lt;b&gt; &hellip;", "'tis <b> …"),
            ("a & b &unknown; &", "a & b &unknown; &"),
            ("</title><b>&amp;", "</title><b>&"),
        ];
        for (text, expected) in cases {
            assert_eq!(unescape_html(text), expected, "{text:?}");
        }
    }
}
