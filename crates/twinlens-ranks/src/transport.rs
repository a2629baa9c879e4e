//! What carries values between ranks.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// What the ranks of a training are, and how they reach each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Transport {
    /// Threads of one process.
    Threads,
    /// Processes that a launcher started, connected by TCP.
    Tcp,
    /// Processes that an MPI launcher started, connected by its library.
    Mpi,
}

impl Transport {
    pub const ALL: [Self; 3] = [Self::Threads, Self::Tcp, Self::Mpi];

    pub fn name(self) -> &'static str {
        match self {
            Self::Threads => "threads",
            Self::Tcp => "tcp",
            Self::Mpi => "mpi",
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Transport {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let known = Self::ALL.into_iter().find(|transport| transport.name() == name);
        known.ok_or_else(|| format!("unknown ranks `{name}`: expected `threads`, `tcp` or `mpi`"))
    }
}
