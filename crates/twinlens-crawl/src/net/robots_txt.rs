//! Parses and matches robots.txt files (RFC 9309). A pattern is matched as the pieces between its
//! stars, one after the other, so that a hostile file costs no more than its length.

use memchr::memmem;

/// Maximum number of sitemaps that are kept.
const MAX_SITEMAPS: usize = 1000;

/// The rules in a robots.txt for one product.
#[derive(Debug, Default)]
pub(super) struct RobotsTxt {
    /// The longest pattern first, and `allow` before `disallow` of equal length: the first match
    /// wins.
    rules: Vec<Rule>,
    /// `crawl-delay`, in seconds.
    pub(super) delay: Option<f32>,
    /// The sitemaps it names, which address every robot.
    pub(super) sitemaps: Vec<String>,
}

#[derive(Debug)]
struct Rule {
    allow: bool,
    pattern: Pattern,
}

/// The paths that a rule applies to.
#[derive(Debug)]
pub(super) struct Pattern {
    /// In its [normal form](normal).
    text: Vec<u8>,
    /// The pattern ended in `$`.
    to_end: bool,
}

/// A group of rules during parsing.
#[derive(Default)]
struct Group {
    /// A `user-agent` line names our product.
    our_agent: bool,
    /// A `user-agent` line is `*`.
    any_agent: bool,
    /// Rules were seen: the next `user-agent` line begins another group.
    has_rules: bool,
}

impl RobotsTxt {
    /// Parses the groups that name `product`, or else those for `*`.
    pub(super) fn parse(product: &str, text: &[u8]) -> Self {
        let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
        let (mut our_rules, mut any_rules, mut sitemaps) = (None, Self::default(), Vec::new());
        let mut group = Group::default();
        for line in text.split(|byte| matches!(byte, b'\n' | b'\r' | 0)) {
            let Some((key, value)) = key_and_value(line) else { continue };
            let allow = match key.to_ascii_lowercase().as_slice() {
                b"user-agent" => {
                    if group.has_rules {
                        group = Group::default();
                    }
                    let agent = product_token(value);
                    group.any_agent |= value.starts_with(b"*");
                    group.our_agent |= agent.eq_ignore_ascii_case(product.as_bytes());
                    if group.our_agent {
                        our_rules.get_or_insert_with(Self::default);
                    }
                    continue;
                }
                b"sitemap" => {
                    if sitemaps.len() < MAX_SITEMAPS {
                        sitemaps.push(String::from_utf8_lossy(value).into_owned());
                    }
                    continue;
                }
                b"crawl-delay" => None,
                b"allow" => Some(true),
                b"disallow" => Some(false),
                _ => continue,
            };
            group.has_rules = true;
            let our_agent = if group.our_agent { our_rules.as_mut() } else { None };
            let any_rules = group.any_agent.then_some(&mut any_rules);
            for file in our_agent.into_iter().chain(any_rules) {
                file.add(allow, value);
            }
        }
        let mut file = our_rules.unwrap_or(any_rules);
        file.rules.sort_by_key(|rule| (std::cmp::Reverse(rule.pattern.text.len()), !rule.allow));
        Self { sitemaps, ..file }
    }

    /// Adds a rule, or the delay if `allow` is `None`.
    fn add(&mut self, allow: Option<bool>, value: &[u8]) {
        let Some(allow) = allow else {
            let seconds = std::str::from_utf8(value).ok().and_then(|text| text.parse::<f32>().ok());
            self.delay = self.delay.into_iter().chain(seconds).reduce(f32::max);
            return;
        };
        // An empty rule has no effect: `Disallow:` disallows nothing.
        if !value.is_empty() {
            self.rules.push(Rule { allow, pattern: Pattern::new(value) });
        }
    }

