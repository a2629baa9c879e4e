//! Collects what a page contains, from its HTML or from WAT metadata. URLs are resolved at the end,
//! because `<base>` may come late.

use std::collections::HashSet;
use std::sync::Arc;

use twinlens_text::{collapse_whitespace, unescape_html};
use url::Url;

use super::candidates::{self, Candidate};
use super::page::{ImageText, Page, TextSource, TextSourceSet, limits};
use super::structured;
use crate::net::Directives;

#[derive(Debug, Default)]
pub(super) struct Image {
    /// Possible URLs, the best first.
    candidates: Vec<String>,
    alt: Option<String>,
    title: Option<String>,
    aria_label: Option<String>,
    /// Index of the enclosing figure and block.
    figure: Option<usize>,
    block: Option<usize>,
}

/// Texts of figures or blocks, by index.
#[derive(Debug, Default)]
pub(super) struct Texts(Vec<String>);

impl Texts {
    /// Starts a text and returns its index.
    pub(super) fn open(&mut self) -> usize {
        self.0.push(String::new());
        self.0.len() - 1
    }

    /// Appends to a text. A little more than the longest caption is kept, so that a longer one is
    /// recognized.
    pub(super) fn add(&mut self, which: usize, text: &str) {
        append(&mut self.0[which], text);
    }

    fn push(&mut self, text: String) -> usize {
        self.0.push(text);
        self.0.len() - 1
    }

    fn captions(&self) -> Vec<Option<Arc<str>>> {
        self.0.iter().map(|text| caption_of(text)).collect()
    }
}

/// Appends to a text of bounded length.
fn append(to: &mut String, text: &str) {
    const MAX_BYTES: usize = 5 * limits::TEXT;
    if to.len() <= MAX_BYTES {
        to.push_str(&text[..text.floor_char_boundary(MAX_BYTES + 5 - to.len())]);
    }
}

/// The open block: its text so far, its images, and those of preceding blocks without text.
#[derive(Debug, Default)]
struct Block {
    text: String,
    images: Vec<usize>,
}

#[derive(Debug, Default)]
struct OpenGraphImage {
    url: String,
    alt: Option<String>,
}

#[derive(Debug)]
pub(crate) struct PageBuilder {
    captions: TextSourceSet,
    base: Option<String>,
    canonical: Option<String>,
    /// Where a refresh leads.
    refresh: Option<String>,
    images: Vec<Image>,
    links: Vec<String>,
    /// Meta tags: name and content.
    metas: Vec<(String, String)>,
    /// Captions by figure.
    pub(super) figures: Texts,
    blocks: Texts,
    block: Block,
    open_graph: Vec<OpenGraphImage>,
    open_graph_title: Option<String>,
    /// JSON-LD scripts.
    scripts: Vec<String>,
}

impl PageBuilder {
    pub(crate) fn new(captions: TextSourceSet) -> Self {
        Self {
            captions,
            base: None,
            canonical: None,
            refresh: None,
            images: Vec::new(),
            links: Vec::new(),
            metas: Vec::new(),
            figures: Texts::default(),
            blocks: Texts::default(),
            block: Block::default(),
            open_graph: Vec::new(),
            open_graph_title: None,
            scripts: Vec::new(),
        }
    }

    /// Sets the base of relative URLs; the first one counts.
    pub(crate) fn set_base(&mut self, href: &str) {
        if self.base.is_none() && href.len() <= limits::URL {
            self.base = Some(href.into());
        }
    }

    /// Sets the canonical URL; the first one counts.
    pub(super) fn set_canonical(&mut self, href: &str) {
        if self.canonical.is_none() && href.len() <= limits::URL {
            self.canonical = Some(href.trim().into());
        }
    }

    /// Sets the target of a refresh, which is a redirect if it comes soon and a link otherwise; the
    /// first one counts.
    pub(super) fn set_refresh(&mut self, content: &str) {
        match parse_refresh(content).filter(|(_, url)| !url.is_empty() && url.len() <= limits::URL) {
            Some((seconds, url)) if seconds <= limits::REFRESH_SECONDS => {
                self.refresh.get_or_insert_with(|| url.into());
            }
            Some((_, url)) => self.add_link(url),
            None => {}
        }
    }

    /// Adds a meta tag by its name or property.
    pub(crate) fn add_meta(&mut self, name: &str, content: &str) {
        let name = name.trim();
        if name.get(..3).is_some_and(|start| start.eq_ignore_ascii_case("og:")) {
            return self.open_graph_property(&name[3..].to_ascii_lowercase(), content);
        }
        if self.metas.len() < 100 && name.len() < 100 {
            let content = content.chars().take(limits::URL).collect();
            self.metas.push((name.to_ascii_lowercase(), content));
        }
    }

