//! What a model is trained to do.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What is optimised. The first, third and fourth are those that figure 2 of the paper compares.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Objective {
    /// Which text of the batch belongs to which image, and back: symmetric cross-entropy with a
    /// learned temperature.
    #[default]
    Contrastive,
    /// For each image and text of the batch alone, whether they belong together (SigLIP).
    Sigmoid,
    /// Which words are in the caption: a linear layer on the image's features, softmax over the
    /// vocabulary, and the caption's words in equal parts as the target (Joulin et al. 2016).
    BagOfWords,
    /// The caption, word by word: a causal transformer that starts from the image's features.
    Caption,
}

impl Objective {
    /// Every objective.
    pub const ALL: [Self; 4] = [Self::Contrastive, Self::Sigmoid, Self::BagOfWords, Self::Caption];

    /// Whether images and texts are embedded in a space that they share, by unit-length features.
    pub fn embeds_texts(self) -> bool {
        matches!(self, Self::Contrastive | Self::Sigmoid)
    }

    pub(crate) fn is_default(&self) -> bool {
        *self == Self::default()
    }
}
