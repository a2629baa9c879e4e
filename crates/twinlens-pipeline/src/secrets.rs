//! Values that a pipeline uses and never tells: environment variables, headers, credentials and
//! signatures in URLs.
//!
//! A [`Secret`] is an option that cannot be printed or serialised. [`Secrets`] knows the values of
//! a pipeline, wherever they are in it, and hides them in all that is stored or shown. What is
//! stored has a hash in their place, so that a changed secret is noticed without being told.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;
use sha2::{Digest, Sha256};
use twinlens_dataset::secret_urls::{secret_parts, without_secrets};

/// Shorter values are not secrets: they would be found in the middle of words.
const MIN_BYTES: usize = 4;
/// Shorter numbers are settings.
const MIN_DIGITS: usize = 6;
/// Rounds of the hash, so that guessing takes time.
const ROUNDS: usize = 4096;
/// The name of a secret that has none.
const UNNAMED: &str = "redacted";

/// Headers that give no access.
const HARMLESS: &[&str] = &[
    "accept-charset",
    "accept-language",
    "cache-control",
    "dnt",
    "from",
    "origin",
    "pragma",
    "priority",
    "referer",
    "upgrade-insecure-requests",
];

/// Whether the value of an HTTP header may give access.
pub fn is_secret_header(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    !HARMLESS.contains(&name.as_str()) && !name.starts_with("sec-")
}

/// A text option that is never printed, and serialised as its hash.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// A secret with this value.
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    /// The value, to use it and not to tell it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(UNNAMED)
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&stored(UNNAMED, &hashed("option", &self.0)))
    }
}

impl JsonSchema for Secret {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        String::schema_name()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        String::json_schema(generator)
    }
}

/// The secrets of a pipeline.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secrets {
    /// What the hashes are salted with: the name of the pipeline.
    salt: String,
    /// The longest first: one may be a part of another.
    values: Vec<Known>,
    /// Names of parameters of URLs, beside the usual ones.
    parameters: Vec<String>,
}

/// The value of a secret.
#[derive(Clone, PartialEq, Eq)]
struct Known {
    value: String,
    name: String,
    hash: String,
    /// As it looks in JSON and in URLs, where that is otherwise.
    spellings: Vec<String>,
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secrets({} values)", self.values.len())
    }
}

impl Secrets {
    /// No secrets; `parameters` are names of parameters of URLs that give access, beside the usual
    /// ones.
    pub fn new(salt: &str, parameters: Vec<String>) -> Self {
        Self { salt: salt.into(), values: Vec::new(), parameters }
    }

    /// Adds the value of a variable.
    pub fn add(&mut self, name: &str, value: &str) {
        let is_bare = value.len() < MIN_BYTES
            || matches!(value, "true" | "false")
            || (value.len() < MIN_DIGITS && value.parse::<f64>().is_ok());
        if is_bare || self.values.iter().any(|known| known.value == value) {
            return;
        }
        let hash = hashed(&format!("{}/{name}", self.salt), value);
        let spellings = spellings(value);
        self.values.push(Known { value: value.into(), name: name.into(), hash, spellings });
        self.values.sort_by(|a, b| b.value.len().cmp(&a.value.len()).then_with(|| a.value.cmp(&b.value)));
    }

    /// Adds a value that has no name.
    pub fn add_unnamed(&mut self, value: &str) {
        self.add(UNNAMED, value);
    }

    /// Adds the secret parts of the URLs in a text.
    pub fn add_urls(&mut self, text: &str) {
        for part in secret_parts(text, &self.parameters) {
            let value = &text[part.range];
            self.add_unnamed(value);
            if let (true, Some((_, password))) = (part.is_credentials, value.split_once(':')) {
                self.add_unnamed(password);
            }
        }
    }

    /// Whether the pipeline has no secret.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// Whether a text holds the value of a secret, in any spelling.
    pub fn are_in(&self, text: &str) -> bool {
        let mut spellings =
            self.values.iter().flat_map(|known| std::iter::once(&known.value).chain(&known.spellings));
        spellings.any(|spelling| text.contains(spelling.as_str()))
    }

    /// Whether a text holds the value of a secret without the name of a variable.
    pub fn unnamed_are_in(&self, text: &str) -> bool {
        self.values.iter().any(|known| known.name == UNNAMED && text.contains(&known.value))
    }

    /// A text to show: each secret is `${NAME}`, and URLs have theirs cut.
    pub fn hide<'a>(&self, text: &'a str) -> Cow<'a, str> {
        let mut shown = Cow::Borrowed(text);
        for known in &self.values {
            for spelling in std::iter::once(&known.value).chain(&known.spellings) {
                if shown.contains(spelling.as_str()) {
                    shown = Cow::Owned(shown.replace(spelling.as_str(), &format!("${{{}}}", known.name)));
                }
            }
        }
        match self.cut(&shown) {
            Cow::Borrowed(_) => shown,
            Cow::Owned(cut) => Cow::Owned(cut),
        }
    }

    /// A text with the secret parts of its URLs cut.
    pub fn cut<'a>(&self, text: &'a str) -> Cow<'a, str> {
        without_secrets(text, &self.parameters)
    }

    /// A text to store: each secret is `${NAME:HASH}`.
    pub fn hide_stored(&self, text: &str) -> String {
        self.values.iter().fold(text.to_string(), |text, known| {
            text.replace(&known.value, &stored(&known.name, &known.hash))
        })
    }

    /// The text that was hidden to be stored, for whoever knows the secrets.
    pub fn reveal_stored(&self, text: &str) -> String {
        self.values.iter().rev().fold(text.to_string(), |text, known| {
            text.replace(&stored(&known.name, &known.hash), &known.value)
        })
    }

    /// As [`Secrets::hide_stored`], for all texts of a value.
    pub fn hide_value(&self, value: Value) -> Value {
        if self.is_empty() { value } else { texts(value, &|text| self.hide_stored(text)) }
    }

    /// As [`Secrets::reveal_stored`], for all texts of a value.
    pub fn reveal_value(&self, value: Value) -> Value {
        if self.is_empty() { value } else { texts(value, &|text| self.reveal_stored(text)) }
    }
}

