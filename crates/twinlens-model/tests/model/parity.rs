//! The model against open_clip and PyTorch: features, logits, losses, running statistics and the
//! gradient of every parameter, from `parity/make_fixtures.py`.

use crate::common::{distance, largest_difference, values};
use candle_core::{DType, Device, Tensor, Var};
use std::collections::BTreeMap;
use twinlens_model::{CONFIG_FILE, Clip, ClipConfig, Objective, WEIGHTS_FILE, reference, weights};

const VIT: &str = r#"{ "embed": 8,
    "text": { "layers": 2, "context": 6, "vocab": 20, "width": 16, "heads": 2 },
    "vision": { "image_size": 8, "patch": 4, "width": 16, "layers": 2, "heads": 2 } }"#;
const RESNET: &str = r#"{ "embed": 8,
    "text": { "layers": 1, "context": 6, "vocab": 20, "width": 16, "heads": 2 },
    "vision": { "image_size": 64, "width": 2, "stages": [1, 2, 1, 1], "heads": 2 } }"#;
const OBJECTIVES: &str = r#"{ "embed": 8, "activation": "gelu",
    "text": { "layers": 1, "context": 6, "vocab": 20, "width": 16, "heads": 2 },
    "vision": { "image_size": 8, "patch": 4, "width": 16, "layers": 1, "heads": 2 } }"#;

struct Fixture(BTreeMap<String, Tensor>);

impl Fixture {
    fn read(bytes: &[u8]) -> Self {
        Self(candle_core::safetensors::load_buffer(bytes, &Device::Cpu).unwrap().into_iter().collect())
    }

    /// The tensors with this prefix, by the rest of their names.
    fn part(&self, prefix: &str) -> BTreeMap<String, Tensor> {
        let own =
            self.0.iter().filter_map(|(name, t)| Some((name.strip_prefix(prefix)?.to_owned(), t.clone())));
        own.collect()
    }

    fn pixels(&self) -> Tensor {
        self.0["in/pixels"].to_dtype(DType::F32).unwrap()
    }

    fn ids(&self) -> Tensor {
        self.0["in/ids"].to_dtype(DType::U32).unwrap()
    }

    fn values(&self, name: &str) -> Vec<f64> {
        values(&self.0[name])
    }

    /// The model of this configuration with those of the fixture's weights that it has.
    fn model(&self, config: &ClipConfig) -> Clip {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(CONFIG_FILE), serde_json::to_string(config).unwrap()).unwrap();
        let mut tensors = self.part("weights/");
        let (shapes, buffers) = (weights::shapes(config), weights::buffers(config));
        tensors.retain(|name, _| shapes.contains_key(name) || buffers.contains_key(name));
        let bytes = weights::to_bytes(&tensors, None).unwrap();
        std::fs::write(dir.path().join(WEIGHTS_FILE), bytes).unwrap();
        Clip::load(dir.path()).unwrap()
    }
}

