//! Tests of the model crate against its reference implementation and other programs.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod common;
mod formats;
mod fused;
mod kernels;
mod parity;
mod parts;
mod pixels;
