//! The text transformer: as CLIP's text tower, and as the language model that writes captions.

use super::Blocks;
use crate::config::TextConfig;
use crate::ops::activation::Activation;
use crate::ops::block::BlockShape;
use crate::ops::embed::{Texts, text_embed};
use crate::ops::transformer::{Pool, Sequences};
use crate::reference::{self, Tensors};
use candle_core::{Result, Tensor};

/// Each text up to its first highest id: under a causal mask nothing behind it can reach what is
/// read there.
pub fn until_end(ids: &[Vec<u32>]) -> Texts {
    let mut texts = Texts { ids: Vec::new(), lens: Vec::with_capacity(ids.len()) };
    for row in ids {
        let end = row.iter().enumerate().fold(0, |best, (i, id)| if *id > row[best] { i } else { best });
        texts.ids.extend_from_slice(&row[..=end]);
        texts.lens.push(end + 1);
    }
    texts
}

fn stack(
    config: &TextConfig,
    activation: Activation,
    tensors: &Tensors,
    x: &Tensor,
    sequences: Sequences,
    pool: &Pool,
    train: bool,
) -> Result<Tensor> {
    let shape = BlockShape { width: config.width, heads: config.heads, activation };
    let blocks = Blocks { tower: "transformer", layers: config.layers, shape, tensors, pool };
    let x = blocks.run(x, sequences, train)?;
    reference::layer_norm(&x, tensors, "ln_final")
}

fn embed(tensors: &Tensors, texts: Texts, train: bool) -> Result<Tensor> {
    let table = reference::get(tensors, "token_embedding.weight")?;
    text_embed(table, reference::get(tensors, "positional_embedding")?, texts, train)
}

/// Features `[texts, embed]`, of any length.
pub fn features(
    config: &TextConfig,
    activation: Activation,
    tensors: &Tensors,
    texts: Texts,
    pool: &Pool,
    train: bool,
) -> Result<Tensor> {
    let sequences = Sequences::causal(texts.lens.iter().copied());
    let x = embed(tensors, texts, train)?;
    let x = stack(config, activation, tensors, &x, sequences, pool, train)?;
    x.matmul(reference::get(tensors, "text_projection")?)
}

/// What the language model knows before each word but the first: rows `[all tokens - texts,
/// width]`, and beside each row the token that follows. The image's features (`[texts, embed]`),
/// projected, are added to each text's start token.
pub fn next_tokens(
    config: &TextConfig,
    activation: Activation,
    tensors: &Tensors,
    image: &Tensor,
    texts: &Texts,
    pool: &Pool,
    train: bool,
) -> Result<(Tensor, Vec<u32>)> {
    let mut inputs = Texts { ids: Vec::new(), lens: Vec::new() };
    let (mut targets, mut starts) = (Vec::new(), Vec::new());
    for text in texts.iter() {
        starts.push(inputs.ids.len() as u32);
        // A text of one token has nothing to predict; it still takes a row, which predicts that
        // token.
        let known = text.len().max(2) - 1;
        inputs.ids.extend_from_slice(&text[..known]);
        inputs.lens.push(known);
        targets.extend_from_slice(&text[text.len() - known..]);
    }
    let sequences = Sequences::causal(inputs.lens.iter().copied()).unpooled();
    let image = image.matmul(reference::get(tensors, "caption.image_projection")?)?;
    let starts = Tensor::new(starts, image.device())?;
    let x = embed(tensors, inputs, train)?.index_add(&starts, &image, 0)?;
    Ok((stack(config, activation, tensors, &x, sequences, pool, train)?, targets))
}
