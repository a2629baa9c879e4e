//! The text half of a zero-shot classifier: every name of every class in every template, encoded
//! and averaged.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;

use candle_core::{D, Device, Tensor};
use sha2::{Digest, Sha256};
use twinlens_model::{Clip, Tokenizer};

use super::{PromptSet, Space, TextCache, fill};
use crate::error::EvalError;

/// What encodes prompts.
#[derive(Clone, Copy)]
pub struct Texts<'a> {
    /// The model.
    pub clip: &'a Clip,
    /// Its tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// SHA-256 of its weights.
    pub weights_hash: &'a str,
    /// Prompts in one forward pass.
    pub batch: usize,
    /// Where embeddings are kept.
    pub cache: Option<&'a TextCache>,
}

/// The text half of a zero-shot classifier.
#[derive(Debug)]
pub struct Classifier {
    texts: ClassTexts,
    /// The first two classes that no prompt tells apart (equal tokens), and how many classes have
    /// such a twin before them.
    pub twins: Option<(usize, usize, usize)>,
}

/// What stands for the classes.
#[derive(Debug)]
enum ClassTexts {
    /// `[embed, classes]`, columns of length 1.
    Embedded(Tensor),
    /// `[embed, classes * templates]`, class by class, columns of length 1; what similarities are
    /// multiplied by to give logits.
    PerTemplate { weights: Tensor, templates: usize, scale: f64 },
    /// `[prompts, context]`, class by class: of a model that embeds no texts, but says how likely
    /// one is. The prompts of each class.
    Tokens { ids: Tensor, of_class: Vec<Range<usize>> },
}

impl Classifier {
    /// How well each class fits each image: `[images, classes]` of `embeddings` (`[images,
    /// embed]`). Cosines; where probabilities are averaged, the mean over the templates of each
    /// one's softmax; of a model that embeds no texts, the mean over the prompts of its scores,
    /// which are logarithms of probabilities.
    ///
    /// # Errors
    /// The model's.
    pub fn scores(&self, clip: &Clip, embeddings: &Tensor) -> Result<Tensor, EvalError> {
        match &self.texts {
            ClassTexts::Embedded(weights) => Ok(embeddings.matmul(weights)?),
            ClassTexts::PerTemplate { weights, templates, scale } => {
                let logits = (embeddings.matmul(weights)? * *scale)?;
                let (images, columns) = logits.dims2()?;
                let logits = logits.reshape((images, columns / templates, *templates))?;
                let powers = logits.broadcast_sub(&logits.max_keepdim(1)?)?.exp()?;
                Ok(powers.broadcast_div(&powers.sum_keepdim(1)?)?.mean(D::Minus1)?)
            }
            ClassTexts::Tokens { ids, of_class } => {
                let scores = clip.score(embeddings, ids)?;
                let class = |span: &Range<usize>| scores.narrow(1, span.start, span.len())?.mean(1);
                let classes = of_class.iter().map(class).collect::<Result<Vec<_>, _>>()?;
                Ok(Tensor::stack(&classes, 1)?)
            }
        }
    }

    /// Of a classifier a template: `[embed, classes * templates]`, class by class, columns of
    /// length 1, and how many templates.
    pub fn per_template(&self) -> Option<(&Tensor, usize)> {
        match &self.texts {
            ClassTexts::PerTemplate { weights, templates, .. } => Some((weights, *templates)),
            _ => None,
        }
    }

    /// Whether the scores are probabilities already.
    pub fn gives_probabilities(&self) -> bool {
        matches!(self.texts, ClassTexts::PerTemplate { .. })
    }
}

/// The prompts of a classifier, in order: class by class, name by name, template by template.
struct Prompts<'a> {
    texts: Texts<'a>,
    set: &'a PromptSet,
    /// Class and name.
    names: Vec<(usize, &'a str)>,
}

