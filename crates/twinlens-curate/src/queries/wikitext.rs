//! Extracts the running text of a wikitext page.
//!
//! Removes templates, tables, references, galleries, formulas, source code, comments, files and
//! categories with everything nested in them. Keeps the words of links, headings, emphasis and
//! other tags, and the text of markup that is never closed. One pass in linear time and memory: an
//! open element is a position in the output, which is truncated to it when the element closes.

/// The namespaces whose links show a picture or categorise the page: `File`, `Image`, `Category`
/// and their local names.
#[derive(Debug, Clone)]
pub struct Namespaces(Vec<String>);

impl Default for Namespaces {
    fn default() -> Self {
        Self(["file", "image", "category", "media"].map(String::from).to_vec())
    }
}

impl Namespaces {
    /// Adds a name from the dump's header.
    pub fn add(&mut self, name: &str) {
        self.0.push(name.to_lowercase());
    }

    fn hides(&self, link: &str) -> bool {
        let Some((prefix, _)) = link.split_once(':') else { return false };
        let prefix = prefix.trim().to_lowercase();
        self.0.contains(&prefix)
    }
}

/// Tags whose content is not running text.
const HIDDEN: [&str; 17] = [
    "ref",
    "references",
    "math",
    "chem",
    "ce",
    "gallery",
    "imagemap",
    "timeline",
    "score",
    "graph",
    "hiero",
    "mapframe",
    "syntaxhighlight",
    "source",
    "code",
    "pre",
    "templatestyles",
];

/// Longer tags (in bytes) are treated as text.
const LONGEST_TAG: usize = 2_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Template,
    Table,
    Link,
}

/// The running text. Lines end where no sentence continues (a paragraph, a template, a table).
#[must_use]
pub fn plain_text(wikitext: &str, namespaces: &Namespaces) -> String {
    let mut stripper = Stripper {
        text: wikitext,
        at: 0,
        out: String::with_capacity(wikitext.len() / 2),
        open: Vec::new(),
        opened: [0; 3],
        unclosed: Vec::new(),
        namespaces,
    };
    while stripper.at < wikitext.len() {
        stripper.step();
    }
    stripper.out
}

struct Stripper<'a> {
    text: &'a str,
    at: usize,
    out: String,
    /// Open elements, and where they began in the output.
    open: Vec<(Kind, usize)>,
    /// The number of open elements of each kind.
    opened: [usize; 3],
    /// End marks that do not occur in the rest of the page: not searched for again.
    unclosed: Vec<String>,
    namespaces: &'a Namespaces,
}

