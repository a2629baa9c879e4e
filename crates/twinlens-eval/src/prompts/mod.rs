//! Prompts: class names put into templates, encoded, and averaged in the space of embeddings or of
//! probabilities.
//!
//! A prompt set has a hash that stands in every row of results: templates that change silently make
//! numbers that do not compare.

mod cache;
mod classifier;
pub mod templates;

use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use sha2::{Digest, Sha256};
use twinlens_pipeline::suggest::did_you_mean;

pub use cache::TextCache;
pub use classifier::{Classifier, Texts, classifier};

/// The set's own templates, or general ones where it has none.
pub const ENSEMBLE: &str = "ensemble";
/// The set's own templates, or [`DEFAULT`] where it has none.
pub const OWN: &str = "own";
/// The 80 templates for ImageNet.
pub const IMAGENET_80: &str = "imagenet-80";
/// The template that is taken where nothing else is said.
pub const DEFAULT: &str = "a photo of a {}.";

/// The names of template sets.
const NAMED: [&str; 3] = [ENSEMBLE, OWN, IMAGENET_80];

const PLACEHOLDERS: [&str; 2] = ["{}", "{c}"];

/// SHA-256 of a list of strings, as 64 hexadecimal digits. Each string goes in after its length in
/// bytes (8 bytes, little-endian), so that `["a", "b"]` and `["ab"]` differ.
pub fn list_hash(list: &[String]) -> String {
    let mut hash = Sha256::new();
    for text in list {
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text);
    }
    hex(&hash.finalize())
}

/// Lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whether the template has a place for the class name.
pub fn has_placeholder(template: &str) -> bool {
    PLACEHOLDERS.iter().any(|place| template.contains(place))
}

/// The template with the class name in each of its places, `{}` or `{c}`. One pass: a class name
/// may hold `{c}` itself.
pub fn fill(template: &str, class: &str) -> String {
    let pieces = template.split("{}").map(|piece| piece.split("{c}").collect::<Vec<_>>().join(class));
    pieces.collect::<Vec<_>>().join(class)
}

/// In which space the prompts of a class are averaged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Space {
    /// Their embeddings: one classifier, as the paper has it.
    #[default]
    Embedding,
    /// The probabilities of one classifier a template: dearer, and as a rule no better.
    Probability,
}

/// Greedy forward selection of templates: the best one first, then each time the one that adds
/// most, on a part of the set that the results then leave out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Selection {
    /// Templates that are chosen, at the most.
    pub most: usize,
    /// The share of the examples on which they are chosen, drawn from the pipeline's seed; the
    /// results are those of the others alone.
    pub held_out: f64,
    /// Of that share, so many examples are looked at, at the most.
    pub examples: usize,
}

impl Default for Selection {
    fn default() -> Self {
        Self { most: 7, held_out: 0.5, examples: 2000 }
    }
}

/// Templates that are averaged, and the name they have in the results.
#[derive(Debug, Clone, PartialEq)]
pub struct PromptSet {
    /// In the `prompts` column.
    pub name: String,
    /// At least one; each with a placeholder.
    pub templates: Vec<String>,
    /// Where they are averaged.
    pub space: Space,
    /// Some of them are chosen.
    pub select: Option<Selection>,
}

impl PromptSet {
    fn new(name: &str, templates: Vec<String>) -> Self {
        Self { name: name.into(), templates, space: Space::Embedding, select: None }
    }

    /// SHA-256 of the templates in their order, and of the space where that is not the usual one.
    pub fn hash(&self) -> String {
        match self.space {
            Space::Embedding => list_hash(&self.templates),
            Space::Probability => list_hash(&[list_hash(&self.templates), "probability".into()]),
        }
    }
}

/// One entry of the option `prompts`.
#[derive(Debug, Clone, PartialEq, Serialize, schemars::JsonSchema)]
#[serde(untagged)]
pub enum PromptOptions {
    /// A template (`a photo of a {}.`), or the name of a template set (`ensemble`, `own`,
    /// `imagenet-80`).
    Text(String),
    /// A template set of one's own.
    Own(TemplateSet),
}

/// A template set of one's own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TemplateSet {
    /// The name it has in the results.
    pub name: String,
    /// Templates with `{}` or `{c}` where the class name goes, and names of template sets
    /// (`ensemble`, `own`, `imagenet-80`).
    pub templates: Vec<String>,
    /// Whether embeddings or probabilities are averaged. [default: embedding]
    #[serde(default)]
    pub space: Space,
    /// Choose some of the templates on a part of the set.
    #[serde(default)]
    pub select: Option<Selection>,
}

impl<'de> Deserialize<'de> for PromptOptions {
    // By hand: an untagged enum would answer every mistake with "did not match any variant".
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = PromptOptions;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a template (\"a photo of a {}.\"), \"ensemble\", or a table { name, templates }")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<PromptOptions, E> {
                Ok(PromptOptions::Text(text.into()))
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<PromptOptions, A::Error> {
                TemplateSet::deserialize(MapAccessDeserializer::new(map)).map(PromptOptions::Own)
            }
        }
        deserializer.deserialize_any(Either)
    }
}