    /// Whether a path (with its query) may be fetched. robots.txt itself is always allowed.
    pub(super) fn allows(&self, path: &str) -> bool {
        let path = normal_path(path);
        let rule = self.rules.iter().find(|rule| rule.pattern.matches(&path));
        path == b"/robots.txt" || rule.is_none_or(|rule| rule.allow)
    }
}

/// A path (with its query) in the form that patterns are compared with.
pub(super) fn normal_path(path: &str) -> Vec<u8> {
    normal(path.as_bytes(), false)
}

impl Pattern {
    /// `*` matches anything, and a final `$` the end; without it, a match may end anywhere.
    pub(super) fn new(text: &[u8]) -> Self {
        let (text, to_end) = match text.strip_suffix(b"$") {
            Some(text) => (text, true),
            None => (text, false),
        };
        Self { text: normal(text, true), to_end }
    }

    /// Whether it matches a path in [normal form](normal_path).
    pub(super) fn matches(&self, path: &[u8]) -> bool {
        let mut pieces = self.text.split(|byte| *byte == b'*');
        let first = pieces.next().unwrap_or_default();
        let Some(mut rest) = path.strip_prefix(first) else { return false };
        let Some(last) = pieces.next_back() else { return !self.to_end || rest.is_empty() };
        for piece in pieces {
            // The leftmost match leaves the most for the remaining pieces.
            match memmem::find(rest, piece) {
                Some(at) => rest = &rest[at + piece.len()..],
                None => return false,
            }
        }
        if self.to_end { rest.ends_with(last) } else { memmem::find(rest, last).is_some() }
    }
}

/// Key and value of a line without its comment; `None` if it is not a record.
fn key_and_value(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let line = line.split(|byte| *byte == b'#').next().unwrap_or_default();
    let colon = line.iter().position(|byte| *byte == b':')?;
    let (key, value) = (line[..colon].trim_ascii(), line[colon + 1..].trim_ascii());
    (!key.is_empty()).then_some((key, value))
}

/// The leading product token: `ExampleBot` in `ExampleBot/1.0`.
fn product_token(value: &[u8]) -> &[u8] {
    let is_token = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.".contains(byte);
    &value[..value.iter().position(|byte| !is_token(byte)).unwrap_or(value.len())]
}

/// Normalizes a path or pattern (RFC 9309, section 2.2.2): escapes of unreserved characters are
/// decoded, all others are upper case, and what must be escaped in a URI is. In a pattern a star
/// keeps its meaning; a literal star or dollar sign in a path is escaped, as a pattern has to write
/// it (section 2.2.3).
fn normal(text: &[u8], pattern: bool) -> Vec<u8> {
    let mut normal = Vec::with_capacity(text.len());
    let mut at = 0;
    while let Some(&byte) = text.get(at) {
        let escaped = (byte == b'%').then(|| escape(text.get(at + 1..at + 3)?)).flatten();
        at += if escaped.is_some() { 3 } else { 1 };
        let value = escaped.unwrap_or(byte);
        let unreserved = value.is_ascii_alphanumeric() || b"-._~".contains(&value);
        let literal =
            value.is_ascii_graphic() && !b"\"<>\\^`{|}$*".contains(&value) || (pattern && value == b'*');
        if unreserved || (escaped.is_none() && literal) {
            normal.push(value);
        } else {
            normal.extend_from_slice(format!("%{value:02X}").as_bytes());
        }
    }
    normal
}

fn escape(digits: &[u8]) -> Option<u8> {
    let digits = std::str::from_utf8(digits).ok()?;
    // `from_str_radix` would take a sign.
    digits.bytes().all(|byte| byte.is_ascii_hexdigit()).then(|| u8::from_str_radix(digits, 16).ok())?
}

#[cfg(test)]
mod tests {
    use twinlens_testkit::fuzz::Fuzz;

    use super::*;

