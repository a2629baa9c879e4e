//! The plain twins of the objectives.

use super::{Tensors, get, layer_norm, text_stack};
use crate::config::ClipConfig;
use candle_core::{D, DType, Result, Tensor};

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

/// For each text (`ids` `[n, context]`) the ids between its start token and its end token, its first highest id.
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

/// The captioning loss of `image` features (`[n, embed]`): a scalar.
///
/// # Errors
/// When a shape does not fit.
pub fn caption_loss(tensors: &Tensors, config: &ClipConfig, image: &Tensor, ids: &Tensor) -> Result<Tensor> {
    let (batch, context) = ids.dims2()?;
    let table = get(tensors, "token_embedding.weight")?;
    let width = config.text.width;
    let x = table.index_select(&ids.flatten_all()?, 0)?.reshape((batch, context, width))?;
    let image = image.matmul(get(tensors, "caption.image_projection")?)?.unsqueeze(1)?;
    let first = (x.narrow(1, 0, 1)? + image)?;
    let x = Tensor::cat(&[&first, &x.narrow(1, 1, context - 1)?], 1)?;
    let x = text_stack(tensors, config, &x)?;
    let logits = layer_norm(&x, tensors, "ln_final")?.broadcast_matmul(&table.t()?)?;
    let logits = candle_nn::ops::log_softmax(&logits, D::Minus1)?;
    // Of each text as many positions as it has words, and one for its end.
    let (mut picked, mut rows) = (vec![0f32; batch * context * config.text.vocab], 0);
    for (text, row) in ids.to_vec2::<u32>()?.iter().enumerate() {
        let top = row.iter().copied().max().unwrap_or(0);
        let end = row.iter().position(|id| *id == top).unwrap_or(0);
        for position in 0..end {
            let target = row[position + 1] as usize;
            picked[(text * context + position) * config.text.vocab + target] = 1.0;
            rows += 1;
        }
    }
    let shape = (batch, context, config.text.vocab);
    let picked = Tensor::from_vec(picked, shape, ids.device())?.to_dtype(DType::F32)?;
    (logits * picked.to_dtype(x.dtype())?)?.sum_all()?.neg()? / f64::from(rows)
}
