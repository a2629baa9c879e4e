//! Web archives as they are in the world: pages in all charsets and content codings, other
//! compressions and formats, and files that are none.

use std::io::Write;

use crate::sources::{record, response};
use crate::support::{Lab, gzip, stage};

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).unwrap()
}

/// Runs `warc` over one file.
async fn pages(name: &str, bytes: &[u8], sql: &str) -> Vec<String> {
    let lab = Lab::new();
    lab.write(name, bytes);
    let done = lab.run(&stage("pages", "warc", &format!("files = [\"{name}\"]"))).await;
    assert_eq!(done.rows("select * from pages.rejects").await, [] as [&str; 0], "{name}");
    done.rows(sql).await
}

#[tokio::test]
async fn pages_are_decoded_as_browsers_do() {
    let bytes = |label: &str, text: &str| {
        encoding_rs::Encoding::for_label(label.as_bytes()).unwrap().encode(text).0.into_owned()
    };
    let page = |head: &str, label: &str, caption: &str| {
        [head.as_bytes(), b"<img src=/x alt='", &bytes(label, caption), b"'>"].concat()
    };
    let utf_16: Vec<u8> =
        "<html><img src=/x alt='café noir'>".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let late = format!("<head><script>/*{}*/</script><meta charset=windows-1251></head>", "x".repeat(1500));
    let html = "text/html";
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        (
            html,
            page("<?xml version='1.0' encoding='Shift_JIS'?>", "sjis", "日本の夜"),
            "Shift_JIS | 日本の夜",
        ),
        (html, page(&late, "windows-1251", "красный кот"), "windows-1251 | красный кот"),
        (
            html,
            page("<!-- <meta charset=koi8-r> --><meta charset=windows-1251>", "windows-1251", "красный кот"),
            "windows-1251 | красный кот",
        ),
        (
            html,
            page(
                "<meta name=description content='on charset=big5'><meta charset=windows-1251>",
                "windows-1251",
                "кот",
            ),
            "windows-1251 | кот",
        ),
        (
            html,
            page("<meta httpequiv=ContentType content='text/html; charset=gbk'>", "gbk", "网站地图"),
            "GBK | 网站地图",
        ),
        (html, page("<html>", "sjis", "日本の猫、公園"), "Shift_JIS | 日本の猫、公園"),
        (
            "text/html; charset=ISO-8859-1",
            page("<meta charset=utf-8>", "utf-8", "café"),
            "windows-1252 | cafÃ©",
        ),
        ("text/html; charset='utf-8'", page("", "utf-8", "café"), "UTF-8 | café"),
        (
            html,
            [&b"<p>bad \xff byte</p>"[..], &page("", "utf-8", "café crème")].concat(),
            "UTF-8 | café crème",
        ),
        (html, utf_16, "UTF-16LE | café noir"),
        ("text/html; charset=utf-8", page("", "windows-1252", "café noir"), "UTF-8 | caf\u{fffd} noir"),
        (
            html,
            page("", "utf-8", "zero\u{200b}width so\u{ad}ft \u{202e}abc\u{202c}"),
            "UTF-8 | zerowidth soft abc",
        ),
    ];
    for (content_type, body, expected) in cases {
        let record = response("http://a.test/", &format!("200 OK\r\nContent-Type: {content_type}"), &body);
        let found = pages("a.warc", &record, "select charset, caption from pages").await;
        assert_eq!(found, [expected], "{}", String::from_utf8_lossy(&body));
    }
}

#[tokio::test]
async fn pages_are_decoded_from_all_content_codings() {
    let html = b"<p>x</p><img src=/x alt='a cat'>".as_slice();
    let raw = {
        let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(html).unwrap();
        encoder.finish().unwrap()
    };
    // One uncompressed block of 32 bytes, then an empty one.
    let brotli = [&[0xf0, 0x01, 0x10][..], html, &[3]].concat();
    let cases = [
        ("br", brotli),
        ("zstd", zstd(html)),
        ("deflate", raw),
        ("GZIP ", gzip(html)),
        ("gzip, gzip", gzip(&gzip(html))),
        ("none", html.to_vec()),
        ("UTF-8", html.to_vec()),
        ("gzip", html.to_vec()),
        ("br", html.to_vec()),
        ("deflate", html.to_vec()),
    ];
    for (coding, body) in cases {
        let head = format!("200 OK\r\nContent-Type: text/html\r\nContent-Encoding: {coding}");
        let record = response("http://a.test/", &head, &body);
        assert_eq!(pages("a.warc", &record, "select caption from pages").await, ["a cat"], "{coding}");
    }
}

#[tokio::test]
async fn archives_are_told_by_their_contents() {
    let html = "200 OK\r\nContent-Type: text/html";
    let records: Vec<Vec<u8>> = (0..3)
        .map(|number| response("http://a.test/", html, format!("<img src=/{number} alt=x>").as_bytes()))
        .collect();
    let block = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n<img src=/0 alt=x><img src=/1 alt=x><img src=/2 alt=x>";
    let arc = [
        &b"filedesc://a.arc 0.0.0.0 20070101120000 text/plain 13\n1 0 Archive\n\n\n"[..],
        format!("http://a.test/ 1.2.3.4 20070101120000 text/html {}\n", block.len()).as_bytes(),
        block,
        b"\n",
    ]
    .concat();
    let frames: Vec<u8> = records.iter().flat_map(|record| zstd(record)).collect();
    let archives = [
        ("a.warc", records.concat()),
        ("a.warc.zst", frames),
        ("a.warc.gz", zstd(&records.concat())),
        ("a.gz", records.concat()),
        ("a", gzip(&records.concat())),
        ("a.warc.gz", gzip(&gzip(&records.concat()))),
        ("a.arc", arc.clone()),
        ("a.arc.gz", gzip(&arc)),
    ];
    for (name, bytes) in archives {
        let found = pages(name, &bytes, "select url from pages order by url").await;
        assert_eq!(found, [0, 1, 2].map(|number| format!("http://a.test/{number}")), "{name}");
    }
}

#[tokio::test]
async fn a_file_that_is_no_archive_is_an_error() {
    let cut = &record("response", "application/http", "http://a.test/", b"HTTP/1.1 200 OK\r\n\r\n")[..60];
    let cases: [(&str, Vec<u8>, &str); 8] = [
        ("a.warc", b"<!doctype html><p>404".to_vec(), "a.warc: this is an HTML page"),
        ("a.warc.gz", b"<!doctype html><p>404".to_vec(), "this is an HTML page"),
        ("a.warc.gz", gzip(b"url\tcaption\n"), "a.warc.gz (this is plain text): no record"),
        ("a.warc.zst", zstd(b"\x89PNG\r\n\x1a\n"), "this is an image"),
        ("a.warc", Vec::new(), "this is an empty file"),
        ("a.warc.gz", gzip(b""), "this is an empty file"),
        ("a.warc.gz", gzip(cut), "no record of a web archive can be read: byte 0: "),
        ("a.warc.gz", gzip(cut)[..30].to_vec(), "a.warc.gz: no record"),
    ];
    for (name, bytes, why) in cases {
        let lab = Lab::new();
        lab.write(name, &bytes);
        let error = lab.run_error(&stage("pages", "warc", &format!("files = [\"{name}\"]"))).await;
        assert!(format!("{error:?}").contains("User {"), "{name}: {error:?}");
        let text = error.to_string();
        assert!(text.contains(name) && text.contains(why), "{why}: {text}");
    }
}
