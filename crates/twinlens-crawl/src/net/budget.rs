//! Bytes in flight, bounded at admission: reserved before they are read or decoded, given back when they are dropped.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The grain of reservations, in bytes: a semaphore counts in 32 bits, and budgets may be larger.
const GRAIN: u64 = 1024;

/// A number of bytes that may be in flight at a time.
#[derive(Debug, Clone)]
pub struct ByteBudget {
    permits: Arc<Semaphore>,
    total: u32,
}

impl ByteBudget {
    /// A budget of about `bytes`.
    pub fn new(bytes: u64) -> Self {
        let total = u32::try_from(bytes.div_ceil(GRAIN).max(1)).unwrap_or(u32::MAX);
        let total = total.min(u32::try_from(Semaphore::MAX_PERMITS).unwrap_or(u32::MAX));
        Self { permits: Arc::new(Semaphore::new(total as usize)), total }
    }

    /// Waits until `bytes` are free. One that asks for more than there is gets all, alone: it goes slowly instead of never.
    pub async fn reserve(&self, bytes: u64) -> Reservation {
        let grains = u32::try_from(bytes.div_ceil(GRAIN)).unwrap_or(u32::MAX).clamp(1, self.total);
        // The semaphore is never closed, so there is always a permit in the end.
        Reservation { permit: self.permits.clone().acquire_many_owned(grains).await.ok() }
    }

    /// Bytes that are free now.
    pub fn free(&self) -> u64 {
        self.permits.available_permits() as u64 * GRAIN
    }
}

/// Reserved bytes; given back on drop.
#[derive(Debug, Default)]
pub struct Reservation {
    permit: Option<OwnedSemaphorePermit>,
}

impl Reservation {
    /// Gives back what is reserved beyond `bytes`.
    pub fn shrink(&mut self, bytes: u64) {
        let keep = usize::try_from(bytes.div_ceil(GRAIN)).unwrap_or(usize::MAX);
        if let Some(permit) = &mut self.permit {
            let surplus = permit.num_permits().saturating_sub(keep);
            drop(permit.split(surplus));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn reservations_are_given_back() {
        let budget = ByteBudget::new(10 * GRAIN);
        let mut one = budget.reserve(6 * GRAIN - 1).await;
        assert_eq!(budget.free(), 4 * GRAIN);
        one.shrink(GRAIN + 1);
        assert_eq!(budget.free(), 8 * GRAIN);
        one.shrink(100 * GRAIN);
        assert_eq!(budget.free(), 8 * GRAIN);
        drop(one);
        let all = budget.reserve(u64::MAX).await;
        assert_eq!(budget.free(), 0);
        drop(all);
        assert_eq!(budget.free(), 10 * GRAIN);
    }
}
