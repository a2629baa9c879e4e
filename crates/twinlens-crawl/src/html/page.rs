//! What is extracted from a page.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use url::Url;

use crate::net::Directives;

/// Where the text of a pair was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum TextSource {
    /// The `alt` attribute.
    Alt,
    /// The `title` attribute of the image.
    Title,
    /// The `figcaption` of the innermost figure around the image.
    Figcaption,
    /// The `aria-label` attribute of the image.
    AriaLabel,
    /// The text of the block (paragraph, list item, table cell) around the image; if the block has
    /// none, that of the next block that has.
    Surrounding,
    /// The caption, else the name, else the description of an `ImageObject` in JSON-LD.
    JsonLd,
    /// `og:image:alt`, else `og:title`.
    OpenGraph,
}

impl TextSource {
    /// The value of the `text_source` column.
    pub(crate) fn name(self) -> &'static str {
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

/// The default: texts that their authors wrote for one image.
pub(crate) const DEFAULT_CAPTIONS: [TextSource; 3] =
    [TextSource::Alt, TextSource::Title, TextSource::Figcaption];

/// [`DEFAULT_CAPTIONS`] as the default of an option.
pub(crate) fn default_captions() -> Vec<TextSource> {
    DEFAULT_CAPTIONS.to_vec()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TextSourceSet(u8);

impl TextSourceSet {
    pub(crate) fn new(sources: &[TextSource]) -> Self {
        Self(sources.iter().fold(0, |set, source| set | 1 << *source as u8))
    }

    pub(crate) fn contains(self, source: TextSource) -> bool {
        self.0 & 1 << source as u8 != 0
    }
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct ExtractOptions<'a> {
    /// Our product token, which robots meta tags may address.
    pub(crate) product: &'a str,
    /// The texts to extract.
    pub(crate) captions: TextSourceSet,
}

/// An image and one of its texts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ImageText {
    /// URL without fragment.
    pub(crate) image: Arc<str>,
    /// Entities are resolved, whitespace is collapsed; never empty.
    pub(crate) text: Arc<str>,
    pub(crate) source: TextSource,
}

#[derive(Debug, Default)]
pub(crate) struct Page {
    /// Pairs in document order, then those of JSON-LD and Open Graph. The distinct texts of one
    /// image are in the order of [`TextSource`].
    pub(crate) pairs: Vec<ImageText>,
    /// http(s) links and frames to follow, without fragments, in document order, each once, without
    /// those marked `rel=nofollow`.
    pub(crate) links: Vec<Url>,
    /// The canonical URL (`link rel=canonical`).
    pub(crate) canonical: Option<Url>,
    /// Where the page redirects to by itself (`meta http-equiv=refresh`).
    pub(crate) refresh: Option<Url>,
    /// From robots meta tags.
    pub(crate) directives: Directives,
}

/// Bounds on what is extracted from one page.
pub(crate) mod limits {
    /// Longest caption, in characters; a longer text is dropped.
    pub(crate) const TEXT: usize = 2_000;
    /// Longest URL, in bytes.
    pub(crate) const URL: usize = 2_048;
    /// Maximum number of images.
    pub(crate) const IMAGES: usize = 5_000;
    /// Maximum number of images that share the caption of a figure or the text of a block.
    pub(crate) const FIGURE: usize = 100;
    /// Maximum number of images from JSON-LD, and from Open Graph.
    pub(crate) const STRUCTURED: usize = 100;
    /// Longest JSON-LD script, in bytes.
    pub(crate) const JSON_LD: usize = 256 << 10;
    /// Maximum number of JSON-LD scripts.
    pub(crate) const SCRIPTS: usize = 16;
    /// Longest delay of a refresh that is a redirect.
    pub(crate) const REFRESH_SECONDS: u64 = 10;
    /// Maximum number of links.
    pub(crate) const LINKS: usize = 5_000;
    /// Maximum number of separators (spaces, slashes, quotes) in one tag or comment: the tokenizer
    /// compares each attribute with all before it.
    pub(crate) const SEPARATORS: usize = 32_768;
}
