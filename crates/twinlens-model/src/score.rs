//! How well each text fits each image, whatever the model was trained to do: what zero-shot
//! classification compares.

use crate::clip::{Clip, describe};
use crate::error::{ModelError, Result};
use crate::objective::Objective;
use crate::ops::embed::Texts;
use crate::ops::linear::linear;
use crate::reference;
use crate::towers::text;
use candle_core::Tensor;

/// Logits held at a time, about.
const LOGITS: usize = 1 << 22;

impl Clip {
    /// The fit `[images, texts]` of every text (`ids`, `[texts, up to context]`, u32) to every
    /// image, given by its features (`[images, embed]`, from [`encode_image`](Self::encode_image)).
    /// Higher is better; only scores of one image compare.
    ///
    /// Contrastive and sigmoid: the scaled similarity. Bag of words: the mean of the logarithms of
    /// the words' probabilities. Caption: the logarithm of the caption's probability; every text is
    /// read anew for every image.
    ///
    /// # Errors
    /// `Input` when a shape or an id does not fit the configuration.
    pub fn score(&self, image_features: &Tensor, ids: &Tensor) -> Result<Tensor> {
        if image_features.rank() != 2 || image_features.dims()[1] != self.config().embed {
            return Err(ModelError::Input {
                what: "image features",
                expected: format!("[images, {}] of f32", self.config().embed),
                got: describe(image_features),
            });
        }
        match self.config().objective {
            Objective::Contrastive | Objective::Sigmoid => {
                let similarity = image_features.matmul(&self.encode_text(ids)?.t()?)?;
                let bias = match self.variables().get("logit_bias") {
                    Some(bias) => f64::from(bias.to_scalar::<f32>()?),
                    None => 0.0,
                };
                Ok(similarity.affine(f64::from(self.logit_scale().exp()), bias)?)
            }
            Objective::BagOfWords => self.score_bags(image_features, &self.texts(ids)?),
            Objective::Caption if self.is_plain() => self.plain_captions(image_features, ids),
            Objective::Caption => self.score_captions(image_features, &self.texts(ids)?),
        }
    }

    fn score_bags(&self, image: &Tensor, texts: &Texts) -> Result<Tensor> {
        let logits = if self.is_plain() {
            self.plain_words(image)?
        } else {
            let tensors = self.tensors(false);
            let [w, bias] = ["words.weight", "words.bias"].map(|name| reference::get(&tensors, name));
            linear(image, w?, Some(bias?))?
        };
        let logits = logits.to_vec2::<f32>()?;
        let bags = texts.bags();
        let score = |row: &Vec<f32>| {
            let total = log_sum_exp(row);
            let fit = |bag: &Vec<u32>| {
                bag.iter().map(|id| row[*id as usize]).sum::<f32>() / bag.len().max(1) as f32 - total
            };
            bags.iter().map(fit).collect::<Vec<_>>()
        };
        let scores: Vec<f32> = logits.iter().flat_map(score).collect();
        Ok(Tensor::from_vec(scores, (logits.len(), bags.len()), image.device())?)
    }

    fn plain_captions(&self, image: &Tensor, ids: &Tensor) -> Result<Tensor> {
        self.texts(ids)?;
        let (images, texts) = (image.dim(0)?, ids.dim(0)?);
        let mut scores = Vec::with_capacity(images * texts);
        for i in 0..images {
            scores.extend(self.plain_caption_scores(&image.narrow(0, i, 1)?, ids)?);
        }
        Ok(Tensor::from_vec(scores, (images, texts), image.device())?)
    }

    fn score_captions(&self, image: &Tensor, texts: &Texts) -> Result<Tensor> {
        let (tensors, config) = (self.tensors(false), self.config());
        let table = reference::get(&tensors, "token_embedding.weight")?;
        let (images, n) = (image.dim(0)?, texts.lens.len());
        let mut scores: Vec<f32> = Vec::with_capacity(images * n);
        for i in 0..images {
            let own = image.narrow(0, i, 1)?.broadcast_as((n, config.embed))?.contiguous()?;
            let pool = self.text_pool();
            let (x, targets) =
                text::next_tokens(&config.text, config.activation, &tensors, &own, texts, pool, false)?;
            let at_once = (LOGITS / config.text.vocab).max(1);
            let mut fits = Vec::with_capacity(targets.len());
            for (piece, targets) in targets.chunks(at_once).enumerate() {
                let x = x.narrow(0, piece * at_once, targets.len())?;
                for (row, target) in linear(&x, table, None)?.to_vec2::<f32>()?.iter().zip(targets) {
                    fits.push(row[*target as usize] - log_sum_exp(row));
                }
            }
            let mut rest = &fits[..];
            for len in &texts.lens {
                let (own, tail) = rest.split_at(len.max(&2) - 1);
                rest = tail;
                scores.push(own.iter().sum());
            }
        }
        Ok(Tensor::from_vec(scores, (images, n), image.device())?)
    }
}

fn log_sum_exp(row: &[f32]) -> f32 {
    let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    top + row.iter().map(|x| f64::from(x - top).exp()).sum::<f64>().ln() as f32
}
