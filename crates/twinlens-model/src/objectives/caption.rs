//! Predicts the caption word by word: a causal transformer that starts from the image's features.

use super::kind::{Family, ObjectiveKind, WordContext, WordObjective};
use crate::ops::cross_entropy::linear_cross_entropy;
use crate::ops::embed::Texts;
use crate::ops::linear::linear;
use crate::ops::log_sum_exp;
use crate::ops::reference::{self, get, like, widened};
use crate::towers::text::{TextConfig, TextTower};
use crate::variables::{Declarations, Init};
use candle_core::{D, DType, Result, Tensor};

/// About how many logits are held at a time: by fused operations, and by basic ones on a GPU.
const LOGITS: usize = 1 << 22;
const REFERENCE_LOGITS: usize = 1 << 26;

pub(super) struct Caption;

impl ObjectiveKind for Caption {
    fn name(&self) -> &'static str {
        "caption"
    }

    fn summary(&self) -> &'static str {
        "The caption, word by word: a causal transformer that starts from the image's features."
    }

    fn family(&self) -> Family<'_> {
        Family::Words(self)
    }

    fn declare(&self, variables: &mut Declarations, text: &TextConfig, embed: usize) {
        text.declare(variables);
        variables.add("caption.image_projection", &[embed, text.width], Init::normal_fan_in(embed));
    }

    fn text_flops(&self, text: &TextConfig, embed: usize) -> usize {
        text.flops() + 2 * text.width * (embed + text.context * text.vocab)
    }
}

impl WordObjective for Caption {
    /// All words and end tokens.
    fn predictions(&self, texts: &Texts) -> usize {
        texts.lens.iter().map(|len| len.max(&2) - 1).sum()
    }

    fn loss(&self, cx: &WordContext<'_>, image: &Tensor, texts: &Texts) -> Result<Tensor> {
        let (x, targets) = cx.text.next_tokens(image, texts, true)?;
        let table = get(cx.text.tensors, "token_embedding.weight")?;
        let bias = Tensor::zeros(cx.text.config.vocab, DType::F32, image.device())?;
        let targets = targets.into_iter().map(|target| vec![target]).collect();
        linear_cross_entropy(&x, table, &bias, targets, true)
    }

    fn reference_loss(&self, cx: &WordContext<'_>, image: &Tensor, ids: &Tensor) -> Result<Tensor> {
        let (log_probabilities, is_counted) = target_log_probabilities(cx, image, ids)?;
        let count = is_counted.sum_all()?.to_scalar::<f32>()?;
        let is_counted = is_counted.to_dtype(log_probabilities.dtype())?;
        (log_probabilities * is_counted)?.sum_all()?.neg()? / f64::from(count)
    }

    /// The log probability of each text as a caption of each image. Every text is read again for
    /// every image.
    fn score(&self, cx: &WordContext<'_>, image: &Tensor, texts: &Texts) -> Result<Vec<f32>> {
        let table = get(cx.text.tensors, "token_embedding.weight")?;
        let n = texts.lens.len();
        let at_once = (LOGITS / cx.text.config.vocab).max(1);
        let mut scores = Vec::with_capacity(image.dim(0)? * n);
        for i in 0..image.dim(0)? {
            let image = image.narrow(0, i, 1)?.broadcast_as((n, cx.embed))?.contiguous()?;
            let (x, targets) = cx.text.next_tokens(&image, texts, false)?;
            let mut log_probabilities = Vec::with_capacity(targets.len());
            for (piece, targets) in targets.chunks(at_once).enumerate() {
                let x = x.narrow(0, piece * at_once, targets.len())?;
                for (row, target) in linear(&x, table, None)?.to_vec2::<f32>()?.iter().zip(targets) {
                    log_probabilities.push(row[*target as usize] - log_sum_exp(row.iter().copied()));
                }
            }
            let mut rest = &log_probabilities[..];
            for len in &texts.lens {
                let (own, tail) = rest.split_at(len.max(&2) - 1);
                rest = tail;
                scores.push(own.iter().sum());
            }
        }
        Ok(scores)
    }

