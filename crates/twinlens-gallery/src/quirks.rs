//! What goes wrong on the web, one row each. The page `/attic/` links them all, but for the
//! forbidden part.

use std::time::Duration;

use crate::pages::{escape, page};

/// One address that does not behave.
#[derive(Debug)]
pub struct Quirk {
    /// Its path.
    pub path: &'static str,
    /// What is wrong with it, and what a good crawler does.
    pub what: &'static str,
    pub(crate) reply: Reply,
}

/// What the server does instead of serving a page or an image plainly.
#[derive(Debug)]
pub(crate) enum Reply {
    /// A redirect with this status.
    To(u16, &'static str),
    /// A short HTML page with this status.
    Failure(u16),
    /// A page in windows-1252.
    Windows1252(&'static str),
    /// A page with a robots meta tag or header.
    Page { header: Option<(&'static str, &'static str)>, body: &'static str },
    /// The sample image, altered.
    Image(Alteration),
}

/// What is done to the sample image on its way out.
#[derive(Debug)]
pub(crate) enum Alteration {
    /// Only the first half, with a content length to match.
    CutInHalf,
    /// The header declares this many pixels a side.
    Declares(u32),
    /// An HTML page under an image's name and content type.
    Html,
    /// Another content type.
    Typed(&'static str),
    /// One more header.
    Header(&'static str, &'static str),
    /// Comes after this time.
    Late(Duration),
    /// The first request is answered 429 with `Retry-After: 1`.
    BusyOnce,
}

/// Code points of the image that the image quirks alter.
pub(crate) const SAMPLE: &str = "1f4f7";

use Alteration::{BusyOnce, CutInHalf, Declares, Header, Html, Late, Typed};
use Reply::{Failure, Image, Page, To, Windows1252};

const fn quirk(path: &'static str, reply: Reply, what: &'static str) -> Quirk {
    Quirk { path, what, reply }
}

/// The table of all quirks, but for those in the markup itself (see [`attic`]) and redirects under
/// `/img/moved/`.
pub const QUIRKS: &[Quirk] = &[
    quirk("/attic/moved", To(302, "/food-and-drink/red-apple.html"), "a page that has moved: follow"),
    quirk(
        "/attic/moved-for-good",
        To(301, "/attic/moved"),
        "a redirect to a redirect: follow, within a limit",
    ),
    quirk("/attic/loop", To(302, "/attic/loop-back"), "half of a redirect loop: give up"),
    quirk("/attic/loop-back", To(302, "/attic/loop"), "the other half"),
    quirk("/attic/gone", Failure(404), "a page that is no more"),
    quirk("/attic/broken", Failure(500), "a page that never works: give up after the retries"),
    quirk("/img/gone.png", Failure(404), "an image that is no more"),
    quirk("/img/late.png", Image(Late(Duration::from_secs(3))), "an image that comes after three seconds"),
    quirk("/img/busy.png", Image(BusyOnce), "429 with Retry-After on the first request: wait, and try again"),
    quirk("/img/damaged.png", Image(CutInHalf), "half an image: refuse"),
    quirk(
        "/img/huge.png",
        Image(Declares(30_000)),
        "a small file that declares 900 megapixels: refuse by header",
    ),
    quirk("/img/page.png", Image(Html), "HTML served as image/png: refuse by the first bytes"),
    quirk(
        "/img/untyped.png",
        Image(Typed("application/octet-stream")),
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
    quirk("/private/photo.png", Image(Typed("image/png")), "forbidden by robots.txt"),
];

/// Markup that browsers forgive: captions here are still whole.
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

/// The page that links every quirk outside the forbidden part.
pub(crate) fn attic() -> String {
    let mut body = String::from("<h1>The attic</h1>\n<ul>\n");
    for quirk in QUIRKS.iter().filter(|quirk| !quirk.path.starts_with("/private/")) {
        let (path, what) = (quirk.path, escape(quirk.what));
        body.push_str(&if path.ends_with(".png") {
            format!("<li><img src=\"{path}\" alt=\"an old camera: {what}\">\n")
        } else {
            format!("<li><a href=\"{path}\">{what}</a>\n")
        });
    }
    body.push_str("</ul>\n");
    body.push_str(MARKUP);
    page("The attic", &body)
}

/// Text as windows-1252: Latin-1, and the few characters of the range 0x80 to 0x9f that the page
/// uses.
pub(crate) fn windows_1252(text: &str) -> Vec<u8> {
    text.chars()
        .map(|c| match c {
            '’' => 0x92,
            '—' => 0x97,
            c => u8::try_from(u32::from(c)).unwrap_or(b'?'),
        })
        .collect()
}

/// A PNG whose header declares `side` x `side` pixels, with the header's checksum made good.
pub(crate) fn declaring(png: &[u8], side: u32) -> Vec<u8> {
    let mut altered = png.to_vec();
    altered[16..20].copy_from_slice(&side.to_be_bytes());
    altered[20..24].copy_from_slice(&side.to_be_bytes());
    let checksum = crc32(&altered[12..29]);
    altered[29..33].copy_from_slice(&checksum.to_be_bytes());
    altered
}

/// The checksum of PNG chunks (PNG specification, annex D), bit by bit: it is needed once, for 17
/// bytes.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(
            crc ^ u32::from(*byte),
            |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 },
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_declared_size_is_the_only_change() {
        // A header of 1 x 1 pixel, 8-bit RGB, with its right checksum.
        let png = b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR\0\0\0\x01\0\0\0\x01\x08\x02\0\0\0\x90\x77\x53\xde";
        assert_eq!(declaring(png, 1), png);
        assert_eq!(declaring(png, 30_000)[16..24], [0, 0, 0x75, 0x30, 0, 0, 0x75, 0x30]);
    }

    #[test]
    fn windows_1252_has_one_byte_a_character() {
        assert_eq!(windows_1252("ñ—’é"), [0xf1, 0x97, 0x92, 0xe9]);
    }
}
