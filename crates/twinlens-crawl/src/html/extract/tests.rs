use std::time::Instant;

use proptest::prelude::*;
use twinlens_testkit::fuzz::Fuzz;

use super::*;
use crate::html::page::{DEFAULT_CAPTIONS, ImageText, TextSource, TextSourceSet};
use crate::net::Directives;

/// Every source, in the order of the pairs of an image.
const ALL: [TextSource; 7] = [
    TextSource::Alt,
    TextSource::Title,
    TextSource::Figcaption,
    TextSource::AriaLabel,
    TextSource::Surrounding,
    TextSource::JsonLd,
    TextSource::OpenGraph,
];

fn page_with(html: &str, captions: &[TextSource]) -> Page {
    let options = ExtractOptions { product: "twinlens", captions: TextSourceSet::new(captions) };
    extract(html, &Url::parse("http://example.org/dir/page.html?q").unwrap(), &options)
}

fn page(html: &str) -> Page {
    page_with(html, &DEFAULT_CAPTIONS)
}

/// Bytes become a page as in a crawl: decoded first.
#[test]
fn any_mutant_is_read() {
    let seed = br#"<!DOCTYPE html><html lang=de><head><meta charset="utf-8"><base href="/b/"><meta name=robots content="noai">
<meta property="og:image" content="o.png"><meta property="og:title" content="T"><script type="application/ld+json">
[{"@type":"ImageObject","contentUrl":"j.png","caption":"c \u00e9"}]</script></head><body><figure><picture>
<source srcset="a.webp 1x, b.webp 2x"><img src="i.png" alt="a &eacute; b" title=t srcset="s.png 100w"></picture>
<figcaption>caption <b>x</b></figcaption></figure><p>text <img data-src=lazy.jpg aria-label="l"> more</p>
<noscript><img src=n.png></noscript><svg><image href=x.png /></svg><a href="../next?a=1#f" rel=nofollow>n</a></body></html>"#;
    let words: [&[u8]; 14] = [
        b"<img src=",
        b"alt=\"",
        b"<figure>",
        b"</figure>",
        b"<script>",
        b"</script>",
        b"<!--",
        b"-->",
        b"<noscript>",
        b"srcset=\"a 1x, ",
        b"&#xfffff;",
        b"<base href=",
        b"<template>",
        b"{\"@graph\":[",
    ];
    Fuzz::new("html", [seed.to_vec()]).words(&words).run(|bytes| {
        let (text, charset) = twinlens_text::decode_html(bytes, "text/html", "example.org");
        let page = page_with(&text, &ALL);
        let sources: std::collections::BTreeSet<&str> =
            page.pairs.iter().map(|pair| pair.source.name()).collect();
        format!("{sources:?} {} {charset} {:?}", page.links.len().min(2), page.directives.opt_out)
    });
}

/// Pairs as `url | text | source`, without the host.
fn pairs_with(html: &str, captions: &[TextSource]) -> Vec<String> {
    let short = |pair: &ImageText| {
        format!(
            "{} | {} | {}",
            pair.image.trim_start_matches("http://example.org"),
            pair.text,
            pair.source.name()
        )
    };
    page_with(html, captions).pairs.iter().map(short).collect()
}

fn pairs(html: &str) -> Vec<String> {
    pairs_with(html, &DEFAULT_CAPTIONS)
}

