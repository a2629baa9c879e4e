//! From the tokens of a page to its pairs and links.

use std::cell::RefCell;

use html5ever::tendril::StrTendril;
use html5ever::tokenizer::states::RawKind;
use html5ever::tokenizer::{
    BufferQueue, Tag, TagKind, Token, TokenSink, TokenSinkResult, Tokenizer, TokenizerOpts,
};
use html5ever::{LocalName, local_name};
use url::Url;

use super::found::{Found, address};
use super::{Page, Reading, limits};

/// How much is fed to the tokenizer between two looks at its progress, in bytes.
const CHUNK: usize = 16 << 10;

/// Takes pairs and links out of a page.
pub fn extract(html: &str, page_url: &Url, reading: &Reading<'_>) -> Page {
    let sink = Sink(RefCell::new(Reader::new(Found::new(reading.captions))));
    let tokenizer = Tokenizer::new(sink, TokenizerOpts::default());
    let input = BufferQueue::default();
    let (mut rest, mut stretch, mut cut) = (html, 0, false);
    while !rest.is_empty() {
        let (chunk, after) = rest.split_at(rest.floor_char_boundary(CHUNK));
        tokenizer.sink.0.borrow_mut().progressed = false;
        input.push_back(StrTendril::from(chunk));
        let _done = tokenizer.feed(&input);
        let separators = chunk
            .bytes()
            .filter(|byte| matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | b'\x0c' | b'/' | b'"' | b'\''));
        stretch = if tokenizer.sink.0.borrow().progressed { 0 } else { stretch + separators.count() };
        if stretch > limits::SEPARATORS {
            cut = true;
            break;
        }
        rest = after;
    }
    if !cut {
        tokenizer.end();
    }
    let mut found = tokenizer.sink.0.into_inner().found;
    found.cut |= cut;
    found.assemble(page_url, reading.product)
}

/// Where in the page the tokens are.
#[derive(Debug)]
struct Reader {
    found: Found,
    progressed: bool,
    /// Open figures, the innermost last, and whether their caption is open.
    open: Vec<(usize, bool)>,
    /// The sources of the `picture` that is open: where its image may be if it does not say.
    picture: Option<Vec<String>>,
    /// The element whose text is not markup (script, style), while it is open.
    raw: Option<LocalName>,
    /// The JSON-LD script that is open.
    script: Option<String>,
}

#[derive(Debug)]
struct Sink(RefCell<Reader>);

impl TokenSink for Sink {
    type Handle = ();

    fn process_token(&self, token: Token, _line: u64) -> TokenSinkResult<()> {
        let mut reader = self.0.borrow_mut();
        // An error is no progress: one is reported for each odd character within a tag.
        reader.progressed |= !matches!(token, Token::ParseError(_));
        match token {
            Token::TagToken(tag) => match tag.kind {
                TagKind::StartTag => return reader.start(&tag),
                TagKind::EndTag => reader.end(&tag.name),
            },
            Token::CharacterTokens(text) => reader.text(&text),
            _ => {}
        }
        TokenSinkResult::Continue
    }
}

impl Reader {
    fn new(found: Found) -> Self {
        Self { found, progressed: false, open: Vec::new(), picture: None, raw: None, script: None }
    }

