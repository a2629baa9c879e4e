//! What an objective is: the traits that each one implements, and what it computes with.

use crate::compute::Precision;
use crate::ops::device::DeviceOptions;
use crate::ops::embed::Texts;
use crate::ops::pairs::{Pairs, Shares};
use crate::ops::reference::Tensors;
use crate::ops::tensor_pairs::{TensorPairs, TensorShares};
use crate::towers::text::{TextConfig, TextTower};
use crate::variables::Declarations;
use candle_core::{Result, Tensor};
use serde_json::Value;

/// What a model is trained to do, and the variables that it needs for it.
pub(crate) trait ObjectiveKind: Sync {
    /// The name in configurations.
    fn name(&self) -> &'static str;

    /// One sentence for the schema.
    fn summary(&self) -> &'static str;

    /// How it learns from texts.
    fn family(&self) -> Family<'_>;

    /// Declares all variables but the image tower's.
    fn declare(&self, variables: &mut Declarations, text: &TextConfig, embed: usize);

    /// Operations (additions and multiplications) for one text.
    fn text_flops(&self, text: &TextConfig, embed: usize) -> usize;

    /// The loss of a model that predicts by chance, if it is known.
    fn chance_loss(&self, _batch: usize) -> Option<f64> {
        None
    }

    /// What it adds to open_clip's configuration, if open_clip has such models.
    fn open_clip_settings(&self) -> Option<Vec<(&'static str, Value)>> {
        None
    }
}

/// The two families of objectives.
pub(crate) enum Family<'a> {
    /// Images and texts are embedded in one space.
    Pairs(&'a dyn PairObjective),
    /// Texts are predicted from image features.
    Words(&'a dyn WordObjective),
}

/// An objective that compares unit-length features of images and texts (`[n, embed]`, row i of each
/// a pair). Its `logit_scale`, and its `logit_bias` if it has one, are scalars among `tensors`.
pub(crate) trait PairObjective {
    /// The scalar loss, as a fused operation on the CPU.
    fn loss(&self, image: &Tensor, text: &Tensor, tensors: &Tensors) -> Result<Tensor>;

    /// The scalar loss in candle's basic operations.
    fn reference_loss(&self, image: &Tensor, text: &Tensor, tensors: &Tensors) -> Result<Tensor>;

    /// The scalar loss on a GPU, and in half precision.
    fn device_loss(
        &self,
        image: &Tensor,
        text: &Tensor,
        tensors: &Tensors,
        _options: DeviceOptions,
    ) -> Result<Tensor> {
        self.reference_loss(image, text, tensors)
    }

    /// For the images and for the texts of a range of rows, the sums over the whole batch that
    /// [`shares`](Self::shares) needs of all rows.
    fn log_sums(&self, _pairs: &Pairs<'_>) -> [Vec<f32>; 2] {
        [Vec::new(), Vec::new()]
    }

    /// Whether the loss is a sum over pairs, so that [`shares`](Self::shares) of parts of the batch
    /// add up.
    fn adds_up(&self) -> bool {
        false
    }

    /// The share of a range of rows in the loss, and which scalars have gradients. `None` if
    /// `log_sums` are not those of all rows.
    fn shares(
        &self,
        pairs: &Pairs<'_>,
        log_sums: &[Vec<f32>; 2],
        tensors: &Tensors,
    ) -> Result<Option<(Shares, &'static [&'static str])>>;

    /// As [`log_sums`](Self::log_sums), of features on any device.
    fn tensor_log_sums(&self, _pairs: &TensorPairs<'_>) -> Result<[Vec<f32>; 2]> {
        Ok([Vec::new(), Vec::new()])
    }

    /// As [`shares`](Self::shares), of features on any device.
    fn tensor_shares(
        &self,
        pairs: &TensorPairs<'_>,
        log_sums: &[Vec<f32>; 2],
        tensors: &Tensors,
    ) -> Result<Option<(TensorShares, &'static [&'static str])>>;
}

/// What an objective that predicts words computes with.
pub(crate) struct WordContext<'a> {
    pub text: TextTower<'a>,
    pub embed: usize,
    /// The precision of matrix products in basic operations.
    pub precision: Precision,
}

/// An objective that predicts the words of a text from image features (`[n, embed]`, any length).
pub(crate) trait WordObjective {
    /// How many predictions the loss of these texts is the mean of.
    fn predictions(&self, texts: &Texts) -> usize;

    /// The scalar loss of images and their texts, in fused operations on the CPU.
    fn loss(&self, cx: &WordContext<'_>, image: &Tensor, texts: &Texts) -> Result<Tensor>;

    /// The scalar loss of images and the token `ids` (`[n, context]`) of their texts, in candle's
    /// basic operations.
    fn reference_loss(&self, cx: &WordContext<'_>, image: &Tensor, ids: &Tensor) -> Result<Tensor>;

    /// Scores of every text for every image, row by row; higher is better.
    fn score(&self, cx: &WordContext<'_>, image: &Tensor, texts: &Texts) -> Result<Vec<f32>>;

    /// The same in candle's basic operations; `ids` are those of `texts`, `[texts, context]`.
    fn reference_score(
        &self,
        cx: &WordContext<'_>,
        image: &Tensor,
        ids: &Tensor,
        texts: &Texts,
    ) -> Result<Vec<f32>>;
}