#[test]
fn pairs_of_odd_markup() {
    let cases: [(&str, &str, &[&str]); 25] = [
        ("plain", "<img src=a.png alt='a cat'>", &["/dir/a.png | a cat | alt"]),
        ("capitals, no quotes", "<IMG ALT=cat SRC=/a.png>", &["/a.png | cat | alt"]),
        ("no text", "<img src=a.png><img src=b.png alt=''><img src=c.png alt=' \n&nbsp;'>", &[]),
        ("no address", "<img alt=cat><img src='' alt=cat><img src='http://[' alt=cat>", &[]),
        (
            "other schemes",
            "<img src='data:image/png;base64,AA' alt=x><img src='file:///etc/passwd' alt=y>",
            &[],
        ),
        ("title", "<img src=a alt=one title=two>", &["/dir/a | one | alt", "/dir/a | two | title"]),
        ("the same text twice", "<img src=a alt='one  1' title='one 1'>", &["/dir/a | one 1 | alt"]),
        ("base", "<img src=a alt=x><base href='/other/'><base href='/not/'>", &["/other/a | x | alt"]),
        ("a broken base", "<base href='http://['><img src=a alt=x>", &["/dir/a | x | alt"]),
        ("fragment, credentials", "<img src='http://u:p@example.org/a#b' alt=x>", &["/a | x | alt"]),
        (
            "entities",
            "<img src='a?x=1&amp;y=2' alt='caf&eacute; &amp; bar'>",
            &["/dir/a?x=1&y=2 | café & bar | alt"],
        ),
        ("entities twice", "<img src=a alt='R&amp;amp;D&amp;#39;s'>", &["/dir/a | R&D's | alt"]),
        ("white space", "<img src=' a ' alt=' one\n\t two '>", &["/dir/a | one two | alt"]),
        (
            "lazy",
            "<img src=data:, data-src=b alt=x><img src=blank.gif data-original=c alt=y>",
            &["/dir/b | x | alt", "/dir/c | y | alt"],
        ),
        ("srcset alone", "<img srcset='s.png 1x, l.png 3x' alt=x>", &["/dir/l.png | x | alt"]),
        (
            "figure",
            "<figure><img src=a alt=one><figcaption>the <b>ca</b>ption<p>of it</figcaption></figure><img src=b alt=two>",
            &["/dir/a | one | alt", "/dir/a | the caption of it | figcaption", "/dir/b | two | alt"],
        ),
        (
            "caption first",
            "<figure><figcaption>above</figcaption><img src=a></figure>",
            &["/dir/a | above | figcaption"],
        ),
        (
            "figures in figures",
            "<figure><figure><img src=a><figcaption>inner</figcaption></figure><img src=b><figcaption>outer</figcaption></figure>",
            &["/dir/a | inner | figcaption", "/dir/b | outer | figcaption"],
        ),
        ("a caption without a figure", "<figcaption>x</figcaption><img src=a></figure>", &[]),
        ("an unclosed figure", "<figure><img src=a><figcaption>open", &["/dir/a | open | figcaption"]),
        (
            "script in a caption",
            "<figure><img src=a><figcaption>x<script>y</script>z</figcaption></figure>",
            &["/dir/a | xz | figcaption"],
        ),
        (
            "script",
            "<script>document.write('<img src=a alt=x>')</script><img src=b alt=y>",
            &["/dir/b | y | alt"],
        ),
        (
            "comment, title, style",
            "<!-- <img src=a alt=x> --><title><img src=b alt=x></title><style><img src=c alt=x></style>",
            &[],
        ),
        ("noscript", "<noscript><img src=a alt=x></noscript>", &["/dir/a | x | alt"]),
        ("cut off", "<img src=a alt=x><img src=b alt='y", &["/dir/a | x | alt"]),
    ];
    for (name, html, expected) in cases {
        assert_eq!(pairs(html), expected, "{name}");
    }
}