    #[test]
    fn any_mutant_is_read() {
        let seed =
            b"User-agent: *\nDisallow: /a*b$\nAllow: /%C3%A9\nCrawl-delay: 2.5\n\n# x\nuser-agent:twinlens\n\
            disallow:\nSitemap: http://a.test/map.xml\r\n"
                .to_vec();
        let words: [&[u8]; 6] = [b"*", b"$", b"%2f", b"\nDisallow: /", b"\nUser-agent: ", b"\0"];
        Fuzz::new("robots", [seed]).words(&words).run(|bytes| {
            let file = RobotsTxt::parse("twinlens", bytes);
            let allowed = ["/", "/ab", "/a?b=%2F*", "/robots.txt"].map(|path| file.allows(path));
            format!("{allowed:?} {} {}", file.delay.is_some(), file.sitemaps.len().min(2))
        });
    }

    fn check(product: &str, text: &str, cases: &[(&str, bool)]) {
        let file = RobotsTxt::parse(product, text.as_bytes());
        for (path, allowed) in cases {
            assert_eq!(file.allows(path), *allowed, "{product} {path} under\n{text}");
        }
    }

    #[test]
    fn the_simple_example_of_the_standard() {
        // RFC 9309, section 5.1.
        let text = "User-Agent: *\nDisallow: *.gif$\nDisallow: /example/\nAllow: /publications/\n\n\
                    User-Agent: foobot\nDisallow:/\nAllow:/example/page.html\nAllow:/example/allowed.gif\n\n\
                    User-Agent: barbot\nUser-Agent: bazbot\nDisallow: /example/page.html\n\n\
                    User-Agent: quxbot\n\nEOF\n";
        let everybody = [
            ("/a.gif", false),
            ("/a.gif?x", true),
            ("/example/", false),
            ("/example", true),
            ("/publications/a.gif", true),
            ("/publications/", true),
        ];
        check("otherbot", text, &everybody);
        let foobot = [
            ("/", false),
            ("/example/page.html", true),
            ("/example/allowed.gif", true),
            ("/robots.txt", true),
        ];
        check("FooBot", text, &foobot);
        for bot in ["barbot", "bazbot"] {
            check(bot, text, &[("/example/page.html", false), ("/example/", true), ("/a.gif", true)]);
        }
        check("quxbot", text, &[("/", true), ("/a.gif", true), ("/example/", true)]);
    }

    #[test]
    fn the_longest_match_of_the_standard() {
        // Section 5.2.
        let text = "User-Agent: foobot\nAllow: /example/page/\nDisallow: /example/page/disallowed.gif\n";
        check(
            "foobot",
            text,
            &[
                ("/example/page/", true),
                ("/example/page/disallowed.gif", false),
                ("/example/page/x.gif", true),
            ],
        );
        // Section 2.2.2: of equal rules, the allowing one.
        check("foobot", "User-agent: *\nDisallow: /a\nAllow: /a\n", &[("/a", true), ("/ab", true)]);
    }

    #[test]
    fn groups_follow_the_standard() {
        // Section 2.2.1: groups of one product are one; names are compared without case;
        // the groups for `*` apply only if none names us.
        let text = "user-agent: a\ndisallow: /c\n\nuser-agent: *\ndisallow: /b\n\nUser-Agent: ExampleBot/1.0 # comment\n\
                    disallow: /d\n\nuser-agent: examplebot\ndisallow: /e";
        check("ExampleBot", text, &[("/b", true), ("/c", true), ("/d", false), ("/e", false)]);
        check("example", text, &[("/b", false), ("/d", true)]);
        check("other", text, &[("/b", false), ("/c", true)]);
        // Rules before any group, unknown records, and a group without rules.
        let text = "Disallow: /lost\nnonsense\nUser-agent: x\nSitemap: http://a/s.xml\nUser-agent: y\nHost: z\nDisallow: /xy\n";
        check("x", text, &[("/lost", true), ("/xy", false)]);
        check("y", text, &[("/xy", false)]);
        check("z", text, &[("/xy", true)]);
        assert_eq!(RobotsTxt::parse("z", text.as_bytes()).sitemaps, ["http://a/s.xml"]);
        // A delay is a rule of its group: what follows is another one.
        let text = "User-agent: *\nCrawl-delay: 2.5\n\nUser-agent: bad\nDisallow: /\n";
        check("x", text, &[("/", true)]);
        assert_eq!(RobotsTxt::parse("x", text.as_bytes()).delay, Some(2.5));
    }

