//! CLIP's objective: symmetric cross-entropy over the pairs of a batch (Radford et al. 2021, figure
//! 3).

use super::kind::{Family, ObjectiveKind, PairObjective};
use crate::ops::contrastive::contrastive_loss;
use crate::ops::device::{self, DeviceOptions};
use crate::ops::pairs::{Pairs, Shares};
use crate::ops::reference::{Tensors, get};
use crate::ops::tensor_pairs::{TensorPairs, TensorShares};
use crate::towers::text::TextConfig;
use crate::variables::{Declarations, Init};
use candle_core::{Result, Tensor};
use serde_json::Value;

/// The initial `logit_scale`: ln(1 / 0.07).
const LOGIT_SCALE: f32 = 2.659_26;

const SCALARS: &[&str] = &["logit_scale"];

pub(super) struct Contrastive;

impl ObjectiveKind for Contrastive {
    fn name(&self) -> &'static str {
        "contrastive"
    }

    fn summary(&self) -> &'static str {
        "Which text of the batch belongs to which image and vice versa: symmetric cross-entropy with a learned temperature."
    }

    fn family(&self) -> Family<'_> {
        Family::Pairs(self)
    }

    fn declare(&self, variables: &mut Declarations, text: &TextConfig, embed: usize) {
        text.declare(variables);
        text.declare_projection(variables, embed);
        variables.add("logit_scale", &[], Init::Constant(LOGIT_SCALE));
    }

    fn text_flops(&self, text: &TextConfig, embed: usize) -> usize {
        text.flops() + 2 * text.width * embed
    }

    fn chance_loss(&self, batch: usize) -> Option<f64> {
        Some((batch as f64).ln())
    }

    fn open_clip_settings(&self) -> Option<Vec<(&'static str, Value)>> {
        Some(Vec::new())
    }
}

impl PairObjective for Contrastive {
    fn loss(&self, image: &Tensor, text: &Tensor, tensors: &Tensors) -> Result<Tensor> {
        contrastive_loss(image, text, get(tensors, "logit_scale")?)
    }

    fn reference_loss(&self, image: &Tensor, text: &Tensor, tensors: &Tensors) -> Result<Tensor> {
        let scale = get(tensors, "logit_scale")?.exp()?;
        let logits = image.matmul(&text.t()?)?.broadcast_mul(&scale)?;
        let targets = Tensor::arange(0, logits.dim(0)? as u32, logits.device())?;
        let cross_entropy = |logits: &Tensor| candle_nn::loss::cross_entropy(logits, &targets);
        (cross_entropy(&logits)? + cross_entropy(&logits.t()?.contiguous()?)?)? / 2.0
    }

    fn device_loss(
        &self,
        image: &Tensor,
        text: &Tensor,
        tensors: &Tensors,
        options: DeviceOptions,
    ) -> Result<Tensor> {
        device::contrastive_loss(image, text, get(tensors, "logit_scale")?, options)
    }

    fn log_sums(&self, pairs: &Pairs<'_>) -> [Vec<f32>; 2] {
        pairs.log_sums()
    }

    fn shares(
        &self,
        pairs: &Pairs<'_>,
        [images, texts]: &[Vec<f32>; 2],
        _: &Tensors,
    ) -> Result<Option<(Shares, &'static [&'static str])>> {
        let is_complete = images.len() == pairs.n && texts.len() == pairs.n;
        Ok(is_complete.then(|| (pairs.contrastive(images, texts), SCALARS)))
    }

    fn tensor_log_sums(&self, pairs: &TensorPairs<'_>) -> Result<[Vec<f32>; 2]> {
        pairs.log_sums()
    }

    fn tensor_shares(
        &self,
        pairs: &TensorPairs<'_>,
        [images, texts]: &[Vec<f32>; 2],
        _: &Tensors,
    ) -> Result<Option<(TensorShares, &'static [&'static str])>> {
        if images.len() != pairs.n || texts.len() != pairs.n {
            return Ok(None);
        }
        Ok(Some((pairs.contrastive(images, texts)?, SCALARS)))
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_temperature_starts_at_the_papers() {
        assert!((super::LOGIT_SCALE - (1.0f32 / 0.07).ln()).abs() < 1e-6);
    }
}
