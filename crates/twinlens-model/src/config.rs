//! The shape of a model: what `config.json` beside the weights holds.

use crate::error::{ModelError, Result};
use crate::ops::activation::Activation;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The shape of a CLIP model with a vision transformer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ClipConfig {
    /// Numbers in a feature, of both towers.
    pub embed: usize,
    /// The image tower.
    pub vision: VisionConfig,
    /// The text tower.
    pub text: TextConfig,
    /// Between the feed-forward layers of both towers.
    #[serde(default)]
    pub activation: Activation,
}

/// The shape of a vision transformer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VisionConfig {
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

/// `(name, embed, [image, patch, width, layers, heads], [context, vocabulary, width, layers, heads])`.
type Preset = (&'static str, usize, [usize; 5], [usize; 5]);

/// The `vit-tiny` presets train on two CPU cores in minutes; the others are the paper's.
const PRESETS: [Preset; 5] = [
    ("vit-tiny-48", 128, [48, 8, 128, 3, 4], [32, 4096, 128, 2, 4]),
    ("vit-tiny-64", 128, [64, 8, 128, 6, 4], [32, 8192, 128, 4, 4]),
    ("vit-b-32", 512, [224, 32, 768, 12, 12], [77, 49_408, 512, 12, 8]),
    ("vit-b-16", 512, [224, 16, 768, 12, 12], [77, 49_408, 512, 12, 8]),
    ("vit-l-14", 768, [224, 14, 1024, 24, 16], [77, 49_408, 768, 12, 12]),
];

impl ClipConfig {
    /// A named shape.
    ///
    /// # Errors
    /// `UnknownPreset`, which lists those that exist.
    pub fn preset(name: &str) -> Result<Self> {
        let Some(&(_, embed, vision, text)) = PRESETS.iter().find(|p| p.0 == name) else {
            return Err(ModelError::UnknownPreset { name: name.into(), known: Self::presets().join(", ") });
        };
        let [image_size, patch, width, layers, heads] = vision;
        let vision = VisionConfig { image_size, patch, width, layers, heads };
        let [context, vocab, width, layers, heads] = text;
        let text = TextConfig { context, vocab, width, layers, heads };
        Ok(Self { embed, vision, text, activation: Activation::QuickGelu })
    }

    /// The names of all presets.
    pub fn presets() -> Vec<&'static str> {
        PRESETS.iter().map(|p| p.0).collect()
    }

    /// Whether such a model can be built.
    ///
    /// # Errors
    /// `Config`, with every problem found.
    pub fn check(&self) -> Result<()> {
        let (v, t) = (&self.vision, &self.text);
        let sizes = [
            ("embed", self.embed),
            ("vision.image_size", v.image_size),
            ("vision.patch", v.patch),
            ("vision.width", v.width),
            ("vision.layers", v.layers),
            ("vision.heads", v.heads),
            ("text.context", t.context),
            ("text.vocab", t.vocab),
            ("text.width", t.width),
            ("text.layers", t.layers),
            ("text.heads", t.heads),
        ];
        let mut problems: Vec<String> = Vec::new();
        problems.extend(sizes.iter().filter(|(_, size)| *size == 0).map(|(name, _)| format!("{name} is 0")));
        let whole = [
            ("vision.width", v.width, "vision.heads", v.heads),
            ("text.width", t.width, "text.heads", t.heads),
            ("vision.image_size", v.image_size, "vision.patch", v.patch),
        ];
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
    fn presets_can_be_built_and_survive_json() {
        for name in ClipConfig::presets() {
            let config = ClipConfig::preset(name).unwrap();
            config.check().unwrap();
            let json = serde_json::to_string(&config).unwrap();
            assert_eq!(serde_json::from_str::<ClipConfig>(&json).unwrap(), config);
        }
        let error = ClipConfig::preset("vit-huge").unwrap_err().to_string();
        assert!(error.contains("vit-tiny-48"), "{error}");
    }

    #[test]
    fn every_problem_is_named() {
        let mut config = ClipConfig::preset("vit-tiny-48").unwrap();
        config.vision.heads = 3;
        config.text.layers = 0;
        let error = config.check().unwrap_err().to_string();
        assert!(error.contains("vision.width (128) is not a multiple of vision.heads (3)"), "{error}");
        assert!(error.contains("text.layers is 0"), "{error}");
    }
}
