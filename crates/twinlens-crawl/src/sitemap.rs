//! Sitemaps (sitemaps.org, version 0.9): lists of pages or of sitemaps, as XML, feed or plain text,
//! optionally gzipped.

use std::io::Read;

use quick_xml::Reader;
use quick_xml::events::Event;
use twinlens_text::{decode_text, unescape_html};
use url::Url;

/// Longest sitemap after decompression, in bytes (the protocol's limit).
pub(crate) const MAX_BYTES: u64 = 50 << 20;
/// Maximum number of URLs in a sitemap (the protocol's limit).
pub(crate) const MAX_URLS: usize = 50_000;
/// Longest URL, in bytes (the protocol's limit).
const MAX_URL: usize = 2_048;
/// Maximum total bytes of the URLs: they are kept in memory until their wave is recorded.
const MAX_TOTAL: usize = 16 << 20;

#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Sitemap {
    pub(crate) pages: Vec<Url>,
    pub(crate) sitemaps: Vec<Url>,
    /// Why parsing stopped early or failed.
    pub(crate) error: Option<String>,
}

impl Sitemap {
    /// Parses a sitemap located at `base`. URLs before an error are kept.
    pub(crate) fn parse(bytes: &[u8], base: &Url) -> Self {
        let mut reader = SitemapReader { sitemap: Self::default(), base, total: 0 };
        let plain = match decompressed(bytes) {
            Ok(plain) => plain,
            Err(error) => return Self { error: Some(error), ..Self::default() },
        };
        let text = decode_text(&plain);
        let text = text.trim_start();
        let error = if text.starts_with('<') { reader.xml(text).err() } else { reader.lines(text).err() };
        Self { error, ..reader.sitemap }
    }
}

/// The sitemaps that a robots.txt lists, resolved against its URL.
pub(crate) fn resolve_all(base: &Url, references: &[String]) -> Vec<Url> {
    references.iter().filter_map(|reference| resolve(base, reference)).collect()
}

fn decompressed(bytes: &[u8]) -> Result<Vec<u8>, String> {
    if !bytes.starts_with(&[0x1f, 0x8b]) {
        return Ok(bytes.to_vec());
    }
    let mut plain = Vec::new();
    let read = flate2::read::MultiGzDecoder::new(bytes).take(MAX_BYTES + 1).read_to_end(&mut plain);
    match read {
        _ if plain.len() as u64 > MAX_BYTES => Err(format!("longer than {MAX_BYTES} bytes")),
        // A truncated file is used as far as it goes; parsing reports the error.
        Err(error) if plain.is_empty() => Err(error.to_string()),
        _ => Ok(plain),
    }
}

fn resolve(base: &Url, reference: &str) -> Option<Url> {
    if reference.is_empty() || reference.len() > MAX_URL {
        return None;
    }
    let mut url = base.join(reference).ok().filter(|url| matches!(url.scheme(), "http" | "https"))?;
    url.set_fragment(None);
    Some(url)
}

struct SitemapReader<'a> {
    sitemap: Sitemap,
    base: &'a Url,
    total: usize,
}

