//! Finds the ends of JSON values.

/// Finds the end of a JSON value in pieces of text.
#[derive(Debug, Default)]
pub(super) struct ElementScanner {
    at: usize,
    depth: u32,
    in_string: bool,
    is_escaped: bool,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum ElementEnd {
    At(usize),
    Beyond,
}

impl ElementScanner {
    /// Scans on in `bytes`, which start with those of the call before.
    pub(super) fn scan(&mut self, bytes: &[u8]) -> ElementEnd {
        while let Some(byte) = bytes.get(self.at) {
            self.at += 1;
            match byte {
                _ if self.is_escaped => self.is_escaped = false,
                b'\\' if self.in_string => self.is_escaped = true,
                b'"' => {
                    self.in_string = !self.in_string;
                    if !self.in_string && self.depth == 0 {
                        return ElementEnd::At(self.at);
                    }
                }
                _ if self.in_string => {}
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' if self.depth > 0 => {
                    self.depth -= 1;
                    if self.depth == 0 {
                        return ElementEnd::At(self.at);
                    }
                }
                // The end of a number or word.
                b',' | b']' | b'\n' if self.depth == 0 && self.at > 1 => {
                    return ElementEnd::At(self.at - 1);
                }
                _ => {}
            }
        }
        ElementEnd::Beyond
    }

    /// The bytes so far are dropped: the next ones start behind them.
    pub(super) fn rewind(&mut self) {
        self.at = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_found_in_any_pieces() {
        let text = br#"{"a": "}\"]", "b": [1, {"c": 2}]}, 5"#;
        let mut scanner = ElementScanner::default();
        let ends: Vec<ElementEnd> = (0..=text.len()).map(|end| scanner.scan(&text[..end])).collect();
        let first = ends.iter().position(|end| *end != ElementEnd::Beyond).unwrap();
        assert_eq!((first, &ends[first]), (33, &ElementEnd::At(33)));
        for (text, end) in
            [("12, 3", ElementEnd::At(2)), ("\"x\\\"\" ", ElementEnd::At(5)), ("nul", ElementEnd::Beyond)]
        {
            assert_eq!(ElementScanner::default().scan(text.as_bytes()), end, "{text}");
        }
    }
}
