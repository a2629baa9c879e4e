//! What was found on a page, from its HTML or from what an archive kept of it, before URLs are
//! resolved (a `<base>` may come late).

use std::collections::HashSet;
use std::sync::Arc;

use url::Url;

use super::srcset::largest;
use super::structured;
use super::text::{collapse, unescape};
use super::{Captions, ImageText, Page, TextSource, limits};
use crate::net::Directives;

/// Attributes of an image that may hold its address, the likeliest first; where an image is loaded
/// lazily, `src` is a placeholder. The sets are lists of which the largest is taken.
const ADDRESSES: &[(&str, bool)] = &[
    ("data-src", false),
    ("data-original", false),
    ("data-lazy-src", false),
    ("data-srcset", true),
    ("data-lazy", false),
    ("data-lazyload", false),
    ("data-lazy-srcset", true),
    ("data-original-src", false),
    ("data-echo", false),
    ("src", false),
    ("srcset", true),
];

/// The address that an attribute of an image holds, and how likely it is the image's (less is
/// likelier).
pub(super) fn address<'a>(attribute: &str, value: &'a str) -> Option<(usize, &'a str)> {
    let place = ADDRESSES.iter().position(|(name, _)| name.eq_ignore_ascii_case(attribute))?;
    let url = if ADDRESSES[place].1 { largest(value)? } else { value };
    let url = url.trim();
    (!url.is_empty() && url.len() <= limits::URL).then_some((place, url))
}

/// An image.
#[derive(Debug, Default)]
pub(super) struct Image {
    /// Where it may be, the likeliest first.
    candidates: Vec<String>,
    alt: Option<String>,
    title: Option<String>,
    aria_label: Option<String>,
    /// The figure and the block that it stands in.
    figure: Option<usize>,
    block: Option<usize>,
}

/// Texts by figure, or by block.
#[derive(Debug, Default)]
pub(super) struct Texts(Vec<String>);

impl Texts {
    /// Begins a text.
    pub(super) fn open(&mut self) -> usize {
        self.0.push(String::new());
        self.0.len() - 1
    }

    /// Adds to a text; a little more than the longest caption is kept, so that one that is too long
    /// is known as such.
    pub(super) fn add(&mut self, which: usize, text: &str) {
        append(&mut self.0[which], text);
    }

    /// Adds a whole text.
    fn push(&mut self, text: String) -> usize {
        self.0.push(text);
        self.0.len() - 1
    }

    fn captions(&self) -> Vec<Option<Arc<str>>> {
        self.0.iter().map(|text| caption_of(text)).collect()
    }
}

/// Adds to a text of bounded length.
fn append(to: &mut String, text: &str) {
    const MOST: usize = 5 * limits::TEXT;
    if to.len() <= MOST {
        to.push_str(&text[..text.floor_char_boundary(MOST + 5 - to.len())]);
    }
}

/// The block that is open: its text so far, its images, and those of the blocks before it that had
/// no text.
#[derive(Debug, Default)]
struct Block {
    text: String,
    images: Vec<usize>,
}

/// An image of Open Graph.
#[derive(Debug, Default)]
struct Graphed {
    url: String,
    alt: Option<String>,
}

/// What was found.
#[derive(Debug)]
pub(crate) struct Found {
    captions: Captions,
    /// A limit was passed.
    pub(super) cut: bool,
    base: Option<String>,
    canonical: Option<String>,
    images: Vec<Image>,
    links: Vec<String>,
    /// Robots meta tags: for whom, and the words.
    metas: Vec<(String, String)>,
    /// Captions by figure.
    pub(super) figures: Texts,
    blocks: Texts,
    block: Block,
    graph: Vec<Graphed>,
    graph_title: Option<String>,
    /// JSON-LD scripts.
    scripts: Vec<String>,
}

impl Found {
    /// Nothing yet; `captions` are the texts that are wanted.
    pub(crate) fn new(captions: Captions) -> Self {
        Self {
            captions,
            cut: false,
            base: None,
            canonical: None,
            images: Vec::new(),
            links: Vec::new(),
            metas: Vec::new(),
            figures: Texts::default(),
            blocks: Texts::default(),
            block: Block::default(),
            graph: Vec::new(),
            graph_title: None,
            scripts: Vec::new(),
        }
    }

    /// The base of relative URLs; the first one counts.
    pub(crate) fn base(&mut self, href: &str) {
        if self.base.is_none() && href.len() <= limits::URL {
            self.base = Some(href.into());
        }
    }

    /// The URL that the page gives as its own; the first one counts.
    pub(super) fn canonical(&mut self, href: &str) {
        if self.canonical.is_none() && href.len() <= limits::URL {
            self.canonical = Some(href.trim().into());
        }
    }

    /// A meta tag: its name or property, and its content.
    pub(crate) fn meta(&mut self, name: &str, content: &str) {
        let name = name.trim();
        if name.get(..3).is_some_and(|start| start.eq_ignore_ascii_case("og:")) {
            return self.graphed(&name[3..].to_ascii_lowercase(), content);
        }
        if self.metas.len() < 100 && name.len() < 100 {
            let content = content.chars().take(limits::URL).collect();
            self.metas.push((name.to_ascii_lowercase(), content));
        }
    }

