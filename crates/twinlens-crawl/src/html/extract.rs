//! From the tokens of a page to a [`Page`].

use std::cell::RefCell;

use html5ever::tendril::StrTendril;
use html5ever::tokenizer::states::RawKind;
use html5ever::tokenizer::{
    BufferQueue, Tag, TagKind, Token, TokenSink, TokenSinkResult, Tokenizer, TokenizerOpts,
};
use html5ever::{LocalName, local_name};
use url::Url;

use super::builder::PageBuilder;
use super::candidates::{self, Candidate};
use super::page::{ExtractOptions, Page, limits};

/// Bytes fed to the tokenizer between checks of its progress.
const CHUNK: usize = 16 << 10;

/// Extracts pairs and links from a page.
pub(crate) fn extract(html: &str, page_url: &Url, options: &ExtractOptions<'_>) -> Page {
    let sink = Sink(RefCell::new(PageParser::new(PageBuilder::new(options.captions))));
    let tokenizer = Tokenizer::new(sink, TokenizerOpts::default());
    let input = BufferQueue::default();
    let (mut rest, mut separators, mut truncated) = (html, 0, false);
    while !rest.is_empty() {
        let (chunk, after) = rest.split_at(rest.floor_char_boundary(CHUNK));
        tokenizer.sink.0.borrow_mut().progressed = false;
        input.push_back(StrTendril::from(chunk));
        let _done = tokenizer.feed(&input);
        let in_chunk = chunk
            .bytes()
            .filter(|byte| matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | b'\x0c' | b'/' | b'"' | b'\''));
        separators = if tokenizer.sink.0.borrow().progressed { 0 } else { separators + in_chunk.count() };
        if separators > limits::SEPARATORS {
            truncated = true;
            break;
        }
        rest = after;
    }
    if !truncated {
        tokenizer.end();
    }
    tokenizer.sink.0.into_inner().page.build(page_url, options.product)
}

#[derive(Debug)]
struct PageParser {
    page: PageBuilder,
    progressed: bool,
    /// Open figures, the innermost last, and whether their `figcaption` is open.
    open_figures: Vec<(usize, bool)>,
    /// Candidates in the `source`s of the open `picture`.
    picture: Option<Vec<Candidate>>,
    /// The open element whose text is not markup (script, style).
    raw_element: Option<LocalName>,
    /// Text of the open JSON-LD script.
    json_ld: Option<String>,
}

#[derive(Debug)]
struct Sink(RefCell<PageParser>);

impl TokenSink for Sink {
    type Handle = ();

    fn process_token(&self, token: Token, _line: u64) -> TokenSinkResult<()> {
        let mut parser = self.0.borrow_mut();
        // An error is not progress: one is reported for each odd character within a tag.
        parser.progressed |= !matches!(token, Token::ParseError(_));
        match token {
            Token::TagToken(tag) => match tag.kind {
                TagKind::StartTag => return parser.start_tag(&tag),
                TagKind::EndTag => parser.end_tag(&tag.name),
            },
            Token::CharacterTokens(text) => parser.text(&text),
            _ => {}
        }
        TokenSinkResult::Continue
    }
}

impl PageParser {
    fn new(page: PageBuilder) -> Self {
        Self {
            page,
            progressed: false,
            open_figures: Vec::new(),
            picture: None,
            raw_element: None,
            json_ld: None,
        }
    }