/// A value with all of its texts changed, keys included.
fn texts(value: Value, change: &dyn Fn(&str) -> String) -> Value {
    match value {
        Value::String(text) => Value::String(change(&text)),
        Value::Array(items) => items.into_iter().map(|item| texts(item, change)).collect(),
        Value::Object(entries) => {
            let entries: BTreeMap<String, Value> =
                entries.into_iter().map(|(key, value)| (change(&key), texts(value, change))).collect();
            Value::Object(entries.into_iter().collect())
        }
        other => other,
    }
}

/// What stands for a secret in what is stored.
fn stored(name: &str, hash: &str) -> String {
    format!("${{{name}:{hash}}}")
}

/// A salted hash of many rounds. The same in every run, as are all bytes of a run.
fn hashed(salt: &str, value: &str) -> String {
    let first = Sha256::digest(format!("twinlens secret/{salt}/{value}"));
    let last = (1..ROUNDS).fold(first, |hash, _| Sha256::digest(hash));
    hex::encode(&last[..8])
}

/// How a value looks within a JSON text and within a URL, where that is not the value itself.
fn spellings(value: &str) -> Vec<String> {
    let json = Value::from(value).to_string();
    let debug = format!("{value:?}");
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let percent = |byte: u8| match byte {
        byte if is_plain(byte) => char::from(byte).to_string(),
        byte => format!("%{byte:02X}"),
    };
    let quoted = [&json, &debug].map(|text| text[1..text.len() - 1].to_string());
    let mut all: Vec<String> = quoted.into_iter().chain([value.bytes().map(percent).collect()]).collect();
    all.retain(|spelling| spelling != value);
    all.dedup();
    all
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn secrets() -> Secrets {
        let mut secrets = Secrets::new("p", vec!["my_pass".into()]);
        secrets.add("TOKEN", "canary-one");
        secrets.add("LONGER", "canary-one-and-two");
        secrets.add("QUOTED", "a \"b\"\n");
        secrets.add("SHORT", "abc");
        secrets.add("FLAG", "true");
        secrets.add("EPOCHS", "12345");
        secrets.add_urls("see https://me:canary-pw@a.test/?sig=canary-sig&my_pass=canary-own");
        secrets
    }

    #[test]
    fn texts_tell_names_instead_of_values() {
        let secrets = secrets();
        let cases = [
            ("Bearer canary-one.", "Bearer ${TOKEN}."),
            ("canary-one-and-two", "${LONGER}"),
            ("https://x:canary-one@a.test/", "https://a.test/"),
            ("canary-pw, canary-sig, canary-own", "${redacted}, ${redacted}, ${redacted}"),
            (r#"{"a":"a \"b\"\n"}"#, r#"{"a":"${QUOTED}"}"#),
            ("a%20%22b%22%0A", "${QUOTED}"),
            ("true 12345 abc", "true 12345 abc"),
        ];
        for (text, expected) in cases {
            assert_eq!(secrets.hide(text), expected, "{text}");
        }
        assert!(secrets.are_in("xcanary-onex") && !secrets.are_in("abc"));
        assert!(Secrets::default().is_empty() && !secrets.is_empty());
        assert_eq!(format!("{secrets:?}"), "Secrets(7 values)");
    }

    #[test]
    fn what_is_stored_tells_changes_and_can_be_revealed() {
        let secrets = secrets();
        let value = json!({"url": "https://canary-one@a.test", "canary-sig": [1, "canary-one", null]});
        let hidden = secrets.hide_value(value.clone());
        assert!(!hidden.to_string().contains("canary"), "{hidden}");
        assert!(hidden["url"].as_str().unwrap().starts_with("https://${TOKEN:"), "{hidden}");
        assert_eq!(secrets.reveal_value(hidden.clone()), value);
        let mut other = Secrets::new("p", Vec::new());
        other.add("TOKEN", "canary-1");
        let changed = other.hide_stored("https://canary-1@a.test");
        assert!(hidden["url"] != changed && changed.starts_with("https://${TOKEN:"), "{changed}");
    }

    #[test]
    fn a_secret_option_is_neither_printed_nor_serialised() {
        let secret: Secret = serde_json::from_str("\"canary\"").unwrap();
        assert_eq!((secret.reveal(), format!("{secret:?}")), ("canary", "redacted".to_string()));
        let text = serde_json::to_string(&secret).unwrap();
        assert!(text.starts_with("\"${redacted:") && !text.contains("canary"), "{text}");
        assert_ne!(text, serde_json::to_string(&Secret::new("canarz")).unwrap());
    }
}
