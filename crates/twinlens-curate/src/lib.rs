//! Query list, matching, filters, dedup, balancing.
//!
//! The algorithms (text normalisation, query matching, balancing, readers of query-list sources)
//! are plain Rust with tests of their own; the stages are thin wrappers around them.

mod balance;
mod error;
mod functions;
pub mod matcher;
mod near;
pub mod queries;
pub mod stages;
pub mod text;

pub use error::CurateError;
pub use stages::register;
