//! The model against PyTorch: features, loss and the gradient of every parameter, from `parity/make_fixture.py`.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use candle_core::{DType, Device, Tensor};
use std::collections::BTreeMap;
use twinlens_model::{CONFIG_FILE, Clip, WEIGHTS_FILE, weights};

const CONFIG: &str = r#"{ "embed": 8, "activation": "quick_gelu",
    "vision": { "image_size": 8, "patch": 4, "width": 16, "layers": 2, "heads": 2 },
    "text": { "context": 6, "vocab": 20, "width": 16, "layers": 2, "heads": 2 } }"#;

fn numbers(tensor: &Tensor) -> Vec<f64> {
    tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn features_loss_and_gradients_are_pytorchs() {
    let fixture =
        candle_core::safetensors::load_buffer(include_bytes!("parity/clip.safetensors"), &Device::Cpu)
            .unwrap();
    let part = |prefix: &str| -> BTreeMap<String, Tensor> {
        let own =
            fixture.iter().filter_map(|(name, t)| Some((name.strip_prefix(prefix)?.to_owned(), t.clone())));
        own.collect()
    };
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join(CONFIG_FILE), CONFIG).unwrap();
    let bytes = weights::to_bytes(&part("weights/"), None).unwrap();
    std::fs::write(dir.path().join(WEIGHTS_FILE), bytes).unwrap();
    let clip = Clip::load(dir.path()).unwrap();

    let (pixels, ids) = (&fixture["in/pixels"], fixture["in/ids"].to_dtype(DType::U32).unwrap());
    for (got, want) in [(clip.encode_image(pixels), "out/image"), (clip.encode_text(&ids), "out/text")] {
        let pairs = numbers(&got.unwrap()).into_iter().zip(numbers(&fixture[want]));
        assert!(pairs.into_iter().all(|(a, b)| (a - b).abs() < 1e-5), "{want}");
    }
    let loss = clip.loss(pixels, &ids).unwrap();
    let (got, want) = (numbers(&loss)[0], numbers(&fixture["out/loss"])[0]);
    assert!((got - want).abs() < 1e-5 * want, "{got} {want}");

    let (gradients, expected) = (loss.backward().unwrap(), part("gradients/"));
    assert_eq!(expected.keys().collect::<Vec<_>>(), clip.variables().keys().collect::<Vec<_>>());
    for (name, variable) in clip.variables() {
        let (got, want) = (numbers(gradients.get(variable).unwrap()), numbers(&expected[name]));
        let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
        let distance =
            norm(&mut got.iter().zip(&want).map(|(a, b)| a - b)) / norm(&mut want.iter().copied()).max(1e-6);
        assert!(distance < 1e-4, "{name}: {distance}");
    }
}