    /// Adds an Open Graph property; those of an image follow its URL.
    fn open_graph_property(&mut self, property: &str, content: &str) {
        let text = (content.len() <= 8 * limits::TEXT).then(|| content.to_string());
        match property {
            "image" | "image:url"
                if self.open_graph.len() < limits::STRUCTURED && content.len() <= limits::URL =>
            {
                self.open_graph.push(OpenGraphImage { url: content.trim().into(), alt: None });
            }
            "image:alt" => {
                if let Some(image) = self.open_graph.last_mut() {
                    image.alt = text;
                }
            }
            "title" if self.open_graph_title.is_none() => self.open_graph_title = text,
            _ => {}
        }
    }

    /// Adds a JSON-LD script.
    pub(super) fn add_script(&mut self, text: String) {
        if self.scripts.len() < limits::SCRIPTS {
            self.scripts.push(text);
        }
    }

    /// Whether JSON-LD scripts are needed.
    pub(super) fn wants_scripts(&self) -> bool {
        self.captions.contains(TextSource::JsonLd)
    }

    /// Adds an image by the attributes that may hold its URL, and its `alt` and `title`.
    pub(crate) fn add_image_attributes(&mut self, attributes: &[(&str, &str)], texts: [Option<&str>; 2]) {
        let candidates = attributes.iter().flat_map(|(name, value)| candidates::in_attribute(name, value));
        let candidates = candidates.collect();
        let [alt, title] = texts;
        self.add_image(candidates, [alt, title, None], None);
    }

    /// Adds an image by its possible URLs, its `alt`, `title` and `aria-label`, and its figure.
    pub(super) fn add_image(
        &mut self,
        candidates: Vec<Candidate>,
        texts: [Option<&str>; 3],
        figure: Option<usize>,
    ) {
        if self.images.len() >= limits::IMAGES {
            return;
        }
        let [alt, title, aria_label] =
            texts.map(|text| text.filter(|text| text.len() <= 8 * limits::TEXT).map(String::from));
        if self.captions.contains(TextSource::Surrounding) {
            self.block.images.push(self.images.len());
        }
        let candidates = candidates::in_order(candidates);
        self.images.push(Image { candidates, alt, title, aria_label, figure, block: None });
    }

    pub(super) fn add_link(&mut self, href: &str) {
        if href.len() <= limits::URL && self.links.len() < limits::LINKS {
            self.links.push(href.trim().into());
        }
    }

    /// Adds visible text.
    pub(super) fn add_text(&mut self, text: &str) {
        if self.captions.contains(TextSource::Surrounding) {
            append(&mut self.block.text, text);
        }
    }

    /// Ends a block, at the start or end tag of one. Its images get its text; images of a block
    /// without text wait for the next block.
    pub(super) fn end_block(&mut self) {
        if self.block.images.is_empty() || self.block.text.trim().is_empty() {
            self.block.text.clear();
            return;
        }
        let block = std::mem::take(&mut self.block);
        let text = self.blocks.push(block.text);
        for image in block.images {
            self.images[image].block = Some(text);
        }
    }

    /// Resolves URLs and builds the pairs. `product` is our product token in robots meta tags.
    pub(crate) fn build(mut self, page_url: &Url, product: &str) -> Page {
        self.end_block();
        let base = self.base.as_deref().and_then(|base| resolve(page_url, base));
        let base = base.as_ref().unwrap_or(page_url);
        let mut directives = Directives::default();
        for (name, words) in &self.metas {
            if name.eq_ignore_ascii_case("tdm-reservation") && words.trim() == "1" {
                directives.opt_out.get_or_insert_with(|| "tdm-reservation meta tag: 1".into());
            } else if name == "robots" || name.eq_ignore_ascii_case(product) {
                directives.add(words, product, "robots meta tag");
            }
        }
        let mut pairs = self.pairs(base);
        self.add_structured(base, &mut pairs);
        let mut seen = HashSet::new();
        let links = self
            .links
            .iter()
            .filter_map(|link| resolve(base, link))
            .filter(|link| seen.insert(link.clone()))
            .collect();
        let canonical =
            self.canonical.as_deref().filter(|href| !href.is_empty()).and_then(|href| resolve(base, href));
        let refresh = self.refresh.as_deref().and_then(|target| resolve(base, target));
        Page { pairs, links, canonical, refresh, directives }
    }

