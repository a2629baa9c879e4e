//! From the tokens of a page to its pairs and links.

use std::cell::RefCell;
use std::collections::HashSet;
use std::sync::Arc;

use html5ever::tendril::StrTendril;
use html5ever::tokenizer::states::RawKind;
use html5ever::tokenizer::{
    BufferQueue, Tag, TagKind, Token, TokenSink, TokenSinkResult, Tokenizer, TokenizerOpts,
};
use html5ever::{LocalName, local_name};
use url::Url;

use super::srcset::largest;
use super::text::{collapse, unescape};
use super::{ImageText, Page, TextSource, limits};
use crate::net::Directives;

/// How much is fed to the tokenizer between two looks at its progress, in bytes.
const CHUNK: usize = 16 << 10;

/// Takes pairs and links out of a page. `product` is our name in robots meta tags.
pub fn extract(html: &str, page_url: &Url, product: &str) -> Page {
    let tokenizer = Tokenizer::new(Sink::default(), TokenizerOpts::default());
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
    let found = tokenizer.sink.0.into_inner();
    Page { cut: cut || found.cut, ..found.assemble(page_url, product) }
}

/// What the tokens gave, before URLs are resolved (a `<base>` may come late).
#[derive(Debug, Default)]
struct Found {
    progressed: bool,
    cut: bool,
    base: Option<String>,
    images: Vec<Image>,
    links: Vec<String>,
    /// Robots meta tags: for whom, and the words.
    metas: Vec<(String, String)>,
    /// Captions by figure.
    captions: Vec<String>,
    /// Open figures, the innermost last, and whether their caption is open.
    open: Vec<(usize, bool)>,
    /// The element whose text is not markup (script, style), while it is open.
    raw: Option<LocalName>,
}

#[derive(Debug)]
struct Image {
    /// Attributes that may hold the address, the most likely first.
    candidates: Vec<String>,
    alt: Option<String>,
    title: Option<String>,
    figure: Option<usize>,
}

#[derive(Debug, Default)]
struct Sink(RefCell<Found>);

impl TokenSink for Sink {
    type Handle = ();

    fn process_token(&self, token: Token, _line: u64) -> TokenSinkResult<()> {
        let mut found = self.0.borrow_mut();
        // An error is no progress: one is reported for each odd character within a tag.
        found.progressed |= !matches!(token, Token::ParseError(_));
        match token {
            Token::TagToken(tag) => match tag.kind {
                TagKind::StartTag => return found.start(&tag),
                TagKind::EndTag => found.end(&tag.name),
            },
            Token::CharacterTokens(text) => found.text(&text),
            _ => {}
        }
        TokenSinkResult::Continue
    }
}

