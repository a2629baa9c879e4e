//! The part of a set that template selection uses, and results exclude.

use sha2::{Digest, Sha256};
use twinlens_pipeline::RunContext;

/// The held-out part of a set, determined by the names of examples.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct HeldOut {
    seed: u64,
    share: f64,
}

impl HeldOut {
    /// A share of the examples, drawn by the pipeline's seed, independent of prompts and other
    /// sets.
    pub(crate) fn new(cx: &RunContext, set: &str, share: f64) -> Self {
        Self { seed: cx.seed_for(&format!("held out/{set}")), share }
    }

    pub(crate) fn contains(&self, example: &str) -> bool {
        let hash = Sha256::digest(format!("{}/{example}", self.seed));
        let number =
            u64::from_le_bytes([hash[0], hash[1], hash[2], hash[3], hash[4], hash[5], hash[6], hash[7]]);
        (number as f64) < self.share * 2_f64.powi(64)
    }
}
