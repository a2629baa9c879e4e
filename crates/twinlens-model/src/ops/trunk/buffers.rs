//! Memory reused from step to step.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Buffers kept from one step to the next: fresh memory costs a page fault for every 4 KiB.
#[derive(Clone, Default)]
pub struct Buffers(Arc<Mutex<Kept>>);

/// The batch size that buffers are kept for, and the buffers by length.
type Kept = (usize, BTreeMap<usize, Vec<Vec<f32>>>);

impl Buffers {
    /// Frees the buffers of other batch sizes.
    pub(super) fn for_batch(&self, batch: usize) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.0 != batch {
            *kept = (batch, BTreeMap::new());
        }
    }

    /// A buffer with arbitrary contents.
    pub(super) fn take(&self, len: usize) -> Vec<f32> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.1.get_mut(&len).and_then(Vec::pop).unwrap_or_else(|| vec![0.0; len])
    }

    /// Returns a buffer for reuse.
    pub(super) fn put(&self, buffer: Vec<f32>) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.1.entry(buffer.len()).or_default().push(buffer);
    }
}
