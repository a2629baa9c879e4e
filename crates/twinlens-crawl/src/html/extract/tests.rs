use std::time::Instant;

use proptest::prelude::*;

use super::*;

fn page(html: &str) -> Page {
    extract(html, &Url::parse("http://example.org/dir/page.html?q").unwrap(), "twinlens")
}

/// Pairs as `url | text | source`, the host left out.
fn pairs(html: &str) -> Vec<String> {
    let short = |pair: &ImageText| {
        format!(
            "{} | {} | {}",
            pair.image.trim_start_matches("http://example.org"),
            pair.text,
            pair.source.name()
        )
    };
    page(html).pairs.iter().map(short).collect()
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
fn robots_meta_tags_are_read_for_us() {
    let cases = [
        ("<meta name=robots content='noindex, nofollow'>", Some("robots meta tag: noindex"), true),
        ("<META NAME='Robots' CONTENT='NOAI'>", Some("robots meta tag: noai"), false),
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
fn hostile_pages_cost_little() {
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
        let found = page(&html).pairs.len();
        assert!(start.elapsed().as_secs() < 10, "{name}: {:?}", start.elapsed());
        if let Some(expected) = expected {
            assert_eq!(found, expected, "{name}");
        }
    }
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2000), charset in "(utf-8|utf-16|koi8-r|)") {
        let (text, _) = super::super::decode(&bytes, &format!("text/html; charset={charset}"));
        page(&text);
    }

    #[test]
    fn no_soup_panics_and_pairs_are_sound(
        soup in proptest::collection::vec(prop_oneof![
            Just("<img src=a alt=x>"), Just("<figure>"), Just("</figure>"), Just("<figcaption>"), Just("</figcaption>"), Just("<base href=/b>"),
            Just("<script>"), Just("</script>"), Just("<!--"), Just("-->"), Just("<a href=b>"), Just("<img"), Just("'"), Just("\""), Just(">"),
            Just("&am"), Just("p;"), Just("&#x110000;"), Just("\0"), Just("text "), Just("<title>"), Just("</title"), Just("<![CDATA["), Just("<plaintext>"),
        ], 0..200),
    ) {
        let page = page(&soup.concat());
        for pair in &page.pairs {
            prop_assert!(!pair.text.is_empty() && *pair.text == *collapse(&pair.text));
            prop_assert!(Url::parse(&pair.image).is_ok_and(|url| url.fragment().is_none()));
        }
    }
}