impl Stripper<'_> {
    fn step(&mut self) {
        let rest = &self.text[self.at..];
        let bytes = rest.as_bytes();
        match (bytes[0], bytes.get(1)) {
            (b'{', Some(b'{')) => self.begin(Kind::Template),
            (b'{', Some(b'|')) => self.begin(Kind::Table),
            (b'[', Some(b'[')) => self.begin(Kind::Link),
            (b'}', Some(b'}')) => self.end(Kind::Template),
            (b'|', Some(b'}')) if self.open.last().is_some_and(|(kind, _)| *kind == Kind::Table) => {
                self.end(Kind::Table)
            }
            (b']', Some(b']')) => self.end(Kind::Link),
            (b'[', _) => self.external_link(rest),
            (b'<', _) => self.tag(rest),
            (b'&', _) => self.entity(rest),
            (b'\'', Some(b'\'')) => self.at += bytes.iter().take_while(|byte| **byte == b'\'').count(),
            (b'=', Some(b'=')) => self.at += bytes.iter().take_while(|byte| **byte == b'=').count(),
            (b'_', Some(b'_')) => self.switch(rest),
            (b'\n', _) => self.line_start(bytes),
            (b'h', Some(b't')) if is_url(rest) => {
                self.at += rest.find([' ', '\n', ']', '|', '}', '<', '\t']).unwrap_or(rest.len());
            }
            _ => {
                let length = rest.chars().next().map_or(1, char::len_utf8);
                self.out.push_str(&rest[..length]);
                self.at += length;
            }
        }
    }

    fn begin(&mut self, kind: Kind) {
        self.open.push((kind, self.out.len()));
        self.opened[kind as usize] += 1;
        self.at += 2;
    }

    fn end(&mut self, kind: Kind) {
        self.at += 2;
        if self.opened[kind as usize] == 0 {
            return;
        }
        // Elements opened after it were never closed: their text is kept, unless this one is
        // removed.
        let start = loop {
            let Some((open, start)) = self.open.pop() else { return };
            self.opened[open as usize] -= 1;
            if open == kind {
                break start;
            }
        };
        if kind == Kind::Link {
            self.internal_link(start);
        } else {
            self.out.truncate(start);
            self.out.push('\n');
        }
    }

    /// `[[target]]`, `[[target|words]]`: the words; nothing of `[[File:...]]` and the like.
    fn internal_link(&mut self, start: usize) {
        let content = &self.out[start..];
        if self.namespaces.hides(content) {
            self.out.truncate(start);
        } else if let Some(bar) = content.find('|') {
            self.out.replace_range(start..start + bar + 1, "");
        } else if content.starts_with(':') {
            self.out.remove(start);
        }
    }

    /// `[https://example.org words]`: the words.
    fn external_link(&mut self, rest: &str) {
        if !(is_url(&rest[1..]) || rest[1..].starts_with("//")) {
            self.out.push('[');
            self.at += 1;
            return;
        }
        // The closing bracket stays as text: it is not a word.
        let address = rest.find([' ', ']', '\n', '\t']).unwrap_or(rest.len());
        self.at += address;
    }

    fn tag(&mut self, rest: &str) {
        if rest.starts_with("<!--") {
            self.at += self.find("-->", 4).unwrap_or(4);
            return;
        }
        let name = rest[1..].strip_prefix('/').unwrap_or(&rest[1..]);
        let name: String = name
            .chars()
            .take_while(char::is_ascii_alphanumeric)
            .take(20)
            .collect::<String>()
            .to_ascii_lowercase();
        let window = &rest.as_bytes()[..rest.len().min(LONGEST_TAG)];
        let Some(end) = window.iter().position(|byte| *byte == b'>').filter(|_| !name.is_empty()) else {
            self.out.push('<');
            self.at += 1;
            return;
        };
        let closed = window[end - 1] == b'/' || rest[1..].starts_with('/');
        if HIDDEN.contains(&name.as_str()) && !closed {
            self.at += self.find(&format!("</{name}"), end + 1).unwrap_or(end + 1);
        } else {
            if matches!(name.as_str(), "br" | "p" | "div" | "li" | "td" | "tr" | "hr" | "blockquote" | "poem")
            {
                self.out.push('\n');
            }
            self.at += end + 1;
        }
    }

    /// The offset from here of the next `end` after `from` bytes; for the end of a comment, the
    /// offset after it.
    fn find(&mut self, end: &str, from: usize) -> Option<usize> {
        if self.unclosed.iter().any(|known| known == end) {
            return None;
        }
        let rest = &self.text.as_bytes()[self.at..];
        let found =
            rest[from..].windows(end.len()).position(|window| window.eq_ignore_ascii_case(end.as_bytes()));
        match found {
            Some(found) if end == "-->" => Some(from + found + end.len()),
            Some(found) => Some(from + found),
            None => {
                self.unclosed.push(end.into());
                None
            }
        }
    }

    /// `&nbsp;`, `&#8211;`: the character of common names and of numbers; a space for other names.
    fn entity(&mut self, rest: &str) {
        let window = &rest.as_bytes()[..rest.len().min(12)];
        let end = window.iter().position(|byte| *byte == b';');
        let Some(name) = end.and_then(|end| rest.get(1..end)).filter(|name| !name.is_empty()) else {
            self.out.push('&');
            self.at += 1;
            return;
        };
        let number = name.strip_prefix('#').and_then(|number| match number.strip_prefix(['x', 'X']) {
            Some(hex) => u32::from_str_radix(hex, 16).ok(),
            None => number.parse().ok(),
        });
        let character = match name {
            "amp" => '&',
            "lt" => '<',
            "gt" => '>',
            "quot" => '"',
            "ndash" | "mdash" | "minus" => '-',
            "rsquo" | "lsquo" | "apos" => '\'',
            _ => number.and_then(char::from_u32).unwrap_or(' '),
        };
        self.out.push(character);
        self.at += name.len() + 2;
    }

    /// Behaviour switches: `__NOTOC__`.
    fn switch(&mut self, rest: &str) {
        let word = rest[2..].bytes().take_while(u8::is_ascii_uppercase).count();
        if word > 0 && rest[2 + word..].starts_with("__") {
            self.at += word + 4;
        } else {
            self.out.push('_');
            self.at += 1;
        }
    }

    /// The end of a line, and list and indent marks after it.
    fn line_start(&mut self, bytes: &[u8]) {
        self.out.push('\n');
        self.at += 1 + bytes[1..].iter().take_while(|byte| b"*#:;".contains(byte)).count();
    }
}

