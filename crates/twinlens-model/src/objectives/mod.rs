//! The registered objectives, and the option that selects one by name.

mod bag_of_words;
mod caption;
mod contrastive;
pub(crate) mod kind;
mod sigmoid;

use kind::{Family, ObjectiveKind};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::json;
use std::borrow::Cow;
use std::fmt;

/// What a model is trained to do. Figure 2 of the paper compares contrastive learning, a bag of
/// words and captioning.
#[derive(Clone, Copy)]
pub struct Objective(&'static dyn ObjectiveKind);

impl Objective {
    /// CLIP's objective, the default.
    pub const CONTRASTIVE: Self = Self(&contrastive::Contrastive);
    /// SigLIP's objective.
    pub const SIGMOID: Self = Self(&sigmoid::Sigmoid);
    /// Predicts which words are in the caption.
    pub const BAG_OF_WORDS: Self = Self(&bag_of_words::BagOfWords);
    /// Predicts the caption word by word.
    pub const CAPTION: Self = Self(&caption::Caption);

    /// Every objective. To add one, write its file and list it here.
    pub const ALL: &'static [Self] = &[Self::CONTRASTIVE, Self::SIGMOID, Self::BAG_OF_WORDS, Self::CAPTION];

    /// The name in configurations.
    pub fn name(self) -> &'static str {
        self.0.name()
    }

    /// Whether images and texts are embedded in one space, by unit-length features.
    pub fn embeds_texts(self) -> bool {
        matches!(self.0.family(), Family::Pairs(_))
    }

    /// The loss of a model that predicts by chance on batches of `batch` pairs, if it is known.
    pub fn chance_loss(self, batch: usize) -> Option<f64> {
        self.0.chance_loss(batch)
    }

    pub(crate) fn kind(self) -> &'static dyn ObjectiveKind {
        self.0
    }

    pub(crate) fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl Default for Objective {
    fn default() -> Self {
        Self::CONTRASTIVE
    }
}

impl PartialEq for Objective {
    fn eq(&self, other: &Self) -> bool {
        self.name() == other.name()
    }
}

impl Eq for Objective {}

impl fmt::Debug for Objective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Serialize for Objective {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for Objective {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = Cow::<str>::deserialize(deserializer)?;
        let unknown = || {
            let names: Vec<String> = Self::ALL.iter().map(|known| format!("`{}`", known.name())).collect();
            D::Error::custom(format!("unknown variant `{name}`, expected one of {}", names.join(", ")))
        };
        Self::ALL.iter().find(|known| known.name() == name).copied().ok_or_else(unknown)
    }
}

impl JsonSchema for Objective {
    fn schema_name() -> Cow<'static, str> {
        "Objective".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let one = |known: &Self| json!({ "const": known.name(), "description": known.0.summary(), "type": "string" });
        let all: Vec<_> = Self::ALL.iter().map(one).collect();
        json_schema!({
            "description": "What the model is trained to do. Figure 2 of the paper compares the first, third and fourth.",
            "oneOf": all,
        })
    }
}
