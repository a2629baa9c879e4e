//! The URLs that an image may have, and which of them is taken: the largest that can be decoded.

use twinlens_image::Format;

use super::page::limits;
use super::srcset::{self, Size};

/// Attributes that may hold the URL of an image, the likeliest first, and whether they are `srcset`
/// lists. The `src` of a lazily loaded image is a placeholder, and beside a `srcset` it is the
/// smallest version.
const URL_ATTRIBUTES: &[(&str, bool)] = &[
    ("data-srcset", true),
    ("data-lazy-srcset", true),
    ("data-src", false),
    ("data-original", false),
    ("data-lazy-src", false),
    ("data-lazy", false),
    ("data-lazyload", false),
    ("data-original-src", false),
    ("data-echo", false),
    ("srcset", true),
    ("src", false),
];

/// Endings of URLs of images that may not be decodable.
const ENDINGS: &[(&str, Format)] = &[
    ("gif", Format::Gif),
    ("bmp", Format::Bmp),
    ("tif", Format::Tiff),
    ("tiff", Format::Tiff),
    ("ico", Format::Ico),
    ("avif", Format::Avif),
    ("avifs", Format::Avif),
    ("heic", Format::Heif),
    ("heif", Format::Heif),
    ("jxl", Format::JpegXl),
    ("jp2", Format::Jpeg2000),
    ("j2k", Format::Jpeg2000),
    ("svg", Format::Svg),
    ("svgz", Format::Svg),
];

/// Media types of images that browsers show, and their formats.
const TYPES: &[(&str, Format)] = &[
    ("image/jpeg", Format::Jpeg),
    ("image/jpg", Format::Jpeg),
    ("image/pjpeg", Format::Jpeg),
    ("image/png", Format::Png),
    ("image/apng", Format::Png),
    ("image/webp", Format::WebP),
    ("image/gif", Format::Gif),
    ("image/avif", Format::Avif),
];

/// One URL that an image may have.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Candidate {
    url: String,
    is_decodable: bool,
    /// In pixels; 0 if it is not stated.
    width: f64,
    density: f64,
    /// Position of its attribute among the attributes; a lower one is likelier.
    rank: usize,
}

/// The candidates in an attribute of an image.
pub(super) fn in_attribute(name: &str, value: &str) -> Vec<Candidate> {
    let Some(rank) = URL_ATTRIBUTES.iter().position(|(known, _)| known.eq_ignore_ascii_case(name)) else {
        return Vec::new();
    };
    let urls =
        if URL_ATTRIBUTES[rank].1 { srcset::candidates(value) } else { vec![(value, Size::Density(1.0))] };
    urls.into_iter().filter_map(|(url, size)| candidate(url, size, rank)).collect()
}

/// The candidates of a `source` of a `picture`, of a media type if one is given. If it is meant for
/// a narrow screen, they are only taken where nothing else is left.
pub(super) fn in_source(srcset: &str, media_type: Option<&str>, is_narrow: bool) -> Vec<Candidate> {
    let is_decodable = media_type.is_none_or(|name| {
        let name = name.split(';').next().unwrap_or_default().trim();
        TYPES.iter().any(|(known, format)| known.eq_ignore_ascii_case(name) && format.is_decodable())
    });
    let found = srcset::candidates(srcset).into_iter();
    found
        .filter_map(|(url, size)| candidate(url, size, URL_ATTRIBUTES.len() + usize::from(is_narrow)))
        .map(|candidate| Candidate {
            is_decodable: candidate.is_decodable && is_decodable,
            width: if is_narrow { 0.0 } else { candidate.width },
            ..candidate
        })
        .collect()
}

fn candidate(url: &str, size: Size, rank: usize) -> Option<Candidate> {
    let url = url.trim();
    let is_data = url.get(..5).is_some_and(|scheme| scheme.eq_ignore_ascii_case("data:"));
    if url.is_empty() || url.len() > limits::URL || is_data {
        return None;
    }
    let (width, density) = match size {
        Size::Width(width) => (width, 1.0),
        Size::Density(density) => (0.0, density),
    };
    Some(Candidate { url: url.into(), is_decodable: may_be_decodable(url), width, density, rank })
}

/// Whether the ending of a URL is not that of a format that cannot be decoded.
fn may_be_decodable(url: &str) -> bool {
    let path = url.split(['?', '#']).next().unwrap_or_default();
    let name = path.rsplit('/').next().unwrap_or_default();
    let ending = name.rsplit_once('.').map_or("", |(_, ending)| ending);
    let format = ENDINGS.iter().find(|(known, _)| known.eq_ignore_ascii_case(ending));
    format.is_none_or(|(_, format)| format.is_decodable())
}

/// The URLs, the best first: those that can be decoded; of these the largest stated width, the
/// likeliest attribute, the largest density.
pub(super) fn in_order(mut candidates: Vec<Candidate>) -> Vec<String> {
    candidates.sort_by(|a, b| {
        (b.is_decodable.cmp(&a.is_decodable))
            .then(b.width.total_cmp(&a.width))
            .then(a.rank.cmp(&b.rank))
            .then(b.density.total_cmp(&a.density))
    });
    candidates.into_iter().map(|candidate| candidate.url).collect()
}