/// Compares loss and gradients with the fixture's: of the fused model in f32, and of the reference
/// in f64.
fn check_gradients(clip: &Clip, fixture: &Fixture, loss: &str, gradients: &str) {
    let (pixels, ids, want) = (fixture.pixels(), fixture.ids(), fixture.values(loss)[0]);
    let wide_variables: BTreeMap<String, Var> = clip
        .variables()
        .iter()
        .map(|(name, v)| (name.clone(), Var::from_tensor(&v.to_dtype(DType::F64).unwrap().detach()).unwrap()))
        .collect();
    let tensors = wide_variables.iter().map(|(name, v)| (name.clone(), v.as_tensor().clone())).collect();
    let wide = reference::loss(&tensors, clip.config(), &pixels.to_dtype(DType::F64).unwrap(), &ids).unwrap();
    let fused = clip.loss(&pixels, &ids).unwrap();
    assert!((values(&wide)[0] - want).abs() < 1e-7 * want, "{loss}: {wide:?} {want}");
    assert!((values(&fused)[0] - want).abs() < 1e-5 * want, "{loss}: {fused:?} {want}");

    let (wide, fused, expected) =
        (wide.backward().unwrap(), fused.backward().unwrap(), fixture.part(gradients));
    assert_eq!(expected.keys().collect::<Vec<_>>(), clip.variables().keys().collect::<Vec<_>>());
    let mut worst = (0.0_f64, 0.0_f64);
    for (name, variable) in clip.variables() {
        let want = values(&expected[name]);
        let wide = distance(&values(wide.get(&wide_variables[name]).unwrap()), &want, 1e-6);
        // The keys' bias shifts all scores of a query equally, so its gradient is 0 up to rounding.
        let floor = if name.ends_with("k_proj.bias") { 1e-2 } else { 1e-4 };
        let fused = distance(&values(fused.get(variable).unwrap()), &want, floor);
        assert!(wide < 1e-6, "{loss}, f64: {name}: {wide}");
        assert!(fused < 1e-4, "{loss}, f32: {name}: {fused}");
        worst = (worst.0.max(wide), worst.1.max(fused));
    }
    println!("{loss}: gradients within {:.1e} in f64, {:.1e} in f32", worst.0, worst.1);
}

fn check_contrastive(config: &str, bytes: &[u8]) {
    let fixture = Fixture::read(bytes);
    let clip = fixture.model(&serde_json::from_str(config).unwrap());
    let (pixels, ids) = (fixture.pixels(), fixture.ids());
    let close = |got: &Tensor, name: &str, tolerance: f64| {
        let difference = largest_difference(&values(got), &fixture.values(name));
        assert!(difference < tolerance, "{name}: {difference}");
        println!("{name}: within {difference:.1e}");
    };
    close(&clip.encode_image(&pixels).unwrap(), "eval/image", 1e-5);
    let image = clip.image_features(&pixels, twinlens_model::Pass::Preview).unwrap();
    let text = clip.encode_text(&ids).unwrap();
    close(&image, "out/image", 1e-5);
    close(&text, "out/text", 1e-5);
    close(&clip.score(&image, &ids).unwrap(), "out/logits", 1e-4);
    let cosines = fixture.0["out/image"].matmul(&fixture.0["out/text"].t().unwrap()).unwrap();
    let ours = image.matmul(&text.t().unwrap()).unwrap();
    assert!(100.0 * largest_difference(&values(&ours), &values(&cosines)) < 1e-3);

    for (name, moved) in fixture.part("weights/").into_iter().filter(|(name, _)| name.contains("running")) {
        assert_eq!(values(&clip.buffers()[&name]), values(&moved), "{name}: updated too early");
    }
    check_gradients(&clip, &fixture, "out/loss", "gradients/");
    let moved = fixture.part("moved/");
    assert_eq!(moved.keys().collect::<Vec<_>>(), clip.buffers().keys().collect::<Vec<_>>());
    for (name, want) in moved {
        let difference = largest_difference(&values(&clip.buffers()[&name]), &values(&want));
        assert!(difference < 1e-5, "{name}: {difference}");
    }
}

#[test]
fn the_vision_transformer_matches_open_clip() {
    check_contrastive(VIT, include_bytes!("../parity/vit.safetensors"));
}

#[test]
fn the_resnet_matches_open_clip() {
    check_contrastive(RESNET, include_bytes!("../parity/resnet.safetensors"));
}

#[test]
fn other_objectives_match_pytorch() {
    let config: ClipConfig = serde_json::from_str(OBJECTIVES).unwrap();
    let fixture = Fixture::read(include_bytes!("../parity/objectives.safetensors"));
    for (objective, name) in [
        (Objective::SIGMOID, "sigmoid"),
        (Objective::BAG_OF_WORDS, "bag_of_words"),
        (Objective::CAPTION, "caption"),
    ] {
        let clip = fixture.model(&ClipConfig { objective, ..config.clone() });
        check_gradients(&clip, &fixture, &format!("{name}/loss"), &format!("{name}/gradients/"));
    }
}

