//! CLIP towers, objectives, tokenizer, weights in and out, fused operations with backward.
//!
//! A [`Clip`] is an image tower (a vision transformer or the paper's ResNet) and a causal text
//! transformer, trained for one of several objectives: to embed images and texts in one space
//! (Radford et al. 2021), or to predict words. It runs in candle, on the CPU or (feature `cuda`) a
//! GPU. Weights have open_clip's names. Results on the CPU are bit-identical for any number of
//! threads.
//!
//! To add an objective, implement the traits of `objectives/kind.rs` in a file and list it in
//! `objectives/mod.rs`. To add an image tower, implement the trait of `towers/image.rs` in a file
//! and list it in `towers/mod.rs`.

#![warn(missing_docs)]

mod clip;
mod compute;
mod config;
mod error;
mod export;
mod files;
mod forward;
pub mod kernels;
mod objectives;
mod ops;
mod parts;
pub mod reference;
mod shares;
mod tokenizer;
mod towers;
mod variables;
pub mod weights;

pub use clip::Clip;
pub use compute::{DeviceOption, Precision};
pub use config::{CatalogEntry, ClipConfig, Profile, catalog};
pub use error::{ModelError, Result};
pub use export::{ForeignFormat, export};
pub use files::{CONFIG_FILE, TOKENIZER_FILE, WEIGHTS_FILE};
pub use objectives::Objective;
pub use ops::activation::Activation;
pub use parts::{any_covers, covers};
pub use shares::{Block, Features, Share};
pub use tokenizer::Tokenizer;
pub use towers::image::Pass;
pub use towers::resnet::ResNetConfig;
pub use towers::text::TextConfig;
pub use towers::vision::VisionConfig;
pub use towers::vit::VitConfig;
pub use towers::{Kept, Tower};