impl<'a> Prompts<'a> {
    fn new(texts: Texts<'a>, classes: &'a [Vec<String>], set: &'a PromptSet) -> Self {
        let named =
            |(class, names): (usize, &'a Vec<String>)| names.iter().map(move |name| (class, name.as_str()));
        Self { texts, set, names: classes.iter().enumerate().flat_map(named).collect() }
    }

    fn count(&self) -> usize {
        self.names.len() * self.set.templates.len()
    }

    fn context(&self) -> usize {
        self.texts.clip.config().text.context
    }

    fn class(&self, prompt: usize) -> usize {
        self.names[prompt / self.set.templates.len()].0
    }

    fn tokens(&self, prompt: usize) -> Vec<u32> {
        let templates = &self.set.templates;
        let text = fill(&templates[prompt % templates.len()], self.names[prompt / templates.len()].1);
        self.texts.tokenizer.encode(&text, self.context())
    }

    /// The row of the weights that a prompt adds to.
    fn slot(&self, prompt: usize) -> usize {
        let templates = self.set.templates.len();
        match self.set.space {
            Space::Embedding => self.class(prompt),
            Space::Probability => self.class(prompt) * templates + prompt % templates,
        }
    }

    /// A hash of all that the embeddings depend on (the weights, the tokens, and what is averaged),
    /// and one of each class's tokens. One prompt is in memory at a time.
    fn hashes(&self, classes: usize) -> ([u8; 32], Vec<u64>) {
        let mut key = Sha256::new_with_prefix(b"twinlens text embeddings 1");
        key.update(self.texts.weights_hash);
        let mut of_class = vec![DefaultHasher::new(); classes];
        for prompt in 0..self.count() {
            let tokens = self.tokens(prompt);
            tokens.hash(&mut of_class[self.class(prompt)]);
            key.update((self.slot(prompt) as u64).to_le_bytes());
            tokens.iter().for_each(|token| key.update(token.to_le_bytes()));
        }
        (key.finalize().into(), of_class.iter().map(Hasher::finish).collect())
    }

    /// The mean of the embeddings of each slot, of length 1: `[slots, embed]`. Each embedding is
    /// brought to length 1 before, `batch` prompts a forward pass.
    fn encode(&self, slots: usize) -> Result<Vec<Vec<f32>>, EvalError> {
        let (count, context) = (self.count(), self.context());
        let mut sums: Vec<Vec<f64>> = vec![Vec::new(); slots];
        for first in (0..count).step_by(self.texts.batch.max(1)) {
            let span = first..count.min(first + self.texts.batch.max(1));
            let ids: Vec<u32> = span.clone().flat_map(|prompt| self.tokens(prompt)).collect();
            let ids = Tensor::from_vec(ids, (span.len(), context), &Device::Cpu)?;
            for (prompt, embedding) in span.zip(self.texts.clip.encode_text(&ids)?.to_vec2::<f32>()?) {
                add_normalised(&mut sums[self.slot(prompt)], &embedding);
            }
        }
        let per_class = if self.set.space == Space::Probability { self.set.templates.len() } else { 1 };
        let row = |(slot, sum): (usize, &Vec<f64>)| {
            let length = norm(sum.iter().copied());
            if !(length.is_finite() && length > 0.0) {
                let class =
                    self.names.iter().find(|(class, _)| *class == slot / per_class).map_or("", |name| name.1);
                return Err(EvalError::NotFinite { what: format!("the text embedding of class `{class}`") });
            }
            Ok(sum.iter().map(|value| (value / length) as f32).collect())
        };
        sums.iter().enumerate().map(row).collect()
    }
}

/// Encodes every name of every class in every template, or takes what the cache has. Memory holds
/// one batch and the result. For a model that embeds no texts, the tokens are kept.
///
/// # Errors
/// The model's, and [`EvalError::NotFinite`] when an embedding is not a number.
pub fn classifier(
    texts: Texts<'_>,
    classes: &[Vec<String>],
    set: &PromptSet,
) -> Result<Classifier, EvalError> {
    let prompts = Prompts::new(texts, classes, set);
    let (key, hashes) = prompts.hashes(classes.len());
    let twins = twins(&hashes);
    if !texts.clip.config().objective.embeds_texts() {
        let ids: Vec<u32> = (0..prompts.count()).flat_map(|prompt| prompts.tokens(prompt)).collect();
        let ids = Tensor::from_vec(ids, (prompts.count(), prompts.context()), &Device::Cpu)?;
        let mut of_class = vec![0..0; classes.len()];
        for prompt in 0..prompts.count() {
            let span: &mut Range<usize> = &mut of_class[prompts.class(prompt)];
            *span = if span.start == span.end { prompt..prompt + 1 } else { span.start..prompt + 1 };
        }
        return Ok(Classifier { texts: ClassTexts::Tokens { ids, of_class }, twins });
    }
    let templates = set.templates.len();
    let slots = if set.space == Space::Probability { classes.len() * templates } else { classes.len() };
    let rows = match texts.cache.and_then(|cache| cache.get(&key, slots)) {
        Some(rows) => rows,
        None => {
            let rows = prompts.encode(slots)?;
            if let Some(cache) = texts.cache {
                cache.put(&key, &rows);
            }
            rows
        }
    };
    let embed = rows.first().map_or(0, Vec::len);
    let weights = Tensor::from_vec(rows.concat(), (slots, embed), &Device::Cpu)?.t()?.contiguous()?;
    let texts = match set.space {
        Space::Embedding => ClassTexts::Embedded(weights),
        Space::Probability => {
            let scale = f64::from(texts.clip.logit_scale().exp());
            ClassTexts::PerTemplate { weights, templates, scale }
        }
    };
    Ok(Classifier { texts, twins })
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
    fn classes_with_equal_tokens_are_found() {
        assert_eq!(twins(&[1, 2, 3]), None);
        assert_eq!(twins(&[7, 2, 7, 2, 7]), Some((0, 2, 3)));
    }
}
