//! The `srcset` attribute.

/// The URL with the largest width or density (HTML standard, "parse a srcset attribute", but
/// without its errors).
pub(super) fn largest_candidate(srcset: &str) -> Option<&str> {
    let mut best: Option<(f64, &str)> = None;
    let mut rest = srcset;
    loop {
        rest = rest.trim_start_matches(|c: char| c.is_ascii_whitespace() || c == ',');
        if rest.is_empty() {
            return best.map(|(_, url)| url);
        }
        let end = rest.find(|c: char| c.is_ascii_whitespace()).unwrap_or(rest.len());
        let (url, after) = rest.split_at(end);
        // A comma at the end of a URL separates candidates; one within it is part of the URL.
        let (url, descriptor) = match url.strip_suffix(',') {
            Some(url) => {
                rest = after;
                (url.trim_end_matches(','), "")
            }
            None => {
                let (descriptor, next) = after.split_once(',').unwrap_or((after, ""));
                rest = next;
                (url, descriptor.trim())
            }
        };
        let size = descriptor
            .trim_end_matches(['w', 'x'])
            .parse()
            .ok()
            .filter(|size: &f64| size.is_finite())
            .unwrap_or(1.0);
        if best.is_none_or(|(best, _)| size > best) {
            best = Some((size, url));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::largest_candidate;

    #[test]
    fn the_largest_candidate_wins() {
        let cases = [
            ("", None),
            (" , ,", None),
            ("a.png", Some("a.png")),
            ("a.png 1x, b.png 2x", Some("b.png")),
            ("a.png 480w,b.png 800w, c.png 320w", Some("b.png")),
            ("a.png, b.png 1.5x", Some("b.png")),
            ("a,b.png 2x, c.png", Some("a,b.png")),
            ("a.png bogus, b.png nan", Some("a.png")),
        ];
        for (srcset, expected) in cases {
            assert_eq!(largest_candidate(srcset), expected, "{srcset}");
        }
    }
}
