//! First values of the variables, as CLIP's code draws them.
//!
//! The text tower: embeddings N(0, .02), positions N(0, .01), attention in N(0, w^-1/2), attention
//! and feed-forward out N(0, w^-1/2 (2 layers)^-1/2), feed-forward in N(0, (2 w)^-1/2), projection
//! N(0, w^-1/2). The image tower: class token, positions and projection N(0, w^-1/2); the rest
//! PyTorch's defaults, as are the text tower's biases. A ResNet's attention pooling: matrices and
//! positions N(0, inputs^-1/2); the last gain of each residual block 0, so that a block starts as
//! what it adds to. SigLIP's scale starts at 10 and its bias at -10, as in its paper. Each variable
//! draws from a stream of its own, so its values depend on the seed, its name and its shape alone.

use crate::config::{ClipConfig, VisionConfig};
use crate::objective::Objective;
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
    let ends = |end: &str| name.ends_with(end);
    let (text, layers) = (config.text.width as f64, config.text.layers as f64);
    let residual = text.powf(-0.5) * (2.0 * layers).powf(-0.5);
    let is_norm = name.contains("ln_") || name.contains("bn") || name.contains("downsample.1");
    let last_of_block = name.starts_with("visual.layer") && ends("bn3.weight");
    // Numbers that one output is made of.
    let inputs = || shape[1..].iter().product::<usize>() as f64;
    match name {
        "logit_scale" if config.objective == Objective::Sigmoid => Draw::Constant(10f32.ln()),
        "logit_scale" => Draw::Constant(LOGIT_SCALE),
        "logit_bias" => Draw::Constant(-10.0),
        "token_embedding.weight" => Draw::Normal(0.02),
        "positional_embedding" => Draw::Normal(0.01),
        "text_projection" => Draw::Normal(text.powf(-0.5)),
        "visual.class_embedding" => Draw::Normal((shape[0] as f64).powf(-0.5)),
        "visual.positional_embedding" | "visual.attnpool.positional_embedding" => {
            Draw::Normal((shape[1] as f64).powf(-0.5))
        }
        "visual.proj" | "caption.image_projection" => Draw::Normal((shape[0] as f64).powf(-0.5)),
        "words.bias" => Draw::Uniform((config.embed as f64).powf(-0.5)),
        _ if last_of_block => Draw::Constant(0.0),
        _ if is_norm && ends(".weight") => Draw::Constant(1.0),
        _ if is_norm => Draw::Constant(0.0),
        _ if name.starts_with("visual.attnpool") && ends(".weight") => Draw::Normal(inputs().powf(-0.5)),
        // Bias of a linear layer: uniform within 1 / sqrt(inputs).
        _ if name.starts_with("visual.attnpool") => match &config.vision {
            VisionConfig::ResNet(r) => Draw::Uniform((r.features() as f64).powf(-0.5)),
            VisionConfig::Vit(_) => Draw::Constant(0.0),
        },
        // PyTorch's attention has no bias at the start.
        _ if ends("in_proj_bias") || ends("out_proj.bias") => Draw::Constant(0.0),
        _ if ends("c_fc.bias") => Draw::Uniform((shape[0] as f64 / 4.0).powf(-0.5)),
        _ if ends("c_proj.bias") => Draw::Uniform((4.0 * shape[0] as f64).powf(-0.5)),
        _ if name.starts_with("visual.") && ends("in_proj_weight") => {
            // Xavier: sqrt(6 / (in + out)), out being queries, keys and values together.
            Draw::Uniform((6.0 / (4.0 * inputs())).sqrt())
        }
        // Kaiming with a = sqrt(5): within 1 / sqrt(inputs), for linear layers and convolutions.
        _ if name.starts_with("visual.") || name.starts_with("words.") => Draw::Uniform(inputs().powf(-0.5)),
        _ if ends("in_proj_weight") => Draw::Normal(text.powf(-0.5)),
        _ if ends("c_fc.weight") => Draw::Normal((2.0 * text).powf(-0.5)),
        _ => Draw::Normal(residual),
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

    fn moments(values: &[f32]) -> (f64, f64, f64) {
        let n = values.len() as f64;
        let mean = values.iter().map(|x| f64::from(*x)).sum::<f64>() / n;
        let spread = (values.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / n).sqrt();
        (mean, spread, values.iter().fold(0.0, |a, x| f64::max(a, f64::from(x.abs()))))
    }

    /// Every variable's mean, spread and kind of draw, against open_clip's
    /// (`tests/parity/make_init.py`).
    #[test]
    fn every_variable_is_drawn_as_open_clip_draws_it() {
        let mut seen = std::collections::BTreeSet::new();
        for line in include_str!("../tests/parity/init.csv").lines().skip(1) {
            let row: Vec<_> = line.split(',').collect();
            let config = ClipConfig::preset(row[0]).unwrap();
            let name = row[1];
            let [numbers, mean, spread, peak] =
                [2, 3, 4, 5].map(|column: usize| row[column].parse::<f64>().unwrap());
            let values = values(&config, name, &shapes(&config)[name], 3);
            let n = values.len() as f64;
            let (got_mean, got, got_peak) = moments(&values);
            // Six standard errors of two estimated spreads, and of two means.
            let few = (0.5 / n + 0.5 / numbers).sqrt();
            assert!((got - spread).abs() <= 6.0 * spread * few + 1e-7, "{line}: {got}");
            let error = 6.0 * spread * (1.0 / n + 1.0 / numbers).sqrt();
            assert!((got_mean - mean).abs() <= error + 1e-5 * mean.abs(), "{line}: {got_mean}");
            if spread > 0.0 {
                // Nothing of a uniform draw lies beyond sqrt(3) spreads; much of a normal one does.
                let bounded = peak < 1.8;
                assert!(!bounded || got_peak < 1.75 * spread, "{line}: {got_peak}, a wider draw");
                assert!(
                    bounded || n < 100.0 || got_peak > 1.8 * spread,
                    "{line}: {got_peak}, a narrower draw"
                );
            }
            seen.insert((row[0].to_owned(), name.to_owned()));
        }
        for preset in ["vit-tiny-48", "rn-tiny-64"] {
            for name in shapes(&ClipConfig::preset(preset).unwrap()).into_keys() {
                assert!(seen.contains(&(preset.to_owned(), name.clone())), "{name} is not in the table");
            }
        }
    }

    /// What open_clip has not: the first values of the other objectives' variables.
    #[test]
    fn the_other_objectives_start_as_their_papers_say() {
        let config = |objective| ClipConfig { objective, ..ClipConfig::preset("vit-tiny-48").unwrap() };
        let spread = |objective, name: &str| {
            let config = config(objective);
            moments(&values(&config, name, &shapes(&config)[name], 3))
        };
        assert_eq!(spread(Objective::Sigmoid, "logit_bias").0, -10.0);
        assert!((spread(Objective::Sigmoid, "logit_scale").0 - 10f64.ln()).abs() < 1e-6);
        let width = 128f64.powf(-0.5);
        for (objective, name, want) in [
            (Objective::BagOfWords, "words.weight", width / 3f64.sqrt()),
            (Objective::BagOfWords, "words.bias", width / 3f64.sqrt()),
            (Objective::Caption, "caption.image_projection", width),
        ] {
            let (_, got, _) = spread(objective, name);
            assert!((got - want).abs() < 0.05 * want, "{name}: {got}, not {want}");
        }
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
