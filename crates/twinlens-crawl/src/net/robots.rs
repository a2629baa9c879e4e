//! The robots.txt of a host (RFC 9309).

use std::time::Duration;

use url::{Position, Url};

use super::error::{FetchError, FetchErrorKind};
use super::robots_txt::RobotsTxt;

pub(super) const PATH: &str = "/robots.txt";
pub(super) const ACCEPT: &str = "text/plain, */*;q=0.5";
/// How much of a robots.txt is parsed, in bytes (RFC 9309, section 2.5).
pub(super) const MAX_BYTES: u64 = 500 << 10;
/// How long a robots.txt is cached (RFC 9309, section 2.4).
pub(super) const TTL: Duration = Duration::from_secs(24 * 60 * 60);
/// How long a failure to fetch it is cached: a dead host is not asked again for each of its images.
pub(super) const FAILURE_TTL: Duration = Duration::from_secs(5 * 60);
/// The longest `crawl-delay` that is obeyed.
const MAX_DELAY: f32 = 30.0;

/// The rules of one host for our user agent.
#[derive(Debug)]
pub(super) enum RobotsRules {
    /// There is no robots.txt (4xx): everything is allowed.
    Absent(FetchError),
    /// robots.txt gave a server error: everything is disallowed.
    Unavailable(FetchError),
    /// A robots.txt and its URL after redirects.
    File(RobotsTxt, Url),
}

impl RobotsRules {
    /// Parses a robots.txt for a product (the first part of the user agent). Bytes beyond the limit
    /// are ignored.
    pub(super) fn parse(product: &str, text: &[u8], url: Url) -> Self {
        let limit = MAX_BYTES as usize;
        let text = match text.get(..limit) {
            // Drop the partial last line: `Disallow: /private` cut to `Disallow: /` would disallow
            // everything.
            Some(cut) => &cut[..cut.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1)],
            None => text,
        };
        Self::File(RobotsTxt::parse(product, text), url)
    }

    /// The rules of a host whose robots.txt could not be fetched.
    ///
    /// # Errors
    /// The host cannot be reached at all.
    pub(super) fn from_error(error: FetchError) -> Result<Self, FetchError> {
        use FetchErrorKind::*;
        match error.kind {
            // RFC 9309, sections 2.3.1.2 and 2.3.1.3: a missing file and too many redirects allow
            // everything.
            HttpForbidden | HttpNotFound | HttpGone | HttpClientError | TooManyRedirects => {
                Ok(Self::Absent(error))
            }
            // Section 2.3.1.4: a server error disallows everything.
            HttpServerError | HttpTooManyRequests | HttpUnexpected => Ok(Self::Unavailable(error)),
            _ => Err(FetchError { detail: format!("robots.txt: {}", error.detail), ..error }),
        }
    }

    /// # Errors
    /// Why the URL may not be fetched.
    pub(super) fn check(&self, url: &Url) -> Result<(), FetchError> {
        match self {
            Self::File(file, _) if !file.allows(&url[Position::BeforePath..Position::AfterQuery]) => {
                let detail = format!("robots.txt of {} forbids it", url.authority());
                Err(FetchError::new(FetchErrorKind::RobotsDisallowed, detail))
            }
            Self::Absent(_) | Self::File(..) => Ok(()),
            Self::Unavailable(error) => {
                let detail = format!("robots.txt: {}", error.detail);
                Err(FetchError::new(FetchErrorKind::RobotsUnreachable, detail))
            }
        }
    }

    /// The sitemaps it lists, as written, and the URL that they are relative to.
    ///
    /// # Errors
    /// The error of the request for robots.txt.
    pub(super) fn sitemaps(&self) -> Result<(Url, Vec<String>), FetchError> {
        match self {
            Self::File(file, url) => Ok((url.clone(), file.sitemaps.clone())),
            Self::Absent(error) | Self::Unavailable(error) => Err(error.clone()),
        }
    }

    /// The time between two requests that robots.txt asks for.
    pub(super) fn delay(&self) -> Duration {
        match self {
            Self::File(file, _) => {
                let seconds = file.delay.filter(|delay| delay.is_finite()).unwrap_or(0.0);
                Duration::from_secs_f32(seconds.clamp(0.0, MAX_DELAY))
            }
            _ => Duration::ZERO,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(product: &str, text: &[u8]) -> RobotsRules {
        RobotsRules::parse(product, text, Url::parse("http://example.org/robots.txt").unwrap())
    }

    fn allowed(rules: &RobotsRules, path: &str) -> bool {
        rules.check(&Url::parse("http://example.org").unwrap().join(path).unwrap()).is_ok()
    }

    #[test]
    fn the_longest_matching_rule_of_our_group_wins() {
        let text =
            b"User-agent: *\nDisallow: /\n\nUser-agent: other\nUser-agent: Twinlens\nDisallow: /private\n\
                     Allow: /private/but\nDisallow: /*.gif$\nCrawl-delay: 2";
        let rules = parse("twinlens", text);
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
        assert!(!allowed(&parse("stranger", text), "/"));
    }

    #[test]
    fn a_huge_file_is_cut_at_a_line_end() {
        let mut text = b"User-agent: *\nDisallow: /first\n".to_vec();
        while text.len() < MAX_BYTES as usize - 8 {
            text.extend_from_slice(b"# padding\n");
        }
        text.extend_from_slice(b"Disallow: /\nDisallow: /later");
        let rules = parse("twinlens", &text);
        assert!(!allowed(&rules, "/first") && allowed(&rules, "/other"));
    }
}
