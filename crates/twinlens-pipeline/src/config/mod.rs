//! Pipeline files: TOML to spanned tables to checked stages.

mod pipeline;

pub use pipeline::{Expect, Node, Pipeline, Resolved, Test};
