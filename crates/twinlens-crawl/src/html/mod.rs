//! Image-text pairs and links out of HTML, however broken.
//!
//! The page goes through html5ever's tokenizer alone: no tree is built, so that deep nesting costs nothing (tree building
//! is quadratic in the depth) and nothing recurses. What a page may hold is bounded ([`limits`]); all of the work is linear
//! in its length. No input panics.

mod charset;
mod extract;
mod srcset;
mod text;

use std::sync::Arc;

use url::Url;

pub use charset::decode;
pub use extract::extract;
pub use text::{collapse, unescape};

use crate::net::Directives;

/// Where the text of a pair stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TextSource {
    /// The `alt` attribute.
    Alt,
    /// The `title` attribute of the image.
    Title,
    /// The `figcaption` of the innermost figure around the image.
    Figcaption,
}

impl TextSource {
    /// The value of the `text_source` column.
    pub fn name(self) -> &'static str {
        match self {
            Self::Alt => "alt",
            Self::Title => "title",
            Self::Figcaption => "figcaption",
        }
    }
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
    /// Pairs in document order; of one image, one a distinct text: alt before title before figcaption.
    pub pairs: Vec<ImageText>,
    /// Links to follow, without fragment, http and https alone, in document order, each once. None of `rel=nofollow`.
    pub links: Vec<Url>,
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
    /// Most images that share the caption of a figure.
    pub const FIGURE: usize = 100;
    /// Most links.
    pub const LINKS: usize = 5_000;
    /// Most separators (spaces, slashes, quotes) in one tag or comment: the tokenizer compares each attribute with all before.
    pub const SEPARATORS: usize = 32_768;
}
