//! Collective operations between the ranks of a training, on plain numbers outside the graph.
//!
//! A rank is a thread of this process ([`Threads`]) or a process of its own: [`Tcp`] needs nothing
//! but a network, and an MPI library can implement the same [`Collective`]. Sums are made in the
//! order of the ranks, so that all ranks end up with the same bits, whatever carries them.

mod board;
mod collective;
mod error;
mod launch;
mod pieces;
mod tcp;
mod threads;
mod transport;

pub use board::Board;
pub use collective::{Collective, Local};
pub use error::{RankError, Result};
pub use launch::Launch;
pub use pieces::{piece, sum_in_order};
pub use tcp::{Meeting, Tcp};
pub use threads::Threads;
pub use transport::Transport;
