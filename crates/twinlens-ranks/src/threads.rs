//! Ranks that are threads of one process.

use crate::collective::Collective;
use crate::error::{RankError, Result};
use crate::pieces::add_in_order;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Values of each rank that are added up at a time: few enough to stay in a core's cache from when
/// they are put down until they are added.
const CHUNK: usize = 1 << 17;

/// How often a rank looks for the others before it sleeps: a fraction of a millisecond.
const SPINS: u32 = 5000;

/// One of several ranks that are threads of this process. When a rank is dropped, the ranks that
/// wait for it return an error.
#[derive(Debug)]
pub struct Threads {
    rank: usize,
    shared: Arc<Shared>,
    /// Chunks that this rank has put down for sums.
    chunks: AtomicUsize,
}

/// What a rank puts down for all others.
type Place = RwLock<Vec<f32>>;

#[derive(Debug)]
struct Shared {
    round: Mutex<Round>,
    /// The number of meetings so far; it changes while `round` is locked.
    meetings: AtomicU64,
    changed: Condvar,
    /// The values of each rank in a gather or broadcast.
    values: Vec<Place>,
    /// A chunk of each rank for a sum, twice: a rank puts down the next one while others still add
    /// this one. It cannot be two chunks ahead, since all meet at each.
    chunks: [Vec<Place>; 2],
}

/// How many ranks have come to a meeting.
#[derive(Debug, Default)]
struct Round {
    come: usize,
    /// Whether a rank has exited.
    exited: bool,
}

impl Threads {
    /// Creates `size` ranks.
    pub fn new(size: usize) -> Vec<Self> {
        let places = || (0..size).map(|_| Place::default()).collect();
        let shared = Arc::new(Shared {
            round: Mutex::default(),
            meetings: AtomicU64::new(0),
            changed: Condvar::new(),
            values: places(),
            chunks: [places(), places()],
        });
        let rank = |rank| Self { rank, shared: shared.clone(), chunks: AtomicUsize::new(0) };
        (0..size).map(rank).collect()
    }

    fn round(&self) -> MutexGuard<'_, Round> {
        self.shared.round.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until all ranks have come.
    fn meet(&self) -> Result<()> {
        let shared = &*self.shared;
        let mut round = self.round();
        if round.exited {
            return Err(RankError::Exited);
        }
        let meeting = shared.meetings.load(Ordering::Relaxed);
        let is_over = || shared.meetings.load(Ordering::Acquire) != meeting;
        round.come += 1;
        if round.come == self.size() {
            round.come = 0;
            shared.meetings.store(meeting + 1, Ordering::Release);
            drop(round);
            shared.changed.notify_all();
            return Ok(());
        }
        drop(round);
        // The others are about to come: to be woken would take longer.
        for _ in 0..SPINS {
            if is_over() {
                return Ok(());
            }
            std::hint::spin_loop();
        }
        let mut round = self.round();
        while !is_over() {
            if round.exited {
                return Err(RankError::Exited);
            }
            round = shared.changed.wait(round).unwrap_or_else(PoisonError::into_inner);
        }
        Ok(())
    }

    /// Puts down values for all; returns what `take` takes of those of every rank.
    fn exchange<R>(&self, own: &[f32], take: impl FnOnce(&[Place]) -> R) -> Result<R> {
        let own_place = &self.shared.values[self.rank];
        *write(own_place) = own.to_vec();
        self.meet()?;
        let taken = take(&self.shared.values);
        // Nobody puts down other values before all have taken these.
        self.meet()?;
        *write(own_place) = Vec::new();
        Ok(taken)
    }
}

fn write(place: &Place) -> RwLockWriteGuard<'_, Vec<f32>> {
    place.write().unwrap_or_else(PoisonError::into_inner)
}

fn read(place: &Place) -> RwLockReadGuard<'_, Vec<f32>> {
    place.read().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.abort(0, "");
    }
}

impl Collective for Threads {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.shared.values.len()
    }

    fn all_gather(&self, values: &[f32]) -> Result<Vec<f32>> {
        self.exchange(values, |all| {
            let mut gathered = Vec::with_capacity(all.len() * values.len());
            all.iter().for_each(|values| gathered.extend_from_slice(&read(values)));
            gathered
        })
    }

    fn shift(&self, values: &[f32]) -> Result<Vec<f32>> {
        let before = (self.rank + self.size() - 1) % self.size();
        self.exchange(values, |all| read(&all[before]).clone())
    }

    fn all_reduce_sum(&self, values: &mut [f32]) -> Result<()> {
        for chunk in values.chunks_mut(CHUNK) {
            let places = &self.shared.chunks[self.chunks.fetch_add(1, Ordering::Relaxed) % 2];
            {
                let mut own = write(&places[self.rank]);
                own.clear();
                own.extend_from_slice(chunk);
            }
            self.meet()?;
            let all: Vec<_> = places.iter().map(read).collect();
            add_in_order(chunk, (self.rank, all.len()), |rank| &all[rank]);
        }
        Ok(())
    }

    fn broadcast(&self, values: &mut [f32]) -> Result<()> {
        let first = self.exchange(if self.rank == 0 { values } else { &[] }, |all| read(&all[0]).clone())?;
        values.copy_from_slice(&first);
        Ok(())
    }

    fn barrier(&self) -> Result<()> {
        self.meet()
    }

    fn abort(&self, _: u8, _: &str) {
        self.round().exited = true;
        self.shared.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs `f` on every rank and returns all results.
    fn on_ranks<R: Send>(size: usize, f: impl Fn(Threads) -> R + Sync) -> Vec<R> {
        std::thread::scope(|scope| {
            let f = &f;
            let all: Vec<_> =
                Threads::new(size).into_iter().map(|rank| scope.spawn(move || f(rank))).collect();
            all.into_iter().map(|rank| rank.join().unwrap()).collect()
        })
    }

    #[test]
    fn every_rank_gets_the_same_values() {
        let results = on_ranks(4, |ranks| {
            let own = ranks.rank() as f32;
            let mut log = Vec::new();
            // Many rounds, so that fast ranks overtake slow ones.
            for round in 0..200 {
                let mut values = [own + round as f32, 1.0];
                log.extend(ranks.all_gather(&values).unwrap());
                ranks.all_reduce_sum(&mut values).unwrap();
                log.extend(values);
                let mut values = [own, own];
                ranks.barrier().unwrap();
                ranks.broadcast(&mut values).unwrap();
                log.extend(values);
            }
            log
        });
        assert_eq!(results[0][..12], [0.0, 1.0, 1.0, 1.0, 2.0, 1.0, 3.0, 1.0, 6.0, 4.0, 0.0, 0.0]);
        assert!(results.iter().all(|result| *result == results[0]));
    }

    #[test]
    fn ranks_do_not_wait_for_one_that_exited() {
        let results = on_ranks(3, |ranks| if ranks.rank() == 1 { Ok(()) } else { ranks.barrier() });
        assert!(results[1].is_ok() && results[0] == Err(RankError::Exited) && results[2].is_err());
    }
}
