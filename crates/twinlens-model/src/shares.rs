//! A batch in parts: the loss and its gradients where no one holds the graph of all pairs at once.
//!
//! For objectives that compare pairs: features of every part, without a graph; from the features of
//! all, the gradient of one's own in closed form; then each part again with its graph, whose
//! backward pass begins with that gradient. For objectives that predict words: the mean of the
//! parts' losses, weighed by their predictions. [`Clip::loss`] of the whole batch is the twin of
//! both.

use crate::clip::{Clip, no_text_features};
use crate::error::{ModelError, Result};
use crate::objective::Objective;
use crate::ops::pairs::{Pairs, Shares};
use crate::ops::with_f32;
use candle_core::Tensor;
use std::ops::Range;

/// The features of a whole batch, and which of its rows are one's own.
pub struct Features<'a> {
    /// `[n, embed]`, without a graph.
    pub image: &'a Tensor,
    /// `[n, embed]`, without a graph; row i belongs to row i of the images.
    pub text: &'a Tensor,
    /// One's own rows.
    pub own: Range<usize>,
}

/// What one's own rows have in the loss of the whole batch. The sums over all shares of the batch
/// are the loss, and the scalars' gradients.
pub struct Share {
    /// Of the loss.
    pub loss: f64,
    /// The gradient of the loss by one's own image features, `[own, embed]`: whole, not a part.
    pub image: Tensor,
    /// The gradient by one's own text features.
    pub text: Tensor,
    /// Of the gradients of `logit_scale` and `logit_bias`, by name.
    pub scalars: Vec<(&'static str, f32)>,
}

impl Clip {
    /// For each own image the logarithm of the sum of exp(logit) over all texts, and for each own
    /// text over all images: what [`share`](Self::share) takes, of all rows. Empty where the
    /// objective needs none.
    ///
    /// # Errors
    /// `Input` when the objective compares no pairs, or a shape does not fit.
    pub fn log_sums(&self, features: &Features<'_>) -> Result<[Vec<f32>; 2]> {
        match self.config().objective {
            Objective::Contrastive => self.with_pairs(features, |pairs| pairs.log_sums()),
            Objective::Sigmoid => Ok([Vec::new(), Vec::new()]),
            other => Err(no_text_features(other)),
        }
    }

    /// The share of one's own rows; `log_sums` are those of all images and of all texts, in their
    /// order.
    ///
    /// # Errors
    /// `Input` when the objective compares no pairs, or a shape does not fit.
    pub fn share(&self, features: &Features<'_>, log_sums: &[Vec<f32>; 2]) -> Result<Share> {
        let n = features.image.dim(0)?;
        let (shares, scalars) = match self.config().objective {
            Objective::Contrastive => {
                let [images, texts] = log_sums;
                if images.len() != n || texts.len() != n {
                    return Err(misfit(format!("{n} sums"), format!("{} and {}", images.len(), texts.len())));
                }
                (self.with_pairs(features, |pairs| pairs.contrastive(images, texts))?, vec!["logit_scale"])
            }
            Objective::Sigmoid => {
                let bias = self.variable("logit_bias")?.to_scalar::<f32>()?;
                (self.with_pairs(features, |pairs| pairs.sigmoid(bias))?, vec!["logit_scale", "logit_bias"])
            }
            other => return Err(no_text_features(other)),
        };
        let Shares { loss, image, text, scale, bias } = shares;
        let (shape, device) = ((features.own.len(), self.config().embed), features.image.device());
        Ok(Share {
            loss,
            image: Tensor::from_vec(image, shape, device)?,
            text: Tensor::from_vec(text, shape, device)?,
            scalars: scalars.into_iter().zip([scale as f32, bias as f32]).collect(),
        })
    }

    fn with_pairs<R>(&self, features: &Features<'_>, f: impl FnOnce(Pairs<'_>) -> R) -> Result<R> {
        let Features { image, text, own } = features;
        let embed = self.config().embed;
        let n = image.dim(0)?;
        if image.dims() != [n, embed] || text.dims() != [n, embed] || own.end > n || own.is_empty() {
            let got = format!("{:?} and {:?}, own {own:?}", image.dims(), text.dims());
            return Err(misfit(format!("[n, {embed}] twice, and rows of them"), got));
        }
        let scale = self.logit_scale().exp();
        let (first, rows) = (own.start, own.len());
        Ok(with_f32(image, |image| {
            with_f32(text, |text| Ok(f(Pairs { image, text, embed, first, rows, scale })))
        })?)
    }

    /// How many predictions the loss of these texts is the mean of: texts that have words, or all
    /// their words. By this a part of a batch weighs in the loss of the whole. 0 where the
    /// objective compares pairs.
    ///
    /// # Errors
    /// `Input` when shape, type or an id do not fit the configuration.
    pub fn predictions(&self, ids: &Tensor) -> Result<usize> {
        let texts = self.texts(ids)?;
        Ok(match self.config().objective {
            Objective::Contrastive | Objective::Sigmoid => 0,
            Objective::BagOfWords => texts.bags().iter().filter(|bag| !bag.is_empty()).count(),
            Objective::Caption => texts.lens.iter().map(|len| len.max(&2) - 1).sum(),
        })
    }
}

fn misfit(expected: String, got: String) -> ModelError {
    ModelError::Input { what: "features of a batch", expected, got }
}
