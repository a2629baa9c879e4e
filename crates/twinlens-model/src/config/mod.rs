//! The shape of a model: what `config.json` beside the weights holds, and what a pipeline file may
//! spell out.

mod presets;
mod profile;

pub use presets::{CatalogEntry, catalog};
pub use profile::Profile;

use crate::error::{ModelError, Result};
use crate::objective::Objective;
use crate::ops::activation::Activation;
use schemars::JsonSchema;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

/// The shape of a CLIP model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ClipConfig {
    /// Numbers in a feature, of both towers.
    pub embed: usize,
    /// The image tower: a ResNet where `stages` is given, else a vision transformer.
    pub vision: VisionConfig,
    /// The text tower; with the objective `caption`, the language model.
    pub text: TextConfig,
    /// Between the feed-forward layers of the transformers.
    #[serde(default)]
    pub activation: Activation,
    /// What the model is trained to do; it decides what variables there are.
    #[serde(default, skip_serializing_if = "Objective::is_default")]
    pub objective: Objective,
}

/// The shape of an image tower.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum VisionConfig {
    /// A vision transformer.
    Vit(VitConfig),
    /// The paper's ResNet: a stem of three convolutions, average pooling before each stride,
    /// attention pooling at the end.
    ResNet(ResNetConfig),
}

/// The shape of a vision transformer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VitConfig {
    /// Side of the square input, in pixels.
    pub image_size: usize,
    /// Side of a patch, in pixels; divides `image_size`.
    pub patch: usize,
    /// Numbers in a token.
    pub width: usize,
    /// Residual attention blocks.
    pub layers: usize,
    /// Attention heads; divides `width`.
    pub heads: usize,
}

/// The shape of the paper's ResNet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ResNetConfig {
    /// Side of the square input, in pixels; a multiple of 32, which the tower shrinks to 1.
    pub image_size: usize,
    /// Channels after the stem, even; the last stage has 32 times as many.
    pub width: usize,
    /// Residual blocks of each of the four stages.
    pub stages: [usize; 4],
    /// Heads of the attention pooling; divides 32 times `width`.
    pub heads: usize,
}

impl ResNetConfig {
    /// Channels of the last stage.
    pub fn features(&self) -> usize {
        32 * self.width
    }

    /// Side of the last stage's grid.
    pub fn grid(&self) -> usize {
        self.image_size / 32
    }
}

impl VisionConfig {
    /// Side of the square input, in pixels.
    pub fn image_size(&self) -> usize {
        match self {
            Self::Vit(v) => v.image_size,
            Self::ResNet(r) => r.image_size,
        }
    }
}

/// Both shapes at once: an untagged enum would say of a wrong table no more than that it fits
/// neither.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename = "vision")]
struct VisionTable {
    image_size: usize,
    width: usize,
    heads: usize,
    patch: Option<usize>,
    layers: Option<usize>,
    stages: Option<[usize; 4]>,
}

impl<'de> Deserialize<'de> for VisionConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let VisionTable { image_size, width, heads, patch, layers, stages } =
            VisionTable::deserialize(deserializer)?;
        match (stages, patch, layers) {
            (Some(stages), None, None) => Ok(Self::ResNet(ResNetConfig { image_size, width, stages, heads })),
            (Some(_), ..) => Err(D::Error::custom("`stages` is of a ResNet, `patch` and `layers` are not")),
            (None, Some(patch), Some(layers)) => {
                Ok(Self::Vit(VitConfig { image_size, patch, width, layers, heads }))
            }
            (None, None, _) => Err(D::Error::missing_field("patch")),
            (None, _, None) => Err(D::Error::missing_field("layers")),
        }
    }
}

/// The shape of a causal text transformer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TextConfig {
    /// Most tokens of a text, start and end included.
    pub context: usize,
    /// Token ids run from 0 to this, exclusive. The `train` stage takes it from the tokenizer.
    #[serde(default)]
    pub vocab: usize,
    /// Numbers in a token.
    pub width: usize,
    /// Residual attention blocks.
    pub layers: usize,
    /// Attention heads; divides `width`.
    pub heads: usize,
}

