//! The options of the stage `retrieval`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use twinlens_image::Limits;
use twinlens_model::{DeviceOption, Precision};
use twinlens_pipeline::{Input, Located};

/// Retrieves images by captions, and captions by images. As in CLIP_benchmark,
/// `image_retrieval_recall@k` is the share of captions whose image is among the first k, and
/// `text_retrieval_recall@k` the share of images with at least one of their captions among the
/// first k. Intervals are from a bootstrap over images, each with all its captions.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Retrieval {
    /// A `train` stage; the path of a directory (`./models/b32`) in the layout of this program,
    /// Hugging Face or open_clip; or a model on the Hugging Face Hub
    /// (`hf://openai/clip-vit-base-patch32`).
    pub(super) model: Input,
    /// The evaluation sets.
    pub(super) sets: Located<Vec<RetrievalSet>>,
    /// The template of the encoded text: `{}` stands for the caption.
    #[serde(default = "template")]
    pub(super) template: Located<String>,
    /// The values of k for recall@k.
    #[serde(default = "ks")]
    pub(super) ks: Located<Vec<usize>>,
    /// Images, or captions, per forward pass.
    #[serde(default = "batch_size")]
    pub(super) batch_size: Located<usize>,
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

/// Images and their captions.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RetrievalSet {
    /// The name of the set in the results.
    pub(super) name: Located<String>,
    /// The images, or their embeddings from an `embed` stage. Rows with the same image (bit for
    /// bit) are merged into one image with all their captions.
    pub(super) input: Input,
    /// The caption column: a list of texts, or a text with one caption per line.
    #[serde(default = "caption")]
    pub(super) captions: Located<String>,
    /// The image column. [default: image, or embedding if there is no image]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) image: Option<Located<String>>,
}

fn template() -> Located<String> {
    Located::without_span("{}".into())
}
fn ks() -> Located<Vec<usize>> {
    Located::without_span(vec![1, 5, 10])
}
fn batch_size() -> Located<usize> {
    Located::without_span(128)
}
fn caption() -> Located<String> {
    Located::without_span("caption".into())
}
