//! The captions of a sample: from its text, its JSON and its metadata.

use std::borrow::Cow;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use twinlens_dataset::samples::Refusal;
use twinlens_pipeline::RunError;

use crate::stages::column_names::CAPTIONS;

/// What to do with several captions of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Captions {
    /// A row for each.
    Each,
    /// Use the first.
    First,
    /// Use the first, and keep all of them in the list column `captions`, from which a training
    /// with `captions = "random"` draws.
    Random,
    /// The whole text file is one caption, with its line breaks. (Lists are an error.)
    Text,
    /// Read no captions: each image is a row.
    None,
}

/// Why a sample does not become rows.
pub(super) enum Failure {
    Reject(Refusal),
    Stop(RunError),
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self::Reject(refusal)
    }
}

/// How captions are found.
#[derive(Debug)]
pub(super) struct CaptionFinder {
    /// The name of the value; by default the text file, or else a usual name.
    pub(super) name: Option<String>,
    pub(super) several: Option<Captions>,
    /// Whether [invisible](twinlens_text::drop_invisible) characters stay.
    pub(super) keep_invisible: bool,
}

impl CaptionFinder {
    /// The captions of a sample, each with the index of the JSON that it goes with. `location` is
    /// for messages.
    pub(super) fn captions(
        &self,
        location: &str,
        text: Option<&str>,
        json: &[Map<String, Value>],
    ) -> Result<Vec<(usize, String)>, Failure> {
        if self.several == Some(Captions::None) {
            return Ok(Vec::new());
        }
        let mut captions = match text.filter(|text| self.name.is_none() && !text.trim().is_empty()) {
            Some(text) => self.lines(text).into_iter().map(|line| (0, line)).collect(),
            None => self.values(json)?,
        };
        if !self.keep_invisible {
            for (_, caption) in &mut captions {
                if let Cow::Owned(clean) = twinlens_text::drop_invisible(caption) {
                    *caption = clean;
                }
            }
            captions.retain(|(_, caption)| !caption.trim().is_empty());
        }
        if captions.len() > 1 {
            match self.several {
                Some(Captions::Each | Captions::Random) => {}
                Some(Captions::First) => captions.truncate(1),
                None | Some(Captions::Text | Captions::None) => {
                    return Err(Failure::Stop(several(location, captions.len())));
                }
            }
        }
        Ok(captions)
    }

    fn lines(&self, text: &str) -> Vec<String> {
        if self.several == Some(Captions::Text) {
            return vec![text.trim().to_string()];
        }
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        lines.map(String::from).collect()
    }

    fn values(&self, json: &[Map<String, Value>]) -> Result<Vec<(usize, String)>, Refusal> {
        let mut captions = Vec::new();
        for (at, json) in json.iter().enumerate() {
            let texts = |name: &str| json.get(name).map_or(Ok(Vec::new()), |value| texts(name, value));
            let found = match &self.name {
                Some(name) => texts(name)?,
                None => {
                    let is_there =
                        |found: &Result<Vec<String>, _>| !matches!(found, Ok(none) if none.is_empty());
                    CAPTIONS.iter().map(|name| texts(name)).find(is_there).unwrap_or(Ok(Vec::new()))?
                }
            };
            captions.extend(found.into_iter().map(|caption| (at, caption)));
        }
        Ok(captions)
    }
}

fn several(location: &str, count: usize) -> RunError {
    RunError::user_with_hint(
        format!("{location}: {count} captions for one image"),
        "set `captions = \"each\"` (a row for each), `\"first\"`, `\"random\"` (trainings draw one), \
         or `\"text\"` (a text file with line breaks is one caption)",
    )
}

