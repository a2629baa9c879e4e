//! CLIP towers, objectives, tokenizer, weights in and out, fused operations with backward.
//!
//! A [`Clip`] is an image tower (a vision transformer or the paper's ResNet) and a causal text
//! transformer whose features share a space (Radford et al. 2021), or that predict words, in
//! candle, on the CPU or (feature `cuda`) a GPU. Weights carry open_clip's names. On the CPU
//! results are the same bits whatever the number of threads.

#![warn(missing_docs)]

mod clip;
mod compute;
mod config;
mod error;
mod init;
mod objective;
mod ops;
mod parts;
mod plain;
pub mod reference;
mod score;
mod shares;
mod tokenizer;
mod towers;
pub mod weights;

pub use clip::{CONFIG_FILE, Clip, WEIGHTS_FILE};
pub use compute::{DeviceOption, Precision};
pub use config::{
    CatalogEntry, ClipConfig, Profile, ResNetConfig, TextConfig, VisionConfig, VitConfig, catalog,
};
pub use error::{ModelError, Result};
pub use objective::Objective;
pub use ops::activation::Activation;
pub use parts::{Tower, any_covers, covers};
pub use shares::{Features, Share};
pub use tokenizer::{TOKENIZER_FILE, Tokenizer};
pub use towers::Pass;
