//! The options `prompts`, and the prompt sets that they resolve to.

use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use sha2::{Digest, Sha256};
use twinlens_pipeline::suggest::did_you_mean;

use super::templates;

/// The set's own templates; [`templates::GENERAL`] if it has none.
pub const ENSEMBLE: &str = "ensemble";
/// The set's own templates; [`DEFAULT`] if it has none.
pub const OWN: &str = "own";
/// The 80 templates for ImageNet.
pub const IMAGENET_80: &str = "imagenet-80";
pub const DEFAULT: &str = "a photo of a {}.";

const TEMPLATE_SETS: [&str; 3] = [ENSEMBLE, OWN, IMAGENET_80];

const PLACEHOLDERS: [&str; 2] = ["{}", "{c}"];

/// SHA-256 of a list of strings in hexadecimal. Each string is preceded by its length in bytes
/// (u64, little-endian), so that `["a", "b"]` and `["ab"]` differ.
pub fn list_hash(list: &[String]) -> String {
    let mut hash = Sha256::new();
    for text in list {
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text);
    }
    hex::encode(hash.finalize())
}

pub fn has_placeholder(template: &str) -> bool {
    PLACEHOLDERS.iter().any(|place| template.contains(place))
}

/// Replaces each `{}` and `{c}` by the class name, which may itself contain `{c}`.
pub fn fill(template: &str, class: &str) -> String {
    let pieces = template.split("{}").map(|piece| piece.split("{c}").collect::<Vec<_>>().join(class));
    pieces.collect::<Vec<_>>().join(class)
}

/// What is averaged over the prompts of a class.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Space {
    /// Their embeddings: one classifier, as in the paper.
    #[default]
    Embedding,
    /// The probabilities of one classifier per template: more expensive, and rarely better.
    Probability,
}

/// Greedy forward selection of templates on a held-out part of the set, which the results exclude.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Selection {
    /// Maximum number of templates.
    pub most: usize,
    /// The share of examples used for selection, drawn by the pipeline's seed; results are computed
    /// on the others.
    pub held_out: f64,
    /// Maximum number of examples used for selection.
    pub examples: usize,
}

impl Default for Selection {
    fn default() -> Self {
        Self { most: 7, held_out: 0.5, examples: 2000 }
    }
}

/// Templates that are averaged.
#[derive(Debug, Clone, PartialEq)]
pub struct PromptSet {
    /// The value of the `prompts` column.
    pub name: String,
    /// At least one; each with a placeholder.
    pub templates: Vec<String>,
    pub space: Space,
    pub select: Option<Selection>,
}

impl PromptSet {
    fn new(name: &str, templates: Vec<String>) -> Self {
        Self { name: name.into(), templates, space: Space::Embedding, select: None }
    }

    /// SHA-256 of the templates in order, and of the space if it is not the default.
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
    /// A custom template set.
    Own(TemplateSet),
}

/// A custom template set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TemplateSet {
    /// The name of the template set in the results.
    pub name: String,
    /// Templates with `{}` or `{c}` for the class name, and names of template sets (`ensemble`,
    /// `own`, `imagenet-80`).
    pub templates: Vec<String>,
    /// Whether to average embeddings or probabilities. [default: embedding]
    #[serde(default)]
    pub space: Space,
    /// Select some of the templates on a held-out part of the set.
    #[serde(default)]
    pub select: Option<Selection>,
}

impl<'de> Deserialize<'de> for PromptOptions {
    // By hand: an untagged enum would report every mistake as "did not match any variant".
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PromptVisitor;
        impl<'de> Visitor<'de> for PromptVisitor {
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
        deserializer.deserialize_any(PromptVisitor)
    }
}

/// The templates of a named set; `of_set` are the evaluation set's own. `None` if unknown.
fn template_set(name: &str, of_set: Option<&[String]>) -> Option<Vec<String>> {
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
    /// The prompt set; `of_set` are the evaluation set's own templates.
    ///
    /// # Errors
    /// Message and hint.
    pub fn resolve(&self, of_set: Option<&[String]>) -> Result<PromptSet, (String, Option<String>)> {
        let expand = |text: &String| match template_set(text, of_set) {
            Some(templates) => Ok(templates),
            None if has_placeholder(text) => Ok(vec![text.clone()]),
            None => {
                let hint = did_you_mean(text, TEMPLATE_SETS)
                    .unwrap_or_else(|| "a template contains `{}` for the class name".into());
                Err((format!("`{text}` is neither a template nor a template set"), Some(hint)))
            }
        };
        let prompts = match self {
            Self::Text(text) => PromptSet::new(text, expand(text)?),
            Self::Own(TemplateSet { name, templates, space, select }) => {
                let context = |(why, hint)| (format!("prompts `{name}`: {why}"), hint);
                let lists = templates.iter().map(expand).collect::<Result<Vec<_>, _>>().map_err(context)?;
                let (space, select) = (*space, select.clone());
                PromptSet { space, select, ..PromptSet::new(name, lists.concat()) }
            }
        };
        let fault = |why: &str| Err((format!("prompts `{}`: {why}", prompts.name), None));
        if let Some(Selection { most, held_out, examples }) = &prompts.select {
            if *most == 0 || *examples == 0 {
                return fault("`most` and `examples` must be at least 1");
            }
            if !(*held_out > 0.0 && *held_out < 1.0) {
                return fault("`held_out` must be between 0 and 1");
            }
            if prompts.space == Space::Probability {
                return fault("`select` requires `space = \"embedding\"`");
            }
        }
        match check_templates(&prompts.templates) {
            Ok(()) => Ok(prompts),
            Err(why) => fault(&why),
        }
    }
}

/// Checks that there are templates and that each has a placeholder.
pub fn check_templates(templates: &[String]) -> Result<(), String> {
    if templates.is_empty() {
        return Err("there are no templates".into());
    }
    match templates.iter().find(|template| !has_placeholder(template)) {
        Some(template) => Err(format!("the template `{template}` has no `{{}}` for the class name")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_placeholders_are_filled() {
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
    fn prompts_resolve_or_are_refused() {
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
        assert!(own(&[]).unwrap_err().0.contains("no templates"));
        assert!(own(&["{}", "a photo"]).unwrap_err().0.contains("`a photo`"));
    }

    #[test]
    fn hashes_depend_on_items_and_order() {
        let hash = |list: &[&str]| list_hash(&list.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(hash(&["a", "b"]), hash(&["a", "b"]));
        assert_eq!(hash(&["a"]).len(), 64);
        let all = [hash(&["a", "b"]), hash(&["b", "a"]), hash(&["ab"]), hash(&["a, b"]), hash(&[])];
        assert_eq!(all.iter().collect::<std::collections::BTreeSet<_>>().len(), all.len());
    }
}