fn is_url(text: &str) -> bool {
    text.starts_with("http://") || text.starts_with("https://")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn words(wikitext: &str) -> String {
        let mut namespaces = Namespaces::default();
        namespaces.add("Datei");
        plain_text(wikitext, &namespaces).split_whitespace().collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn markup_is_removed_and_words_are_kept() {
        for (wikitext, expected) in [
            (
                "The '''Gateway Arch''' is in [[St. Louis, Missouri|St. Louis]].",
                "The Gateway Arch is in St. Louis.",
            ),
            ("[[Dog]]s and [[:Category:Cats]]", "Dogs and Category:Cats"),
            ("a {{convert|5|km|{{nested|x}}}} b", "a b"),
            ("a<ref name=\"x\">{{cite web|url=http://x.example|title=T}}</ref> b<ref name=y /> c", "a b c"),
            ("a <REF>hidden</REF> b", "a b"),
            (
                "{| class=\"wikitable\"\n|-\n! head\n|-\n| cell {{t|}} || [[x|y]]\n{|\n| inner\n|}\n|}\nafter",
                "after",
            ),
            ("[[File:Dog.jpg|thumb|A [[dog]] in '''snow''']] Dogs", "Dogs"),
            ("[[datei:Hund.jpg|mini|Ein Hund]] Hunde", "Hunde"),
            ("[[Category:Dogs]]", ""),
            ("see [https://example.org/a?b=c the site] or [https://example.org]", "see the site] or ]"),
            ("at https://example.org/x now", "at now"),
            ("== History ==\n* one\n** two\n#: three", "History one two three"),
            ("<!-- hidden [[ -->shown <span style=\"x\">text</span><br/>next", "shown text next"),
            ("<math>\\frac{a}{b}</math> x < y & z > w", "x < y & z > w"),
            ("caf&eacute; &amp; bar&nbsp;x &#8211; &#x41;", "caf & bar x – A"),
            ("__NOTOC__ snake__case __init__", "snake__case __init__"),
            ("{{unclosed and [[open] ''words''", "unclosed and open] words"),
            ("closed}} nothing]] |} more", "closed nothing |} more"),
            ("<gallery>\nFile:A.jpg|words\n</gallery>after", "after"),
            ("<ref>never closed. More", "never closed. More"),
            ("日本の[[柴犬|犬]]は{{lang|ja|小さい}}かわいい", "日本の犬は かわいい"),
            ("''''' ''", ""),
        ] {
            assert_eq!(words(wikitext), expected, "{wikitext}");
        }
    }

    #[test]
    fn unclosed_markup_takes_linear_time() {
        for mark in ["{{", "[[", "<ref>", "<!--", "{|", "<a ", "&", "''", "http://", "}}", "[[a|", "[[{{|}}"]
        {
            let stripped = plain_text(&mark.repeat(100_000), &Namespaces::default());
            assert!(stripped.len() <= mark.len() * 100_000);
        }
        let nested = format!("{}x{} y", "{{a|".repeat(50_000), "}}".repeat(50_000));
        assert_eq!(words(&nested), "y");
    }

    proptest! {
        #[test]
        fn no_text_panics(pieces in prop::collection::vec(
            prop_oneof![Just("{{"), Just("}}"), Just("[["), Just("]]"), Just("|"), Just("{|"), Just("|}"), Just("<ref>"), Just("</ref>"),
                Just("<!--"), Just("-->"), Just("<"), Just("/>"), Just(">"), Just("&"), Just(";"), Just("__"), Just("''"), Just("=="),
                Just("\n"), Just("*"), Just("[http://"), Just("é犬"), Just("File:"), Just("a ")], 0..40,
        )) {
            let text = pieces.concat();
            prop_assert!(plain_text(&text, &Namespaces::default()).len() <= 2 * text.len());
        }
    }
}
