//! Prompts: class names put into templates, encoded, and averaged in embedding space.
//!
//! A prompt set has a hash that stands in every row of results: templates that change silently make numbers that
//! do not compare.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use candle_core::{Device, Tensor};
use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use sha2::{Digest, Sha256};
use twinlens_model::{Clip, Tokenizer};
use twinlens_pipeline::suggest::did_you_mean;

use crate::error::EvalError;

/// The name of the built-in template set.
pub const ENSEMBLE: &str = "ensemble";

/// The templates of `ensemble` for a set that gives none of its own: general ones, for pictures of any kind.
pub const ENSEMBLE_TEMPLATES: [&str; 9] = [
    "{}",
    "a photo of a {}.",
    "a picture of the {}.",
    "an image that shows a {}.",
    "a drawing of a {}.",
    "an icon of a {}.",
    "a small picture of one {}.",
    "a close view of the {}.",
    "a {} on a plain background.",
];

const PLACEHOLDERS: [&str; 2] = ["{}", "{c}"];

/// SHA-256 of a list of strings, as 64 hexadecimal digits. Each string goes in after its length in bytes (8 bytes,
/// little-endian), so that `["a", "b"]` and `["ab"]` differ.
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

/// The template with the class name in each of its places, `{}` or `{c}`. One pass: a class name may hold `{c}`
/// itself.
pub fn fill(template: &str, class: &str) -> String {
    let pieces = template.split("{}").map(|piece| piece.split("{c}").collect::<Vec<_>>().join(class));
    pieces.collect::<Vec<_>>().join(class)
}

/// Templates whose embeddings are averaged into one classifier, and the name they have in the results.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PromptSet {
    /// In the `prompts` column.
    pub name: String,
    /// At least one; each with a placeholder.
    pub templates: Vec<String>,
}

impl PromptSet {
    /// SHA-256 of the templates in their order.
    pub fn hash(&self) -> String {
        list_hash(&self.templates)
    }
}

/// One entry of the option `prompts`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, schemars::JsonSchema)]
#[serde(untagged)]
pub enum PromptOptions {
    /// A template (`a photo of a {}.`), or the name of a template set (`ensemble`).
    Text(String),
    /// A template set of one's own.
    Own(TemplateSet),
}

/// A template set of one's own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TemplateSet {
    /// The name it has in the results.
    pub name: String,
    /// Templates with `{}` or `{c}` where the class name goes.
    pub templates: Vec<String>,
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

