//! What is secret in a URL: the user and password before its host, and the values of parameters
//! that give access, such as signatures and tokens.

use std::borrow::Cow;
use std::ops::Range;

use sha2::{Digest, Sha256};

/// Parameters whose values give access, in lower case.
const PARAMETERS: &[&str] = &[
    "access_key",
    "access_token",
    "api-key",
    "api_key",
    "apikey",
    "auth",
    "auth_token",
    "authorization",
    "awsaccesskeyid",
    "client_secret",
    "googleaccessid",
    "id_token",
    "jwt",
    "key",
    "key-pair-id",
    "passwd",
    "password",
    "policy",
    "refresh_token",
    "secret",
    "sig",
    "signature",
    "token",
    "x-amz-credential",
    "x-amz-security-token",
    "x-amz-signature",
    "x-goog-credential",
    "x-goog-security-token",
    "x-goog-signature",
];

/// A secret part of a URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretPart {
    /// Its place in the text.
    pub range: Range<usize>,
    /// Whether it is `user:password`, without the `@`; otherwise the value of a parameter.
    pub is_credentials: bool,
}

/// Whether a text may hold a URL.
fn may_hold_url(text: &str) -> bool {
    text.contains("://")
}

/// The secret parts of all URLs in a text, in their order. `more` are names of parameters beside
/// the usual ones.
pub fn secret_parts(text: &str, more: &[String]) -> Vec<SecretPart> {
    let (mut parts, mut from) = (Vec::new(), 0);
    let part = |range: Range<usize>, is_credentials: bool| SecretPart { range, is_credentials };
    while let Some(found) = text[from..].find("://") {
        let start = from + found + 3;
        let ends = |c: char| c.is_whitespace() || c.is_control() || "\"'<>`".contains(c);
        let end = text[start..].find(ends).map_or(text.len(), |length| start + length);
        // The punctuation of a sentence: `http://a.test/?token=x: not found`.
        let end = start + text[start..end].trim_end_matches([':', ',', '.', ')', ']']).len();
        let authority = text[start..end].find(['/', '?', '#', '\\']).map_or(end, |length| start + length);
        if let Some(at) = text[start..authority].rfind('@').filter(|at| *at > 0) {
            parts.push(part(start..start + at, true));
        }
        let rest = &text[authority..end];
        let path = rest.find(['?', '#']).unwrap_or(rest.len());
        let mut at = authority + path;
        // In a fragment, some services put tokens.
        while at < end {
            let pair = at + 1;
            let next = text[pair..end].find(['&', ';', '?', '#']).map_or(end, |length| pair + length);
            if let Some((name, value)) = text[pair..next].split_once('=')
                && !value.is_empty()
                && is_secret(name, more)
            {
                parts.push(part(next - value.len()..next, false));
            }
            at = next;
        }
        // A URL may be in the path or in a parameter of another one.
        from = start;
    }
    parts.sort_by_key(|part| (part.range.start, std::cmp::Reverse(part.range.end)));
    let mut end = 0;
    parts.retain(|part| {
        let is_outside = part.range.start >= end;
        end = end.max(part.range.end);
        is_outside
    });
    parts
}

fn is_secret(name: &str, more: &[String]) -> bool {
    let name = decoded(name).to_ascii_lowercase();
    PARAMETERS.contains(&name.as_str()) || more.iter().any(|more| more.eq_ignore_ascii_case(&name))
}

/// A name without its percent encoding.
fn decoded(name: &str) -> String {
    let mut bytes = Vec::with_capacity(name.len());
    let mut rest = name.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let hex = (*first == b'%').then(|| after.get(..2)).flatten();
        let byte = hex.and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
        bytes.push(byte.unwrap_or(*first));
        rest = if byte.is_some() { &after[2..] } else { after };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A text with the secret parts of its URLs cut: credentials are gone, and the value of a parameter
/// is `redacted-` and eight digits of its hash, so that different URLs stay different.
pub fn without_secrets<'a>(text: &'a str, more: &[String]) -> Cow<'a, str> {
    if !may_hold_url(text) {
        return Cow::Borrowed(text);
    }
    let parts = secret_parts(text, more);
    if parts.is_empty() {
        return Cow::Borrowed(text);
    }
    let (mut cut, mut done) = (String::with_capacity(text.len()), 0);
    for SecretPart { range, is_credentials } in parts {
        cut.push_str(&text[done..range.start]);
        done = range.end;
        if is_credentials {
            // With the `@`.
            done += 1;
        } else {
            cut.push_str(&redacted(&text[range]));
        }
    }
    cut.push_str(&text[done..]);
    Cow::Owned(cut)
}

