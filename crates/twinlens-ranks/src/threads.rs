//! Ranks that are threads of one process.

use crate::collective::Collective;
use crate::error::{RankError, Result};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// One of several ranks that are threads of this process. When a rank is dropped, the ranks that
/// wait for it return an error.
#[derive(Debug)]
pub struct Threads {
    rank: usize,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    round: Mutex<Round>,
    changed: Condvar,
}

/// One exchange: every rank puts in its values and takes all values when they are complete.
#[derive(Debug)]
struct Round {
    values: Vec<Option<Arc<[f32]>>>,
    /// Ranks that have taken the values of this round.
    taken: usize,
    /// Whether a rank has exited.
    exited: bool,
}

impl Threads {
    /// Creates `size` ranks.
    pub fn new(size: usize) -> Vec<Self> {
        let round = Round { values: vec![None; size], taken: 0, exited: false };
        let shared = Arc::new(Shared { round: Mutex::new(round), changed: Condvar::new() });
        (0..size).map(|rank| Self { rank, shared: shared.clone() }).collect()
    }

    /// The values of every rank.
    fn exchange(&self, own: &[f32]) -> Result<Vec<Arc<[f32]>>> {
        let Shared { round, changed } = &*self.shared;
        let wait = |round| changed.wait(round).unwrap_or_else(PoisonError::into_inner);
        let mut round = round.lock().unwrap_or_else(PoisonError::into_inner);
        // Waits until slower ranks have taken this rank's values of the previous round.
        while round.values[self.rank].is_some() && !round.exited {
            round = wait(round);
        }
        if round.exited {
            return Err(RankError::Exited);
        }
        round.values[self.rank] = Some(own.into());
        changed.notify_all();
        while round.values.iter().any(Option::is_none) {
            if round.exited {
                return Err(RankError::Exited);
            }
            round = wait(round);
        }
        let all = round.values.iter().flatten().cloned().collect();
        round.taken += 1;
        if round.taken == round.values.len() {
            round.values.fill(None);
            round.taken = 0;
            changed.notify_all();
        }
        Ok(all)
    }
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
        self.shared.round.lock().unwrap_or_else(PoisonError::into_inner).values.len()
    }

    fn all_gather(&self, values: &[f32]) -> Result<Vec<f32>> {
        Ok(self.exchange(values)?.concat())
    }

    fn all_reduce_sum(&self, values: &mut [f32]) -> Result<()> {
        let all = self.exchange(values)?;
        values.fill(0.0);
        for other in &all {
            values.iter_mut().zip(other.iter()).for_each(|(sum, value)| *sum += value);
        }
        Ok(())
    }

    fn broadcast(&self, values: &mut [f32]) -> Result<()> {
        let all = self.exchange(if self.rank == 0 { values } else { &[] })?;
        values.copy_from_slice(&all[0]);
        Ok(())
    }

    fn barrier(&self) -> Result<()> {
        self.exchange(&[]).map(drop)
    }

    fn abort(&self, _: u8, _: &str) {
        self.shared.round.lock().unwrap_or_else(PoisonError::into_inner).exited = true;
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
