//! What a model costs: parameters, and the arithmetic of one image and one text.
//!
//! Counted as open_clip counts them: a multiplication and an addition are two operations; products
//! of matrices, convolutions and attention count, everything else does not; every text has the
//! whole context. The attention pooling of a ResNet asks with every position there, though one is
//! read (here it asks with one).

use super::{ClipConfig, ResNetConfig, VisionConfig, VitConfig};
use crate::objective::Objective;
use crate::weights;

/// Parameters and forward arithmetic, by tower.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Profile {
    /// Trainable numbers of the image tower.
    pub image_parameters: u64,
    /// Trainable numbers of all else.
    pub text_parameters: u64,
    /// Operations (additions and multiplications) for one image.
    pub image_flops: u64,
    /// Operations for one text.
    pub text_flops: u64,
}

impl Profile {
    /// All trainable numbers.
    pub fn parameters(&self) -> u64 {
        self.image_parameters + self.text_parameters
    }

    /// Operations for a pair.
    pub fn flops(&self) -> u64 {
        self.image_flops + self.text_flops
    }
}

/// Layers of a transformer over `tokens` positions.
fn transformer(width: usize, layers: usize, tokens: usize) -> usize {
    layers * (2 * 12 * width * width * tokens + 4 * tokens * tokens * width)
}

fn vit(v: &VitConfig, embed: usize) -> usize {
    let patches = (v.image_size / v.patch).pow(2);
    let embedding = 2 * 3 * v.patch * v.patch * v.width * patches;
    embedding + transformer(v.width, v.layers, patches + 1) + 2 * v.width * embed
}

fn resnet(r: &ResNetConfig, embed: usize) -> usize {
    let convolutions = r.convolutions().into_iter().map(|c| {
        let outputs = (c.input_side / c.stride).pow(2);
        2 * c.kernel * c.kernel * c.input * c.output * outputs
    });
    let (width, tokens) = (r.features(), r.grid().pow(2) + 1);
    let projections = 2 * tokens * (3 * width * width + width * embed);
    convolutions.sum::<usize>() + projections + 4 * tokens * tokens * width
}

impl ClipConfig {
    /// What a model of this shape costs.
    pub fn profile(&self) -> Profile {
        let (mut image, mut text) = (0, 0);
        for (name, shape) in weights::shapes(self) {
            let len = shape.iter().product::<usize>();
            *(if name.starts_with("visual.") { &mut image } else { &mut text }) += len;
        }
        let image_flops = match &self.vision {
            VisionConfig::Vit(v) => vit(v, self.embed),
            VisionConfig::ResNet(r) => resnet(r, self.embed),
        };
        let t = &self.text;
        let stack = transformer(t.width, t.layers, t.context);
        let text_flops = match self.objective {
            Objective::Contrastive | Objective::Sigmoid => stack + 2 * t.width * self.embed,
            Objective::BagOfWords => 2 * self.embed * t.vocab,
            Objective::Caption => stack + 2 * t.width * (self.embed + t.context * t.vocab),
        };
        Profile {
            image_parameters: image as u64,
            text_parameters: text as u64,
            image_flops: image_flops as u64,
            text_flops: text_flops as u64,
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::ClipConfig;

    /// The nine models' rows of open_clip's published profile (its `docs/model_profile.csv`).
    #[test]
    fn the_nine_cost_what_open_clip_says() {
        let table = include_str!("../../tests/parity/model_profile.csv");
        let mut lines = table.lines();
        let header: Vec<_> = lines.next().unwrap().split(',').collect();
        let mut seen = 0;
        for line in lines {
            let row: Vec<_> = line.split(',').collect();
            let at = |column: &str| row[header.iter().position(|h| *h == column).unwrap()];
            let profile = ClipConfig::preset(row[0]).unwrap().profile();
            for (column, got) in [
                ("mparams", profile.parameters()),
                ("image_mparams", profile.image_parameters),
                ("text_mparams", profile.text_parameters),
                ("gflops", profile.flops()),
                ("image_gflops", profile.image_flops),
                ("text_gflops", profile.text_flops),
            ] {
                let unit = if column.contains("mparams") { 1e6 } else { 1e9 };
                let (got, want) = (got as f64 / unit, at(column).parse::<f64>().unwrap());
                // Both digits behind the point.
                assert!((got - want).abs() < 0.0051, "{} {column}: {got}, not {want}", row[0]);
            }
            seen += 1;
        }
        assert_eq!(seen, 9);
    }
}
