//! SQL identifiers and literals.

pub(crate) use twinlens_dataset::catalog::identifier;

/// An identifier that is quoted only if necessary.
pub(crate) fn ident(name: &str) -> String {
    let plain = name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    if plain { name.into() } else { identifier(name) }
}

/// A string literal.
pub(crate) fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// Parses `NAME=DIR`, where the name needs no quotes.
pub(crate) fn parse_named(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, dir)) if ident(name) == name && !dir.is_empty() => Ok((name.into(), dir.into())),
        _ => Err("expected NAME=DIR, where NAME has only lower-case letters, digits and `_`".into()),
    }
}

/// Parses `NAME=DIR`, or a directory that gets the name `other`.
pub(crate) fn parse_other_run(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, _)) if ident(name) == name => parse_named(text),
        _ if text.is_empty() => Err("expected a directory".into()),
        _ => Ok(("other".into(), text.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_are_quoted_if_necessary() {
        for (name, expected) in
            [("wit", "wit"), ("zero_shot2", "zero_shot2"), ("zero-shot", "\"zero-shot\""), ("Wit", "\"Wit\"")]
        {
            assert_eq!(ident(name), expected);
        }
    }
}
