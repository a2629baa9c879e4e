//! Memory that serves step after step.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Memory kept from one step to the next, by length: memory fresh from the system costs a page
/// fault for every 4 KiB.
#[derive(Clone, Default)]
pub struct Buffers(Arc<Mutex<Kept>>);

/// The batch that memory is kept for, and the memory by length.
type Kept = (usize, BTreeMap<usize, Vec<Vec<f32>>>);

impl Buffers {
    /// Lets go of what was kept for batches of another size.
    pub(super) fn for_batch(&self, batch: usize) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.0 != batch {
            *kept = (batch, BTreeMap::new());
        }
    }

    /// Numbers to be overwritten.
    pub(super) fn take(&self, len: usize) -> Vec<f32> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.1.get_mut(&len).and_then(Vec::pop).unwrap_or_else(|| vec![0.0; len])
    }

    /// What will not be read again.
    pub(super) fn put(&self, buffer: Vec<f32>) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.1.entry(buffer.len()).or_default().push(buffer);
    }
}