    fn start(&mut self, tag: &Tag) -> TokenSinkResult<()> {
        match tag.name {
            local_name!("img") => self.image(tag),
            local_name!("a") | local_name!("area") => self.link(tag),
            local_name!("base") => {
                if let Some(href) = attribute(tag, "href") {
                    self.found.base(href);
                }
            }
            local_name!("link") => {
                if let (true, Some(href)) = (has_word(tag, "rel", "canonical"), attribute(tag, "href")) {
                    self.found.canonical(href);
                }
            }
            local_name!("meta") => {
                let name = attribute(tag, "name").or(attribute(tag, "property"));
                if let Some((name, content)) = name.zip(attribute(tag, "content")) {
                    self.found.meta(name, content);
                }
            }
            local_name!("picture") => self.picture = Some(Vec::new()),
            local_name!("source") => {
                if let Some(sources) = self.picture.as_mut().filter(|sources| sources.len() < 100) {
                    let set = attribute(tag, "srcset").or(attribute(tag, "data-srcset"));
                    let url = set.and_then(|set| address("srcset", set));
                    sources.extend(url.map(|(_, url)| url.to_string()));
                }
            }
            local_name!("figure") => {
                let figure = self.found.figures.open();
                self.open.push((figure, false));
                self.found.end_block();
            }
            local_name!("figcaption") => {
                if let Some((_, in_caption)) = self.open.last_mut() {
                    *in_caption = true;
                }
                self.found.end_block();
            }
            _ => self.gap(&tag.name),
        }
        let raw = match tag.name {
            local_name!("title") | local_name!("textarea") => RawKind::Rcdata,
            local_name!("style")
            | local_name!("xmp")
            | local_name!("iframe")
            | local_name!("noembed")
            | local_name!("noframes") => RawKind::Rawtext,
            local_name!("script") => {
                let kind = attribute(tag, "type").unwrap_or_default().trim();
                let kind = kind.get(..19).unwrap_or_default();
                if self.found.wants_scripts() && kind.eq_ignore_ascii_case("application/ld+json") {
                    self.script = Some(String::new());
                }
                RawKind::ScriptData
            }
            local_name!("plaintext") => {
                self.raw = Some(tag.name.clone());
                return TokenSinkResult::Plaintext;
            }
            _ => return TokenSinkResult::Continue,
        };
        self.raw = Some(tag.name.clone());
        TokenSinkResult::RawData(raw)
    }

    fn end(&mut self, name: &LocalName) {
        if self.raw.as_ref() == Some(name) {
            self.raw = None;
            if let Some(script) = self.script.take() {
                self.found.script(script);
            }
        }
        match *name {
            local_name!("figure") => {
                self.open.pop();
                self.found.end_block();
            }
            local_name!("figcaption") => {
                if let Some((_, in_caption)) = self.open.last_mut() {
                    *in_caption = false;
                }
                self.found.end_block();
            }
            local_name!("picture") => self.picture = None,
            _ => self.gap(name),
        }
    }

    fn text(&mut self, text: &str) {
        if let Some(script) = &mut self.script {
            // Half a script is no JSON: one that is too long is forgotten.
            match script.len() + text.len() <= limits::JSON_LD {
                true => script.push_str(text),
                false => self.script = None,
            }
        }
        if self.raw.is_some() {
            return;
        }
        if let Some((figure, true)) = self.open.last() {
            self.found.figures.add(*figure, text);
        }
        self.found.text(text);
    }

    /// A block begins or ends: the words on its two sides are two words.
    fn gap(&mut self, name: &LocalName) {
        let (block, line) = match &**name {
            "p" | "div" | "hr" | "li" | "ul" | "ol" | "dl" | "dt" | "dd" | "tr" | "td" | "th" | "table"
            | "section" | "article" | "header" | "footer" | "blockquote" | "pre" | "h1" | "h2" | "h3"
            | "h4" | "h5" | "h6" => (true, true),
            "br" => (false, true),
            "body" | "main" | "nav" | "aside" | "form" => (true, false),
            _ => (false, false),
        };
        if line {
            self.text(" ");
        }
        if block {
            self.found.end_block();
        }
    }

    fn image(&mut self, tag: &Tag) {
        let mut candidates: Vec<(usize, &str)> = (tag.attrs.iter())
            .filter_map(|attribute| address(&attribute.name.local, &attribute.value))
            .collect();
        candidates.sort_by_key(|(place, _)| *place);
        let mut candidates: Vec<String> = candidates.into_iter().map(|(_, url)| url.to_string()).collect();
        candidates.extend(self.picture.iter().flatten().cloned());
        let texts = ["alt", "title", "aria-label"].map(|name| attribute(tag, name));
        self.found.image_of(candidates, texts, self.open.last().map(|(figure, _)| *figure));
    }

    fn link(&mut self, tag: &Tag) {
        if let (false, Some(href)) = (has_word(tag, "rel", "nofollow"), attribute(tag, "href")) {
            self.found.link(href);
        }
    }
}

/// The value of an attribute.
fn attribute<'a>(tag: &'a Tag, name: &str) -> Option<&'a str> {
    tag.attrs.iter().find(|attribute| &*attribute.name.local == name).map(|attribute| &*attribute.value)
}

/// Whether an attribute that is a list of words has this one.
fn has_word(tag: &Tag, name: &str, word: &str) -> bool {
    let words = attribute(tag, name).unwrap_or_default();
    words.split_ascii_whitespace().any(|found| found.eq_ignore_ascii_case(word))
}

#[cfg(test)]
mod tests;
