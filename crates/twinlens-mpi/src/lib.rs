//! Ranks of a training that an MPI library connects: Open MPI, MPICH, Intel MPI.
//!
//! Without the feature `mpi`, [`join`] says that it is missing, and nothing of an MPI library is
//! linked. With it, MPI is initialised by [`join`] alone: a program that is merely started inside
//! of a job step does not call it.

mod joined;
#[cfg(feature = "mpi")]
mod world;

pub use joined::Joined;
use twinlens_ranks::Result;

/// Meets the other ranks that the launcher started. `build` tells programs apart that could compute
/// other numbers.
///
/// # Errors
/// `Setup` if MPI cannot be used, or a rank is of another build.
#[cfg(feature = "mpi")]
pub fn join(build: &str) -> Result<Joined> {
    world::join(build)
}

/// Says that this program was built without MPI.
///
/// # Errors
/// Always `Setup`.
#[cfg(not(feature = "mpi"))]
pub fn join(_: &str) -> Result<Joined> {
    Err(twinlens_ranks::RankError::setup(
        "this program was built without MPI",
        "use `--ranks tcp`, which needs no library, or build with `--features mpi` (it needs an MPI library \
         with its headers, and libclang)",
    ))
}