/// What has been cut already stays what it is.
fn redacted(value: &str) -> String {
    if value.starts_with("redacted-") || value.starts_with("${") {
        return value.into();
    }
    format!("redacted-{}", hex::encode(&Sha256::digest(format!("parameter {value}"))[..4]))
}

/// A URL without its user and password.
pub fn without_credentials(url: &str) -> Cow<'_, str> {
    if !may_hold_url(url) || !url.contains('@') {
        return Cow::Borrowed(url);
    }
    let (mut cut, mut done) = (String::new(), 0);
    for SecretPart { range, .. } in secret_parts(url, &[]).into_iter().filter(|part| part.is_credentials) {
        cut.push_str(&url[done..range.start]);
        done = range.end + 1;
    }
    if done == 0 { Cow::Borrowed(url) } else { Cow::Owned(cut + &url[done..]) }
}

/// Whether a URL has a user or a password.
pub fn has_credentials(url: &str) -> bool {
    may_hold_url(url) && secret_parts(url, &[]).iter().any(|part| part.is_credentials)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_and_signatures_are_cut() {
        let more = ["my_pass".to_string()];
        let cases = [
            ("http://a.test/b?c=d#e", "http://a.test/b?c=d#e"),
            ("http://me:pw@a.test/b", "http://a.test/b"),
            ("http://me@a.test", "http://a.test"),
            ("http://p@ss@a.test/@x", "http://a.test/@x"),
            ("https://a.test/?X-Amz-Signature=abcdef&w=3", "https://a.test/?X-Amz-Signature=redacted-H&w=3"),
            ("https://a.test/?w=3&SIG=abcdef", "https://a.test/?w=3&SIG=redacted-H"),
            ("https://a.test/?X%2DAmz%2DSignature=abcdef", "https://a.test/?X%2DAmz%2DSignature=redacted-H"),
            ("https://a.test/#access_token=abcdef", "https://a.test/#access_token=redacted-H"),
            ("https://a.test/?my_pass=abcdef;sig=", "https://a.test/?my_pass=redacted-H;sig="),
            (
                "from http://u:p@a.test/?token=abcdef: refused, 'ftp://x:y@b.test'",
                "from http://a.test/?token=redacted-H: refused, 'ftp://b.test'",
            ),
            ("s3://key:secret@bucket/dir", "s3://bucket/dir"),
            ("://@/?sig", "://@/?sig"),
            ("http://archive.test/http://u:p@a.test/", "http://archive.test/http://a.test/"),
            ("", ""),
        ];
        for (text, expected) in cases {
            let cut = without_secrets(text, &more);
            let mut shown = cut.to_string();
            while let Some(at) = shown.find("redacted-").filter(|at| !shown[at + 9..].starts_with('H')) {
                let end = shown[at + 9..].find(|c: char| !c.is_ascii_hexdigit());
                let end = end.map_or(shown.len(), |length| at + 9 + length);
                shown.replace_range(at + 9..end, "H");
            }
            assert_eq!(shown, expected, "{text}");
            assert_eq!(without_secrets(&cut, &more), cut, "cutting twice: {text}");
        }
        let (one, two) = ("http://a.test/?key=123", "http://a.test/?key=124");
        assert_ne!(without_secrets(one, &[]), without_secrets(two, &[]));
        assert!(has_credentials("http://u@a") && !has_credentials("http://a/u@b"));
    }

    proptest::proptest! {
        #[test]
        fn no_credentials_are_left(text in "[a-c:/@?&=# é]{0,40}") {
            let cut = without_secrets(&text, &[]);
            let left = secret_parts(&cut, &[]);
            proptest::prop_assert!(!left.iter().any(|part| part.is_credentials), "{text} -> {cut}");
        }
    }
}
