//! Predicts which words are in the caption (Joulin et al. 2016): a linear layer on the image's
//! features, and the cross-entropy between its softmax and the caption's words in equal parts.

use super::kind::{Family, ObjectiveKind, WordContext, WordObjective};
use crate::ops::cross_entropy::linear_cross_entropy;
use crate::ops::embed::Texts;
use crate::ops::linear::linear;
use crate::ops::log_sum_exp;
use crate::ops::reference::{self, get};
use crate::towers::text::TextConfig;
use crate::variables::{Declarations, Init};
use candle_core::{D, Result, Tensor};
use std::collections::BTreeSet;

pub(super) struct BagOfWords;

impl ObjectiveKind for BagOfWords {
    fn name(&self) -> &'static str {
        "bag_of_words"
    }

    fn summary(&self) -> &'static str {
        "Which words the caption contains: a linear layer on the image's features, softmax over the vocabulary, and the \
         caption's words in equal parts as the target (Joulin et al. 2016)."
    }

    fn family(&self) -> Family<'_> {
        Family::Words(self)
    }

    fn declare(&self, variables: &mut Declarations, text: &TextConfig, embed: usize) {
        let init = Init::uniform_fan_in(embed);
        variables.add("words.weight", &[text.vocab, embed], init);
        variables.add("words.bias", &[text.vocab], init);
    }

    fn text_flops(&self, text: &TextConfig, embed: usize) -> usize {
        2 * embed * text.vocab
    }
}

impl WordObjective for BagOfWords {
    /// Texts that have words.
    fn predictions(&self, texts: &Texts) -> usize {
        texts.bags().iter().filter(|bag| !bag.is_empty()).count()
    }

    fn loss(&self, cx: &WordContext<'_>, image: &Tensor, texts: &Texts) -> Result<Tensor> {
        let [w, bias] = weights(cx);
        linear_cross_entropy(image, w?, bias?, texts.bags(), true)
    }

    fn reference_loss(&self, cx: &WordContext<'_>, image: &Tensor, ids: &Tensor) -> Result<Tensor> {
        let [w, bias] = weights(cx);
        let logits = reference::linear(image, w?, bias?)?;
        let (n, vocab) = logits.dims2()?;
        let mut target = vec![0.0; n * vocab];
        let mut counted = 0.0;
        for (row, ids) in ids.to_vec2::<u32>()?.into_iter().enumerate() {
            // The words lie between the start token and the end token, the first highest id.
            let end = ids.iter().copied().max().unwrap_or(0);
            let words: BTreeSet<u32> = ids.into_iter().skip(1).take_while(|id| *id != end).collect();
            counted += if words.is_empty() { 0.0 } else { 1.0 };
            for word in &words {
                target[row * vocab + *word as usize] = 1.0 / words.len() as f64;
            }
        }
        let target = Tensor::from_vec(target, (n, vocab), ids.device())?.to_dtype(logits.dtype())?;
        (candle_nn::ops::log_softmax(&logits, D::Minus1)? * target)?.sum_all()?.neg()?
            / f64::max(counted, 1.0)
    }

    fn score(&self, cx: &WordContext<'_>, image: &Tensor, texts: &Texts) -> Result<Vec<f32>> {
        let [w, bias] = weights(cx);
        scores(&linear(image, w?, Some(bias?))?, texts)
    }

    fn reference_score(
        &self,
        cx: &WordContext<'_>,
        image: &Tensor,
        _: &Tensor,
        texts: &Texts,
    ) -> Result<Vec<f32>> {
        let [w, bias] = weights(cx);
        scores(&reference::linear(image, w?, bias?)?, texts)
    }
}

fn weights<'a>(cx: &WordContext<'a>) -> [Result<&'a Tensor>; 2] {
    ["words.weight", "words.bias"].map(|name| get(cx.text.tensors, name))
}

/// For each image the mean log probability of each text's words, from `logits` (`[images, vocab]`).
fn scores(logits: &Tensor, texts: &Texts) -> Result<Vec<f32>> {
    let bags = texts.bags();
    let score = |row: Vec<f32>| {
        let total = log_sum_exp(row.iter().copied());
        let score = move |bag: &Vec<u32>| {
            bag.iter().map(|id| row[*id as usize]).sum::<f32>() / bag.len().max(1) as f32 - total
        };
        bags.iter().map(score).collect::<Vec<_>>()
    };
    Ok(logits.to_vec2::<f32>()?.into_iter().flat_map(score).collect())
}