    #[test]
    fn sitemaps_are_listed_for_every_robot() {
        let text = b"\xef\xbb\xbfSitemap: http://a.test/one.xml\nUser-agent: *\nDisallow: /\n \
                     sitemap :/two.xml # the second\nSITEMAP: ftp://x/\nSitemapx: /no";
        assert_eq!(RobotsTxt::parse("x", text).sitemaps, ["http://a.test/one.xml", "/two.xml", "ftp://x/"]);
    }

    #[test]
    fn escapes_follow_the_standard() {
        // Section 2.2.2, the table.
        let cases = [
            ("/foo/bar?baz=quz", "/foo/bar?baz=quz"),
            ("/foo/bar?baz=https://foo.bar", "/foo/bar?baz=https://foo.bar"),
            ("/foo/bar/\u{30c4}", "/foo/bar/%E3%83%84"),
            ("/foo/bar/%E3%83%84", "/foo/bar/%e3%83%84"),
            ("/foo/bar/%62%61%7A", "/foo/bar/baz"),
            ("/foo/bar/baz", "/foo/bar/%62%61%7a"),
            // Section 2.2.3: special characters, verbatim.
            ("/path/file-with-a-%2A.html", "/path/file-with-a-*.html"),
            ("/path/foo-%24", "/path/foo-$"),
            ("/a b", "/a%20b"),
        ];
        for (rule, path) in cases {
            let text = format!("User-agent: *\nDisallow: {rule}");
            check("x", &text, &[(path, false), ("/foo/other", true)]);
        }
        // A reserved character is not its escape.
        check("x", "User-agent: *\nDisallow: /a%2Fb", &[("/a/b", true), ("/a%2fb", false)]);
        check("x", "User-agent: *\nDisallow: /%\nAllow: /%zz", &[("/%", false), ("/%zz1", true)]);
    }

    #[test]
    fn stars_and_end_anchors() {
        let cases = [
            ("/*", "/x", false),
            ("*", "/", false),
            ("/$", "/", false),
            ("/$", "/a", true),
            ("/fish*.php", "/fishheads/a.php?x", false),
            ("/fish*.php", "/Fish.php", true),
            ("/*.php$", "/a.php", false),
            ("/*.php$", "/a.php/b.php", false),
            ("/*.php$", "/a.php5", true),
            ("*aa$", "/aaa", false),
            ("/*a*b*c", "/xaxbx", true),
            ("/*a*b*c", "/xaxbxc", false),
            ("/a**b", "/ab", false),
            ("", "/", true),
        ];
        for (rule, path, allowed) in cases {
            check("x", &format!("User-agent: *\nDisallow: {rule}\n"), &[(path, allowed)]);
        }
    }

    #[test]
    fn all_line_ends_and_a_byte_order_mark() {
        let text = "\u{feff}User-agent: *\r\nDisallow: /a\rDisallow : /b # c\n\tdisallow:/c";
        check("x", text, &[("/a", false), ("/b", false), ("/c", false), ("/d", true)]);
    }

    #[test]
    fn a_hostile_file_is_matched_in_time() {
        let text = format!("User-agent: *\n{}", "Disallow: /*a*a*a*a*a*a*a*a*a*a*ab$\n".repeat(12_000));
        let file = RobotsTxt::parse("x", text.as_bytes());
        let start = std::time::Instant::now();
        assert!(file.allows(&format!("/{}", "a".repeat(2000))));
        assert!(start.elapsed().as_secs() < 2, "{:?}", start.elapsed());
    }
}
