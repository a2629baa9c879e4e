//! What site owners ask of robots: robots.txt (RFC 9309), X-Robots-Tag, robots meta tags and TDM
//! reservations.

use std::time::Duration;

use reqwest::header::HeaderMap;
use url::{Position, Url};

use super::robots_txt::RobotsTxt;
use super::tdm::TDMREP_HEADER;

/// How much of a robots.txt is parsed, in bytes (RFC 9309, section 2.5).
pub(crate) const MAX_BYTES: u64 = 500 << 10;
/// How long a robots.txt is cached (RFC 9309, section 2.4).
pub(crate) const TTL: Duration = Duration::from_secs(24 * 60 * 60);
/// How long a failure to fetch it is cached: a dead host is not asked again for each of its images.
pub(crate) const FAILURE_TTL: Duration = Duration::from_secs(5 * 60);
/// The longest `crawl-delay` that is obeyed.
const MAX_DELAY: f32 = 30.0;

/// The rules of one host for our user agent.
#[derive(Debug)]
pub enum RobotsRules {
    /// There is no robots.txt (4xx): everything is allowed.
    Absent,
    /// robots.txt gave a server error, described here: everything is disallowed.
    Unavailable(String),
    File(RobotsTxt),
}

impl RobotsRules {
    /// Parses a robots.txt for a product (the first part of the user agent). Bytes beyond the limit
    /// are ignored.
    pub fn parse(product: &str, text: &[u8]) -> Self {
        let limit = MAX_BYTES as usize;
        let text = match text.get(..limit) {
            // Drop the partial last line: `Disallow: /private` cut to `Disallow: /` would disallow
            // everything.
            Some(cut) => &cut[..cut.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1)],
            None => text,
        };
        Self::File(RobotsTxt::parse(product, text))
    }

    /// # Errors
    /// Why the URL may not be fetched.
    pub fn check(&self, url: &Url) -> Result<(), String> {
        match self {
            Self::File(file) if !file.allows(&url[Position::BeforePath..Position::AfterQuery]) => {
                Err(format!("robots.txt of {} forbids it", url.authority()))
            }
            Self::Absent | Self::File(_) => Ok(()),
            Self::Unavailable(why) => Err(why.clone()),
        }
    }

    /// The sitemaps that the host names.
    pub fn sitemaps(&self) -> &[String] {
        match self {
            Self::File(file) => &file.sitemaps,
            _ => &[],
        }
    }

    /// The time between two requests that robots.txt asks for.
    pub fn delay(&self) -> Duration {
        match self {
            Self::File(file) => {
                let seconds = file.delay.filter(|delay| delay.is_finite()).unwrap_or(0.0);
                Duration::from_secs_f32(seconds.clamp(0.0, MAX_DELAY))
            }
            _ => Duration::ZERO,
        }
    }
}

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

    fn allowed(rules: &RobotsRules, path: &str) -> bool {
        rules.check(&Url::parse("http://example.org").unwrap().join(path).unwrap()).is_ok()
    }

    #[test]
    fn the_longest_matching_rule_of_our_group_wins() {
        let text =
            b"User-agent: *\nDisallow: /\n\nUser-agent: other\nUser-agent: Twinlens\nDisallow: /private\n\
                     Allow: /private/but\nDisallow: /*.gif$\nCrawl-delay: 2";
        let rules = RobotsRules::parse("twinlens", text);
        for (path, expected) in [
            ("/", true),
            ("/private/x", false),
            ("/private/but", true),
            ("/a.gif", false),
            ("/a.gif?x", true),
        ] {
            assert_eq!(allowed(&rules, path), expected, "{path}");
        }
        assert_eq!(rules.delay(), Duration::from_secs(2));
        assert!(!allowed(&RobotsRules::parse("stranger", text), "/"));
    }

    #[test]
    fn a_huge_file_is_cut_at_a_line_end() {
        let mut text = b"User-agent: *\nDisallow: /first\n".to_vec();
        while text.len() < MAX_BYTES as usize - 8 {
            text.extend_from_slice(b"# padding\n");
        }
        text.extend_from_slice(b"Disallow: /\nDisallow: /later");
        let rules = RobotsRules::parse("twinlens", &text);
        assert!(!allowed(&rules, "/first") && allowed(&rules, "/other"));
    }

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
