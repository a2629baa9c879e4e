//! What a page or an image says about its use: X-Robots-Tag, robots meta tags, and TDM
//! reservations.

use reqwest::header::HeaderMap;

use super::tdm::TDMREP_HEADER;

/// Words in X-Robots-Tag or a robots meta tag by which an owner opts out. `none` means noindex,
/// nofollow.
const OPT_OUTS: &[&str] = &["noai", "noimageai", "noml", "noindex", "noimageindex", "none"];
/// Directives with a value after a colon; elsewhere a colon ends the name of a robot.
const WITH_VALUE: &[&str] = &["unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"];

/// What a page or an image says about its use.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Directives {
    /// The first word that opts out.
    pub opt_out: Option<String>,
    /// Links must not be followed.
    pub nofollow: bool,
}

impl Directives {
    pub fn from_headers(headers: &HeaderMap, product: &str) -> Self {
        let mut directives = Self::default();
        for value in headers.get_all("x-robots-tag") {
            directives.add(&String::from_utf8_lossy(value.as_bytes()), product, "X-Robots-Tag");
        }
        // W3C TDM Reservation Protocol: the header overrides the host's file.
        let reserved = match headers.get("tdm-reservation").map(|value| value.as_bytes().trim_ascii()) {
            Some(b"1") => Some("TDM-Reservation: 1".to_string()),
            Some(b"0") => None,
            _ => {
                headers.get(TDMREP_HEADER).map(|words| String::from_utf8_lossy(words.as_bytes()).into_owned())
            }
        };
        directives.opt_out = directives.opt_out.or(reserved);
        directives
    }

    /// Adds the words of one header or meta tag. Words after `otherbot:` address another robot.
    pub fn add(&mut self, words: &str, product: &str, origin: &str) {
        let mut addressed = true;
        for word in words.split(',') {
            let mut word = word.trim();
            if let Some((name, rest)) = word.split_once(':') {
                let name = name.trim();
                if WITH_VALUE.iter().any(|known| known.eq_ignore_ascii_case(name)) {
                    continue;
                }
                addressed = name == "*" || name.eq_ignore_ascii_case(product);
                word = rest.trim();
            }
            if !addressed {
                continue;
            }
            let word = word.to_ascii_lowercase();
            self.nofollow |= word == "nofollow" || word == "none";
            if OPT_OUTS.contains(&word.as_str()) {
                self.opt_out.get_or_insert_with(|| format!("{origin}: {word}"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opt_outs_that_address_us_are_read() {
        let cases = [
            ("noai, noimageai", Some("X-Robots-Tag: noai"), false),
            ("NoImageIndex", Some("X-Robots-Tag: noimageindex"), false),
            ("none", Some("X-Robots-Tag: none"), true),
            ("nofollow", None, true),
            ("otherbot: noindex, noai", None, false),
            ("otherbot: noindex, twinlens: noml", Some("X-Robots-Tag: noml"), false),
            ("*: noindex", Some("X-Robots-Tag: noindex"), false),
            ("unavailable_after: 25 Jun 2010 15:00:00 PST, noindex", Some("X-Robots-Tag: noindex"), false),
            ("max-image-preview: large, index, follow", None, false),
        ];
        for (value, opt_out, nofollow) in cases {
            let mut headers = HeaderMap::new();
            headers.insert("x-robots-tag", value.parse().unwrap());
            let expected = Directives { opt_out: opt_out.map(String::from), nofollow };
            assert_eq!(Directives::from_headers(&headers, "twinlens"), expected, "{value}");
        }
        let mut headers = HeaderMap::new();
        headers.insert("tdm-reservation", "1".parse().unwrap());
        assert_eq!(
            Directives::from_headers(&headers, "twinlens").opt_out.as_deref(),
            Some("TDM-Reservation: 1")
        );
    }
}
