//! Detects the charset of pages and texts, and decodes them.

mod declared;
mod detect;

use std::borrow::Cow;

use encoding_rs::Encoding;

/// Decodes a page as browsers do, and returns the name of its charset: that of its byte order mark,
/// else of the `Content-Type` header, else of a declaration in its head, else the one that its
/// bytes look like. `host` is the host of the page, whose last label hints at a language.
/// Undecodable bytes become U+FFFD.
pub fn decode_html<'a>(bytes: &'a [u8], content_type: &str, host: &str) -> (Cow<'a, str>, &'static str) {
    let encoding = Encoding::for_bom(bytes).map(|(encoding, _)| encoding);
    let encoding = encoding.or_else(|| declared::in_content_type(content_type));
    let encoding = encoding.or_else(|| declared::in_page(bytes));
    let encoding = encoding.unwrap_or_else(|| detect::detect(bytes, host));
    let (text, used, _) = encoding.decode(bytes);
    (text, used.name())
}

/// Decodes text that is not HTML: by its byte order mark, else by what its bytes look like.
/// Undecodable bytes become U+FFFD.
pub fn decode_text(bytes: &[u8]) -> Cow<'_, str> {
    let (encoding, bom_length) = Encoding::for_bom(bytes).unwrap_or_else(|| (detect::detect(bytes, ""), 0));
    encoding.decode_without_bom_handling(&bytes[bom_length..]).0
}

#[cfg(test)]
mod tests {
    use super::*;

    use proptest::prelude::*;

    #[test]
    fn charset_sources_have_an_order() {
        let cases: [(&[u8], &str, &str, &str); 10] = [
            (b"\xef\xbb\xbfna\xc3\xafve", "text/html; charset=iso-8859-1", "naïve", "UTF-8"),
            (b"na\xefve", "text/html; charset=iso-8859-1", "naïve", "windows-1252"),
            (b"na\xefve", "text/html; Charset = \"ISO-8859-1\"; x=y", "naïve", "windows-1252"),
            (b"<meta charset=utf-8>na\xc3\xafve", "text/html", "<meta charset=utf-8>naïve", "UTF-8"),
            (b"<meta charset='koi8-r'>\xce", "text/html", "<meta charset='koi8-r'>н", "KOI8-R"),
            (
                b"<meta charset=koi8-r>na\xc3\xafve",
                "text/html; charset='utf-8'",
                "<meta charset=koi8-r>naïve",
                "UTF-8",
            ),
            (b"<meta charset=utf-16>na\xc3\xafve", "", "<meta charset=utf-16>naïve", "UTF-8"),
            (b"na\xc3\xafve", "text/html", "naïve", "UTF-8"),
            (b"na\xefve", "text/html", "naïve", "windows-1252"),
            (b"\xff\xfea\0b\0", "", "ab", "UTF-16LE"),
        ];
        for (bytes, content_type, text, name) in cases {
            assert_eq!(decode_html(bytes, content_type, ""), (text.into(), name), "{bytes:?} {content_type}");
        }
    }

    #[test]
    fn plain_text_is_not_searched_for_a_declaration() {
        let cases: [(&[u8], &str); 4] = [
            (b"<meta charset=koi8-r>caf\xc3\xa9", "<meta charset=koi8-r>caf\u{e9}"),
            (b"caf\xe9", "caf\u{e9}"),
            (b"\xef\xbb\xbfcaf\xc3\xa9", "caf\u{e9}"),
            (b"\xfe\xff\0a", "a"),
        ];
        for (bytes, text) in cases {
            assert_eq!(decode_text(bytes), text, "{bytes:?}");
        }
    }

    #[test]
    fn an_unknown_charset_is_ignored() {
        assert_eq!(decode_html(b"na\xc3\xafve", "text/html; charset=klingon", "").1, "UTF-8");
        assert_eq!(decode_html(b"<meta charset=><meta charset=koi8-r>", "", "").1, "KOI8-R");
        // A label of a decoder that replaces the whole page.
        assert_eq!(decode_html(b"na\xc3\xafve", "text/html; charset=iso-2022-kr", "").1, "UTF-8");
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_do_not_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..600),
            content_type in "(text/html; ?charset=[\"']?[a-z0-9-]{0,12}[\"']?|.{0,30})",
            host in "[A-Za-z0-9.é-]{0,12}",
        ) {
            decode_html(&bytes, &content_type, &host);
            decode_text(&bytes);
        }

        #[test]
        fn markup_soup_does_not_panic(soup in proptest::collection::vec(prop_oneof![
            Just("<meta "), Just("charset="), Just("content="), Just("http-equiv=content-type "), Just("'"), Just("\""), Just(">"), Just("<!--"), Just("-->"),
            Just("<script>"), Just("</script"), Just("<?xml encoding="), Just("/"), Just("="), Just(" "), Just("koi8-r"), Just("<title>"), Just("<"), Just("!"),
        ], 0..60)) {
            decode_html(soup.concat().as_bytes(), "", "");
        }

        #[test]
        fn long_utf_8_is_recognized(text in "[a-zäöüßéèабвгд漢字 ]{20,80}", bad in 0usize..20) {
            let mut bytes = text.clone().into_bytes();
            prop_assert_eq!(&*decode_text(&bytes), text.as_str());
            // One byte of another charset does not garble the rest.
            let letters = text.chars().filter(|c| !c.is_ascii()).count();
            let at = text.char_indices().nth(bad).map_or(0, |(at, _)| at);
            bytes.insert(at, 0xff);
            if letters >= 2 {
                prop_assert_eq!(decode_text(&bytes).replace('\u{fffd}', ""), text);
            }
        }
    }
}
