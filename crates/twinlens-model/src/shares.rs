//! The loss of a batch in parts, and its gradients, where no process holds the graph of all pairs.
//!
//! For objectives that compare pairs: compute the features of every part without a graph; from all
//! features, compute the gradient of some rows' features in closed form; then run each part again
//! with its graph and start its backward pass from that gradient. For objectives that predict
//! words: the mean of the parts' losses, weighted by their predictions. [`Clip::loss`] of the whole
//! batch is the reference of both.

use crate::clip::Clip;
use crate::error::{ModelError, Result};
use crate::objectives::kind::Family;
use crate::ops::pairs::{Pairs, Shares};
use crate::ops::with_f32;
use candle_core::Tensor;
use std::ops::Range;

/// The features of a whole batch, and a range of its rows.
pub struct Features<'a> {
    /// `[n, embed]`, without a graph.
    pub image: &'a Tensor,
    /// `[n, embed]`, without a graph; row i belongs to row i of the images.
    pub text: &'a Tensor,
    /// The range of rows.
    pub own: Range<usize>,
}

/// The share of a range of rows in the loss of the whole batch. Summed over all ranges, the shares
/// give the loss and the scalars' gradients.
pub struct Share {
    /// Share of the loss.
    pub loss: f64,
    /// Gradient of the whole loss by the range's image features, `[own, embed]`.
    pub image: Tensor,
    /// Gradient of the whole loss by the range's text features, `[own, embed]`.
    pub text: Tensor,
    /// Shares of the gradients of scalar variables, by name.
    pub scalars: Vec<(&'static str, f32)>,
}

impl Clip {
    /// The sums over the whole batch that [`share`](Self::share) needs, for the range's images and
    /// texts: for the contrastive loss ln sum exp of the logits, otherwise empty.
    ///
    /// # Errors
    /// `Input` if the objective compares no pairs, or a shape does not match.
    pub fn log_sums(&self, features: &Features<'_>) -> Result<[Vec<f32>; 2]> {
        let objective = self.pair_objective()?;
        self.with_pairs(features, |pairs| objective.log_sums(&pairs))
    }

    /// The share of the range, given the [`log_sums`](Self::log_sums) of all rows, in order.
    ///
    /// # Errors
    /// `Input` if the objective compares no pairs, or a shape does not match.
    pub fn share(&self, features: &Features<'_>, log_sums: &[Vec<f32>; 2]) -> Result<Share> {
        let (objective, tensors) = (self.pair_objective()?, self.tensors(false));
        let shares = self.with_pairs(features, |pairs| objective.shares(&pairs, log_sums, &tensors))??;
        let (Shares { loss, image, text, scale, bias }, scalars) = shares.ok_or_else(|| {
            let got = format!("{} and {}", log_sums[0].len(), log_sums[1].len());
            mismatch(format!("log sums of {:?} rows", features.image.dims()), got)
        })?;
        let (shape, device) = ((features.own.len(), self.config().embed), features.image.device());
        Ok(Share {
            loss,
            image: Tensor::from_vec(image, shape, device)?,
            text: Tensor::from_vec(text, shape, device)?,
            scalars: scalars.iter().copied().zip([scale as f32, bias as f32]).collect(),
        })
    }

    fn with_pairs<R>(&self, features: &Features<'_>, f: impl FnOnce(Pairs<'_>) -> R) -> Result<R> {
        let Features { image, text, own } = features;
        let embed = self.config().embed;
        let n = image.dim(0)?;
        if image.dims() != [n, embed] || text.dims() != [n, embed] || own.end > n || own.is_empty() {
            let got = format!("{:?} and {:?}, rows {own:?}", image.dims(), text.dims());
            return Err(mismatch(format!("[n, {embed}] twice, and a range of rows"), got));
        }
        let scale = self.logit_scale().exp();
        let (first, rows) = (own.start, own.len());
        Ok(with_f32(image, |image| {
            with_f32(text, |text| Ok(f(Pairs { image, text, embed, first, rows, scale })))
        })?)
    }

    /// How many predictions the loss of these texts is the mean of, which weights the loss of a
    /// part of a batch. 0 if the objective compares pairs.
    ///
    /// # Errors
    /// `Input` if shape, type or an id do not match the configuration.
    pub fn predictions(&self, ids: &Tensor) -> Result<usize> {
        let texts = self.texts(ids)?;
        Ok(match self.config().objective.kind().family() {
            Family::Pairs(_) => 0,
            Family::Words(objective) => objective.predictions(&texts),
        })
    }
}

fn mismatch(expected: String, got: String) -> ModelError {
    ModelError::Input { what: "features of a batch", expected, got }
}
