//! Batches, and where they come from.

use crate::error::Result;
use crate::options::TrainOptions;
use candle_core::Tensor;
use std::ops::Range;
use std::sync::mpsc::SyncSender;
use twinlens_image::Preprocess;

/// The input of a step, or a rank's part of it.
pub struct Batch {
    /// Pixels `[batch, 3, size, size]`, normalised.
    pub pixels: Tensor,
    /// Token ids `[batch, context]`.
    pub ids: Tensor,
    /// Epochs after this batch; fractional if the number of pairs is known.
    pub epoch: f64,
}

impl Batch {
    /// The `len` rows from `first`.
    ///
    /// # Errors
    /// If there are fewer.
    pub fn rows(&self, first: usize, len: usize) -> Result<Self> {
        let part = |tensor: &Tensor| tensor.narrow(0, first, len);
        Ok(Self { pixels: part(&self.pixels)?, ids: part(&self.ids)?, epoch: self.epoch })
    }
}

/// A source of batches. The batch of a step depends only on the step number, so that a training can
/// resume anywhere.
pub trait BatchSource: Sync {
    /// Token ids per caption.
    fn context(&self) -> usize;

    /// Sends the batches of `steps`, with images prepared as `preprocess` says, until the receiver
    /// is dropped.
    ///
    /// # Errors
    /// Errors of the data; `Interrupted`.
    fn run(
        &self,
        options: &TrainOptions,
        preprocess: &Preprocess,
        steps: Range<u64>,
        send: &SyncSender<Batch>,
    ) -> Result<()>;

    /// Ends a [`run`](Self::run) that waits for data.
    fn stop(&self) {}
}