    fn pairs(&self, base: &Url) -> Vec<ImageText> {
        let (mut figures, mut blocks) =
            (SharedCaptions::new(&self.figures), SharedCaptions::new(&self.blocks));
        let mut pairs = Vec::new();
        for image in &self.images {
            let Some(url) = image.candidates.iter().find_map(|candidate| resolve(base, candidate)) else {
                continue;
            };
            let url: Arc<str> = url.as_str().into();
            let own = |text: &Option<String>| text.as_deref().and_then(caption_of);
            let texts = [
                (TextSource::Alt, own(&image.alt)),
                (TextSource::Title, own(&image.title)),
                (TextSource::Figcaption, figures.take(image.figure)),
                (TextSource::AriaLabel, own(&image.aria_label)),
                (TextSource::Surrounding, blocks.take(image.block)),
            ];
            let first = pairs.len();
            for (source, text) in texts.into_iter().filter(|(source, _)| self.captions.contains(*source)) {
                if let Some(text) =
                    text.filter(|text| pairs[first..].iter().all(|pair: &ImageText| pair.text != *text))
                {
                    pairs.push(ImageText { image: url.clone(), text, source });
                }
            }
        }
        pairs
    }

    /// Adds those pairs of JSON-LD and Open Graph that are not in `pairs` yet.
    fn add_structured(&self, base: &Url, pairs: &mut Vec<ImageText>) {
        let mut found: Vec<(TextSource, String, String)> = Vec::new();
        if self.captions.contains(TextSource::JsonLd) {
            let images = self.scripts.iter().flat_map(|script| structured::image_objects(script));
            found.extend(images.take(limits::STRUCTURED).map(|(url, text)| (TextSource::JsonLd, url, text)));
        }
        if self.captions.contains(TextSource::OpenGraph) {
            let texts = self.open_graph.iter().filter_map(|image| {
                let text = image.alt.as_ref().or(self.open_graph_title.as_ref())?;
                Some((TextSource::OpenGraph, image.url.clone(), text.clone()))
            });
            found.extend(texts);
        }
        if found.is_empty() {
            return;
        }
        let mut seen: HashSet<(Arc<str>, Arc<str>)> =
            pairs.iter().map(|pair| (pair.image.clone(), pair.text.clone())).collect();
        for (source, url, text) in found {
            let url = (url.len() <= limits::URL).then(|| resolve(base, &url)).flatten();
            let Some((url, text)) = url.zip(caption_of(&text)) else { continue };
            let image: Arc<str> = url.as_str().into();
            if seen.insert((image.clone(), text.clone())) {
                pairs.push(ImageText { image, text, source });
            }
        }
    }
}

/// Captions that several images share, each used a limited number of times.
struct SharedCaptions {
    captions: Vec<Option<Arc<str>>>,
    uses: Vec<usize>,
}

impl SharedCaptions {
    fn new(texts: &Texts) -> Self {
        let captions = texts.captions();
        Self { uses: vec![0; captions.len()], captions }
    }

    fn take(&mut self, which: Option<usize>) -> Option<Arc<str>> {
        let which = which?;
        self.uses[which] += 1;
        self.captions[which].clone().filter(|_| self.uses[which] <= limits::FIGURE)
    }
}

/// Cleans a text as a caption; `None` if the result is empty or too long.
fn caption_of(text: &str) -> Option<Arc<str>> {
    let caption = collapse_whitespace(&unescape_html(text));
    (!caption.is_empty() && caption.chars().count() <= limits::TEXT).then(|| caption.into())
}

/// Delay in seconds and URL of a refresh (HTML standard, "shared declarative refresh steps").
fn parse_refresh(content: &str) -> Option<(u64, &str)> {
    let content = content.trim_ascii_start();
    let digits = content.find(|c: char| !c.is_ascii_digit()).unwrap_or(content.len());
    let (delay, rest) = content.split_at(digits);
    if delay.is_empty() && !rest.starts_with('.') {
        return None;
    }
    let rest = rest.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.').trim_ascii_start();
    let rest = rest.strip_prefix([';', ',']).unwrap_or(rest).trim_ascii_start();
    let named = rest.get(..3).filter(|name| name.eq_ignore_ascii_case("url"));
    let value = named.and_then(|_| rest[3..].trim_ascii_start().strip_prefix('='));
    let url = value.unwrap_or(rest).trim_ascii_start();
    let url = match url.chars().next() {
        Some(quote @ ('"' | '\'')) => url[1..].split(quote).next().unwrap_or_default(),
        _ => url,
    };
    Some((delay.parse().unwrap_or(if delay.is_empty() { 0 } else { u64::MAX }), url.trim()))
}

/// Resolves an http(s) URL, without fragment and credentials.
fn resolve(base: &Url, reference: &str) -> Option<Url> {
    let mut url = base.join(reference).ok().filter(|url| matches!(url.scheme(), "http" | "https"))?;
    url.set_fragment(None);
    // Both fail only for URLs without a host, which http and https URLs have.
    let _host = (url.set_username(""), url.set_password(None));
    (url.as_str().len() <= limits::URL).then_some(url)
}
