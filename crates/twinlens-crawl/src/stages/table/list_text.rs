//! Lists of captions that are written as text, as in a CSV file: as JSON (`["a", "b"]`) or as
//! Python shows them (`['a', "b's"]`).

use std::iter::Peekable;
use std::str::Chars;

/// What a text is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ListText {
    /// Not a list.
    Text,
    List(Vec<String>),
    /// It begins and ends like a list of texts, but is not one.
    Broken,
}

impl ListText {
    pub(super) fn of(text: &str) -> Self {
        let text = text.trim();
        if !text.starts_with('[') || !text.ends_with(']') {
            return Self::Text;
        }
        if let Ok(list) = serde_json::from_str::<Vec<Option<String>>>(text) {
            return Self::List(list.into_iter().flatten().collect());
        }
        let inner = text[1..text.len() - 1].trim();
        if !inner.starts_with(['\'', '"']) || !inner.ends_with(['\'', '"']) {
            return Self::Text;
        }
        python(inner).map_or(Self::Broken, Self::List)
    }
}

/// The items of a list of Python texts.
fn python(inner: &str) -> Option<Vec<String>> {
    let (mut items, mut rest) = (Vec::new(), inner.chars().peekable());
    loop {
        skip_space(&mut rest);
        items.push(quoted(&mut rest)?);
        skip_space(&mut rest);
        match rest.next() {
            None => return Some(items),
            Some(',') => {}
            Some(_) => return None,
        }
    }
}

fn skip_space(rest: &mut Peekable<Chars<'_>>) {
    while rest.next_if(|c| c.is_whitespace()).is_some() {}
}

/// A text in quotes (Python, "String and Bytes literals").
fn quoted(rest: &mut Peekable<Chars<'_>>) -> Option<String> {
    let quote = rest.next_if(|c| matches!(c, '\'' | '"'))?;
    let mut text = String::new();
    loop {
        match rest.next()? {
            c if c == quote => return Some(text),
            '\\' => text.push(escaped(rest)?),
            c => text.push(c),
        }
    }
}

fn escaped(rest: &mut Peekable<Chars<'_>>) -> Option<char> {
    let digits = match rest.next()? {
        'n' => return Some('\n'),
        't' => return Some('\t'),
        'r' => return Some('\r'),
        c @ ('\\' | '\'' | '"') => return Some(c),
        'x' => 2,
        'u' => 4,
        'U' => 8,
        _ => return None,
    };
    let code = (0..digits).try_fold(0, |code, _| Some(code << 4 | rest.next()?.to_digit(16)?));
    char::from_u32(code?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_told_from_texts() {
        let list = |items: &[&str]| ListText::List(items.iter().map(ToString::to_string).collect());
        let cases = [
            ("a dog", ListText::Text),
            ("[sic] a dog", ListText::Text),
            ("[sic]", ListText::Text),
            ("[1, 2]", ListText::Text),
            (r#"["a", "b\n"]"#, list(&["a", "b\n"])),
            (r#" ["a", null] "#, list(&["a"])),
            ("[]", list(&[])),
            ("['a']", list(&["a"])),
            (r#"['a', "b's", 'c\'s \x41\u00e9\U0001f600']"#, list(&["a", "b's", "c's Aé😀"])),
            (r#"['say "hi"',  'b' ]"#, list(&["say \"hi\"", "b"])),
            // As numpy shows an array.
            ("['a' 'b']", ListText::Broken),
            ("['a', 'b\\']", ListText::Broken),
            ("['a', 1, 'b']", ListText::Broken),
        ];
        for (text, expected) in cases {
            assert_eq!(ListText::of(text), expected, "{text}");
        }
    }
}
