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
use crate::ops::pairs::{self, Pairs, Shares};
use crate::ops::tensor_pairs::{TensorBlock, TensorPairs, TensorShares};
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

/// Features of some rows of a batch.
#[derive(Clone, Copy)]
pub struct Block<'a> {
    /// `[rows, embed]`, without a graph.
    pub image: &'a Tensor,
    /// `[rows, embed]`, without a graph; row i belongs to row i of the images.
    pub text: &'a Tensor,
    /// The number of the first row in the batch.
    pub first: usize,
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

impl Features<'_> {
    /// Calls `f` with the range of rows, the whole batch, and its number of rows.
    fn with_rows<R>(&self, f: impl FnOnce((Block<'_>, Block<'_>, usize)) -> Result<R>) -> Result<R> {
        let Features { image, text, own } = self;
        let n = image.dim(0)?;
        if own.end > n || own.is_empty() || text.dims() != image.dims() {
            let got = format!("{:?} and {:?}, rows {own:?}", image.dims(), text.dims());
            return Err(mismatch("as many images as texts, and a range of rows".into(), got));
        }
        let part = |side: &Tensor| side.narrow(0, own.start, own.len());
        let (own_image, own_text) = (part(image)?, part(text)?);
        let own = Block { image: &own_image, text: &own_text, first: own.start };
        f((own, Block { image, text, first: 0 }, n))
    }
}

impl Share {
    /// Adds a share of the same rows, compared with other rows.
    ///
    /// # Errors
    /// If the shapes differ.
    pub fn add(&mut self, other: &Self) -> Result<()> {
        self.loss += other.loss;
        self.image = (&self.image + &other.image)?;
        self.text = (&self.text + &other.text)?;
        for ((_, sum), (_, value)) in self.scalars.iter_mut().zip(&other.scalars) {
            *sum += value;
        }
        Ok(())
    }
}

impl Clip {
    /// Whether the shares of blocks of pairs add up to the loss, so that no process needs the
    /// features of all: see [`block_share`](Self::block_share).
    ///
    /// # Errors
    /// `Input` if the objective compares no pairs.
    pub fn adds_up(&self) -> Result<bool> {
        Ok(self.pair_objective()?.adds_up())
    }

    /// The share of some rows of a batch of `n`, compared with some rows, which may be the same.
    /// For an objective that [`adds_up`](Self::adds_up) alone.
    ///
    /// # Errors
    /// `Input` if the objective does not add up, or a shape does not match.
    pub fn block_share(&self, own: Block<'_>, others: Block<'_>, n: usize) -> Result<Share> {
        if !self.adds_up()? {
            return Err(mismatch("an objective whose shares add up".into(), "another".into()));
        }
        self.compare((own, others, n), &Default::default())
    }

    /// The sums over the whole batch that [`share`](Self::share) needs, for the range's images and
    /// texts: for the contrastive loss ln sum exp of the logits, otherwise empty.
    ///
    /// # Errors
    /// `Input` if the objective compares no pairs, or a shape does not match.
    pub fn log_sums(&self, features: &Features<'_>) -> Result<[Vec<f32>; 2]> {
        let objective = self.pair_objective()?;
        features.with_rows(|blocks @ (own, others, n)| {
            self.check_blocks(own, others, n)?;
            if own.image.device().is_cpu() {
                return Ok(self.with_slices(blocks, |pairs| objective.log_sums(&pairs))?);
            }
            Ok(objective.tensor_log_sums(&self.tensor_pairs(own, others, n))?)
        })
    }

    /// The share of the range, given the [`log_sums`](Self::log_sums) of all rows, in order.
    ///
    /// # Errors
    /// `Input` if the objective compares no pairs, or a shape does not match.
    pub fn share(&self, features: &Features<'_>, log_sums: &[Vec<f32>; 2]) -> Result<Share> {
        features.with_rows(|blocks| self.compare(blocks, log_sums))
    }

    /// The share of `own`, compared with `others`, rows of a batch of `n`.
    fn compare(
        &self,
        (own, others, n): (Block<'_>, Block<'_>, usize),
        log_sums: &[Vec<f32>; 2],
    ) -> Result<Share> {
        let (objective, tensors) = (self.pair_objective()?, self.tensors(false));
        let incomplete = || {
            let got = format!("{} and {}", log_sums[0].len(), log_sums[1].len());
            mismatch(format!("log sums of {n} rows"), got)
        };
        self.check_blocks(own, others, n)?;
        if own.image.device().is_cpu() {
            let shares =
                self.with_slices((own, others, n), |pairs| objective.shares(&pairs, log_sums, &tensors));
            let (Shares { loss, image, text, scale, bias }, scalars) = shares??.ok_or_else(incomplete)?;
            let [image, text] =
                [image, text].map(|side| Tensor::from_vec(side, own.image.dims(), own.image.device()));
            return Ok(Share { loss, image: image?, text: text?, scalars: named(scalars, scale, bias) });
        }
        let shares = objective.tensor_shares(&self.tensor_pairs(own, others, n), log_sums, &tensors)?;
        let (TensorShares { loss, image, text, scale, bias }, scalars) = shares.ok_or_else(incomplete)?;
        Ok(Share { loss, image, text, scalars: named(scalars, scale, bias) })
    }

    fn tensor_pairs<'a>(&self, own: Block<'a>, others: Block<'a>, n: usize) -> TensorPairs<'a> {
        let [own, others] =
            [own, others].map(|Block { image, text, first }| TensorBlock { image, text, first });
        TensorPairs { own, others, n, scale: self.logit_scale().exp(), kernels: self.kernels() }
    }

    fn check_blocks(&self, own: Block<'_>, others: Block<'_>, n: usize) -> Result<()> {
        let embed = self.config().embed;
        for Block { image, text, first } in [own, others] {
            let rows = image.dim(0)?;
            let is_right = image.dims() == [rows, embed] && text.dims() == [rows, embed];
            if !is_right || rows == 0 || first + rows > n {
                let got = format!("{:?} and {:?} from row {first}", image.dims(), text.dims());
                return Err(mismatch(format!("[rows, {embed}] twice, of {n} rows"), got));
            }
        }
        Ok(())
    }

    /// Calls `f` with the values of features in main memory.
    fn with_slices<R>(
        &self,
        (own, others, n): (Block<'_>, Block<'_>, usize),
        f: impl FnOnce(Pairs<'_>) -> R,
    ) -> candle_core::Result<R> {
        let (embed, scale) = (self.config().embed, self.logit_scale().exp());
        with_f32(own.image, |own_image| {
            with_f32(own.text, |own_text| {
                with_f32(others.image, |image| {
                    with_f32(others.text, |text| {
                        let own = pairs::Block { image: own_image, text: own_text, first: own.first };
                        let others = pairs::Block { image, text, first: others.first };
                        Ok(f(Pairs { own, others, n, embed, scale }))
                    })
                })
            })
        })
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

fn named(names: &[&'static str], scale: f64, bias: f64) -> Vec<(&'static str, f32)> {
    names.iter().copied().zip([scale as f32, bias as f32]).collect()
}

fn mismatch(expected: String, got: String) -> ModelError {
    ModelError::Input { what: "features of a batch", expected, got }
}
