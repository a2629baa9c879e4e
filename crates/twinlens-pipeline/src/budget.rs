//! Bounds the bytes in flight: they are reserved before they are read or decoded, and released on
//! drop.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Unit of reservations, in bytes: a semaphore counts in 32 bits, and budgets may be larger.
const GRAIN: u64 = 1024;

/// Limits the bytes that may be in flight at a time.
#[derive(Debug, Clone)]
pub struct ByteBudget {
    permits: Arc<Semaphore>,
    total: u32,
    /// The holder of this permit may exceed the budget.
    overdraft: Arc<Semaphore>,
}

impl ByteBudget {
    /// A budget of `bytes`, rounded up.
    pub fn new(bytes: u64) -> Self {
        let total = u32::try_from(bytes.div_ceil(GRAIN).max(1)).unwrap_or(u32::MAX);
        let total = total.min(u32::try_from(Semaphore::MAX_PERMITS).unwrap_or(u32::MAX));
        let overdraft = Arc::new(Semaphore::new(1));
        Self { permits: Arc::new(Semaphore::new(total as usize)), total, overdraft }
    }

    /// Waits until `bytes` are available. A request beyond the whole budget gets all of it, so that
    /// it runs alone instead of never.
    pub async fn reserve(&self, bytes: u64) -> Reservation {
        let grains = u32::try_from(bytes.div_ceil(GRAIN)).unwrap_or(u32::MAX).clamp(1, self.total);
        // The semaphore is never closed, so a permit always comes.
        Reservation { permit: self.permits.clone().acquire_many_owned(grains).await.ok(), overdraft: None }
    }

    /// As [`reserve`](Self::reserve), on a thread that may block.
    pub fn reserve_blocking(&self, bytes: u64) -> Reservation {
        futures::executor::block_on(self.reserve(bytes))
    }

    /// Grows a reservation to `bytes`, for bodies of unknown length. When the budget is used up,
    /// one reservation at a time may exceed it, so that growing reservations do not deadlock: at
    /// most the budget plus one whole body is in flight.
    pub async fn grow(&self, reservation: &mut Reservation, bytes: u64) {
        if reservation.overdraft.is_some() {
            return;
        }
        let more = bytes.div_ceil(GRAIN).saturating_sub(reservation.grains());
        let more = u32::try_from(more).unwrap_or(u32::MAX);
        match self.permits.clone().try_acquire_many_owned(more) {
            Ok(more) => match &mut reservation.permit {
                Some(permit) => permit.merge(more),
                None => reservation.permit = Some(more),
            },
            Err(_) => reservation.overdraft = self.overdraft.clone().acquire_owned().await.ok(),
        }
    }

    /// Bytes that are not reserved.
    pub fn available(&self) -> u64 {
        self.permits.available_permits() as u64 * GRAIN
    }
}

/// Reserved bytes, released on drop.
#[derive(Debug, Default)]
pub struct Reservation {
    permit: Option<OwnedSemaphorePermit>,
    overdraft: Option<OwnedSemaphorePermit>,
}

impl Reservation {
    fn grains(&self) -> u64 {
        self.permit.as_ref().map_or(0, |permit| permit.num_permits() as u64)
    }

    /// Releases what is reserved beyond `bytes`.
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
    async fn reservations_are_released() {
        let budget = ByteBudget::new(10 * GRAIN);
        let mut one = budget.reserve(6 * GRAIN - 1).await;
        assert_eq!(budget.available(), 4 * GRAIN);
        one.shrink(GRAIN + 1);
        assert_eq!(budget.available(), 8 * GRAIN);
        one.shrink(100 * GRAIN);
        assert_eq!(budget.available(), 8 * GRAIN);
        drop(one);
        let all = budget.reserve(u64::MAX).await;
        assert_eq!(budget.available(), 0);
        drop(all);
        assert_eq!(budget.available(), 10 * GRAIN);
    }

    #[tokio::test]
    async fn growing_reservations_do_not_deadlock() {
        let budget = ByteBudget::new(4 * GRAIN);
        let grow = |steps: u64| {
            let budget = budget.clone();
            async move {
                let mut held = budget.reserve(GRAIN).await;
                for step in 2..=steps {
                    tokio::task::yield_now().await;
                    budget.grow(&mut held, step * GRAIN).await;
                }
            }
        };
        let all = futures::future::join_all((0..8).map(|_| grow(3)));
        tokio::time::timeout(std::time::Duration::from_secs(5), all).await.unwrap();
        assert_eq!((budget.available(), budget.overdraft.available_permits()), (4 * GRAIN, 1));
    }
}