#[test]
fn other_text_sources_are_optional() {
    use TextSource::{Alt, AriaLabel, Figcaption, JsonLd, OpenGraph, Surrounding};
    let cases: [(&str, &[TextSource], &str, &[&str]); 16] = [
        ("aria", &[AriaLabel], "<img src=a alt=x aria-label='a &amp; b'>", &["/dir/a | a & b | aria-label"]),
        ("aria as alt", &[Alt, AriaLabel], "<img src=a alt=x aria-label=x>", &["/dir/a | x | alt"]),
        ("none", &[], "<p>text<img src=a alt=x>", &[]),
        (
            "block",
            &[Surrounding],
            "<p>other</p><p>A <b>fox</b> <img src=a> in<br>snow.</p><p>next</p>",
            &["/dir/a | A fox in snow. | surrounding"],
        ),
        (
            "the next block",
            &[Surrounding],
            "before<div><img src=a><img src=b></div><div> </div><p>Two foxes</p><p>later</p>",
            &["/dir/a | Two foxes | surrounding", "/dir/b | Two foxes | surrounding"],
        ),
        ("to the end", &[Surrounding], "<td>x</td><img src=a>a fox", &["/dir/a | a fox | surrounding"]),
        ("no text", &[Surrounding], "<p>x</p><img src=a><script>y</script><title>z</title>", &[]),
        (
            "figure and block",
            &[Figcaption, Surrounding],
            "<figure>in<img src=a><figcaption>below</figcaption></figure>",
            &["/dir/a | below | figcaption", "/dir/a | in | surrounding"],
        ),
        (
            "json-ld",
            &[Alt, JsonLd],
            "<script type='application/ld+json'>{\"@type\":\"ImageObject\",\"contentUrl\":\"/j\",\"caption\":\"a &amp; b\"}</script><img src=a alt=x>",
            &["/dir/a | x | alt", "/j | a & b | json-ld"],
        ),
        (
            "json-ld of another type, or malformed",
            &[Alt, JsonLd],
            "<script>{\"@type\":\"ImageObject\",\"url\":\"/j\",\"name\":\"n\"}</script><script type=application/ld+json>{</script>",
            &[],
        ),
        (
            "json-ld that repeats a pair",
            &[Alt, JsonLd],
            "<img src=/j alt=n><script type='application/ld+json; charset=utf-8'>{\"@type\":\"ImageObject\",\"url\":\"/j\",\"name\":\"n\"}</script>",
            &["/j | n | alt"],
        ),
        (
            "open graph",
            &[OpenGraph],
            "<meta property=og:image content=a><meta property='og:image:alt' content='a fox'>\
             <meta name='OG:Image' content='/b'><meta property=og:title content=' The page '>",
            &["/dir/a | a fox | open-graph", "/b | The page | open-graph"],
        ),
        ("open graph without a text", &[OpenGraph], "<meta property=og:image content=a>", &[]),
        (
            "open graph when not requested",
            &[Alt],
            "<meta property=og:image content=a><meta property=og:title content=b>",
            &[],
        ),
        (
            "picture",
            &[Alt],
            "<picture><source srcset='s.webp 1x, l.webp 2x'><img alt=x></picture><img alt=y>\
             <picture><source srcset=z><img src=a alt=z></picture>",
            &["/dir/l.webp | x | alt", "/dir/a | z | alt"],
        ),
        (
            "lazy",
            &[Alt],
            "<img src=blank.gif data-lazy=b alt=x><img data-lazy-srcset='c 1x, d 2x' src=blank.gif alt=y>",
            &["/dir/b | x | alt", "/dir/d | y | alt"],
        ),
    ];
    for (name, captions, html, expected) in cases {
        assert_eq!(pairs_with(html, captions), expected, "{name}");
    }
}

#[test]
fn the_largest_image_that_can_be_decoded_is_taken() {
    let cases: [(&str, &str); 26] = [
        ("<img src=s srcset='s 100w 50h, m 200w 100h, l 400w 200h' alt=x>", "l"),
        ("<img src=s srcset='s 320w, l 1600w' alt=x>", "l"),
        ("<img src=s srcset='s 1x, l 2x' alt=x>", "l"),
        ("<img src=/spacer.gif srcset='a 1x, b 2x' alt=x>", "b"),
        ("<img src=s srcset='s 100W, l 400W' alt=x>", "l"),
        ("<img src=s srcset='a nonsense' alt=x>", "s"),
        ("<img srcset='data:image/gif;base64,R0lGOD 9x, l 2x' alt=x>", "l"),
        ("<img src='data:,' srcset='DATA:, 2x' data-src=l alt=x>", "l"),
        ("<img src=a data-lazy-src=a?wait data-lazy-srcset='s 320w, l 1080w' srcset='data:,' alt=x>", "l"),
        ("<img src=low srcset='low 20w' data-srcset='m 300w, l 900w' alt=x>", "l"),
        ("<img src=a srcset='b 1x' data-original=l alt=x>", "l"),
        ("<img src=blank.gif data-original=l alt=x>", "l"),
        ("<img srcset='l.avif 900w, m.jpg 400w' alt=x>", "l.avif"),
        ("<img srcset='l.heic 900w, m.jpg 400w' alt=x>", "m.jpg"),
        ("<img src=only.svg?v=1.0 alt=x>", "only.svg?v=1.0"),
        ("<img src=a.avif/get alt=x>", "a.avif/get"),
        ("<picture><source srcset=z><img src=l alt=x></picture>", "l"),
        (
            "<picture><source srcset='a 100w, b 900w' type=image/avif><source srcset=l><img alt=x></picture>",
            "b",
        ),
        (
            "<picture><source srcset='a 100w, b 900w' type=image/jxl><source srcset=l><img alt=x></picture>",
            "l",
        ),
        (
            "<picture><source srcset='a.jxl 900w'><source srcset='l.webp 300w' type='image/webp; x'><img alt=x></picture>",
            "l.webp",
        ),
        ("<picture><source srcset='l 1600w' type=image/webp><img src=s alt=x></picture>", "l"),
        ("<picture><source srcset='m 800w'><img src=s srcset='l 900w' alt=x></picture>", "l"),
        ("<picture><source media='(max-width: 600px)' srcset='m 600w'><img src=l alt=x></picture>", "l"),
        ("<picture><source data-srcset='l 600w' srcset='data:,'><img src='data:,' alt=x></picture>", "l"),
        ("<picture><source srcset=a type=image/avif><img alt=x></picture>", "a"),
        ("<image src=l alt=x><svg><image xlink:href=s alt=y></svg>", "l"),
    ];
    for (html, expected) in cases {
        assert_eq!(pairs(html), [format!("/dir/{expected} | x | alt")], "{html}");
    }
}

