//! TOML to a checked graph of stages to runs: fingerprints, splits, commits, resume, rejects,
//! events.
//!
//! A pipeline file becomes a [`config::Pipeline`] (checked, no I/O), which [`run`] executes stage
//! by stage in a run directory. What a stage is, is in [`stage`]; what it declares, in [`ports`];
//! the kinds live in other crates and are passed in as a [`Registry`]: nothing here knows any of
//! them, and there is no process-wide state.

#![warn(missing_docs)]

pub mod batch_reader;
pub mod budget;
pub mod columns;
pub mod config;
pub mod context;
mod earlier;
pub mod error;
pub mod evaluation;
pub mod files;
mod handles;
pub mod hub;
pub mod located;
pub mod passes;
mod patterns;
pub mod ports;
mod product;
pub mod ranks;
pub mod registry;
pub mod rejects;
pub mod run;
pub mod secrets;
pub mod sql;
pub mod stage;
pub mod suggest;
pub mod units;
mod work;

pub use batch_reader::BatchReader;
pub use budget::ByteBudget;
pub use columns::{ColumnName, ColumnType, Required};
pub use context::{Clock, InputData, Inputs, RunContext};
pub use error::{Fault, RunError};
pub use located::{Input, Located};
pub use passes::{NextPass, Pass, PassWork, Passes, SplitRows};
pub use patterns::expand_braces;
pub use ports::{ArtifactInput, Port, Ports, RowsInput, TableInput, TakesOver};
pub use ranks::{Ranks, SharedJob};
pub use registry::Registry;
pub use secrets::{Secret, Secrets};
pub use stage::{
    Frames, Job, Output, Product, Query, Rows, SortKey, Source, SplitMaker, Splits, StageKind, Whole, Work,
};
pub use twinlens_dataset::blocking;
