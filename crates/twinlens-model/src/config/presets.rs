//! Named shapes: the nine models of the paper, and a tiny series that trains on a few CPU cores.

use super::profile::Profile;
use super::shape::ClipConfig;
use crate::error::{ModelError, Result};
use crate::objectives::Objective;
use crate::ops::activation::Activation;
use crate::towers::resnet::ResNetConfig;
use crate::towers::text::TextConfig;
use crate::towers::vit::VitConfig;

/// An image tower of the tables below.
enum Tower {
    /// Image, patch, width, layers, heads.
    Vit([usize; 5]),
    /// Image, width, heads; residual blocks by stage.
    ResNet([usize; 3], [usize; 4]),
}
use Tower::{ResNet, Vit};

/// Name, embed, image tower, and `[context, vocab, width, layers, heads]` of the text tower.
type Preset = (&'static str, usize, Tower, [usize; 5]);

/// Context and vocabulary of all nine; 12 layers, heads of 64.
const fn paper_text(width: usize) -> [usize; 5] {
    [77, 49_408, width, 12, width / 64]
}

/// Radford et al. 2021, tables 19 and 20.
const PAPER: [Preset; 9] = [
    ("rn50", 1024, ResNet([224, 64, 32], [3, 4, 6, 3]), paper_text(512)),
    ("rn101", 512, ResNet([224, 64, 32], [3, 4, 23, 3]), paper_text(512)),
    ("rn50x4", 640, ResNet([288, 80, 40], [4, 6, 10, 6]), paper_text(640)),
    ("rn50x16", 768, ResNet([384, 96, 48], [6, 8, 18, 8]), paper_text(768)),
    ("rn50x64", 1024, ResNet([448, 128, 64], [3, 15, 36, 10]), paper_text(1024)),
    ("vit-b-32", 512, Vit([224, 32, 768, 12, 12]), paper_text(512)),
    ("vit-b-16", 512, Vit([224, 16, 768, 12, 12]), paper_text(512)),
    ("vit-l-14", 768, Vit([224, 14, 1024, 24, 16]), paper_text(768)),
    ("vit-l-14-336", 768, Vit([336, 14, 1024, 24, 16]), paper_text(768)),
];

/// As in the paper, text towers grow only in width, and ResNets in width, depth and image size
/// together. `x3` needs about three times the arithmetic of `rn-tiny-64`.
const TINY: [Preset; 9] = [
    ("rn-tiny-32", 128, ResNet([32, 16, 8], [1, 1, 1, 1]), [32, 4096, 96, 2, 3]),
    ("rn-tiny-64", 128, ResNet([64, 16, 8], [1, 1, 1, 1]), [32, 8192, 128, 2, 4]),
    ("rn-tiny-64x3", 128, ResNet([64, 32, 16], [1, 2, 2, 1]), [32, 8192, 128, 2, 4]),
    ("rn-tiny-96x7", 192, ResNet([96, 32, 16], [2, 2, 3, 2]), [32, 8192, 192, 2, 6]),
    ("rn-tiny-96x20", 256, ResNet([96, 48, 24], [3, 4, 6, 3]), [32, 8192, 256, 2, 8]),
    ("vit-tiny-32", 96, Vit([32, 8, 96, 2, 3]), [32, 4096, 96, 2, 3]),
    ("vit-tiny-48", 128, Vit([48, 8, 128, 3, 4]), [32, 4096, 128, 2, 4]),
    ("vit-tiny-64", 128, Vit([64, 8, 128, 6, 4]), [32, 8192, 128, 4, 4]),
    ("vit-tiny-96", 256, Vit([96, 8, 256, 6, 8]), [32, 8192, 256, 4, 8]),
];

fn config(&(_, embed, ref tower, text): &Preset) -> ClipConfig {
    let vision = match *tower {
        Vit([image_size, patch, width, layers, heads]) => {
            VitConfig { image_size, patch, width, layers, heads }.into()
        }
        ResNet([image_size, width, heads], stages) => {
            ResNetConfig { image_size, width, stages, heads }.into()
        }
    };
    let [context, vocab, width, layers, heads] = text;
    let text = TextConfig { context, vocab, width, layers, heads };
    ClipConfig { embed, vision, text, activation: Activation::QuickGelu, objective: Objective::CONTRASTIVE }
}

/// A named shape and its cost.
#[derive(Clone, Debug)]
pub struct CatalogEntry {
    /// The preset's name.
    pub name: &'static str,
    /// Whether it is one of the paper's nine models.
    pub paper: bool,
    /// The shape.
    pub config: ClipConfig,
    /// Parameters and arithmetic.
    pub profile: Profile,
}

/// Every named shape: the tiny series, then the paper's models, each from small to large.
pub fn catalog() -> Vec<CatalogEntry> {
    let entry = |paper: bool| {
        move |preset: &Preset| {
            let config = config(preset);
            CatalogEntry { name: preset.0, paper, profile: config.profile(), config }
        }
    };
    TINY.iter().map(entry(false)).chain(PAPER.iter().map(entry(true))).collect()
}

impl ClipConfig {
    /// A named shape. The paper's spelling works too: `RN50x4`, `ViT-L/14@336`.
    ///
    /// # Errors
    /// `UnknownPreset`, which lists the known names.
    pub fn preset(name: &str) -> Result<Self> {
        let normalised = name.to_ascii_lowercase().replace(['/', '@', '_'], "-");
        let preset = TINY.iter().chain(&PAPER).find(|preset| preset.0 == normalised);
        let unknown = || ModelError::UnknownPreset { name: name.into(), known: Self::presets().join(", ") };
        preset.map(config).ok_or_else(unknown)
    }

    /// The names of all presets.
    pub fn presets() -> Vec<&'static str> {
        TINY.iter().chain(&PAPER).map(|preset| preset.0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presets_are_valid_and_survive_json() {
        for name in ClipConfig::presets() {
            let config = ClipConfig::preset(name).unwrap();
            config.check().unwrap();
            let json = serde_json::to_string(&config).unwrap();
            assert_eq!(serde_json::from_str::<ClipConfig>(&json).unwrap(), config);
        }
        assert_eq!(ClipConfig::preset("ViT-L/14@336").unwrap(), ClipConfig::preset("vit-l-14-336").unwrap());
        assert_eq!(ClipConfig::preset("RN50x16").unwrap(), ClipConfig::preset("rn50x16").unwrap());
        let error = ClipConfig::preset("vit-huge").unwrap_err().to_string();
        assert!(error.contains("vit-tiny-48"), "{error}");
    }

    #[test]
    fn the_tiny_series_spans_a_factor_of_fifty_in_arithmetic() {
        for (tower, least) in [("rn-tiny", 5), ("vit-tiny", 4)] {
            let entries = catalog().into_iter().filter(|e| e.name.starts_with(tower));
            let flops: Vec<u64> = entries
                .map(|e| {
                    assert!((32..=96).contains(&e.config.vision.image_size()));
                    e.profile.flops()
                })
                .collect();
            assert!(flops.len() >= least && flops.is_sorted());
            assert!(flops[flops.len() - 1] >= 50 * flops[0], "{tower}: {flops:?}");
        }
    }
}
