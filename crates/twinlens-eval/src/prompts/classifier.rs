//! The text side of a zero-shot classifier: every class name in every template, encoded and
//! averaged.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;

use candle_core::{D, Device, Tensor};
use sha2::{Digest, Sha256};
use twinlens_model::{Clip, Tokenizer};

use super::cache::TextCache;
use super::options::{PromptSet, Space, fill};
use crate::error::EvalError;

/// What is needed to encode prompts.
#[derive(Clone, Copy)]
pub struct TextEncoder<'a> {
    pub clip: &'a Clip,
    pub tokenizer: &'a Tokenizer,
    /// Key of the cache.
    pub weights_hash: &'a str,
    /// Prompts per forward pass.
    pub batch: usize,
    pub cache: Option<&'a TextCache>,
}

/// The text side of a zero-shot classifier.
#[derive(Debug)]
pub struct Classifier {
    weights: ClassWeights,
    /// The first two classes with equal tokens in all prompts, and the number of classes that equal
    /// an earlier one.
    pub duplicates: Option<(usize, usize, usize)>,
}

#[derive(Debug)]
enum ClassWeights {
    /// `[embed, classes]`, unit columns.
    PerClass(Tensor),
    /// `[embed, classes * templates]`, class by class, unit columns; `scale` turns cosines into
    /// logits.
    PerTemplate { weights: Tensor, templates: usize, scale: f64 },
    /// Token ids `[prompts, context]`, class by class, and the prompts of each class: for a model
    /// that scores texts instead of embedding them.
    Tokens { ids: Tensor, of_class: Vec<Range<usize>> },
}

impl Classifier {
    /// Scores `[images, classes]` for `embeddings` `[images, embed]`: cosines; if probabilities are
    /// averaged, the mean softmax over the templates; for a model that scores texts, the mean
    /// log-probability over the prompts.
    pub fn scores(&self, clip: &Clip, embeddings: &Tensor) -> Result<Tensor, EvalError> {
        match &self.weights {
            ClassWeights::PerClass(weights) => Ok(embeddings.matmul(weights)?),
            ClassWeights::PerTemplate { weights, templates, scale } => {
                let logits = (embeddings.matmul(weights)? * *scale)?;
                let (images, columns) = logits.dims2()?;
                let logits = logits.reshape((images, columns / templates, *templates))?;
                let powers = logits.broadcast_sub(&logits.max_keepdim(1)?)?.exp()?;
                Ok(powers.broadcast_div(&powers.sum_keepdim(1)?)?.mean(D::Minus1)?)
            }
            ClassWeights::Tokens { ids, of_class } => {
                let scores = clip.score(embeddings, ids)?;
                let class = |span: &Range<usize>| scores.narrow(1, span.start, span.len())?.mean(1);
                let classes = of_class.iter().map(class).collect::<Result<Vec<_>, _>>()?;
                Ok(Tensor::stack(&classes, 1)?)
            }
        }
    }

    /// If there is a classifier per template: weights `[embed, classes * templates]`, class by
    /// class, with unit columns, and the number of templates.
    pub fn per_template(&self) -> Option<(&Tensor, usize)> {
        match &self.weights {
            ClassWeights::PerTemplate { weights, templates, .. } => Some((weights, *templates)),
            _ => None,
        }
    }

    pub fn gives_probabilities(&self) -> bool {
        matches!(self.weights, ClassWeights::PerTemplate { .. })
    }
}

/// The prompts of a classifier, ordered by class, name and template.
struct Prompts<'a> {
    encoder: TextEncoder<'a>,
    set: &'a PromptSet,
    /// Class id and name.
    names: Vec<(usize, &'a str)>,
}