impl ClipConfig {
    /// Reads a configuration out of JSON.
    pub(crate) fn deserialize_from(json: Map<String, Value>) -> std::result::Result<Self, serde_json::Error> {
        serde_json::from_value(Value::Object(json))
    }

    /// Whether such a model can be built.
    ///
    /// # Errors
    /// `Config`, with every problem found.
    pub fn check(&self) -> Result<()> {
        let t = &self.text;
        let mut sizes = vec![
            ("embed", self.embed),
            ("vision.image_size", self.vision.image_size()),
            ("text.context", t.context),
            ("text.vocab", t.vocab),
            ("text.width", t.width),
            ("text.layers", t.layers),
            ("text.heads", t.heads),
        ];
        let mut whole = vec![("text.width", t.width, "text.heads", t.heads)];
        match &self.vision {
            VisionConfig::Vit(v) => {
                sizes.extend([
                    ("vision.patch", v.patch),
                    ("vision.width", v.width),
                    ("vision.layers", v.layers),
                    ("vision.heads", v.heads),
                ]);
                whole.push(("vision.width", v.width, "vision.heads", v.heads));
                whole.push(("vision.image_size", v.image_size, "vision.patch", v.patch));
            }
            VisionConfig::ResNet(r) => {
                sizes.extend([("vision.width", r.width), ("vision.heads", r.heads)]);
                sizes.extend(r.stages.map(|blocks| ("vision.stages", blocks)));
                whole.push(("32 times vision.width", r.features(), "vision.heads", r.heads));
                whole.push(("vision.image_size", r.image_size, "its stride", 32));
                whole.push(("vision.width", r.width, "the stem's halving", 2));
            }
        }
        let mut problems: Vec<String> = Vec::new();
        problems.extend(sizes.iter().filter(|(_, size)| *size == 0).map(|(name, _)| format!("{name} is 0")));
        let broken = whole.iter().filter(|(_, size, _, part)| *part > 0 && size % part != 0);
        problems.extend(
            broken.map(|(a, size, b, part)| format!("{a} ({size}) is not a multiple of {b} ({part})")),
        );
        if t.context < 2 {
            problems.push("text.context has no room for the start and end tokens".into());
        }
        if problems.is_empty() { Ok(()) } else { Err(ModelError::Config(problems.join("; "))) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_problem_is_named() {
        let mut config = ClipConfig::preset("vit-tiny-48").unwrap();
        let VisionConfig::Vit(v) = &mut config.vision else { unreachable!() };
        v.heads = 3;
        config.text.layers = 0;
        let error = config.check().unwrap_err().to_string();
        assert!(error.contains("vision.width (128) is not a multiple of vision.heads (3)"), "{error}");
        assert!(error.contains("text.layers is 0"), "{error}");

        let mut config = ClipConfig::preset("rn-tiny-64").unwrap();
        let VisionConfig::ResNet(r) = &mut config.vision else { unreachable!() };
        (r.image_size, r.width, r.stages[2]) = (48, 15, 0);
        let error = config.check().unwrap_err().to_string();
        for part in ["(48) is not a multiple of its stride (32)", "vision.stages is 0", "the stem's halving"]
        {
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn an_image_tower_is_one_of_the_two() {
        let read = |vision: &str| serde_json::from_str::<VisionConfig>(vision).map_err(|e| e.to_string());
        let resnet = r#"{ "image_size": 64, "width": 16, "heads": 8, "stages": [1, 2, 2, 1] }"#;
        assert!(matches!(read(resnet).unwrap(), VisionConfig::ResNet(r) if r.stages == [1, 2, 2, 1]));
        for (wrong, word) in [
            (
                r#"{ "image_size": 64, "width": 16, "heads": 8, "stages": [1, 2, 2, 1], "patch": 8 }"#,
                "ResNet",
            ),
            (r#"{ "image_size": 64, "width": 16, "heads": 8, "stages": [1, 2, 2] }"#, "length 4"),
            (r#"{ "image_size": 64, "width": 16, "heads": 8, "layers": 3 }"#, "patch"),
            (r#"{ "image_size": 64, "width": 16, "heads": 8, "patch": 8, "layres": 3 }"#, "layres"),
        ] {
            let error = read(wrong).unwrap_err();
            assert!(error.contains(word), "{error}");
        }
    }
}
