//! When readers of a dataset compare what they read with its checksums.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// When readers of a dataset compare what they read with its checksums. Models, tokenizers and
/// checkpoints are always compared, as a whole.
#[derive(Debug, Clone, Default)]
pub enum Verify {
    /// Each time that a block is read.
    #[default]
    Always,
    /// The first time that this process reads a block.
    First(Arc<SeenFiles>),
    /// Never.
    Never,
}

/// The blocks that were compared, by file.
#[derive(Debug, Default)]
pub struct SeenFiles(Mutex<HashMap<PathBuf, Arc<SeenBlocks>>>);

impl SeenFiles {
    /// The blocks of a file that has so many.
    pub(super) fn of(&self, path: &Path, blocks: usize) -> Arc<SeenBlocks> {
        let mut files = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || Arc::new(SeenBlocks((0..blocks.div_ceil(64)).map(|_| AtomicU64::new(0)).collect()));
        files.entry(path.into()).or_insert_with(new).clone()
    }
}

/// The blocks of a file that were compared, a bit each.
#[derive(Debug)]
pub(super) struct SeenBlocks(Box<[AtomicU64]>);

impl SeenBlocks {
    pub(super) fn contains(&self, block: u64) -> bool {
        self.0
            .get((block / 64) as usize)
            .is_some_and(|bits| bits.load(Ordering::Relaxed) >> (block % 64) & 1 == 1)
    }

    pub(super) fn insert(&self, block: u64) {
        if let Some(bits) = self.0.get((block / 64) as usize) {
            bits.fetch_or(1 << (block % 64), Ordering::Relaxed);
        }
    }
}
