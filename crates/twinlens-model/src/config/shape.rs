//! The shape of a model: the contents of `config.json`, also accepted in a pipeline file.

use crate::error::{ModelError, Result};
use crate::objectives::Objective;
use crate::ops::activation::Activation;
use crate::towers::text::TextConfig;
use crate::towers::vision::VisionConfig;
use crate::variables::Declarations;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The shape of a CLIP model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ClipConfig {
    /// Numbers in a feature, of both towers.
    pub embed: usize,
    /// The image tower: a ResNet if `stages` is given, else a vision transformer.
    pub vision: VisionConfig,
    /// The text tower; with the objective `caption`, the language model.
    pub text: TextConfig,
    /// Activation between the feed-forward layers of the transformers.
    #[serde(default)]
    pub activation: Activation,
    /// What the model is trained to do; determines its variables.
    #[serde(default, skip_serializing_if = "Objective::is_default")]
    pub objective: Objective,
}

impl ClipConfig {
    /// Checks that such a model can be built.
    ///
    /// # Errors
    /// `Config`, with every problem found.
    pub fn check(&self) -> Result<()> {
        let (t, tower) = (&self.text, self.vision.tower());
        let mut sizes: Vec<(String, Value)> = [
            ("embed", self.embed),
            ("text.context", t.context),
            ("text.vocab", t.vocab),
            ("text.width", t.width),
            ("text.layers", t.layers),
            ("text.heads", t.heads),
        ]
        .map(|(name, size)| (name.to_owned(), size.into()))
        .into();
        sizes.extend(tower.settings().into_iter().map(|(name, size)| (format!("vision.{name}"), size)));
        let is_zero = |size: &Value| match size {
            Value::Array(sizes) => sizes.contains(&0.into()),
            size => *size == 0,
        };
        let zeros = sizes.iter().filter(|(_, size)| is_zero(size)).map(|(name, _)| format!("{name} is 0"));
        let mut problems: Vec<String> = zeros.collect();
        let mut multiples = vec![("text.width", t.width, "text.heads", t.heads)];
        multiples.extend(tower.multiples());
        let broken = multiples.iter().filter(|(_, size, _, divisor)| *divisor > 0 && size % divisor != 0);
        problems.extend(
            broken.map(|(a, size, b, divisor)| format!("{a} ({size}) is not a multiple of {b} ({divisor})")),
        );
        if t.context < 2 {
            problems.push("text.context has no room for the start and end tokens".into());
        }
        if problems.is_empty() { Ok(()) } else { Err(ModelError::Config(problems.join("; "))) }
    }

    /// The variables of the image tower, and all others.
    pub(crate) fn declarations(&self) -> [Declarations; 2] {
        let (mut image, mut others) = (Declarations::default(), Declarations::default());
        self.vision.tower().declare(&mut image, self.embed);
        self.objective.kind().declare(&mut others, &self.text, self.embed);
        [image, others]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::towers::resnet::ResNetConfig;
    use crate::towers::vit::VitConfig;

    #[test]
    fn every_problem_is_named() {
        let tiny = |name| ClipConfig::preset(name).unwrap();
        let mut config = tiny("vit-tiny-48");
        let vit = config.vision.downcast_ref::<VitConfig>().unwrap().clone();
        config.vision = VitConfig { heads: 3, ..vit }.into();
        config.text.layers = 0;
        let error = config.check().unwrap_err().to_string();
        assert!(error.contains("vision.width (128) is not a multiple of vision.heads (3)"), "{error}");
        assert!(error.contains("text.layers is 0"), "{error}");

        let tower = ResNetConfig { image_size: 48, width: 15, stages: [1, 1, 0, 1], heads: 8 };
        let config = ClipConfig { vision: tower.into(), ..tiny("rn-tiny-64") };
        let error = config.check().unwrap_err().to_string();
        for part in ["(48) is not a multiple of its stride (32)", "vision.stages is 0", "the stem's halving"]
        {
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn the_keys_select_the_image_tower() {
        let read = |vision: &str| serde_json::from_str::<VisionConfig>(vision).map_err(|e| e.to_string());
        let resnet = r#"{ "image_size": 64, "width": 16, "heads": 8, "stages": [1, 2, 2, 1] }"#;
        let tower = read(resnet).unwrap();
        assert_eq!(tower.downcast_ref::<ResNetConfig>().unwrap().stages, [1, 2, 2, 1]);
        for (wrong, word) in [
            (
                r#"{ "image_size": 64, "width": 16, "heads": 8, "stages": [1, 2, 2, 1], "patch": 8 }"#,
                "unknown field `patch`",
            ),
            (r#"{ "image_size": 64, "width": 16, "heads": 8, "stages": [1, 2, 2] }"#, "length 4"),
            (r#"{ "image_size": 64, "width": 16, "heads": 8, "layers": 3 }"#, "missing field `patch`"),
            (r#"{ "image_size": 64, "width": 16, "heads": 8, "patch": 8, "layres": 3 }"#, "layres"),
            (r#"{ "kind": "convnext" }"#, "must be one of: vit, resnet"),
        ] {
            let error = read(wrong).unwrap_err();
            assert!(error.contains(word), "{error}");
        }
    }
}
