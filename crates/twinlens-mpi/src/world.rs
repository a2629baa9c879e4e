//! The ranks of `MPI_COMM_WORLD`.
//!
//! `MPI_Allreduce` promises no order of its sums. Here each rank adds up a piece of the values in
//! the order of the ranks, so that the bits are those of threads; the traffic is that of a ring.
//!
//! The library ends all ranks when one is lost, or when an operation fails, so that no operation
//! here returns an error. A rank that fails must call [`Collective::abort`]: if it only left, the
//! others would wait for it for ever.
#![allow(unsafe_code, reason = "communicators are raw pointers, which are not Send")]

use crate::joined::Joined;
use mpi::Threading;
use mpi::environment::Universe;
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator, CommunicatorCollectives, Destination, Root, Source};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use twinlens_ranks::{Board, Collective, RankError, Result, sum_in_order};

/// The tag of the message that wakes a rank.
const WAKE: i32 = 77;
/// How often a sleeping rank looks for it: a blocking receive would use a core.
const LOOK: Duration = Duration::from_millis(5);
/// Values of one call, whose count is a 32-bit integer.
const MOST: usize = 1 << 28;

/// The library, initialised. Dropping it waits for all ranks.
struct World {
    communicator: SimpleCommunicator,
    _universe: Universe,
}

// SAFETY: the library was initialised with `MPI_THREAD_SERIALIZED`, so any thread may call it as
// long as no two do at a time; a `World` is only used under the lock of `Mpi`.
unsafe impl Send for World {}

/// A rank.
struct Mpi {
    rank: usize,
    size: usize,
    /// `None` after [`Collective::close`].
    world: Mutex<Option<World>>,
    /// For the sums of ranks of one machine.
    board: Option<Board>,
}

impl fmt::Debug for Mpi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mpi").field("rank", &self.rank).field("size", &self.size).finish()
    }
}

pub(crate) fn join(build: &str) -> Result<Joined> {
    let Some((universe, threading)) = mpi::initialize_with_threading(Threading::Serialized) else {
        return Err(RankError::setup("MPI was already initialised in this process", ""));
    };
    if threading < Threading::Serialized {
        return Err(RankError::setup(
            format!("this MPI library does not allow threads: it offers {threading:?} alone"),
            "use one that was built with MPI_THREAD_SERIALIZED, or `--ranks tcp`",
        ));
    }
    let communicator = universe.world();
    let (rank, size) = (communicator.rank(), communicator.size());
    let machine = communicator.split_shared(rank);
    let (local_rank, local_size) = (machine.rank() as usize, machine.size() as usize);
    let world = Mutex::new(Some(World { communicator, _universe: universe }));
    let mut ranks = Mpi { rank: rank as usize, size: size as usize, world, board: None };
    let builds = ranks.all_gather_bytes(build.as_bytes())?;
    if let Some(other) = builds.iter().position(|other| *other != builds[0]) {
        let text = |rank: usize| String::from_utf8_lossy(&builds[rank]).into_owned();
        let message = format!("rank {other} is another build: {}, and rank 0 is {}", text(other), text(0));
        let hint = "run the same program on all machines: another one may compute other numbers";
        return Err(RankError::setup(message, hint));
    }
    ranks.board = Board::open(&ranks)?;
    Ok(Joined { ranks: Arc::new(ranks), local_rank, local_size })
}

impl Mpi {
    fn lock(&self) -> MutexGuard<'_, Option<World>> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls the library.
    fn with<T>(&self, call: impl FnOnce(&SimpleCommunicator) -> T) -> Result<T> {
        let world = self.lock();
        let closed = || RankError::OutOfStep("an operation after the end".into());
        Ok(call(&world.as_ref().ok_or_else(closed)?.communicator))
    }
}

impl Drop for Mpi {
    fn drop(&mut self) {
        // The others would wait for this rank for ever.
        if std::thread::panicking() {
            self.abort(2, "a defect, please report it");
        }
    }
}

impl Collective for Mpi {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn all_gather(&self, values: &[f32]) -> Result<Vec<f32>> {
        let mut all = vec![0.0; values.len() * self.size];
        if !values.is_empty() {
            self.with(|world| world.all_gather_into(values, &mut all[..]))?;
        }
        Ok(all)
    }

    fn shift(&self, values: &[f32]) -> Result<Vec<f32>> {
        let mut shifted = values.to_vec();
        let (to, from) = ((self.rank + 1) % self.size, (self.rank + self.size - 1) % self.size);
        for (own, shifted) in values.chunks(MOST).zip(shifted.chunks_mut(MOST)) {
            self.with(|world| {
                let (to, from) = (world.process_at_rank(to as i32), world.process_at_rank(from as i32));
                mpi::point_to_point::send_receive_into(own, &to, shifted, &from);
            })?;
        }
        Ok(shifted)
    }

    fn all_reduce_sum(&self, values: &mut [f32]) -> Result<()> {
        if values.is_empty() {
            return Ok(());
        }
        if let Some(board) = self.board.as_ref().filter(|_| values.len() >= Board::WORTHWHILE) {
            // The library ends all ranks when one is lost.
            return board.all_reduce_sum(values, || Ok(()));
        }
        let length = values.len().div_ceil(self.size);
        let mut padded = values.to_vec();
        padded.resize(length * self.size, 0.0);
        let mut pieces = vec![0.0; padded.len()];
        self.with(|world| world.all_to_all_into(&padded[..], &mut pieces[..]))?;
        let mut own = pieces[self.rank * length..][..length].to_vec();
        sum_in_order(&mut own, &pieces, self.rank);
        self.with(|world| world.all_gather_into(&own[..], &mut padded[..]))?;
        values.copy_from_slice(&padded[..values.len()]);
        Ok(())
    }

    fn broadcast(&self, values: &mut [f32]) -> Result<()> {
        values
            .chunks_mut(MOST)
            .try_for_each(|part| self.with(|world| world.process_at_rank(0).broadcast_into(part)))
    }

    fn sleep(&self) -> Result<()> {
        while self.rank > 0
            && self.with(|world| {
                let first = world.process_at_rank(0);
                let is_awake = first.immediate_probe_with_tag(WAKE).is_some();
                if is_awake {
                    first.receive_into_with_tag(&mut [0u8][..], WAKE);
                }
                !is_awake
            })?
        {
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    fn wake(&self) -> Result<()> {
        (1..self.size as i32).try_for_each(|rank| {
            self.with(|world| world.process_at_rank(rank).send_with_tag(&[1u8][..], WAKE))
        })
    }

    fn abort(&self, code: u8, message: &str) {
        // Another thread that holds the lock may be in an operation that never ends.
        if self.world.try_lock().is_ok_and(|world| world.is_none()) {
            return;
        }
        // The library ends this process, too: nobody else will say why.
        eprintln!("rank {} ends all ranks: {message}", self.rank);
        SimpleCommunicator::world().abort(i32::from(code));
    }

    fn close(&self) {
        drop(self.lock().take());
    }
}
