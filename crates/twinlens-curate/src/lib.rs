//! Query list, matching, filters, dedup, balancing.
//!
//! What decides (normalising text, finding queries, the arithmetic of balancing, the readers of the query list's
//! sources) is plain Rust with its own tests; the stages wrap it thinly for the engine.

pub mod balance;
pub mod error;
pub mod matcher;
pub mod queries;
pub mod text;

pub use error::CurateError;