impl PromptOptions {
    /// The prompt set that is meant; `ensemble` is `of_set` where the evaluation set has templates of its own.
    ///
    /// # Errors
    /// What is wrong with it, and a hint.
    pub fn resolve(&self, of_set: Option<&[String]>) -> Result<PromptSet, (String, Option<String>)> {
        let built_in = || ENSEMBLE_TEMPLATES.map(String::from).to_vec();
        let prompts = match self {
            Self::Own(TemplateSet { name, templates }) => {
                PromptSet { name: name.clone(), templates: templates.clone() }
            }
            Self::Text(name) if name == ENSEMBLE => {
                PromptSet { name: name.clone(), templates: of_set.map_or_else(built_in, <[String]>::to_vec) }
            }
            Self::Text(text) if has_placeholder(text) => {
                PromptSet { name: text.clone(), templates: vec![text.clone()] }
            }
            Self::Text(text) => {
                let hint = did_you_mean(text, [ENSEMBLE])
                    .unwrap_or_else(|| "a template has `{}` where the class name goes".into());
                return Err((format!("`{text}` is neither a template nor a template set"), Some(hint)));
            }
        };
        check_templates(&prompts.templates)
            .map_err(|why| (format!("prompts `{}`: {why}", prompts.name), None))?;
        Ok(prompts)
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

/// The text half of a zero-shot classifier.
#[derive(Debug)]
pub struct Classifier {
    texts: ClassTexts,
    /// The first two classes that no prompt tells apart (equal tokens), and how many classes have such a twin
    /// before them.
    pub twins: Option<(usize, usize, usize)>,
}

/// What stands for the classes.
#[derive(Debug)]
enum ClassTexts {
    /// `[embed, classes]`, columns of length 1.
    Embedded(Tensor),
    /// `[classes * templates, context]`, class by class: of a model that embeds no texts, but says how likely one is.
    Tokens { ids: Tensor, templates: usize },
}

impl Classifier {
    /// How well each class fits each image: `[images, classes]` of `embeddings` (`[images, embed]`). Cosines; of a model that
    /// embeds no texts, the mean over the templates of its scores, which are logarithms of probabilities.
    ///
    /// # Errors
    /// The model's.
    pub fn scores(&self, clip: &Clip, embeddings: &Tensor) -> Result<Tensor, EvalError> {
        match &self.texts {
            ClassTexts::Embedded(weights) => Ok(embeddings.matmul(weights)?),
            ClassTexts::Tokens { ids, templates } => {
                let (images, classes) = (embeddings.dim(0)?, ids.dim(0)? / templates);
                let scores = clip.score(embeddings, ids)?;
                Ok(scores.reshape((images, classes, *templates))?.mean(2)?)
            }
        }
    }
}

/// Encodes every class in every template, `batch` prompts a forward pass, and averages per class: each embedding is
/// normalised, their sum too. Memory holds one batch and `[classes, embed]`. For a model that embeds no texts, the tokens are kept.
///
/// # Errors
/// The model's, and [`EvalError::NotFinite`] when an embedding is not a number.
pub fn classifier(
    clip: &Clip,
    tokenizer: &Tokenizer,
    classes: &[String],
    prompts: &PromptSet,
    batch: usize,
) -> Result<Classifier, EvalError> {
    let context = clip.config().text.context;
    let per_class = prompts.templates.len();
    let count = classes.len() * per_class;
    let embeds = clip.config().objective.embeds_texts();
    let mut all_ids = Vec::new();
    let mut sums: Vec<Vec<f64>> = vec![Vec::new(); classes.len()];
    let mut hashes: Vec<DefaultHasher> = vec![DefaultHasher::new(); classes.len()];
    for first in (0..count).step_by(batch) {
        let span = first..count.min(first + batch);
        let mut ids = Vec::with_capacity(span.len() * context);
        for prompt in span.clone() {
            let class = prompt / per_class;
            let tokens =
                tokenizer.encode(&fill(&prompts.templates[prompt % per_class], &classes[class]), context);
            tokens.hash(&mut hashes[class]);
            ids.extend(tokens);
        }
        if !embeds {
            all_ids.extend(ids);
            continue;
        }
        let ids = Tensor::from_vec(ids, (span.len(), context), &Device::Cpu)?;
        for (prompt, embedding) in span.zip(clip.encode_text(&ids)?.to_vec2::<f32>()?) {
            add_normalised(&mut sums[prompt / per_class], &embedding);
        }
    }
    let hashes: Vec<u64> = hashes.iter().map(Hasher::finish).collect();
    let twins = twins(&hashes);
    if !embeds {
        let ids = Tensor::from_vec(all_ids, (count, context), &Device::Cpu)?;
        return Ok(Classifier { texts: ClassTexts::Tokens { ids, templates: per_class }, twins });
    }
    let mut weights = Vec::with_capacity(sums.len() * sums.first().map_or(0, Vec::len));
    for (class, sum) in sums.iter().enumerate() {
        let length = norm(sum.iter().copied());
        if !(length.is_finite() && length > 0.0) {
            return Err(EvalError::NotFinite {
                what: format!("the text embedding of class `{}`", classes[class]),
            });
        }
        weights.extend(sum.iter().map(|value| (value / length) as f32));
    }
    let weights = Tensor::from_vec(weights, (classes.len(), sums.first().map_or(0, Vec::len)), &Device::Cpu)?;
    Ok(Classifier { texts: ClassTexts::Embedded(weights.t()?.contiguous()?), twins })
}

fn norm(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|value| value * value).sum::<f64>().sqrt()
}

/// Adds an embedding of length 1 to a sum.
fn add_normalised(sum: &mut Vec<f64>, embedding: &[f32]) {
    let length = norm(embedding.iter().map(|value| f64::from(*value)));
    sum.resize(embedding.len(), 0.0);
    for (sum, value) in sum.iter_mut().zip(embedding) {
        *sum += f64::from(*value) / length;
    }
}

fn twins(hashes: &[u64]) -> Option<(usize, usize, usize)> {
    let mut seen = HashMap::new();
    let mut first = None;
    for (class, hash) in hashes.iter().enumerate() {
        if let Some(twin) = seen.get(hash) {
            let (a, b, count) = first.unwrap_or((*twin, class, 0));
            first = Some((a, b, count + 1));
        } else {
            seen.insert(*hash, class);
        }
    }
    first
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
        assert_eq!(text("ensemble").resolve(None).unwrap().templates, ENSEMBLE_TEMPLATES);
        assert_eq!(text("ensemble").resolve(Some(&of_set)).unwrap().templates, of_set);
        assert!(ENSEMBLE_TEMPLATES.iter().all(|template| has_placeholder(template)));
        let (message, hint) = text("ensembel").resolve(None).unwrap_err();
        assert_eq!((message.contains("ensembel"), hint.as_deref()), (true, Some("did you mean `ensemble`?")));
        let own = |templates: &[&str]| {
            let templates = templates.iter().map(ToString::to_string).collect();
            PromptOptions::Own(TemplateSet { name: "mine".into(), templates }).resolve(None)
        };
        assert_eq!(own(&["{}", "the {c}"]).unwrap().name, "mine");
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

    #[test]
    fn classes_with_equal_tokens_are_found() {
        assert_eq!(twins(&[1, 2, 3]), None);
        assert_eq!(twins(&[7, 2, 7, 2, 7]), Some((0, 2, 3)));
    }
}