/// PyTorch's AdamW, in f32 with f64 factors.
struct AdamW {
    rate: f64,
    moments: BTreeMap<String, (Vec<f32>, Vec<f32>)>,
}

impl AdamW {
    const DECAY: f64 = 0.2;
    const BETAS: (f64, f64) = (0.9, 0.98);

    fn step(&mut self, clip: &Clip, gradients: &candle_core::backprop::GradStore, step: i32) {
        let (b1, b2) = Self::BETAS;
        let (c1, c2) = (1.0 - b1.powi(step), (1.0 - b2.powi(step)).sqrt());
        for (name, variable) in clip.variables() {
            let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let (mut w, g) = (flat(variable), flat(gradients.get(variable).unwrap()));
            let fresh = || (vec![0.0; g.len()], vec![0.0; g.len()]);
            let (m, v) = self.moments.entry(name.clone()).or_insert_with(fresh);
            let keep = if variable.rank() >= 2 { 1.0 - self.rate * Self::DECAY } else { 1.0 };
            for (((w, g), m), v) in w.iter_mut().zip(&g).zip(m).zip(v) {
                *m = b1 as f32 * *m + (1.0 - b1) as f32 * g;
                *v = b2 as f32 * *v + (1.0 - b2) as f32 * g * g;
                *w = *w * keep as f32 - (self.rate / c1) as f32 * *m / (v.sqrt() / c2 as f32 + 1e-6);
            }
            variable.set(&Tensor::from_vec(w, variable.shape(), &Device::Cpu).unwrap()).unwrap();
        }
    }
}

/// 50 training steps from the same weights on the same batches (`parity/make_curves.py`): the loss
/// of each within 1e-3.
#[test]
fn fifty_training_steps_match_open_clip() {
    let curves: serde_json::Value = serde_json::from_str(include_str!("../parity/curves.json")).unwrap();
    let towers = [
        ("vit", VIT, &include_bytes!("../parity/vit.safetensors")[..]),
        ("resnet", RESNET, &include_bytes!("../parity/resnet.safetensors")[..]),
    ];
    for (name, config, bytes) in towers {
        let clip = Fixture::read(bytes).model(&serde_json::from_str(config).unwrap());
        let (pairs, side) = (12, clip.config().vision.image_size());
        let batch = |number: usize| {
            let pixels = crate::common::noise(pairs * 3 * side * side, 100 + number as u32);
            let id = move |pair: usize, t: usize| match t {
                0 => 18,
                t if t <= pair % 5 => ((number * 5 + pair * t) % 18) as u32,
                t if t == pair % 5 + 1 => 19,
                _ => 0,
            };
            let ids: Vec<u32> = (0..pairs).flat_map(|pair| (0..6).map(move |t| id(pair, t))).collect();
            let pixels = Tensor::from_vec(pixels, (pairs, 3, side, side), &Device::Cpu).unwrap();
            (pixels, Tensor::from_vec(ids, (pairs, 6), &Device::Cpu).unwrap())
        };
        let batches = [0, 1, 2].map(batch);
        let losses: Vec<f64> = serde_json::from_value(curves[name]["losses"].clone()).unwrap();
        let mut adam = AdamW { rate: curves[name]["rate"].as_f64().unwrap(), moments: BTreeMap::new() };
        let mut worst = 0.0_f64;
        assert_eq!(losses.len(), 50);
        for (step, want) in losses.iter().enumerate() {
            let (pixels, ids) = &batches[step % 3];
            let loss = clip.loss(pixels, ids).unwrap();
            let got = values(&loss)[0];
            worst = worst.max((got - want).abs());
            assert!((got - want).abs() < 1e-3, "{name}, step {step}: {got}, not {want}");
            adam.step(&clip, &loss.backward().unwrap(), step as i32 + 1);
            clip.clamp_logit_scale().unwrap();
        }
        println!("{name}: 50 losses within {worst:.1e}");
    }
}
