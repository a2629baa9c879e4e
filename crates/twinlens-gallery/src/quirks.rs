//! Typical problems of the web, one row each. The page `/attic/` links to all but those under
//! `/private/`.

use std::time::Duration;

use crate::pages::{escape, page};

/// A URL that misbehaves.
#[derive(Debug)]
pub struct Quirk {
    pub path: &'static str,
    /// What is wrong with it, and what a good crawler does.
    pub description: &'static str,
    pub(crate) response: QuirkResponse,
}

/// The response of a quirk.
#[derive(Debug)]
pub(crate) enum QuirkResponse {
    /// A redirect with this status.
    Redirect(u16, &'static str),
    /// A short HTML page with this status.
    Failure(u16),
    /// A page encoded as windows-1252.
    Windows1252(&'static str),
    /// A page with a robots meta tag or header.
    Page { header: Option<(&'static str, &'static str)>, body: &'static str },
    /// The sample image, altered.
    Image(Alteration),
}

/// How the sample image is altered.
#[derive(Debug)]
pub(crate) enum Alteration {
    /// Only the first half, with a matching content length.
    FirstHalf,
    /// The header declares this side, in pixels.
    DeclaredSide(u32),
    /// An HTML page with an image's name and content type.
    Html,
    ContentType(&'static str),
    /// An additional header.
    Header(&'static str, &'static str),
    Delay(Duration),
    /// The first request gets status 429 with `Retry-After: 1`.
    BusyOnce,
}

/// Code points of the sample image.
pub(crate) const SAMPLE: &str = "1f4f7";

use Alteration::{BusyOnce, ContentType, DeclaredSide, Delay, FirstHalf, Header, Html};
use QuirkResponse::{Failure, Image, Page, Redirect, Windows1252};

const fn quirk(path: &'static str, response: QuirkResponse, description: &'static str) -> Quirk {
    Quirk { path, description, response }
}

/// All quirks, except those in the markup of `/attic/` and the redirects under `/img/moved/`. The
/// descriptions are part of the served pages.
pub const QUIRKS: &[Quirk] = &[
    quirk("/attic/moved", Redirect(302, "/food-and-drink/red-apple.html"), "a page that has moved: follow"),
    quirk(
        "/attic/moved-for-good",
        Redirect(301, "/attic/moved"),
        "a redirect to a redirect: follow, within a limit",
    ),
    quirk("/attic/loop", Redirect(302, "/attic/loop-back"), "half of a redirect loop: give up"),
    quirk("/attic/loop-back", Redirect(302, "/attic/loop"), "the other half"),
    quirk("/attic/gone", Failure(404), "a page that is no more"),
    quirk("/attic/broken", Failure(500), "a page that never works: give up after the retries"),
    quirk("/img/gone.png", Failure(404), "an image that is no more"),
    quirk("/img/late.png", Image(Delay(Duration::from_secs(3))), "an image that comes after three seconds"),
    quirk("/img/busy.png", Image(BusyOnce), "429 with Retry-After on the first request: wait, and try again"),
    quirk("/img/damaged.png", Image(FirstHalf), "half an image: refuse"),
    quirk(
        "/img/huge.png",
        Image(DeclaredSide(30_000)),
        "a small file that declares 900 megapixels: refuse by header",
    ),
    quirk("/img/page.png", Image(Html), "HTML served as image/png: refuse by the first bytes"),
    quirk(
        "/img/untyped.png",
        Image(ContentType("application/octet-stream")),
        "a good image of no content type: take",
    ),
    quirk(
        "/img/opted-out.png",
        Image(Header("x-robots-tag", "noai, noimageai")),
        "its owner opted out: respect",
    ),
    quirk(
        "/attic/opted-out",
        Page {
            header: Some(("x-robots-tag", "noai, noimageai")),
            body: "<img src=\"/img/1f6ab.png\" alt=\"a picture whose owner opted out by header\">",
        },
        "a page whose header opts out: take nothing from it",
    ),
    quirk(
        "/attic/not-indexed",
        Page {
            header: None,
            body: "<meta name=\"robots\" content=\"noindex, noimageindex\">\
                   <img src=\"/img/1f6ab.png\" alt=\"a picture whose owner opted out in the page\">",
        },
        "a page whose meta tag opts out: take nothing from it",
    ),
    quirk(
        "/attic/windows-1252",
        Windows1252("<p><img src=\"/img/1fa85.png\" alt=\"a piñata at the café — it’s full\">"),
        "a page in windows-1252, as its content type says: decode so",
    ),
    quirk(
        "/private/",
        Page {
            header: None,
            body: "<img src=\"/private/photo.png\" alt=\"a private photo\"> <a href=\"/private/more\">more</a>",
        },
        "forbidden by robots.txt: never ask for it",
    ),
    quirk(
        "/private/more",
        Page { header: None, body: "<img src=\"/private/photo.png\" alt=\"another private photo\">" },
        "forbidden by robots.txt",
    ),
    quirk("/private/photo.png", Image(ContentType("image/png")), "forbidden by robots.txt"),
];

/// Invalid markup that browsers tolerate; its captions are intact.
const MARKUP: &str = "\
    <h2>Odd markup</h2>\n\
    <p><IMG SRC='/img/1f9c0.png' ALT='a wedge of cheese, in capitals'>\n\
    <p><img src=/img/1f968.png alt=pretzel>\n\
    <p><img src=\"/img/1f37c.png\" alt=\"mother&amp;#39;s milk &amp;amp; a baby bottle\">\n\
    <p><img src=\"/img/1f369.png?v=2\" alt=\"a doughnut with a query string\">\n\
    <p><img src=\"/img/1f369.png#left\" alt=\"a doughnut with a fragment\">\n\
    <p><img src=\"../img/1f36a.png\" alt=\"a cookie\n   by a relative    path\">\n\
    <p><img src=\"data:image/gif;base64,R0lGODlhAQABAAAAACw=\" data-src=\"/img/1f382.png\" alt=\"a lazily loaded birthday cake\">\n\
    <p><img alt=\"an image without an address\">\n\
    <p><a href=\"http://elsewhere.twinlens.test/\">a neighbour</a> <a href=\"//elsewhere.twinlens.test/x\">and again</a>\n\
    <p><a href=\"http://[broken\">a broken address</a> <a href=\"\">nowhere</a> <b><i>unbalanced</b></i>\n";

/// The page that links to every quirk outside `/private/`.
pub(crate) fn attic() -> String {
    let mut body = String::from("<h1>The attic</h1>\n<ul>\n");
    for quirk in QUIRKS.iter().filter(|quirk| !quirk.path.starts_with("/private/")) {
        let (path, description) = (quirk.path, escape(quirk.description));
        body.push_str(&if path.ends_with(".png") {
            format!("<li><img src=\"{path}\" alt=\"an old camera: {description}\">\n")
        } else {
            format!("<li><a href=\"{path}\">{description}</a>\n")
        });
    }
    body.push_str("</ul>\n");
    body.push_str(MARKUP);
    page("The attic", &body)
}

/// Encodes text as windows-1252: Latin-1 and the characters in 0x80..=0x9f that the page uses.
pub(crate) fn windows_1252(text: &str) -> Vec<u8> {
    text.chars()
        .map(|c| match c {
            '’' => 0x92,
            '—' => 0x97,
            c => u8::try_from(u32::from(c)).unwrap_or(b'?'),
        })
        .collect()
}

/// Changes the size in a PNG's header to `side` x `side` pixels and updates the checksum.
pub(crate) fn with_declared_side(png: &[u8], side: u32) -> Vec<u8> {
    let mut altered = png.to_vec();
    altered[16..20].copy_from_slice(&side.to_be_bytes());
    altered[20..24].copy_from_slice(&side.to_be_bytes());
    let checksum = crc32fast::hash(&altered[12..29]);
    altered[29..33].copy_from_slice(&checksum.to_be_bytes());
    altered
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn with_declared_side_changes_size_and_checksum() {
        // A header of 1 x 1 pixel, 8-bit RGB, with a correct checksum.
        let png = b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR\0\0\0\x01\0\0\0\x01\x08\x02\0\0\0\x90\x77\x53\xde";
        assert_eq!(with_declared_side(png, 1), png);
        assert_eq!(with_declared_side(png, 30_000)[16..24], [0, 0, 0x75, 0x30, 0, 0, 0x75, 0x30]);
    }

    #[test]
    fn windows_1252_has_one_byte_per_character() {
        assert_eq!(windows_1252("ñ—’é"), [0xf1, 0x97, 0x92, 0xe9]);
    }
}
