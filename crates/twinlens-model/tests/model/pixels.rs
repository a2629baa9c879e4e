//! Images of all modes, prepared as the configurations of open_clip and transformers say: the
//! pixels are those of these programs. `benches/parity.py --fixture` made
//! `formats/pixels.safetensors`, and compares many more.

use candle_core::Device;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use twinlens_image::{Limits, Preprocess};
use twinlens_model::{Activation, Clip, ClipConfig, Objective, TextConfig, VitConfig};

const SIZE: usize = 12;

/// The preprocessing that a directory says in `file`, whose value at `at` is replaced.
fn preprocess(clip: &Clip, hugging_face: bool, value: &Value) -> Preprocess {
    let dir = tempfile::tempdir().unwrap();
    let file = if hugging_face {
        clip.export_hugging_face(dir.path()).unwrap();
        std::fs::write(dir.path().join("preprocessor_config.json"), value.to_string()).unwrap();
        None
    } else {
        clip.export_open_clip(dir.path()).unwrap();
        Some(dir.path().join("open_clip_config.json"))
    };
    if let Some(path) = file {
        let mut json: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        json["preprocess_cfg"] = value.clone();
        std::fs::write(path, json.to_string()).unwrap();
    }
    Clip::load(dir.path()).unwrap().preprocess().clone()
}

#[test]
fn pixels_are_those_of_open_clip_and_transformers() {
    let path: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/formats/pixels.safetensors");
    let tensors = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
    let config = ClipConfig {
        embed: 8,
        vision: VitConfig { image_size: SIZE, patch: 4, width: 16, layers: 1, heads: 2 }.into(),
        text: TextConfig { context: 6, vocab: 20, width: 16, layers: 1, heads: 2 },
        activation: Activation::Gelu,
        objective: Objective::CONTRASTIVE,
    };
    let clip = Clip::new(config, 1).unwrap();
    let crop = json!({ "size": { "shortest_edge": 15 }, "crop_size": { "height": 12, "width": 12 } });
    let squash = json!({ "resize_mode": "squash", "interpolation": "bilinear", "mean": [0.5, 0.5, 0.5] });
    let cases = [
        ("open_clip/shortest", preprocess(&clip, false, &json!({ "size": SIZE }))),
        ("open_clip/squash", preprocess(&clip, false, &squash)),
        ("hugging_face/crop", preprocess(&clip, true, &crop)),
    ];
    let mut different = Vec::new();
    let names = tensors.keys().filter_map(|name| name.strip_prefix("bytes/"));
    for name in names.clone() {
        let bytes: Vec<u8> = tensors[&format!("bytes/{name}")].to_vec1().unwrap();
        for (case, preprocess) in &cases {
            let expected: Vec<u8> =
                tensors[&format!("{case}/{name}")].flatten_all().unwrap().to_vec1().unwrap();
            let tensor =
                preprocess.tensor(&bytes, &Limits::default()).unwrap_or_else(|e| panic!("{name}: {e}"));
            let level = |(at, value): (usize, &f32)| {
                let channel = at / (SIZE * SIZE);
                ((value * preprocess.std[channel] + preprocess.mean[channel]) * 255.0).round() as u8
            };
            let levels: Vec<u8> = tensor.iter().enumerate().map(level).collect();
            if levels != expected {
                let most = levels.iter().zip(&expected).map(|(a, b)| a.abs_diff(*b)).max();
                different.push(format!("{case} {name}: {most:?}"));
            }
        }
    }
    assert_eq!(names.count(), 40);
    assert!(different.is_empty(), "{different:#?}");
}
