//! Query list, matching, filters, dedup, balancing.
//!
//! What decides (normalising text, finding queries, the arithmetic of balancing, the readers of the
//! query list's sources) is plain Rust with its own tests; the stages wrap it thinly for the
//! engine.

pub mod balance;
mod columns;
pub mod error;
mod functions;
pub mod matcher;
pub mod near;
pub mod queries;
pub mod stages;
pub mod text;

pub use error::CurateError;
pub use stages::register;
