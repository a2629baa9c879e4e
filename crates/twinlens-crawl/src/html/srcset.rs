//! The `srcset` attribute.

/// Maximum number of candidates of one attribute.
const MAX_CANDIDATES: usize = 100;

/// How large a candidate says it is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Size {
    /// Width in pixels (`800w`).
    Width(f64),
    /// Pixels of the image for each pixel of the layout (`2x`); 1 if nothing is said.
    Density(f64),
}

/// The URLs and sizes in a `srcset` (HTML standard, "parse a srcset attribute"; but units may be
/// upper-case). A candidate with a descriptor that is not one is dropped, as browsers do.
pub(super) fn candidates(srcset: &str) -> Vec<(&str, Size)> {
    let (mut found, mut rest) = (Vec::new(), srcset);
    while found.len() < MAX_CANDIDATES {
        rest = rest.trim_start_matches(|c: char| c.is_ascii_whitespace() || c == ',');
        if rest.is_empty() {
            break;
        }
        let end = rest.find(|c: char| c.is_ascii_whitespace()).unwrap_or(rest.len());
        let (url, after) = rest.split_at(end);
        // A comma at the end of a URL separates candidates; one within it is part of the URL.
        let (url, descriptors) = match url.strip_suffix(',') {
            Some(url) => {
                rest = after;
                (url.trim_end_matches(','), "")
            }
            None => {
                let descriptors = until_comma(after);
                rest = &after[descriptors.len()..];
                (url, descriptors)
            }
        };
        found.extend(size(descriptors).map(|size| (url, size)));
    }
    found
}

/// The text up to a comma outside parentheses.
fn until_comma(text: &str) -> &str {
    let mut in_parentheses = false;
    let end = text.find(|c: char| {
        in_parentheses = (in_parentheses || c == '(') && c != ')';
        c == ',' && !in_parentheses
    });
    &text[..end.unwrap_or(text.len())]
}

/// The size that descriptors give: a width beside a height (`100w 50h`), a density, or nothing.
fn size(descriptors: &str) -> Option<Size> {
    let mut size = None;
    let mut has_height = false;
    for descriptor in descriptors.split_ascii_whitespace() {
        let (number, unit) = descriptor.split_at(descriptor.len() - descriptor.chars().last()?.len_utf8());
        let number: f64 = number.parse().ok().filter(|number: &f64| number.is_finite() && *number > 0.0)?;
        let found = match unit {
            "w" | "W" => Size::Width(number),
            "x" | "X" => Size::Density(number),
            "h" | "H" if !has_height => {
                has_height = true;
                continue;
            }
            _ => return None,
        };
        if size.replace(found).is_some() {
            return None;
        }
    }
    Some(size.unwrap_or(Size::Density(1.0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn candidates_and_their_sizes_are_parsed() {
        let shown = |srcset: &str| {
            let one = |(url, size): &(&str, Size)| match size {
                Size::Width(width) => format!("{url} {width}w"),
                Size::Density(density) => format!("{url} {density}x"),
            };
            candidates(srcset).iter().map(one).collect::<Vec<_>>().join(" | ")
        };
        let cases = [
            ("", ""),
            (" , ,", ""),
            ("a.png", "a.png 1x"),
            ("a.png 1x, b.png 2x", "a.png 1x | b.png 2x"),
            ("a.png 480w,b.png 800w, c.png 320w", "a.png 480w | b.png 800w | c.png 320w"),
            ("a.png, b.png 1.5x", "a.png 1x | b.png 1.5x"),
            ("a,b.png 2x, c.png", "a,b.png 2x | c.png 1x"),
            ("s.jpg 100w 50h, l.jpg 200h 400W", "s.jpg 100w | l.jpg 400w"),
            ("a.jpg (b,c), d.jpg 2x", "d.jpg 2x"),
            ("my photo.jpg 1x, b.jpg", "b.jpg 1x"),
            ("a.png bogus, b.png nanx, c.png 1x 2x, d.png -1w, e.png 0x, f.png 1é", ""),
            ("data:image/gif;base64,R0lGOD 1x, real.jpg 2x", "data:image/gif;base64,R0lGOD 1x | real.jpg 2x"),
        ];
        for (srcset, expected) in cases {
            assert_eq!(shown(srcset), expected, "{srcset}");
        }
        assert_eq!(candidates(&"a 1w, ".repeat(10_000)).len(), MAX_CANDIDATES);
    }
}
