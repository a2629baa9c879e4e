//! Reference implementation: towers and objectives in candle's basic operations, in any float type.
//!
//! Nothing is skipped or fused: it computes the full context of every text and every row of every
//! block. Tests compare the fused operations with it, in value and in every gradient.

pub use crate::ops::reference::{Tensors, get, normalise};

use crate::compute::Precision;
use crate::config::ClipConfig;
use crate::objectives::kind::{Family, WordContext};
use crate::ops::reference::Norms;
use crate::ops::transformer::Pool;
use crate::towers::text::TextTower;
use candle_core::{Result, Tensor};

/// Image features `[batch, embed]` of `pixels` (`[batch, 3, size, size]`), of unit length if the
/// objective embeds texts too. With `running`, batch norms use the running statistics among the
/// tensors.
///
/// # Errors
/// If a shape does not match.
pub fn encode_image(
    tensors: &Tensors,
    config: &ClipConfig,
    pixels: &Tensor,
    running: bool,
) -> Result<Tensor> {
    let mut statistics = Vec::new();
    let norms = if running { Norms::Running } else { Norms::Batch(&mut statistics) };
    let features = config.vision.tower().reference_features(tensors, config.activation, pixels, norms)?;
    if config.objective.embeds_texts() { normalise(&features) } else { Ok(features) }
}

/// Unit-length features `[batch, embed]` of token `ids` (`[batch, context]`), read at each text's
/// highest id.
///
/// # Errors
/// If a shape does not match.
pub fn encode_text(tensors: &Tensors, config: &ClipConfig, ids: &Tensor) -> Result<Tensor> {
    let dtype = get(tensors, "token_embedding.weight")?.dtype();
    normalise(&text_tower(tensors, config, &Pool::default()).reference_features(ids, dtype)?)
}

/// The scalar loss of a batch of pairs in training.
///
/// # Errors
/// If a shape does not match.
pub fn loss(tensors: &Tensors, config: &ClipConfig, pixels: &Tensor, ids: &Tensor) -> Result<Tensor> {
    let image = encode_image(tensors, config, pixels, false)?;
    match config.objective.kind().family() {
        Family::Pairs(objective) => {
            objective.reference_loss(&image, &encode_text(tensors, config, ids)?, tensors)
        }
        Family::Words(objective) => {
            let (pool, embed, precision) = (Pool::default(), config.embed, Precision::F32);
            let text = text_tower(tensors, config, &pool);
            objective.reference_loss(&WordContext { text, embed, precision }, &image, ids)
        }
    }
}

fn text_tower<'a>(tensors: &'a Tensors, config: &'a ClipConfig, pool: &'a Pool) -> TextTower<'a> {
    TextTower { config: &config.text, activation: config.activation, tensors, pool, device: None }
}
