//! Sums of processes of one machine through memory that they share: what each rank has, all others
//! read there, at the speed of copying. Values that are sent through sockets are copied more often
//! and wake two threads for each buffer.

mod memory;

use crate::collective::Collective;
use crate::error::Result;
use crate::pieces::{BLOCK, add_in_order};
use memory::Memory;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Where Linux has files in memory.
const FOLDER: &str = "/dev/shm";
/// Values of each rank that are added up at a time: few enough to stay in a core's cache from when
/// they are written until they are added.
const CHUNK: usize = 1 << 17;
/// Values of a cache line, of which each rank's counter has one.
const LINE: usize = 16;
/// How often a rank looks for the others before it sleeps: a fraction of a millisecond.
const SPINS: u32 = 5000;
/// How long it sleeps.
const NAP: Duration = Duration::from_micros(50);
/// How often a rank that waits looks whether the others are alive.
const LOOK: Duration = Duration::from_millis(50);
/// More ranks than these send each other pieces instead, since here each reads what all have.
const MOST_RANKS: usize = 4;

/// A place where all ranks of one machine put down values.
#[derive(Debug)]
pub struct Board {
    rank: usize,
    size: usize,
    memory: Memory,
    /// Chunks that this rank has put down.
    chunks: AtomicUsize,
}

impl Board {
    /// Below as many values, messages are as fast.
    pub const WORTHWHILE: usize = 1 << 14;

    /// Opens a place for all ranks. `None` on all of them if they are on several machines, are too
    /// many, or have no such place.
    ///
    /// # Errors
    /// If another rank has exited.
    pub fn open(ranks: &dyn Collective) -> Result<Option<Self>> {
        let (rank, size) = (ranks.rank(), ranks.size());
        if !(2..=MOST_RANKS).contains(&size) {
            return Ok(None);
        }
        let created = if rank == 0 { create(size).ok() } else { None };
        let mut name = created.as_ref().map_or_else(Vec::new, |(path, _)| path_bytes(path));
        ranks.broadcast_bytes(&mut name)?;
        let memory = match &created {
            Some((_, file)) => Some(Memory::map(file, room(size))),
            None if rank > 0 => Some(open(&name).and_then(|file| Memory::map(&file, room(size)))),
            None => None,
        };
        let memory = memory.and_then(Result::ok);
        let is_missing = ranks.any(memory.is_none());
        if let Some((path, _)) = created {
            // Nobody needs its name any more. The memory is free when the last rank has ended.
            let _ = std::fs::remove_file(path);
        }
        if is_missing? {
            return Ok(None);
        }
        Ok(memory.map(|memory| Self { rank, size, memory, chunks: AtomicUsize::new(0) }))
    }

    /// Replaces the values by their sums over all ranks, added in the order of the ranks. `check`
    /// looks whether the others are alive.
    ///
    /// # Errors
    /// Those of `check`.
    pub fn all_reduce_sum(&self, values: &mut [f32], check: impl Fn() -> Result<()>) -> Result<()> {
        let mut others = [[0.0; BLOCK]; MOST_RANKS];
        for chunk in values.chunks_mut(CHUNK) {
            // A rank puts down the next chunk while others still add this one. It cannot be two
            // chunks ahead, since all meet at each.
            let number = self.chunks.fetch_add(1, Ordering::Relaxed);
            let turn = number % 2;
            let place = |rank: usize| (turn * self.size + rank) * CHUNK;
            self.memory.put(place(self.rank), chunk);
            self.memory.count(self.counter(self.rank));
            self.wait(number as u64 + 1, &check)?;
            for (block, own) in chunk.chunks_mut(BLOCK).enumerate() {
                for rank in (0..self.size).filter(|rank| *rank != self.rank) {
                    self.memory.get(place(rank) + block * BLOCK, &mut others[rank][..own.len()]);
                }
                add_in_order(own, (self.rank, self.size), |rank| &others[rank]);
            }
        }
        Ok(())
    }

    /// The place of the number of chunks that a rank has put down.
    fn counter(&self, rank: usize) -> usize {
        2 * self.size * CHUNK + rank * LINE
    }

    /// Waits until each rank has put down so many chunks.
    fn wait(&self, chunks: u64, check: &dyn Fn() -> Result<()>) -> Result<()> {
        let is_there = || (0..self.size).all(|rank| self.memory.counted(self.counter(rank)) >= chunks);
        // The others are about to come: to be woken would take longer.
        for _ in 0..SPINS {
            if is_there() {
                return Ok(());
            }
            std::hint::spin_loop();
        }
        let mut looked = Instant::now();
        while !is_there() {
            std::thread::sleep(NAP);
            if looked.elapsed() > LOOK {
                check()?;
                looked = Instant::now();
            }
        }
        Ok(())
    }
}

/// Values of two chunks of each rank, and of the counters.
fn room(size: usize) -> usize {
    size * (2 * CHUNK + LINE)
}

/// A new file that only this user can open, with room for all ranks.
fn create(size: usize) -> io::Result<(PathBuf, File)> {
    let name: [u8; 16] = rand::random();
    let path = Path::new(FOLDER).join(format!("twinlens-ranks-{:032x}", u128::from_le_bytes(name)));
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
    // Written, so that memory that is missing is noticed here.
    let written = (&file).write_all(&vec![0; 4 * room(size)]);
    if let Err(error) = written {
        let _ = std::fs::remove_file(&path);
        return Err(error);
    }
    Ok((path, file))
}

fn path_bytes(path: &Path) -> Vec<u8> {
    path.to_string_lossy().into_owned().into_bytes()
}

/// The file that rank 0 has named, which no other machine has.
fn open(name: &[u8]) -> io::Result<File> {
    let name = std::str::from_utf8(name).map_err(io::Error::other)?;
    OpenOptions::new().read(true).write(true).open(name)
}
