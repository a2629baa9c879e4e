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

/// What a rank needs of the batches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    pub steps: Range<u64>,
    /// Of each batch, the rows of this rank, counted from 0 ...
    pub rank: usize,
    /// ... of so many.
    pub ranks: usize,
}

impl Part {
    /// The whole batches of these steps.
    pub fn whole(steps: Range<u64>) -> Self {
        Self { steps, rank: 0, ranks: 1 }
    }

    /// The places of this rank in a batch of `batch` rows.
    pub fn rows(&self, batch: usize) -> Range<usize> {
        let rows = batch / self.ranks.max(1);
        self.rank * rows..(self.rank + 1) * rows
    }
}

/// A source of batches. The batch of a step depends only on the step number, so that a training can
/// resume anywhere.
pub trait BatchSource: Sync {
    /// Token ids per caption.
    fn context(&self) -> usize;

    /// Sends a part of the batches, with images prepared as `preprocess` says, until the receiver
    /// is dropped.
    ///
    /// # Errors
    /// Errors of the data; `Interrupted`.
    fn run(
        &self,
        options: &TrainOptions,
        preprocess: &Preprocess,
        part: Part,
        send: &SyncSender<Batch>,
    ) -> Result<()>;

    /// Ends a [`run`](Self::run) that waits for data.
    fn stop(&self) {}

    /// In words what these data are: ranks that are processes compare it.
    ///
    /// # Errors
    /// If the data cannot be read.
    fn identity(&self) -> Result<String> {
        Ok(String::new())
    }

    /// The rows that were rejected since the last call, for
    /// [`merge_rejects`](Self::merge_rejects) of another process.
    ///
    /// # Errors
    /// A defect.
    fn take_rejects(&self) -> Result<Vec<u8>> {
        Ok(Vec::new())
    }

    /// Adds rows that another process has rejected.
    ///
    /// # Errors
    /// If they cannot be recorded.
    fn merge_rejects(&self, _: &[u8]) -> Result<()> {
        Ok(())
    }
}