    fn reference_score(
        &self,
        cx: &WordContext<'_>,
        image: &Tensor,
        ids: &Tensor,
        _: &Texts,
    ) -> Result<Vec<f32>> {
        let (texts, context) = ids.dims2()?;
        let at_once = (REFERENCE_LOGITS / (context * cx.text.config.vocab)).max(1);
        let mut scores = Vec::with_capacity(image.dim(0)? * texts);
        for i in 0..image.dim(0)? {
            for first in (0..texts).step_by(at_once) {
                let ids = ids.narrow(0, first, at_once.min(texts - first))?.contiguous()?;
                let image = image.narrow(0, i, 1)?.broadcast_as((ids.dim(0)?, cx.embed))?.contiguous()?;
                let (log_probabilities, is_counted) = target_log_probabilities(cx, &image, &ids)?;
                scores.extend((log_probabilities * is_counted)?.sum(1)?.to_vec1::<f32>()?);
            }
        }
        Ok(scores)
    }
}

/// In basic operations, for each position of `ids` (`[n, context]`) the log probability of the next
/// token given the image, and 1 if it counts (up to the end token), else 0.
fn target_log_probabilities(cx: &WordContext<'_>, image: &Tensor, ids: &Tensor) -> Result<(Tensor, Tensor)> {
    let log_probabilities = if cx.precision.is_f32() {
        log_softmax(cx.text, image, ids)?
    } else {
        let tensors = cx.precision.enter_all(cx.text.tensors)?;
        let image = cx.precision.enter(image)?.to_dtype(cx.precision.dtype())?;
        cx.precision.leave(&log_softmax(TextTower { tensors: &tensors, ..cx.text }, &image, ids)?)?
    };
    let (targets, is_counted) = next_tokens(ids)?;
    Ok((log_probabilities.gather(&targets.unsqueeze(2)?, D::Minus1)?.squeeze(2)?, is_counted))
}

/// The log probabilities of every word after each token of `ids` (`[n, context]`), with the image
/// before it: `[n, context, vocab]`, in the type of `image`, or f32 if that is half precision.
fn log_softmax(text: TextTower<'_>, image: &Tensor, ids: &Tensor) -> Result<Tensor> {
    let context = ids.dim(1)?;
    let x = text.reference_embed(ids, image.dtype())?;
    let projection = like(get(text.tensors, "caption.image_projection")?, image)?;
    let first = (x.narrow(1, 0, 1)? + image.matmul(&projection)?.unsqueeze(1)?)?;
    let x = Tensor::cat(&[&first, &x.narrow(1, 1, context - 1)?], 1)?;
    let x = text.reference_norm(&text.reference_stack(&x)?)?;
    let logits = reference::project(&x, get(text.tensors, "token_embedding.weight")?)?;
    candle_nn::ops::log_softmax(&widened(&logits)?, D::Minus1)
}

/// For each position of `ids` (`[n, context]`) the next token, and 1 if it counts, which is up to
/// the end token, else 0. Of a text of one token, that token counts.
fn next_tokens(ids: &Tensor) -> Result<(Tensor, Tensor)> {
    let (n, context) = ids.dims2()?;
    let (mut tokens, mut is_counted) = (vec![0u32; n * context], vec![0f32; n * context]);
    for (text, row) in ids.to_vec2::<u32>()?.iter().enumerate() {
        let top = row.iter().copied().max().unwrap_or(0);
        let end = row.iter().position(|id| *id == top).unwrap_or(0);
        for position in 0..end.max(1) {
            tokens[text * context + position] = row[(position + 1).min(end)];
            is_counted[text * context + position] = 1.0;
        }
    }
    let device = ids.device();
    let tokens = Tensor::from_vec(tokens, (n, context), device)?;
    Ok((tokens, Tensor::from_vec(is_counted, (n, context), device)?))
}
