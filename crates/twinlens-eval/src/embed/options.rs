//! The options of the stage `embed`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use twinlens_image::Limits;
use twinlens_model::{DeviceOption, Precision};
use twinlens_pipeline::{Input, Located};

use crate::vectors::Dtype;

/// Turns images into embeddings, of unit length if the model embeds texts too. Rows keep their
/// order and their columns except for the pixels. Adds `embedding`, `embedding_model` (the hash of
/// the weights, and the preprocessing) and `image_sha256`; with `captions` also `clip_score`, the
/// cosine similarity of image and caption, by which a `filter` can select.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Embed {
    /// The rows, with a column of images: `struct<bytes, path>` (Hugging Face `Image`) or binary.
    pub(super) input: Input,
    /// A `train` stage; the path of a directory (`./models/b32`) in the layout of this program,
    /// Hugging Face or open_clip; or a model on the Hugging Face Hub
    /// (`hf://openai/clip-vit-base-patch32`).
    pub(super) model: Input,
    /// Width of the embeddings. [default: that of the model]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) width: Option<Located<usize>>,
    /// The image column. [default: image]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) image: Option<Located<String>>,
    /// The column of texts to compare with the images: adds `clip_score`, null where the text is
    /// null.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) captions: Option<Located<String>>,
    /// Also write the embeddings of the captions, as `text_embedding`.
    #[serde(default)]
    pub(super) text_embeddings: bool,
    /// Number format of the stored embeddings: `f32`, or `f16` in half the space.
    #[serde(default)]
    pub(super) dtype: Dtype,
    /// Images, or texts, per forward pass.
    #[serde(default = "batch_size")]
    pub(super) batch_size: Located<usize>,
    /// Rows per split: a split is committed, and after a kill recomputed, as a whole.
    #[serde(default = "split_rows")]
    pub(super) split_rows: Located<u64>,
    /// Limits on the images: an image beyond them is rejected before it is decoded.
    #[serde(default)]
    pub(super) limits: Option<Located<Limits>>,
    /// Device: `cpu`, `cuda:0` (in a build with `--features cuda`), or `auto`, the first GPU if
    /// there is one.
    #[serde(default, skip_serializing_if = "Located::is_default")]
    pub(super) device: Located<DeviceOption>,
    /// Precision of matrix products: `f32`, or on a GPU `bf16` or `f16`.
    #[serde(default, skip_serializing_if = "Located::is_default")]
    pub(super) precision: Located<Precision>,
}

fn batch_size() -> Located<usize> {
    Located::without_span(128)
}
fn split_rows() -> Located<u64> {
    Located::without_span(4096)
}
