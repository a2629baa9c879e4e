//! First values of the variables, as CLIP's code draws them.
//!
//! The text tower: embeddings N(0, .02), positions N(0, .01), attention in N(0, w^-1/2), attention and feed-forward out
//! N(0, w^-1/2 (2 layers)^-1/2), feed-forward in N(0, (2 w)^-1/2), projection N(0, w^-1/2). The image tower: class token,
//! positions and projection N(0, w^-1/2); the rest PyTorch's defaults, as are the text tower's biases. Each variable
//! draws from a stream of its own, so its values depend on the seed, its name and its shape alone.

use crate::config::ClipConfig;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sha2::{Digest, Sha256};

/// The logarithm of the factor on the similarities at the start: 1 / 0.07.
pub const LOGIT_SCALE: f32 = 2.659_26;

enum Draw {
    Constant(f32),
    Normal(f64),
    Uniform(f64),
}

fn draw(config: &ClipConfig, name: &str, shape: &[usize]) -> Draw {
    let visual = name.starts_with("visual.");
    let (width, layers) = if visual {
        (config.vision.width as f64, config.vision.layers as f64)
    } else {
        (config.text.width as f64, config.text.layers as f64)
    };
    let residual = width.powf(-0.5) * (2.0 * layers).powf(-0.5);
    let ends = |end: &str| name.ends_with(end);
    let is_norm = name.contains("ln_");
    match name {
        "logit_scale" => Draw::Constant(LOGIT_SCALE),
        "token_embedding.weight" => Draw::Normal(0.02),
        "positional_embedding" => Draw::Normal(0.01),
        "text_projection" | "visual.class_embedding" | "visual.positional_embedding" | "visual.proj" => {
            Draw::Normal(width.powf(-0.5))
        }
        _ if is_norm && ends(".weight") => Draw::Constant(1.0),
        _ if is_norm => Draw::Constant(0.0),
        // PyTorch's attention has no bias at the start.
        _ if ends("in_proj_bias") || ends("out_proj.bias") => Draw::Constant(0.0),
        // Bias of a linear layer: uniform within 1 / sqrt(inputs).
        _ if ends("c_fc.bias") => Draw::Uniform(width.powf(-0.5)),
        _ if ends("c_proj.bias") => Draw::Uniform((4.0 * width).powf(-0.5)),
        _ if !visual && ends("in_proj_weight") => Draw::Normal(width.powf(-0.5)),
        _ if !visual && (ends("out_proj.weight") || ends("c_proj.weight")) => Draw::Normal(residual),
        _ if !visual && ends("c_fc.weight") => Draw::Normal((2.0 * width).powf(-0.5)),
        // Xavier: sqrt(6 / (in + out)), out being queries, keys and values together.
        _ if ends("in_proj_weight") => Draw::Uniform((6.0 / (4.0 * width)).sqrt()),
        // Kaiming with a = sqrt(5): within 1 / sqrt(inputs), for linear layers and the convolution.
        _ => Draw::Uniform((shape[1..].iter().product::<usize>() as f64).powf(-0.5)),
    }
}

/// The first values of variable `name`.
pub fn values(config: &ClipConfig, name: &str, shape: &[usize], seed: u64) -> Vec<f32> {
    let mut stream = Sha256::new();
    stream.update(seed.to_le_bytes());
    stream.update(name);
    let mut rng = ChaCha8Rng::from_seed(stream.finalize().into());
    let n = shape.iter().product();
    match draw(config, name, shape) {
        Draw::Constant(value) => vec![value; n],
        Draw::Uniform(bound) => (0..n).map(|_| rng.random_range(-bound..bound) as f32).collect(),
        Draw::Normal(std) => (0..n).map(|_| (std * normal(&mut rng)) as f32).collect(),
    }
}

/// A standard normal number (Box and Muller).
fn normal(rng: &mut impl Rng) -> f64 {
    let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt();
    radius * (std::f64::consts::TAU * rng.random::<f64>()).cos()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::shapes;

    /// The spread of each kind of variable, from the table in CLIP's paper code (width 128, two text layers).
    #[test]
    fn spreads_are_those_of_clips_code() {
        let config = ClipConfig::preset("vit-tiny-48").unwrap();
        let w = 128f64;
        let uniform = 1.0 / 3f64.sqrt();
        let expected = [
            ("token_embedding.weight", 0.02),
            ("positional_embedding", 0.01),
            ("text_projection", w.powf(-0.5)),
            ("transformer.resblocks.1.attn.in_proj_weight", w.powf(-0.5)),
            ("transformer.resblocks.1.attn.out_proj.weight", w.powf(-0.5) * 4f64.powf(-0.5)),
            ("transformer.resblocks.1.mlp.c_fc.weight", (2.0 * w).powf(-0.5)),
            ("transformer.resblocks.1.mlp.c_proj.weight", w.powf(-0.5) * 4f64.powf(-0.5)),
            ("transformer.resblocks.1.mlp.c_fc.bias", uniform * w.powf(-0.5)),
            ("visual.class_embedding", w.powf(-0.5)),
            ("visual.positional_embedding", w.powf(-0.5)),
            ("visual.proj", w.powf(-0.5)),
            ("visual.conv1.weight", uniform * 192f64.powf(-0.5)),
            ("visual.transformer.resblocks.0.attn.in_proj_weight", uniform * (6.0 / (4.0 * w)).sqrt()),
            ("visual.transformer.resblocks.0.attn.out_proj.weight", uniform * w.powf(-0.5)),
            ("visual.transformer.resblocks.0.mlp.c_proj.weight", uniform * (4.0 * w).powf(-0.5)),
            ("visual.transformer.resblocks.0.attn.in_proj_bias", 0.0),
            ("visual.ln_pre.bias", 0.0),
        ];
        let shapes = shapes(&config);
        for (name, std) in expected {
            let values = values(&config, name, &shapes[name], 3);
            let n = values.len() as f64;
            let mean = values.iter().map(|x| f64::from(*x)).sum::<f64>() / n;
            let got = (values.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / n).sqrt();
            // Five standard errors of an estimated spread.
            assert!((got - std).abs() <= 5.0 * std / (2.0 * n).sqrt(), "{name}: {got}, not {std}");
        }
        assert_eq!(values(&config, "visual.ln_pre.weight", &[128], 3), vec![1.0; 128]);
        assert!((LOGIT_SCALE - (1.0f32 / 0.07).ln()).abs() < 1e-6);
    }

    #[test]
    fn streams_differ_by_seed_and_name() {
        let config = ClipConfig::preset("vit-tiny-48").unwrap();
        let draw = |name, seed| values(&config, name, &[128, 128], seed);
        assert_eq!(draw("visual.proj", 1), draw("visual.proj", 1));
        assert_ne!(draw("visual.proj", 1), draw("visual.proj", 2));
        assert_ne!(draw("visual.proj", 1), draw("text_projection", 1));
    }
}