impl SitemapReader<'_> {
    fn add(&mut self, reference: &str, is_sitemap: bool) -> Result<(), String> {
        let Some(url) = resolve(self.base, reference.trim()) else { return Ok(()) };
        self.total += url.as_str().len();
        if self.sitemap.pages.len() + self.sitemap.sitemaps.len() >= MAX_URLS || self.total > MAX_TOTAL {
            return Err(format!("more than {MAX_URLS} URLs or {MAX_TOTAL} bytes of URLs"));
        }
        if is_sitemap {
            self.sitemap.sitemaps.push(url);
        } else {
            self.sitemap.pages.push(url);
        }
        Ok(())
    }

    fn lines(&mut self, text: &str) -> Result<(), String> {
        let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty()).peekable();
        if !lines.peek().is_some_and(|line| line.starts_with("http://") || line.starts_with("https://")) {
            return Err("neither XML nor a list of URLs".into());
        }
        lines.try_for_each(|line| self.add(line, false))
    }

    /// Reads `loc` elements of sitemaps and `link` elements of feeds.
    fn xml(&mut self, text: &str) -> Result<(), String> {
        let mut reader = Reader::from_str(text);
        let config = reader.config_mut();
        (config.check_end_names, config.allow_unmatched_ends, config.allow_dangling_amp) =
            (false, true, true);
        let (mut in_sitemap, mut kind, mut address) = (false, None, None::<String>);
        loop {
            let event = reader.read_event();
            let event = event.map_err(|error| format!("byte {}: {error}", reader.error_position()))?;
            match event {
                Event::Start(tag) | Event::Empty(tag) => {
                    let name = tag.name();
                    let local = name.local_name().as_ref().to_string();
                    let root = kind.get_or_insert_with(|| local.clone());
                    let feed = matches!(root.as_str(), "rss" | "feed" | "RDF");
                    // `image:loc` and `video:...` describe a page and are not pages.
                    let foreign = name.as_ref().starts_with("image:") || name.as_ref().starts_with("video:");
                    match local.as_str() {
                        "sitemap" => in_sitemap = true,
                        "url" => in_sitemap = false,
                        "loc" if !foreign => address = Some(String::new()),
                        "link" if feed => match tag.try_get_attribute("href") {
                            Ok(Some(href)) => self.add(&unescape_html(&href.value), false)?,
                            _ => address = Some(String::new()),
                        },
                        _ => {}
                    }
                }
                Event::Text(text) => add_text(&mut address, &text),
                Event::CData(text) => add_text(&mut address, &text),
                Event::GeneralRef(name) => add_text(&mut address, &format!("&{};", &*name)),
                Event::End(_) => {
                    if let Some(address) = address.take() {
                        self.add(&unescape_html(&address), in_sitemap)?;
                    }
                }
                Event::Eof => break,
                _ => {}
            }
        }
        match kind.as_deref() {
            Some("urlset" | "sitemapindex" | "rss" | "feed" | "RDF") => Ok(()),
            other => Err(format!("`<{}>` is not a sitemap", other.unwrap_or_default())),
        }
    }
}

