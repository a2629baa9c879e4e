//! Tests of the `twinlens` command, in one binary, because linking it takes long.

#![allow(clippy::unwrap_used, reason = "a failing test may panic")]

mod architecture;
#[cfg(unix)]
mod by_host;
mod cases;
#[cfg(unix)]
mod change_of_mind;
#[cfg(all(unix, feature = "cluster"))]
mod cluster;
mod command;
mod continued;
mod contracts;
mod crash;
mod damage;
mod deploy;
mod docs;
mod elsewhere;
mod eval;
mod export;
#[cfg(unix)]
mod faults;
mod fuzz;
mod init;
mod live;
mod memory;
#[cfg(unix)]
mod names;
mod own_stage;
#[cfg(unix)]
mod planted;
mod poisoned;
mod programs;
mod quickstart;
mod ranks;
mod retry;
mod s3;
mod secrets;
mod support;
mod sweep;
mod takeover;
mod workers;