impl Found {
    fn start(&mut self, tag: &Tag) -> TokenSinkResult<()> {
        match tag.name {
            local_name!("img") => self.image(tag),
            local_name!("a") | local_name!("area") => self.link(tag),
            local_name!("base") => {
                if self.base.is_none() {
                    self.base =
                        attribute(tag, "href").filter(|href| href.len() <= limits::URL).map(String::from);
                }
            }
            local_name!("meta") => {
                let words = attribute(tag, "name").zip(attribute(tag, "content"));
                if let Some((name, content)) =
                    words.filter(|(name, _)| self.metas.len() < 100 && name.len() < 100)
                {
                    let content = content.chars().take(limits::URL).collect();
                    self.metas.push((name.trim().to_ascii_lowercase(), content));
                }
            }
            local_name!("figure") => {
                self.open.push((self.captions.len(), false));
                self.captions.push(String::new());
            }
            local_name!("figcaption") => {
                if let Some((_, in_caption)) = self.open.last_mut() {
                    *in_caption = true;
                }
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
            local_name!("script") => RawKind::ScriptData,
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
        }
        match *name {
            local_name!("figure") => {
                self.open.pop();
            }
            local_name!("figcaption") => {
                if let Some((_, in_caption)) = self.open.last_mut() {
                    *in_caption = false;
                }
            }
            _ => self.gap(name),
        }
    }

    fn text(&mut self, text: &str) {
        if let (None, Some((figure, true))) = (&self.raw, self.open.last()) {
            let caption = &mut self.captions[*figure];
            // A little more than the longest text, so that one that is too long is known as such.
            if caption.len() <= 5 * limits::TEXT {
                let end = text.floor_char_boundary(5 * limits::TEXT + 5 - caption.len());
                caption.push_str(&text[..end]);
            }
        }
    }

    /// A block begins or ends: the words on its two sides are two words.
    fn gap(&mut self, name: &LocalName) {
        let block = matches!(
            &**name,
            "p" | "div"
                | "br"
                | "hr"
                | "li"
                | "ul"
                | "ol"
                | "dl"
                | "dt"
                | "dd"
                | "tr"
                | "td"
                | "th"
                | "table"
                | "section"
                | "article"
                | "header"
                | "footer"
                | "blockquote"
                | "pre"
                | "h1"
                | "h2"
                | "h3"
                | "h4"
                | "h5"
                | "h6"
        );
        if block {
            self.text(" ");
        }
    }

    fn image(&mut self, tag: &Tag) {
        if self.images.len() >= limits::IMAGES {
            self.cut = true;
            return;
        }
        let text =
            |name| attribute(tag, name).filter(|text| text.len() <= 8 * limits::TEXT).map(String::from);
        let srcset = |name| attribute(tag, name).and_then(largest);
        // Where an image is loaded lazily, `src` is a placeholder.
        let candidates = [
            attribute(tag, "data-src"),
            attribute(tag, "data-original"),
            attribute(tag, "data-lazy-src"),
            srcset("data-srcset"),
            attribute(tag, "src"),
            srcset("srcset"),
        ];
        let candidates = candidates
            .into_iter()
            .flatten()
            .map(str::trim)
            .filter(|url| !url.is_empty() && url.len() <= limits::URL);
        self.images.push(Image {
            candidates: candidates.map(String::from).collect(),
            alt: text("alt"),
            title: text("title"),
            figure: self.open.last().map(|(figure, _)| *figure),
        });
    }

    fn link(&mut self, tag: &Tag) {
        let words = |name| attribute(tag, name).unwrap_or_default().split_ascii_whitespace();
        if words("rel").any(|word| word.eq_ignore_ascii_case("nofollow")) {
            return;
        }
        if let Some(href) = attribute(tag, "href").filter(|href| href.len() <= limits::URL) {
            match self.links.len() < limits::LINKS {
                true => self.links.push(href.trim().into()),
                false => self.cut = true,
            }
        }
    }

    fn assemble(self, page_url: &Url, product: &str) -> Page {
        let base = self.base.as_deref().and_then(|base| resolve(page_url, base));
        let base = base.as_ref().unwrap_or(page_url);
        let mut directives = Directives::default();
        for (name, words) in &self.metas {
            if name == "robots" || name.eq_ignore_ascii_case(product) {
                directives.add(words, product, "robots meta tag");
            }
        }
        let captions: Vec<Option<Arc<str>>> =
            self.captions.iter().map(|caption| caption_of(caption)).collect();
        let mut shared = vec![0; captions.len()];
        let mut pairs = Vec::new();
        for image in &self.images {
            let Some(url) = image.candidates.iter().find_map(|candidate| resolve(base, candidate)) else {
                continue;
            };
            let url: Arc<str> = url.as_str().into();
            let figure = image.figure.filter(|figure| {
                shared[*figure] += 1;
                shared[*figure] <= limits::FIGURE
            });
            let texts = [
                (TextSource::Alt, image.alt.as_deref().and_then(caption_of)),
                (TextSource::Title, image.title.as_deref().and_then(caption_of)),
                (TextSource::Figcaption, figure.and_then(|figure| captions[figure].clone())),
            ];
            let first = pairs.len();
            for (source, text) in texts {
                if let Some(text) =
                    text.filter(|text| pairs[first..].iter().all(|pair: &ImageText| pair.text != *text))
                {
                    pairs.push(ImageText { image: url.clone(), text, source });
                }
            }
        }
        let mut seen = HashSet::new();
        let links = self
            .links
            .iter()
            .filter_map(|link| resolve(base, link))
            .filter(|link| seen.insert(link.clone()))
            .collect();
        Page { pairs, links, directives, cut: self.cut }
    }
}

/// The value of an attribute.
fn attribute<'a>(tag: &'a Tag, name: &str) -> Option<&'a str> {
    tag.attrs.iter().find(|attribute| &*attribute.name.local == name).map(|attribute| &*attribute.value)
}

/// A text as a caption; `None` when nothing is left, or too much.
fn caption_of(text: &str) -> Option<Arc<str>> {
    let caption = collapse(&unescape(text));
    (!caption.is_empty() && caption.chars().count() <= limits::TEXT).then(|| caption.into())
}

/// An http or https URL in its normal form, without fragment and without credentials.
fn resolve(base: &Url, reference: &str) -> Option<Url> {
    let mut url = base.join(reference).ok().filter(|url| matches!(url.scheme(), "http" | "https"))?;
    url.set_fragment(None);
    // Both fail only for URLs without a host, which http and https URLs have.
    let _host = (url.set_username(""), url.set_password(None));
    (url.as_str().len() <= limits::URL).then_some(url)
}

#[cfg(test)]
mod tests;
