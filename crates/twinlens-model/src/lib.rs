//! CLIP towers, objectives, tokenizer, weights in and out, fused operations with backward.
//!
//! A [`Clip`] is a vision transformer and a causal text transformer whose features share a space (Radford et al. 2021),
//! in candle, on the CPU. Weights carry open_clip's names. Results are the same bits whatever the number of threads.

mod clip;
mod config;
mod error;
mod init;
mod ops;
pub mod reference;
mod tokenizer;
pub mod weights;

pub use clip::{CONFIG_FILE, Clip, WEIGHTS_FILE};
pub use config::{ClipConfig, TextConfig, VisionConfig};
pub use error::{ModelError, Result};
pub use ops::activation::Activation;
pub use tokenizer::{TOKENIZER_FILE, Tokenizer};