    /// A property of Open Graph: those of an image follow its address.
    fn graphed(&mut self, property: &str, content: &str) {
        let text = (content.len() <= 8 * limits::TEXT).then(|| content.to_string());
        match property {
            "image" | "image:url"
                if self.graph.len() < limits::STRUCTURED && content.len() <= limits::URL =>
            {
                self.graph.push(Graphed { url: content.trim().into(), alt: None });
            }
            "image:alt" => {
                if let Some(image) = self.graph.last_mut() {
                    image.alt = text;
                }
            }
            "title" if self.graph_title.is_none() => self.graph_title = text,
            _ => {}
        }
    }

    /// A JSON-LD script.
    pub(super) fn script(&mut self, text: String) {
        if self.scripts.len() < limits::SCRIPTS {
            self.scripts.push(text);
        }
    }

    /// Whether JSON-LD is looked at.
    pub(super) fn wants_scripts(&self) -> bool {
        self.captions.has(TextSource::JsonLd)
    }

    /// An image: attributes that may hold its address, and its `alt` and `title`.
    pub(crate) fn image(&mut self, attributes: &[(&str, &str)], texts: [Option<&str>; 2]) {
        let mut candidates: Vec<_> =
            attributes.iter().filter_map(|(name, value)| address(name, value)).collect();
        candidates.sort_by_key(|(place, _)| *place);
        let candidates = candidates.into_iter().map(|(_, url)| url.to_string()).collect();
        let [alt, title] = texts;
        self.image_of(candidates, [alt, title, None], None);
    }

    /// An image: where it may be, its `alt`, `title` and `aria-label`, and its figure.
    pub(super) fn image_of(
        &mut self,
        candidates: Vec<String>,
        texts: [Option<&str>; 3],
        figure: Option<usize>,
    ) {
        if self.images.len() >= limits::IMAGES {
            self.cut = true;
            return;
        }
        let [alt, title, aria_label] =
            texts.map(|text| text.filter(|text| text.len() <= 8 * limits::TEXT).map(String::from));
        if self.captions.has(TextSource::Surrounding) {
            self.block.images.push(self.images.len());
        }
        self.images.push(Image { candidates, alt, title, aria_label, figure, block: None });
    }

    /// A link.
    pub(super) fn link(&mut self, href: &str) {
        if href.len() <= limits::URL {
            match self.links.len() < limits::LINKS {
                true => self.links.push(href.trim().into()),
                false => self.cut = true,
            }
        }
    }

    /// Text that is shown.
    pub(super) fn text(&mut self, text: &str) {
        if self.captions.has(TextSource::Surrounding) {
            append(&mut self.block.text, text);
        }
    }

    /// A block begins or ends: its text is that of its images. Images of a block without text wait
    /// for the next one.
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

    /// Resolves URLs and puts the pairs together. `product` is our name in robots meta tags.
    pub(crate) fn assemble(mut self, page_url: &Url, product: &str) -> Page {
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
        Page { pairs, links, canonical, directives, cut: self.cut }
    }

    fn pairs(&self, base: &Url) -> Vec<ImageText> {
        let (mut figures, mut blocks) = (Shared::new(&self.figures), Shared::new(&self.blocks));
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
            for (source, text) in texts.into_iter().filter(|(source, _)| self.captions.has(*source)) {
                if let Some(text) =
                    text.filter(|text| pairs[first..].iter().all(|pair: &ImageText| pair.text != *text))
                {
                    pairs.push(ImageText { image: url.clone(), text, source });
                }
            }
        }
        pairs
    }

    /// Adds the pairs of JSON-LD and Open Graph that say something new.
    fn add_structured(&self, base: &Url, pairs: &mut Vec<ImageText>) {
        let mut found: Vec<(TextSource, String, String)> = Vec::new();
        if self.captions.has(TextSource::JsonLd) {
            let images = self.scripts.iter().flat_map(|script| structured::images(script));
            found.extend(images.take(limits::STRUCTURED).map(|(url, text)| (TextSource::JsonLd, url, text)));
        }
        if self.captions.has(TextSource::OpenGraph) {
            let texts = self.graph.iter().filter_map(|image| {
                let text = image.alt.as_ref().or(self.graph_title.as_ref())?;
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

/// Captions that several images share, up to a limit.
struct Shared {
    captions: Vec<Option<Arc<str>>>,
    taken: Vec<usize>,
}

impl Shared {
    fn new(texts: &Texts) -> Self {
        let captions = texts.captions();
        Self { taken: vec![0; captions.len()], captions }
    }

    fn take(&mut self, which: Option<usize>) -> Option<Arc<str>> {
        let which = which?;
        self.taken[which] += 1;
        self.captions[which].clone().filter(|_| self.taken[which] <= limits::FIGURE)
    }
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