/// The captions in a value: a text, or a list of texts.
fn texts(name: &str, value: &Value) -> Result<Vec<String>, Refusal> {
    match value {
        Value::Null => Ok(Vec::new()),
        Value::Bool(_) => Err(("no_caption", format!("`{name}` is a boolean, not a text"))),
        Value::Number(_) => Err(("no_caption", format!("`{name}` is a number, not a text"))),
        Value::String(text) if text.trim().is_empty() => Ok(Vec::new()),
        Value::String(text) => Ok(vec![text.clone()]),
        Value::Array(items) if items.iter().all(|item| item.is_string() || item.is_null()) => {
            let texts = items.iter().filter_map(Value::as_str).filter(|text| !text.trim().is_empty());
            Ok(texts.map(String::from).collect())
        }
        Value::Array(_) => Err(("no_caption", format!("`{name}` is a list of other values than texts"))),
        Value::Object(_) => Err(("no_caption", format!("`{name}` is an object, not a text"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_captions_are_used_as_asked_or_refused() {
        use Captions::{Each, First, Random, Text};
        let two_lines = Some("one\n\n two \n");
        // Captions with the index of their JSON, or what is wrong.
        let cases = [
            (None, None, Some(" one \n"), "[]", "0 one"),
            (None, None, two_lines, "[]", "a.txt: 2 captions for one image"),
            (None, Some(Each), two_lines, "[]", "0 one; 0 two"),
            (None, Some(First), two_lines, "[]", "0 one"),
            (None, Some(Random), two_lines, "[]", "0 one; 0 two"),
            (None, Some(Captions::None), two_lines, r#"[{"text": "a"}]"#, ""),
            (None, None, Some("\u{feff}a\u{200b}b\u{200e}"), "[]", "0 ab"),
            (None, None, Some("one\n\u{ad}\n"), "[]", "0 one"),
            (None, Some(Text), two_lines, "[]", "0 one\n\n two"),
            (None, None, Some("  "), r#"[{"TEXT": "upper"}]"#, "0 upper"),
            (None, None, None, r#"[{"caption": null, "text": "next"}]"#, "0 next"),
            (None, None, None, r#"[{"caption": ["one", "", "two"]}]"#, "a.txt: 2 captions for one image"),
            (None, Some(Text), None, r#"[{"caption": ["one", "two"]}]"#, "a.txt: 2 captions for one image"),
            (None, Some(Each), None, r#"[{"caption": ["one", null, "two"]}]"#, "0 one; 0 two"),
            (None, None, None, r#"[{"caption": ["one"]}]"#, "0 one"),
            (None, Some(Each), None, r#"[{"text": "a"}, {"text": "b"}]"#, "0 a; 1 b"),
            (None, Some(First), None, r#"[{"text": "a"}, {"text": "b"}]"#, "0 a"),
            (None, None, None, r#"[{"caption": {"en": "x"}}]"#, "`caption` is an object, not a text"),
            (None, None, None, r#"[{"caption": 17}]"#, "`caption` is a number, not a text"),
            (None, Some(Each), None, r#"[{"caption": true}]"#, "`caption` is a boolean, not a text"),
            (None, None, None, r#"[{"caption": [1]}]"#, "`caption` is a list of other values than texts"),
            (Some("alt"), None, two_lines, r#"[{"alt": "named", "caption": "other"}]"#, "0 named"),
            (Some("alt"), None, Some("text"), r#"[{"caption": "other"}]"#, ""),
        ];
        for (name, several, text, json, expected) in cases {
            let rule = CaptionFinder { name: name.map(String::from), several, keep_invisible: false };
            let json: Vec<Map<String, Value>> = serde_json::from_str(json).unwrap();
            let shown = match rule.captions("a.txt", text, &json) {
                Ok(captions) => {
                    captions.iter().map(|(at, text)| format!("{at} {text}")).collect::<Vec<_>>().join("; ")
                }
                Err(Failure::Reject((_, why))) => why,
                Err(Failure::Stop(error)) => error.to_string(),
            };
            assert_eq!(shown, expected, "{several:?} {text:?} {json:?}");
        }
    }
}
