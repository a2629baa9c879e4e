//! Sums of processes of one machine through a file in memory: what each rank has, all others read
//! there, at the speed of copying. Values that are sent through sockets are copied more often and
//! wake two threads for each buffer.

use crate::collective::Collective;
use crate::error::{RankError, Result};
use crate::pieces::add_in_order;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Where Linux has files in memory.
const FOLDER: &str = "/dev/shm";
/// Values of each rank that are added up at a time: few enough to stay in a core's cache from when
/// they are written until they are added.
const CHUNK: usize = 1 << 17;
/// More ranks than these send each other pieces instead, since here each reads what all have.
const MOST_RANKS: usize = 4;

/// A place where all ranks of one machine put down values.
#[derive(Debug)]
pub struct Board {
    rank: usize,
    size: usize,
    file: File,
    /// Chunks that this rank has put down.
    chunks: AtomicUsize,
    /// A chunk of each rank.
    all: Mutex<Vec<f32>>,
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
        let mut created = (rank == 0).then(|| create(size)).transpose().ok().flatten();
        let mut name = created.as_ref().map_or_else(Vec::new, |(path, _)| path_bytes(path));
        ranks.broadcast_bytes(&mut name)?;
        let file = match created.take() {
            Some((path, file)) => {
                // Open on this rank; the others have until all have answered.
                created = Some((path, file.try_clone().map_err(|error| failed(&error))?));
                Some(file)
            }
            None => open(&name).ok(),
        };
        let is_missing = ranks.any(file.is_none());
        if let Some((path, _)) = created {
            // Nobody needs its name any more. The file ends with the last rank.
            let _ = std::fs::remove_file(path);
        }
        let file = file.filter(|_| is_missing == Ok(false));
        is_missing?;
        let all = Mutex::new(vec![0.0; size * CHUNK]);
        Ok(file.map(|file| Self { rank, size, file, chunks: AtomicUsize::new(0), all }))
    }

    /// Replaces the values by their sums over all ranks, added in the order of the ranks. `meet`
    /// waits until all ranks have called it.
    ///
    /// # Errors
    /// Those of `meet`; the file cannot be read or written.
    pub fn all_reduce_sum(&self, values: &mut [f32], meet: impl Fn() -> Result<()>) -> Result<()> {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        for chunk in values.chunks_mut(CHUNK) {
            // A rank puts down the next chunk while others still add this one. It cannot be two
            // chunks ahead, since all meet at each.
            let turn = self.chunks.fetch_add(1, Ordering::Relaxed) % 2;
            let place = |rank: usize| ((turn * self.size + rank) * CHUNK * 4) as u64;
            let written = self.file.write_all_at(bytemuck::cast_slice(chunk), place(self.rank));
            written.map_err(|error| failed(&error))?;
            meet()?;
            for (rank, values) in all.chunks_exact_mut(CHUNK).enumerate() {
                let values = &mut values[..chunk.len()];
                if rank == self.rank {
                    values.copy_from_slice(chunk);
                } else {
                    let read = self.file.read_exact_at(bytemuck::cast_slice_mut(values), place(rank));
                    read.map_err(|error| failed(&error))?;
                }
            }
            add_in_order(chunk, all.chunks_exact(CHUNK));
        }
        Ok(())
    }
}

fn failed(error: &io::Error) -> RankError {
    RankError::setup(
        format!("the ranks cannot share memory: {error}"),
        format!("make room in {FOLDER}, where each training needs a few megabytes"),
    )
}

/// A new file that only this user can open, with room for all ranks.
fn create(size: usize) -> io::Result<(PathBuf, File)> {
    let name: [u8; 16] = rand::random();
    let path = Path::new(FOLDER).join(format!("twinlens-ranks-{:032x}", u128::from_le_bytes(name)));
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
    let zeros = vec![0; CHUNK * 4];
    // Written, so that memory that is missing is noticed here.
    let room =
        (0..2 * size as u64).try_for_each(|place| file.write_all_at(&zeros, place * zeros.len() as u64));
    if let Err(error) = room {
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
