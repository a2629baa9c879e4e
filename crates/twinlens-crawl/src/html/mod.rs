//! Image-text pairs and links out of HTML, however broken.
//!
//! The page goes through html5ever's tokenizer alone: no tree is built, so that deep nesting costs
//! nothing (tree building is quadratic in the depth) and nothing recurses. What a page may hold is
//! bounded ([`limits`]); all of the work is linear in its length. No input panics.

mod charset;
mod extract;
mod found;
mod srcset;
mod structured;
mod text;

use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use url::Url;

pub use charset::{decode, decode_plain};
pub use extract::extract;
pub(crate) use found::Found;
pub use text::{collapse, unescape};

use crate::net::Directives;

/// Where the text of a pair stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum TextSource {
    /// The `alt` attribute.
    Alt,
    /// The `title` attribute of the image.
    Title,
    /// The `figcaption` of the innermost figure around the image.
    Figcaption,
    /// The `aria-label` attribute of the image.
    AriaLabel,
    /// The text of the block (paragraph, list item, table cell) that the image stands in; where it
    /// has none, of the next block that has.
    Surrounding,
    /// The caption, else the name, else the description of an `ImageObject` in JSON-LD.
    JsonLd,
    /// `og:image:alt`, else `og:title`.
    OpenGraph,
}

impl TextSource {
    /// Every source, in the order in which the pairs of an image come.
    pub const ALL: [Self; 7] = [
        Self::Alt,
        Self::Title,
        Self::Figcaption,
        Self::AriaLabel,
        Self::Surrounding,
        Self::JsonLd,
        Self::OpenGraph,
    ];

    /// The value of the `text_source` column.
    pub fn name(self) -> &'static str {
        match self {
            Self::Alt => "alt",
            Self::Title => "title",
            Self::Figcaption => "figcaption",
            Self::AriaLabel => "aria-label",
            Self::Surrounding => "surrounding",
            Self::JsonLd => "json-ld",
            Self::OpenGraph => "open-graph",
        }
    }
}

/// The texts that are taken when nothing is said: those that their authors wrote for one image.
pub const DEFAULT_CAPTIONS: [TextSource; 3] = [TextSource::Alt, TextSource::Title, TextSource::Figcaption];

/// [`DEFAULT_CAPTIONS`] as the default of an option.
pub(crate) fn default_captions() -> Vec<TextSource> {
    DEFAULT_CAPTIONS.to_vec()
}

/// A set of [`TextSource`]s.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Captions(u8);

impl Captions {
    /// The set of some sources.
    pub fn of(sources: &[TextSource]) -> Self {
        Self(sources.iter().fold(0, |set, source| set | 1 << *source as u8))
    }

    /// Whether a source is in it.
    pub fn has(self, source: TextSource) -> bool {
        self.0 & 1 << source as u8 != 0
    }
}

/// What is looked for on a page.
#[derive(Debug, Clone, Copy)]
pub struct Reading<'a> {
    /// Our name in robots meta tags.
    pub product: &'a str,
    /// The texts that are taken.
    pub captions: Captions,
}

/// An image and one of its texts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageText {
    /// The image, without fragment.
    pub image: Arc<str>,
    /// The text: entities resolved, white space collapsed, not empty.
    pub text: Arc<str>,
    /// Where the text stands.
    pub source: TextSource,
}

/// What a page holds.
#[derive(Debug, Default)]
pub struct Page {
    /// Pairs in document order, then those of JSON-LD and Open Graph; of one image, one a distinct
    /// text, in the order of [`TextSource`].
    pub pairs: Vec<ImageText>,
    /// Links to follow, without fragment, http and https alone, in document order, each once. None
    /// of `rel=nofollow`.
    pub links: Vec<Url>,
    /// The URL that the page gives as its own (`link rel=canonical`).
    pub canonical: Option<Url>,
    /// What its robots meta tags ask.
    pub directives: Directives,
    /// The page was not read to its end: it passed a limit.
    pub cut: bool,
}

/// Bounds on what is taken from one page.
pub mod limits {
    /// Longest text, in characters: what is longer is no caption.
    pub const TEXT: usize = 2_000;
    /// Longest URL, in bytes.
    pub const URL: usize = 2_048;
    /// Most images.
    pub const IMAGES: usize = 5_000;
    /// Most images that share the caption of a figure, or the text of a block.
    pub const FIGURE: usize = 100;
    /// Most images of JSON-LD, and most of Open Graph.
    pub const STRUCTURED: usize = 100;
    /// Longest JSON-LD script, in bytes.
    pub const JSON_LD: usize = 256 << 10;
    /// Most JSON-LD scripts.
    pub const SCRIPTS: usize = 16;
    /// Most links.
    pub const LINKS: usize = 5_000;
    /// Most separators (spaces, slashes, quotes) in one tag or comment: the tokenizer compares each
    /// attribute with all before.
    pub const SEPARATORS: usize = 32_768;
}