/// The templates of a named set; `of_set` are the evaluation set's own. `None` for a name that
/// nobody knows.
fn named(name: &str, of_set: Option<&[String]>) -> Option<Vec<String>> {
    let strings = |list: &[&str]| list.iter().map(ToString::to_string).collect();
    let own = || of_set.map(<[String]>::to_vec);
    match name {
        ENSEMBLE => Some(own().unwrap_or_else(|| strings(&templates::GENERAL))),
        OWN => Some(own().unwrap_or_else(|| strings(&[DEFAULT]))),
        IMAGENET_80 => Some(strings(&templates::IMAGENET)),
        _ => None,
    }
}

impl PromptOptions {
    /// The prompt set that is meant; `ensemble` and `own` are `of_set` where the evaluation set has
    /// templates of its own.
    ///
    /// # Errors
    /// What is wrong with it, and a hint.
    pub fn resolve(&self, of_set: Option<&[String]>) -> Result<PromptSet, (String, Option<String>)> {
        let expand = |text: &String| match named(text, of_set) {
            Some(templates) => Ok(templates),
            None if has_placeholder(text) => Ok(vec![text.clone()]),
            None => {
                let hint = did_you_mean(text, NAMED)
                    .unwrap_or_else(|| "a template has `{}` where the class name goes".into());
                Err((format!("`{text}` is neither a template nor a template set"), Some(hint)))
            }
        };
        let prompts = match self {
            Self::Text(text) => PromptSet::new(text, expand(text)?),
            Self::Own(TemplateSet { name, templates, space, select }) => {
                let of = |(why, hint)| (format!("prompts `{name}`: {why}"), hint);
                let lists = templates.iter().map(expand).collect::<Result<Vec<_>, _>>().map_err(of)?;
                let (space, select) = (*space, select.clone());
                PromptSet { space, select, ..PromptSet::new(name, lists.concat()) }
            }
        };
        let fault = |why: &str| Err((format!("prompts `{}`: {why}", prompts.name), None));
        if let Some(Selection { most, held_out, examples }) = &prompts.select {
            if *most == 0 || *examples == 0 {
                return fault("`most` and `examples` are at least 1");
            }
            if !(*held_out > 0.0 && *held_out < 1.0) {
                return fault("`held_out` is a share between 0 and 1");
            }
            if prompts.space == Space::Probability {
                return fault("templates are selected for the mean of embeddings");
            }
        }
        match check_templates(&prompts.templates) {
            Ok(()) => Ok(prompts),
            Err(why) => fault(&why),
        }
    }
}

/// Checks that there are templates and that each has a place for the class name.
///
/// # Errors
/// Says what is wrong.
pub fn check_templates(templates: &[String]) -> Result<(), String> {
    if templates.is_empty() {
        return Err("there is no template".into());
    }
    match templates.iter().find(|template| !has_placeholder(template)) {
        Some(template) => Err(format!("the template `{template}` has no `{{}}` where the class name goes")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn class_names_go_into_both_kinds_of_place() {
        let cases = [
            ("{}", "cat", "cat"),
            ("a photo of a {c}.", "cat", "a photo of a cat."),
            ("{} or {c}, \"{}\"", "cat", "cat or cat, \"cat\""),
            ("a {}.", "{c} and {}", "a {c} and {}."),
        ];
        for (template, class, expected) in cases {
            assert_eq!(fill(template, class), expected, "{template}");
        }
    }

    #[test]
    fn prompts_resolve_or_say_what_is_wrong() {
        let of_set = vec!["a photo of the digit {}.".to_string()];
        let text = |text: &str| PromptOptions::Text(text.into());
        assert_eq!(text("a {}").resolve(None).unwrap().templates, ["a {}"]);
        assert_eq!(text("ensemble").resolve(None).unwrap().templates, templates::GENERAL);
        for (name, set) in [("ensemble", Some(&of_set[..])), ("own", Some(&of_set))] {
            assert_eq!(text(name).resolve(set).unwrap().templates, of_set);
        }
        assert_eq!(text("own").resolve(None).unwrap().templates, [DEFAULT]);
        let eighty = text("imagenet-80").resolve(Some(&of_set)).unwrap().templates;
        assert_eq!(eighty.iter().collect::<std::collections::BTreeSet<_>>().len(), 80);
        let (message, hint) = text("ensembel").resolve(None).unwrap_err();
        assert_eq!((message.contains("ensembel"), hint.as_deref()), (true, Some("did you mean `ensemble`?")));
        let own = |templates: &[&str]| {
            let templates = templates.iter().map(ToString::to_string).collect();
            let (space, select) = (Space::Embedding, None);
            PromptOptions::Own(TemplateSet { name: "mine".into(), templates, space, select }).resolve(None)
        };
        assert_eq!(own(&["{}", "the {c}"]).unwrap().name, "mine");
        assert_eq!(own(&["{}", "imagenet-80"]).unwrap().templates.len(), 81);
        assert!(own(&[]).unwrap_err().0.contains("no template"));
        assert!(own(&["{}", "a photo"]).unwrap_err().0.contains("`a photo`"));
    }

    #[test]
    fn hashes_tell_lists_apart_and_order_too() {
        let hash = |list: &[&str]| list_hash(&list.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(hash(&["a", "b"]), hash(&["a", "b"]));
        assert_eq!(hash(&["a"]).len(), 64);
        let all = [hash(&["a", "b"]), hash(&["b", "a"]), hash(&["ab"]), hash(&["a, b"]), hash(&[])];
        assert_eq!(all.iter().collect::<std::collections::BTreeSet<_>>().len(), all.len());
    }
}
