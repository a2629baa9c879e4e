//! Recognises formats by their first bytes, because content types are unreliable.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A file format recognised by its magic bytes. Only [decodable](Format::is_decodable) formats
/// become pixels; the others name what was served instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names are the formats' own")]
pub enum Format {
    Jpeg,
    Png,
    WebP,
    Gif,
    Bmp,
    Tiff,
    Ico,
    Pnm,
    Qoi,
    Avif,
    Heif,
    JpegXl,
    Jpeg2000,
    Psd,
    Svg,
    Html,
    Xml,
    Pdf,
    Json,
}

impl Format {
    /// Whether this crate decodes it.
    pub fn is_decodable(self) -> bool {
        matches!(
            self,
            Self::Jpeg
                | Self::Png
                | Self::WebP
                | Self::Gif
                | Self::Bmp
                | Self::Tiff
                | Self::Ico
                | Self::Pnm
                | Self::Qoi
                | Self::Avif
        )
    }

    /// Whether it is an image at all.
    pub fn is_image(self) -> bool {
        !matches!(self, Self::Html | Self::Xml | Self::Pdf | Self::Json)
    }

    /// File extension: the lower-case name, but `jpg` for JPEG as in img2dataset.
    pub fn extension(self) -> &'static str {
        match self {
            Self::Jpeg => "jpg",
            other => other.name(),
        }
    }

    /// Lower-case name: `jpeg`, `png`, `webp`, ...
    pub fn name(self) -> &'static str {
        match self {
            Self::Jpeg => "jpeg",
            Self::Png => "png",
            Self::WebP => "webp",
            Self::Gif => "gif",
            Self::Bmp => "bmp",
            Self::Tiff => "tiff",
            Self::Ico => "ico",
            Self::Pnm => "pnm",
            Self::Qoi => "qoi",
            Self::Avif => "avif",
            Self::Heif => "heif",
            Self::JpegXl => "jxl",
            Self::Jpeg2000 => "jp2",
            Self::Psd => "psd",
            Self::Svg => "svg",
            Self::Html => "html",
            Self::Xml => "xml",
            Self::Pdf => "pdf",
            Self::Json => "json",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Magic bytes at the start of a file.
const MAGIC: &[(&[u8], Format)] = &[
    (b"\xff\xd8\xff", Format::Jpeg),
    (b"\x89PNG\r\n\x1a\n", Format::Png),
    (b"GIF87a", Format::Gif),
    (b"GIF89a", Format::Gif),
    (b"II*\0", Format::Tiff),
    (b"MM\0*", Format::Tiff),
    (b"II+\0", Format::Tiff),
    (b"MM\0+", Format::Tiff),
    (b"\0\0\x01\0", Format::Ico),
    (b"\0\0\x02\0", Format::Ico),
    (b"\0\0\0\x0cJXL \r\n\x87\n", Format::JpegXl),
    (b"\xff\x0a", Format::JpegXl),
    (b"\0\0\0\x0cjP  \r\n\x87\n", Format::Jpeg2000),
    (b"qoif", Format::Qoi),
    (b"8BPS", Format::Psd),
    (b"%PDF-", Format::Pdf),
];

/// Number of leading bytes searched for markup (there may be an XML declaration, comments and a
/// doctype before `<svg`).
const MARKUP_WINDOW: usize = 1024;

/// The format by the first (at most 1,024) bytes; `None` if unknown. The rest of the file may still
/// be damaged.
pub fn sniff(bytes: &[u8]) -> Option<Format> {
    if let Some((_, format)) = MAGIC.iter().find(|(magic, _)| bytes.starts_with(magic)) {
        return Some(*format);
    }
    match bytes {
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => return Some(Format::WebP),
        [b'B', b'M', _, _, _, _, 0, 0, 0, 0, ..] => return Some(Format::Bmp),
        [_, _, _, _, b'f', b't', b'y', b'p', brands @ ..] if brands.len() >= 4 => {
            let length = u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize;
            return sniff_brand(&brands[..brands.len().min(length.saturating_sub(8).max(4))]);
        }
        [b'P', b'1'..=b'7', space, ..] if space.is_ascii_whitespace() => return Some(Format::Pnm),
        _ => {}
    }
    sniff_markup(bytes)
}

/// Distinguishes ISO base media files by their major brand, and those of HEIF's own brand by the
/// brands that follow it and a version.
fn sniff_brand(brands: &[u8]) -> Option<Format> {
    let is_avif = |brand: &[u8]| matches!(brand, b"avif" | b"avis");
    match &brands[..4] {
        brand if is_avif(brand) => Some(Format::Avif),
        b"mif1" | b"msf1" if brands.chunks_exact(4).skip(2).any(is_avif) => Some(Format::Avif),
        b"heic" | b"heix" | b"heim" | b"heis" | b"hevc" | b"mif1" | b"msf1" => Some(Format::Heif),
        _ => None,
    }
}

fn sniff_markup(bytes: &[u8]) -> Option<Format> {
    let window = &bytes[..bytes.len().min(MARKUP_WINDOW)];
    let text = String::from_utf8_lossy(window).to_ascii_lowercase();
    let text = text.trim_start_matches('\u{feff}').trim_start();
    if let Some(json) = text.strip_prefix(['{', '[']) {
        return json.trim_start().starts_with(['"', '{', '[', '}', ']']).then_some(Format::Json);
    }
    if !text.starts_with('<') {
        return None;
    }
    let first_at = |needles: &[&str]| needles.iter().filter_map(|needle| text.find(needle)).min();
    let html =
        first_at(&["<!doctype html", "<html", "<head", "<body", "<script", "<title", "<h1", "<p>", "<div"]);
    // An HTML page may contain an inline svg, and an svg may contain html: the first tag decides.
    match (first_at(&["<svg"]), html) {
        (Some(svg), Some(html)) if html < svg => Some(Format::Html),
        (Some(_), _) => Some(Format::Svg),
        (None, Some(_)) => Some(Format::Html),
        (None, None) => text.starts_with("<?xml").then_some(Format::Xml),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_recognised_by_their_first_bytes() {
        let cases: &[(&[u8], Option<Format>)] = &[
            (b"\xff\xd8\xff\xe0", Some(Format::Jpeg)),
            (b"\x89PNG\r\n\x1a\n....", Some(Format::Png)),
            (b"RIFF\x10\0\0\0WEBPVP8 ", Some(Format::WebP)),
            (b"RIFF\x10\0\0\0WAVEfmt ", None),
            (b"GIF89a....", Some(Format::Gif)),
            (b"P6\n4 4 255\n", Some(Format::Pnm)),
            (b"P6 is an article", Some(Format::Pnm)),
            (b"P8\n", None),
            (b"qoif\0\0\0\x04", Some(Format::Qoi)),
            (b"BM\x10\0\0\0\0\0\0\0", Some(Format::Bmp)),
            (b"\0\0\0\x20ftypavif", Some(Format::Avif)),
            (b"\0\0\0\x20ftypavis", Some(Format::Avif)),
            (b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf", Some(Format::Avif)),
            (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heicavif", Some(Format::Heif)),
            (b"\0\0\0\x18ftypmif1avif", Some(Format::Heif)),
            (b"\0\0\0\x20ftypheic", Some(Format::Heif)),
            (b"\0\0\0\x20ftypisom", None),
            (b"<svg xmlns='x'/>", Some(Format::Svg)),
            (b"<?xml version='1.0'?><!-- c --><svg>", Some(Format::Svg)),
            (b"\xef\xbb\xbf <!DOCTYPE HTML><html><svg>", Some(Format::Html)),
            (b"<?xml version='1.0'?><rss>", Some(Format::Xml)),
            (b"{\"error\": 404}", Some(Format::Json)),
            (b"%PDF-1.7", Some(Format::Pdf)),
            (b"Not found", None),
            (b"", None),
            (b"\xff\xd8", None),
        ];
        for (bytes, expected) in cases {
            assert_eq!(sniff(bytes), *expected, "{}", String::from_utf8_lossy(bytes));
        }
    }
}