    fn start_tag(&mut self, tag: &Tag) -> TokenSinkResult<()> {
        match tag.name {
            local_name!("img") => self.image(tag),
            // An old name of `img`; in SVG it has other attributes.
            local_name!("image") if attribute(tag, "src").is_some() => self.image(tag),
            local_name!("iframe") | local_name!("frame") => {
                if let Some(src) = attribute(tag, "src") {
                    self.page.add_link(src);
                }
            }
            local_name!("a") | local_name!("area") => self.link(tag),
            local_name!("base") => {
                if let Some(href) = attribute(tag, "href") {
                    self.page.set_base(href);
                }
            }
            local_name!("link") => {
                if let (true, Some(href)) = (has_word(tag, "rel", "canonical"), attribute(tag, "href")) {
                    self.page.set_canonical(href);
                }
            }
            local_name!("meta") => {
                let name = attribute(tag, "name").or(attribute(tag, "property"));
                let content = attribute(tag, "content");
                if let Some((name, content)) = name.zip(content) {
                    self.page.add_meta(name, content);
                }
                if has_word(tag, "http-equiv", "refresh") {
                    self.page.set_refresh(content.unwrap_or_default());
                }
            }
            local_name!("picture") => self.picture = Some(Vec::new()),
            local_name!("source") => {
                if let Some(sources) = self.picture.as_mut().filter(|sources| sources.len() < 100) {
                    let set = attribute(tag, "data-srcset").or(attribute(tag, "srcset")).unwrap_or_default();
                    let is_narrow = attribute(tag, "media").is_some_and(|media| media.contains("max-width"));
                    sources.extend(candidates::in_source(set, attribute(tag, "type"), is_narrow));
                }
            }
            local_name!("figure") => {
                let figure = self.page.figures.open();
                self.open_figures.push((figure, false));
                self.page.end_block();
            }
            local_name!("figcaption") => {
                if let Some((_, in_caption)) = self.open_figures.last_mut() {
                    *in_caption = true;
                }
                self.page.end_block();
            }
            _ => self.block_boundary(&tag.name),
        }
        self.enter_raw_text(tag)
    }

    /// Tells the tokenizer if the text of an element is not markup.
    fn enter_raw_text(&mut self, tag: &Tag) -> TokenSinkResult<()> {
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
                if self.page.wants_scripts() && kind.eq_ignore_ascii_case("application/ld+json") {
                    self.json_ld = Some(String::new());
                }
                RawKind::ScriptData
            }
            local_name!("plaintext") => {
                self.raw_element = Some(tag.name.clone());
                return TokenSinkResult::Plaintext;
            }
            _ => return TokenSinkResult::Continue,
        };
        self.raw_element = Some(tag.name.clone());
        TokenSinkResult::RawData(raw)
    }

    fn end_tag(&mut self, name: &LocalName) {
        if self.raw_element.as_ref() == Some(name) {
            self.raw_element = None;
            if let Some(script) = self.json_ld.take() {
                self.page.add_script(script);
            }
        }
        match *name {
            local_name!("figure") => {
                self.open_figures.pop();
                self.page.end_block();
            }
            local_name!("figcaption") => {
                if let Some((_, in_caption)) = self.open_figures.last_mut() {
                    *in_caption = false;
                }
                self.page.end_block();
            }
            local_name!("picture") => self.picture = None,
            _ => self.block_boundary(name),
        }
    }

    fn text(&mut self, text: &str) {
        if let Some(script) = &mut self.json_ld {
            // A truncated script is not JSON: one that is too long is dropped.
            if script.len() + text.len() <= limits::JSON_LD {
                script.push_str(text);
            } else {
                self.json_ld = None;
            }
        }
        if self.raw_element.is_some() {
            return;
        }
        if let Some((figure, true)) = self.open_figures.last() {
            self.page.figures.add(*figure, text);
        }
        self.page.add_text(text);
    }

    /// Handles a tag that may start or end a block, which separates words.
    fn block_boundary(&mut self, name: &LocalName) {
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
            self.page.end_block();
        }
    }

    fn image(&mut self, tag: &Tag) {
        let own = tag.attrs.iter();
        let own = own.flat_map(|attribute| candidates::in_attribute(&attribute.name.local, &attribute.value));
        let candidates = own.chain(self.picture.iter().flatten().cloned()).collect();
        let texts = ["alt", "title", "aria-label"].map(|name| attribute(tag, name));
        self.page.add_image(candidates, texts, self.open_figures.last().map(|(figure, _)| *figure));
    }

    fn link(&mut self, tag: &Tag) {
        if let (false, Some(href)) = (has_word(tag, "rel", "nofollow"), attribute(tag, "href")) {
            self.page.add_link(href);
        }
    }
}

fn attribute<'a>(tag: &'a Tag, name: &str) -> Option<&'a str> {
    tag.attrs.iter().find(|attribute| &*attribute.name.local == name).map(|attribute| &*attribute.value)
}

/// Whether an attribute that is a list of words contains `word`.
fn has_word(tag: &Tag, name: &str, word: &str) -> bool {
    let words = attribute(tag, name).unwrap_or_default();
    words.split_ascii_whitespace().any(|found| found.eq_ignore_ascii_case(word))
}

#[cfg(test)]
mod tests;
