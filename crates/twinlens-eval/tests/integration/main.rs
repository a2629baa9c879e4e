//! The stages of this crate, from their options to their tables, on models with random weights and
//! generated images.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod embeddings;
mod sets;
mod sets_of_data;
mod support;
mod zero_shot;