/// Appends to the open address, which is bounded.
fn add_text(address: &mut Option<String>, text: &str) {
    if let Some(address) = address.as_mut().filter(|address| address.len() <= 2 * MAX_URL) {
        address.push_str(&text[..text.floor_char_boundary(2 * MAX_URL)]);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;
    use twinlens_testkit::fuzz::Fuzz;

    use super::*;

    fn parse(bytes: &[u8]) -> Sitemap {
        Sitemap::parse(bytes, &Url::parse("http://a.test/maps/map.xml").unwrap())
    }

    #[test]
    fn any_mutant_is_read() {
        let xml = b"<?xml version='1.0' encoding='UTF-8'?><!DOCTYPE x [<!ENTITY a 'b'>]><urlset><url><loc>\
            http://a.test/?a&amp;b</loc><lastmod>2020</lastmod></url><sitemap><loc><![CDATA[/b]]></loc></sitemap></urlset>";
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        packed.write_all(xml).unwrap();
        let lines = b"http://a.test/1\n\n/2\r\nnot a url\n".to_vec();
        let seeds = [xml.to_vec(), lines, packed.finish().unwrap()];
        let words: [&[u8]; 8] =
            [b"<loc>", b"</loc>", b"&amp;", b"&#x41;", b"<![CDATA[", b"]]>", b"<!--", b"<sitemapindex>"];
        Fuzz::new("sitemap", seeds).words(&words).run(|bytes| {
            let found = parse(bytes);
            format!("{} {} {:?}", found.pages.len().min(3), found.sitemaps.len().min(3), found.error)
        });
    }

    fn urls(sitemap: &Sitemap) -> (Vec<&str>, Vec<&str>) {
        (sitemap.pages.iter().map(Url::as_str).collect(), sitemap.sitemaps.iter().map(Url::as_str).collect())
    }

    #[test]
    fn all_sitemap_formats_are_parsed() {
        let set = "<?xml version='1.0' encoding='UTF-8'?><urlset xmlns='http://www.sitemaps.org/schemas/sitemap/0.9' xmlns:image='x'>\
            <url><loc> http://a.test/1?a=1&amp;b=2 </loc><lastmod>2026-01-01</lastmod><image:image><image:loc>http://a.test/i.png</image:loc></image:image></url>\
            <url><loc><![CDATA[http://b.test/2]]></loc></url><url><loc>/3#x</loc></url><url><loc>mailto:x</loc></url><url><loc/></url></urlset>";
        let index = "<sitemapindex><sitemap><loc>http://a.test/s1.xml</loc></sitemap><sitemap><loc>s2.xml.gz</loc></sitemap></sitemapindex>";
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(set.as_bytes()).unwrap();
        let zipped = encoder.finish().unwrap();
        let pages = vec!["http://a.test/1?a=1&b=2", "http://b.test/2", "http://a.test/3"];
        let cases: Vec<(&[u8], Vec<&str>, Vec<&str>)> = vec![
            (set.as_bytes(), pages.clone(), vec![]),
            (&zipped, pages, vec![]),
            (index.as_bytes(), vec![], vec!["http://a.test/s1.xml", "http://a.test/maps/s2.xml.gz"]),
            (b"\xef\xbb\xbfhttp://a.test/1\r\n\r\nhttps://b.test/\xc3\xa9\n", vec!["http://a.test/1", "https://b.test/%C3%A9"], vec![]),
            (
                b"<rss><channel><link>http://a.test/</link><item><link>http://a.test/post</link><url>x</url></item></channel></rss>",
                vec!["http://a.test/", "http://a.test/post"],
                vec![],
            ),
            (b"<feed><entry><link rel='alternate' href='/atom?a&amp;b'/></entry></feed>", vec!["http://a.test/atom?a&b"], vec![]),
        ];
        for (bytes, pages, sitemaps) in cases {
            let found = parse(bytes);
            assert_eq!(
                (urls(&found), &found.error),
                ((pages, sitemaps), &None),
                "{}",
                String::from_utf8_lossy(bytes)
            );
        }
    }

    #[test]
    fn errors_are_reported_and_earlier_urls_kept() {
        let cut = parse(b"<urlset><url><loc>http://a.test/1</loc></url><url><loc>http://a.te<");
        assert_eq!(urls(&cut).0, ["http://a.test/1"]);
        assert!(cut.error.is_some_and(|error| error.starts_with("byte ")));
        for (bytes, error) in [
            (&b"<html><a href=/x>"[..], "is not a sitemap"),
            (b"not a list", "neither"),
            (b"", "neither"),
            (b"\x1f\x8bxx", ""),
        ] {
            let found = parse(bytes);
            assert!(
                found.pages.is_empty() && found.error.as_ref().is_some_and(|found| found.contains(error)),
                "{found:?}"
            );
        }
        let many = format!("<urlset>{}</urlset>", "<url><loc>/x</loc></url>".repeat(MAX_URLS + 1));
        let found = parse(many.as_bytes());
        assert_eq!((found.pages.len(), found.error.is_some()), (MAX_URLS, true));
        let bomb = {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(&vec![b' '; MAX_BYTES as usize + 1]).unwrap();
            encoder.finish().unwrap()
        };
        assert!(parse(&bomb).error.is_some_and(|error| error.starts_with("longer")));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_do_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..500), soup in proptest::collection::vec(prop_oneof![
            Just("<urlset>"), Just("<url>"), Just("<loc>"), Just("</loc>"), Just("</url>"), Just("<sitemap>"), Just("http://a/"), Just("&amp;"), Just("&x"),
            Just("<![CDATA["), Just("]]>"), Just("<!--"), Just("-->"), Just("<"), Just(">"), Just("<rss"), Just("<link href='"), Just("'"), Just("/"), Just("é"),
        ], 0..60)) {
            parse(&bytes);
            parse(soup.concat().as_bytes());
        }
    }
}
