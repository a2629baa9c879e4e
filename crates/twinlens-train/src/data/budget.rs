//! A limit on the memory that threads use together.

use std::sync::{Condvar, Mutex, PoisonError};

/// A number of bytes that threads share; a thread waits until enough of them are free.
#[derive(Debug)]
pub(crate) struct Budget {
    total: usize,
    free: Mutex<usize>,
    freed: Condvar,
}

/// Reserved bytes, released on drop.
pub(crate) struct Reservation<'a> {
    budget: &'a Budget,
    bytes: usize,
}

impl Budget {
    pub(crate) fn new(total: usize) -> Self {
        Self { total, free: Mutex::new(total), freed: Condvar::new() }
    }

    /// Waits until `bytes` are free (or all bytes, if `bytes` exceeds the total) and reserves them.
    /// A thread must not reserve while it holds a reservation.
    pub(crate) fn reserve(&self, bytes: usize) -> Reservation<'_> {
        let bytes = bytes.min(self.total);
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.freed.wait_while(free, |free| *free < bytes);
        *waited.unwrap_or_else(PoisonError::into_inner) -= bytes;
        Reservation { budget: self, bytes }
    }
}

impl Drop for Reservation<'_> {
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
    fn reservations_never_exceed_the_total() {
        let (budget, held) = (Budget::new(100), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (budget, held) = (&budget, &held);
                scope.spawn(move || {
                    for round in 0..200 {
                        // Sometimes more than the total.
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
