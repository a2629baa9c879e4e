//! Bytes that may be held at a time: whoever wants more waits.

use std::sync::{Condvar, Mutex, PoisonError};

/// A number of bytes that threads share.
#[derive(Debug)]
pub(crate) struct Budget {
    total: usize,
    free: Mutex<usize>,
    freed: Condvar,
}

/// Bytes that are given back when this is dropped.
pub(crate) struct Reserved<'a> {
    budget: &'a Budget,
    bytes: usize,
}

impl Budget {
    /// A budget of `total` bytes.
    pub(crate) fn new(total: usize) -> Self {
        Self { total, free: Mutex::new(total), freed: Condvar::new() }
    }

    /// Waits until so many bytes are free and takes them; one that wants more than there are in all
    /// waits until it is alone. A thread must not reserve while it holds a reservation.
    pub(crate) fn reserve(&self, bytes: usize) -> Reserved<'_> {
        let bytes = bytes.min(self.total);
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.freed.wait_while(free, |free| *free < bytes);
        *waited.unwrap_or_else(PoisonError::into_inner) -= bytes;
        Reserved { budget: self, bytes }
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        *self.budget.free.lock().unwrap_or_else(PoisonError::into_inner) += self.bytes;
        self.budget.freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn no_more_is_held_than_there_is() {
        let (budget, held) = (Budget::new(100), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (budget, held) = (&budget, &held);
                scope.spawn(move || {
                    for round in 0..200 {
                        // Now and then more than there is.
                        let bytes = (thread * 37 + round * 13) % 130;
                        let _reserved = budget.reserve(bytes);
                        assert!(held.fetch_add(bytes.min(100), Ordering::SeqCst) + bytes.min(100) <= 100);
                        held.fetch_sub(bytes.min(100), Ordering::SeqCst);
                    }
                });
            }
        });
        assert_eq!(*budget.free.lock().unwrap(), 100);
    }
}