#[test]
fn refreshes_and_frames_lead_on() {
    let url = |path: &str| format!("http://example.org{path}");
    let refresh = |content: &str| {
        let page = page(&format!("<meta http-equiv=Refresh content=\"{content}\">"));
        (page.refresh.map(String::from), page.links.len())
    };
    let cases = [
        ("0;url=/a", Some("/a"), 0),
        (" 3 , URL = '/a' rest", Some("/a"), 0),
        ("1.5; /a#x", Some("/a"), 0),
        (".5 url=/a", Some("/a"), 0),
        ("0;url=/a;b", Some("/a;b"), 0),
        ("600; url=/a", None, 1),
        ("99999999999999999999;url=/a", None, 1),
        ("5", None, 0),
        ("5;url=", None, 0),
        ("url=/a", None, 0),
        ("0;url=javascript:x", None, 0),
        ("", None, 0),
        ("0;é", Some("/dir/%C3%A9"), 0),
    ];
    for (content, expected, links) in cases {
        assert_eq!(refresh(content), (expected.map(url), links), "{content}");
    }
    let frames = "<frameset><frame src=a><frame src=/b><frame></frameset><iframe src=c><a href=d></iframe><iframe srcdoc=x>";
    let links: Vec<String> = page(frames).links.iter().map(Url::to_string).collect();
    assert_eq!(links, ["/dir/a", "/b", "/dir/c"].map(url));
}

#[test]
fn the_canonical_url_is_read() {
    let canonical = |html: &str| page(html).canonical.map(String::from);
    let cases = [
        ("<link rel=canonical href=/x#y>", Some("http://example.org/x")),
        (
            "<link rel='alternate Canonical' href='//other.org/'><link rel=canonical href=/b>",
            Some("http://other.org/"),
        ),
        ("<link rel=stylesheet href=/x><link rel=canonical>", None),
        ("<link rel=canonical href=''><a rel=canonical href=/x>", None),
        ("<link rel=canonical href='javascript:1'>", None),
    ];
    for (html, expected) in cases {
        assert_eq!(canonical(html).as_deref(), expected, "{html}");
    }
}

#[test]
fn links_are_resolved_once_each() {
    let html = "<a href=b.html>1</a> <a href='b.html#x'>2</a> <a href='/c?d=1&amp;e=2'>3</a> <a href='//other.org'>4</a>\
        <a href='mailto:x@y'>5</a> <a href='javascript:alert(1)'>6</a> <a>7</a> <a href='http://['>8</a>\
        <a rel='noopener NoFollow' href=/hidden>9</a><area href=/map>";
    let links: Vec<String> = page(html).links.iter().map(Url::to_string).collect();
    let expected = [
        "http://example.org/dir/b.html",
        "http://example.org/c?d=1&e=2",
        "http://other.org/",
        "http://example.org/map",
    ];
    assert_eq!(links, expected);
}

