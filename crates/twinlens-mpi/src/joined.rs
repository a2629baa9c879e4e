//! What a rank knows once it has met the others.

use std::sync::Arc;
use twinlens_ranks::Collective;

/// A rank that has met the others.
#[derive(Debug)]
pub struct Joined {
    pub ranks: Arc<dyn Collective>,
    /// The number among the ranks of this machine.
    pub local_rank: usize,
    /// Ranks of this machine.
    pub local_size: usize,
}
