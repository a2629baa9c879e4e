//! Launches of the contrastive loss.

use super::launch::{Argument, Launch, Storage, WARPS, blocks};
use candle_core::Result;

/// ln sum exp of each row of logits.
#[derive(Clone, Debug)]
pub struct RowLogSums<B> {
    /// `[rows, n]`.
    pub logits: B,
    /// `[rows]`, f32.
    pub log_sums: B,
    /// Rows and `n`.
    pub shape: (usize, usize),
}

impl<B: Copy> RowLogSums<B> {
    /// Its launch.
    ///
    /// # Errors
    /// If a size is too large.
    pub fn launch(&self, storage: Storage) -> Result<Launch<B>> {
        Ok(Launch {
            source: "contrastive",
            kernel: format!("row_log_sums_{}", storage.suffix()),
            grid: [blocks(self.shape.0)?, 1, 1],
            shared: 4 * WARPS,
            arguments: vec![
                Argument::Buffer(self.logits),
                Argument::Buffer(self.log_sums),
                Argument::I64(self.shape.1 as i64),
            ],
        })
    }
}

/// Logits of a range of one side's rows, replaced by the gradient of the symmetric cross-entropy.
#[derive(Clone, Debug)]
pub struct ContrastiveGradient<B> {
    /// `[rows, n]`.
    pub logits: B,
    /// [`RowLogSums`] of all rows of this side, `[n]`, f32.
    pub own: B,
    /// Those of the other side, `[n]`, f32.
    pub other: B,
    /// Of each row its share of the loss and of the gradient of the temperature's logarithm,
    /// `[rows, 2]`, f32.
    pub shares: B,
    /// Rows and `n`.
    pub shape: (usize, usize),
    /// The number of the first row.
    pub first: usize,
}

impl<B: Copy> ContrastiveGradient<B> {
    /// Its launch.
    ///
    /// # Errors
    /// If a size is too large.
    pub fn launch(&self, storage: Storage) -> Result<Launch<B>> {
        Ok(Launch {
            source: "contrastive",
            kernel: format!("contrastive_gradient_{}", storage.suffix()),
            grid: [blocks(self.shape.0)?, 1, 1],
            shared: 4 * WARPS,
            arguments: vec![
                Argument::Buffer(self.logits),
                Argument::Buffer(self.own),
                Argument::Buffer(self.other),
                Argument::Buffer(self.shares),
                Argument::I64(self.shape.1 as i64),
                Argument::I64(self.first as i64),
            ],
        })
    }
}