#[test]
fn robots_meta_tags_that_address_us_are_read() {
    let cases = [
        ("<meta name=robots content='noindex, nofollow'>", Some("robots meta tag: noindex"), true),
        ("<META NAME='Robots' CONTENT='NOAI'>", Some("robots meta tag: noai"), false),
        ("<meta name=tdm-reservation content=1>", Some("tdm-reservation meta tag: 1"), false),
        ("<meta name=TDM-Reservation content=0>", None, false),
        ("<meta name=TwinLens content=noimageai>", Some("robots meta tag: noimageai"), false),
        ("<meta name=otherbot content=noindex>", None, false),
        ("<meta name=robots content='index, follow'>", None, false),
        ("<meta name=robots>", None, false),
    ];
    for (html, opt_out, nofollow) in cases {
        assert_eq!(
            page(html).directives,
            Directives { opt_out: opt_out.map(String::from), nofollow },
            "{html}"
        );
    }
}

#[test]
fn hostile_pages_are_cheap() {
    let image = "<img src=a alt=x>";
    let many = (0..200_000).map(|n| format!("a{n} ")).collect::<String>();
    let cases = [
        ("deep nesting", format!("{}{image}", "<div>".repeat(100_000)), Some(1)),
        ("deep figures", format!("{}{image}", "<figure><figcaption>".repeat(100_000)), Some(1)),
        ("many attributes", format!("{image}<p {many}>{image}"), None),
        ("a long comment", format!("{image}<!--{many}-->{image}"), None),
        ("unclosed tags", format!("{image}{}", "<a ".repeat(300_000)), None),
        (
            "a large data URL",
            format!(
                "{image}<img src='data:image/png;base64,{}'>{image}",
                "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPh/".repeat(25_000)
            ),
            Some(2),
        ),
        ("many references", format!("{image}{}", "&amp".repeat(400_000)), Some(1)),
        (
            "a wide figure",
            format!("<figure>{}<figcaption>{}", "<img src=a>".repeat(50_000), "z".repeat(1000)),
            Some(limits::FIGURE),
        ),
        ("a long caption", format!("<figure><img src=a alt=x><figcaption>{}", "z ".repeat(100_000)), Some(1)),
        ("many links", format!("{}{image}", "<a href=x>".repeat(100_000)), Some(1)),
    ];
    for (name, html, expected) in cases {
        let start = Instant::now();
        page_with(&html, &ALL);
        assert!(start.elapsed().as_secs() < 60, "{name}: {:?}", start.elapsed());
        let start = Instant::now();
        let count = page(&html).pairs.len();
        assert!(start.elapsed().as_secs() < 60, "{name}: {:?}", start.elapsed());
        if let Some(expected) = expected {
            assert_eq!(count, expected, "{name}");
        }
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_do_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2000), charset in "(utf-8|utf-16|koi8-r|)") {
        let (text, _) = twinlens_text::decode_html(&bytes, &format!("text/html; charset={charset}"), "example.org");
        page_with(&text, &ALL);
    }

    #[test]
    fn tag_soup_does_not_panic_and_pairs_are_valid(
        soup in proptest::collection::vec(prop_oneof![
            Just("<img src=a alt=x>"), Just("<figure>"), Just("</figure>"), Just("<figcaption>"), Just("</figcaption>"), Just("<base href=/b>"),
            Just("<script>"), Just("</script>"), Just("<!--"), Just("-->"), Just("<a href=b>"), Just("<img"), Just("'"), Just("\""), Just(">"),
            Just("<script type='application/ld+json'>"), Just("{\"@type\":\"ImageObject\",\"url\":\"u\",\"name\":\" n\"}"), Just("<p>"), Just("<picture><source srcset=s>"),
            Just("<meta property=og:image content=o>"), Just("<meta property=og:title content=t>"), Just("&am"), Just("p;"), Just("&#x110000;"), Just("\0"), Just("text "), Just("<title>"), Just("</title"), Just("<![CDATA["), Just("<plaintext>"),
        ], 0..200),
    ) {
        let page = page_with(&soup.concat(), &ALL);
        for pair in &page.pairs {
            prop_assert!(!pair.text.is_empty() && *pair.text == *twinlens_text::collapse_whitespace(&pair.text));
            prop_assert!(Url::parse(&pair.image).is_ok_and(|url| url.fragment().is_none()));
        }
    }
}