impl<'a> Prompts<'a> {
    fn new(encoder: TextEncoder<'a>, classes: &'a [Vec<String>], set: &'a PromptSet) -> Self {
        let named =
            |(class, names): (usize, &'a Vec<String>)| names.iter().map(move |name| (class, name.as_str()));
        Self { encoder, set, names: classes.iter().enumerate().flat_map(named).collect() }
    }

    fn count(&self) -> usize {
        self.names.len() * self.set.templates.len()
    }

    fn context(&self) -> usize {
        self.encoder.clip.config().text.context
    }

    fn class(&self, prompt: usize) -> usize {
        self.names[prompt / self.set.templates.len()].0
    }

    fn tokens(&self, prompt: usize) -> Vec<u32> {
        let templates = &self.set.templates;
        let text = fill(&templates[prompt % templates.len()], self.names[prompt / templates.len()].1);
        self.encoder.tokenizer.encode(&text, self.context())
    }

    /// The row of the weights to which a prompt contributes.
    fn slot(&self, prompt: usize) -> usize {
        let templates = self.set.templates.len();
        match self.set.space {
            Space::Embedding => self.class(prompt),
            Space::Probability => self.class(prompt) * templates + prompt % templates,
        }
    }

    /// The cache key, which covers the weights, the tokens and what is averaged; and a hash of each
    /// class's tokens.
    fn hashes(&self, classes: usize) -> ([u8; 32], Vec<u64>) {
        let mut key = Sha256::new_with_prefix(b"twinlens text embeddings 1");
        key.update(self.encoder.weights_hash);
        let mut of_class = vec![DefaultHasher::new(); classes];
        for prompt in 0..self.count() {
            let tokens = self.tokens(prompt);
            tokens.hash(&mut of_class[self.class(prompt)]);
            key.update((self.slot(prompt) as u64).to_le_bytes());
            tokens.iter().for_each(|token| key.update(token.to_le_bytes()));
        }
        (key.finalize().into(), of_class.iter().map(Hasher::finish).collect())
    }

    /// The normalised mean of the normalised embeddings of each slot: `[slots, embed]`.
    fn encode(&self, slots: usize) -> Result<Vec<Vec<f32>>, EvalError> {
        let (count, context) = (self.count(), self.context());
        let mut sums: Vec<Vec<f64>> = vec![Vec::new(); slots];
        for first in (0..count).step_by(self.encoder.batch.max(1)) {
            let span = first..count.min(first + self.encoder.batch.max(1));
            let ids: Vec<u32> = span.clone().flat_map(|prompt| self.tokens(prompt)).collect();
            let ids = Tensor::from_vec(ids, (span.len(), context), &Device::Cpu)?;
            for (prompt, embedding) in span.zip(self.encoder.clip.encode_text(&ids)?.to_vec2::<f32>()?) {
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

/// Encodes every class name in every template, or takes the embeddings from the cache.
pub fn build_classifier(
    encoder: TextEncoder<'_>,
    classes: &[Vec<String>],
    set: &PromptSet,
) -> Result<Classifier, EvalError> {
    let prompts = Prompts::new(encoder, classes, set);
    let (key, hashes) = prompts.hashes(classes.len());
    let duplicates = duplicates(&hashes);
    if !encoder.clip.config().objective.embeds_texts() {
        let ids: Vec<u32> = (0..prompts.count()).flat_map(|prompt| prompts.tokens(prompt)).collect();
        let ids = Tensor::from_vec(ids, (prompts.count(), prompts.context()), &Device::Cpu)?;
        let mut of_class = vec![0..0; classes.len()];
        for prompt in 0..prompts.count() {
            let span: &mut Range<usize> = &mut of_class[prompts.class(prompt)];
            *span = if span.start == span.end { prompt..prompt + 1 } else { span.start..prompt + 1 };
        }
        return Ok(Classifier { weights: ClassWeights::Tokens { ids, of_class }, duplicates });
    }
    let templates = set.templates.len();
    let slots = if set.space == Space::Probability { classes.len() * templates } else { classes.len() };
    let rows = match encoder.cache.and_then(|cache| cache.get(&key, slots)) {
        Some(rows) => rows,
        None => {
            let rows = prompts.encode(slots)?;
            if let Some(cache) = encoder.cache {
                cache.put(&key, &rows);
            }
            rows
        }
    };
    let embed = rows.first().map_or(0, Vec::len);
    let weights = Tensor::from_vec(rows.concat(), (slots, embed), &Device::Cpu)?.t()?.contiguous()?;
    let weights = match set.space {
        Space::Embedding => ClassWeights::PerClass(weights),
        Space::Probability => {
            let scale = f64::from(encoder.clip.logit_scale().exp());
            ClassWeights::PerTemplate { weights, templates, scale }
        }
    };
    Ok(Classifier { weights, duplicates })
}

fn norm(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|value| value * value).sum::<f64>().sqrt()
}

/// Normalises an embedding and adds it to a sum.
fn add_normalised(sum: &mut Vec<f64>, embedding: &[f32]) {
    let length = norm(embedding.iter().map(|value| f64::from(*value)));
    sum.resize(embedding.len(), 0.0);
    for (sum, value) in sum.iter_mut().zip(embedding) {
        *sum += f64::from(*value) / length;
    }
}

fn duplicates(hashes: &[u64]) -> Option<(usize, usize, usize)> {
    let mut seen = HashMap::new();
    let mut first = None;
    for (class, hash) in hashes.iter().enumerate() {
        if let Some(earlier) = seen.get(hash) {
            let (a, b, count) = first.unwrap_or((*earlier, class, 0));
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
        assert_eq!(duplicates(&[1, 2, 3]), None);
        assert_eq!(duplicates(&[7, 2, 7, 2, 7]), Some((0, 2, 3)));
    }
}
