//! The plain twins of the objectives.

use super::{Tensors, embed, get, layer_norm, like, project, text_stack, widened};
use crate::config::ClipConfig;
use candle_core::{D, Result, Tensor};

/// The symmetric cross-entropy of `image` and `text` features (`[n, embed]`): a scalar.
///
/// # Errors
/// When a shape does not fit.
pub fn contrastive_loss(image: &Tensor, text: &Tensor, logit_scale: &Tensor) -> Result<Tensor> {
    let logits = image.matmul(&text.t()?)?.broadcast_mul(&logit_scale.exp()?)?;
    let own = Tensor::arange(0, logits.dim(0)? as u32, logits.device())?;
    let cross_entropy = |logits: &Tensor| candle_nn::loss::cross_entropy(logits, &own);
    (cross_entropy(&logits)? + cross_entropy(&logits.t()?.contiguous()?)?)? / 2.0
}

/// SigLIP's loss of `image` and `text` features (`[n, embed]`): a scalar.
///
/// # Errors
/// When a shape does not fit.
pub fn sigmoid_loss(
    image: &Tensor,
    text: &Tensor,
    logit_scale: &Tensor,
    logit_bias: &Tensor,
) -> Result<Tensor> {
    let logits = image.matmul(&text.t()?)?.broadcast_mul(&logit_scale.exp()?)?.broadcast_add(logit_bias)?;
    let n = logits.dim(0)?;
    let signs = (Tensor::eye(n, logits.dtype(), logits.device())? * 2.0)? - 1.0;
    let odds = logits.mul(&signs?)?.neg()?.exp()?;
    (odds + 1.0)?.log()?.sum_all()? / n as f64
}

/// For each text (`ids` `[n, context]`) the ids between its start token and its end token, its
/// first highest id.
fn words(ids: &Tensor) -> Result<Vec<Vec<u32>>> {
    let between = |row: Vec<u32>| {
        let top = row.iter().copied().max().unwrap_or(0);
        row.into_iter().skip(1).take_while(|id| *id != top).collect()
    };
    Ok(ids.to_vec2::<u32>()?.into_iter().map(between).collect())
}

/// The bag-of-words loss of `image` features (`[n, embed]`): a scalar.
///
/// # Errors
/// When a shape does not fit.
pub fn bag_of_words_loss(tensors: &Tensors, image: &Tensor, ids: &Tensor) -> Result<Tensor> {
    let logits = super::linear(image, get(tensors, "words.weight")?, get(tensors, "words.bias")?)?;
    let (n, vocab) = logits.dims2()?;
    let mut shares = vec![0.0; n * vocab];
    let mut counted = 0.0;
    for (row, words) in words(ids)?.into_iter().enumerate() {
        let different: std::collections::BTreeSet<u32> = words.into_iter().collect();
        counted += if different.is_empty() { 0.0 } else { 1.0 };
        for word in &different {
            shares[row * vocab + *word as usize] = 1.0 / different.len() as f64;
        }
    }
    let shares = Tensor::from_vec(shares, (n, vocab), ids.device())?.to_dtype(logits.dtype())?;
    (candle_nn::ops::log_softmax(&logits, D::Minus1)? * shares)?.sum_all()?.neg()? / f64::max(counted, 1.0)
}

/// The logarithms of each word's probability, after each word of `ids` (`[n, context]`) and before
/// it the image: `[n, context, vocabulary]`, in the type of `image` features, or f32 where that is
/// half precision.
pub(crate) fn caption_logits(
    tensors: &Tensors,
    config: &ClipConfig,
    image: &Tensor,
    ids: &Tensor,
) -> Result<Tensor> {
    let context = ids.dim(1)?;
    let x = embed(tensors, config, ids, image.dtype())?;
    let image = image.matmul(&like(get(tensors, "caption.image_projection")?, image)?)?.unsqueeze(1)?;
    let first = (x.narrow(1, 0, 1)? + image)?;
    let x = Tensor::cat(&[&first, &x.narrow(1, 1, context - 1)?], 1)?;
    let x = text_stack(tensors, config, &x)?;
    let logits = project(&layer_norm(&x, tensors, "ln_final")?, get(tensors, "token_embedding.weight")?)?;
    candle_nn::ops::log_softmax(&widened(&logits)?, D::Minus1)
}

/// For each position of `ids` (`[n, context]`) the word after it, and 1 where that word counts,
/// which is up to the end token, else 0. Of a text of one token that token counts.
pub(crate) fn next_words(ids: &Tensor) -> Result<(Tensor, Tensor)> {
    let (n, context) = ids.dims2()?;
    let (mut words, mut counted) = (vec![0u32; n * context], vec![0f32; n * context]);
    for (text, row) in ids.to_vec2::<u32>()?.iter().enumerate() {
        let top = row.iter().copied().max().unwrap_or(0);
        let end = row.iter().position(|id| *id == top).unwrap_or(0);
        for position in 0..end.max(1) {
            words[text * context + position] = row[(position + 1).min(end)];
            counted[text * context + position] = 1.0;
        }
    }
    let device = ids.device();
    Ok((Tensor::from_vec(words, (n, context), device)?, Tensor::from_vec(counted, (n, context), device)?))
}

/// The captioning loss, given [`caption_logits`]: a scalar.
pub(crate) fn caption_loss_of(logits: &Tensor, ids: &Tensor) -> Result<Tensor> {
    let (words, counted) = next_words(ids)?;
    let rows = counted.sum_all()?.to_scalar::<f32>()?;
    let fits = logits.gather(&words.unsqueeze(2)?, D::Minus1)?.squeeze(2)?;
    (fits * counted.to_dtype(logits.dtype())?)?.sum_all()?.neg()? / f64::from(rows)
}

/// The captioning loss of `image` features (`[n, embed]`): a scalar.
///
/// # Errors
/// When a shape does not fit.
pub fn caption_loss(tensors: &Tensors, config: &ClipConfig, image: &Tensor, ids: &Tensor) -> Result<Tensor> {
    caption_loss_of(&caption_logits(tensors, config, image, ids)?, ids)
}
