//! SigLIP's objective: a binary classification of each image-text pair of a batch (Zhai et al.
//! 2023).

use super::kind::{Family, ObjectiveKind, PairObjective};
use crate::ops::pairs::{Pairs, Shares};
use crate::ops::reference::{Tensors, get};
use crate::ops::sigmoid::sigmoid_loss;
use crate::ops::tensor_pairs::{TensorPairs, TensorShares};
use crate::towers::text::TextConfig;
use crate::variables::{Declarations, Init};
use candle_core::{Result, Tensor};
use serde_json::{Value, json};

/// The initial `logit_bias`, as in the paper.
const LOGIT_BIAS: f32 = -10.0;

const SCALARS: &[&str] = &["logit_scale", "logit_bias"];

pub(super) struct Sigmoid;

impl ObjectiveKind for Sigmoid {
    fn name(&self) -> &'static str {
        "sigmoid"
    }

    fn summary(&self) -> &'static str {
        "Whether an image and a text belong together, for each pair of the batch (SigLIP)."
    }

    fn family(&self) -> Family<'_> {
        Family::Pairs(self)
    }

    fn declare(&self, variables: &mut Declarations, text: &TextConfig, embed: usize) {
        text.declare(variables);
        text.declare_projection(variables, embed);
        // The factor starts at 10, as in the paper.
        variables.add("logit_scale", &[], Init::Constant(10f32.ln()));
        variables.add("logit_bias", &[], Init::Constant(LOGIT_BIAS));
    }

    fn text_flops(&self, text: &TextConfig, embed: usize) -> usize {
        text.flops() + 2 * text.width * embed
    }

    fn open_clip_settings(&self) -> Option<Vec<(&'static str, Value)>> {
        Some(vec![("init_logit_bias", json!(LOGIT_BIAS as i32))])
    }
}

impl PairObjective for Sigmoid {
    fn loss(&self, image: &Tensor, text: &Tensor, tensors: &Tensors) -> Result<Tensor> {
        sigmoid_loss(image, text, get(tensors, "logit_scale")?, get(tensors, "logit_bias")?)
    }

    fn reference_loss(&self, image: &Tensor, text: &Tensor, tensors: &Tensors) -> Result<Tensor> {
        let scale = get(tensors, "logit_scale")?.exp()?;
        let logits = image.matmul(&text.t()?)?.broadcast_mul(&scale)?;
        let logits = logits.broadcast_add(get(tensors, "logit_bias")?)?;
        let n = logits.dim(0)?;
        let signs = (Tensor::eye(n, logits.dtype(), logits.device())? * 2.0)? - 1.0;
        let odds = logits.mul(&signs?)?.neg()?.exp()?;
        (odds + 1.0)?.log()?.sum_all()? / n as f64
    }

    fn adds_up(&self) -> bool {
        true
    }

    fn shares(
        &self,
        pairs: &Pairs<'_>,
        _: &[Vec<f32>; 2],
        tensors: &Tensors,
    ) -> Result<Option<(Shares, &'static [&'static str])>> {
        let bias = get(tensors, "logit_bias")?.to_scalar::<f32>()?;
        Ok(Some((pairs.sigmoid(bias), SCALARS)))
    }

    fn tensor_shares(
        &self,
        pairs: &TensorPairs<'_>,
        _: &[Vec<f32>; 2],
        tensors: &Tensors,
    ) -> Result<Option<(TensorShares, &'static [&'static str])>> {
        let bias = get(tensors, "logit_bias")?.to_scalar::<f32>()?;
        Ok(Some((pairs.sigmoid(bias)?, SCALARS)))
    }
}
