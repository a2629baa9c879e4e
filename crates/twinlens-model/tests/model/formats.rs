//! Reading and writing models of transformers, open_clip and PyTorch. `formats/make_fixtures.py`
//! made the files; `formats/check_exports.py` checks that the other programs read our exports.

use crate::common::{batch, largest_difference, model, values};
use candle_core::{DType, Device, Tensor};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use twinlens_model::{Activation, Clip, ClipConfig, Objective, TextConfig, VitConfig};

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/formats").join(name)
}

fn features() -> HashMap<String, Tensor> {
    candle_core::safetensors::load(file("features.safetensors"), &Device::Cpu).unwrap()
}

fn small(activation: Activation) -> ClipConfig {
    ClipConfig {
        embed: 8,
        vision: VitConfig { image_size: 8, patch: 4, width: 16, layers: 1, heads: 2 }.into(),
        text: TextConfig { context: 6, vocab: 20, width: 16, layers: 1, heads: 2 },
        activation,
        objective: Objective::CONTRASTIVE,
    }
}

fn check(clip: &Clip, name: &str) {
    let expected = features();
    let pixels = &expected[&format!("pixels/{}", clip.config().vision.image_size())];
    let ids = expected["ids"].to_dtype(DType::U32).unwrap();
    for (got, tower) in [(clip.encode_image(pixels), "image"), (clip.encode_text(&ids), "text")] {
        let want = values(&expected[&format!("{name}/{tower}")]);
        let difference = largest_difference(&values(&got.unwrap()), &want);
        println!("{name}/{tower}: within {difference:.1e}");
        assert!(difference < 1e-5, "{name}/{tower}: {difference}");
    }
}

#[test]
fn models_of_other_programs_give_the_same_features() {
    check(&Clip::load(&file("hugging_face")).unwrap(), "hugging_face");
    check(&Clip::load(&file("open_clip")).unwrap(), "open_clip");
    for weights in ["checkpoint.pt", "state_dict.pt"] {
        check(&Clip::load_weights(&file(weights), small(Activation::Gelu)).unwrap(), "checkpoint");
    }
    let bare = Clip::load_weights(&file("hugging_face/model.safetensors"), small(Activation::Gelu)).unwrap();
    check(&bare, "hugging_face");
}

#[test]
fn exported_models_load_unchanged() {
    let resnet =
        ClipConfig { text: small(Activation::Gelu).text, ..ClipConfig::preset("rn-tiny-32").unwrap() };
    let sigmoid = ClipConfig { objective: Objective::SIGMOID, ..small(Activation::Gelu) };
    for config in [small(Activation::QuickGelu), small(Activation::Gelu), resnet, sigmoid] {
        let clip = model(config);
        let dir = tempfile::tempdir().unwrap();
        clip.export_open_clip(dir.path()).unwrap();
        let read = Clip::load(dir.path()).unwrap();
        assert_eq!((read.config(), read.weights_hash()), (clip.config(), clip.weights_hash()));
        let dir = tempfile::tempdir().unwrap();
        let is_supported = clip.config().vision.downcast_ref::<VitConfig>().is_some()
            && clip.config().objective == Objective::CONTRASTIVE;
        if !is_supported {
            let error = clip.export_hugging_face(dir.path()).unwrap_err().to_string();
            assert!(error.contains("open_clip's format"), "{error}");
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
            continue;
        }
        clip.export_hugging_face(dir.path()).unwrap();
        let read = Clip::load(dir.path()).unwrap();
        assert_eq!((read.config(), read.weights_hash()), (clip.config(), clip.weights_hash()));
        let (pixels, ids) = batch(clip.config(), 3);
        assert_eq!(
            values(&read.encode_image(&pixels).unwrap()),
            values(&clip.encode_image(&pixels).unwrap())
        );
        assert_eq!(values(&read.encode_text(&ids).unwrap()), values(&clip.encode_text(&ids).unwrap()));
    }
    let caption = model(ClipConfig { objective: Objective::CAPTION, ..small(Activation::Gelu) });
    let dir = tempfile::tempdir().unwrap();
    assert!(caption.export_open_clip(dir.path()).unwrap_err().to_string().contains("caption"));
}

/// A Hugging Face model is exported bit for bit, with the same tensor names.
#[test]
fn hugging_face_models_survive_a_round_trip() {
    let dir = tempfile::tempdir().unwrap();
    Clip::load(&file("hugging_face")).unwrap().export_hugging_face(dir.path()).unwrap();
    let read =
        |dir: &Path| candle_core::safetensors::load(dir.join("model.safetensors"), &Device::Cpu).unwrap();
    let (ours, theirs) = (read(dir.path()), read(&file("hugging_face")));
    assert_eq!(ours.len(), theirs.len());
    for (name, tensor) in theirs {
        assert_eq!((ours[&name].dims(), values(&ours[&name])), (tensor.dims(), values(&tensor)), "{name}");
    }
}

#[test]
fn errors_of_unreadable_files_say_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    std::fs::write(at("empty.pt"), b"").unwrap();
    std::fs::write(at("old.pt"), b"\x80\x02not a zip").unwrap();
    let mut cut = std::fs::read(file("state_dict.pt")).unwrap();
    cut.truncate(cut.len() / 2);
    std::fs::write(at("cut.pt"), cut).unwrap();
    let config = || small(Activation::Gelu);
    for (path, words) in [
        (file("torchscript.pt"), ["TorchScript", "from Hugging Face or open_clip"]),
        (at("empty.pt"), ["empty.pt", "is empty"]),
        (at("old.pt"), ["cannot be read", "safetensors"]),
        (at("cut.pt"), ["cannot be read", "safetensors"]),
    ] {
        let error = Clip::load_weights(&path, config()).err().unwrap().to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    }
    let mut other = config();
    other.text.layers = 2;
    let error = Clip::load_weights(&file("state_dict.pt"), other).err().unwrap().to_string();
    assert!(error.contains("`transformer.resblocks.1.attn.in_proj_bias` is missing"), "{error}");
}

#[test]
fn unsupported_configurations_are_refused_by_key() {
    let change = |folder: &str, name: &str, from: &str, to: &str| {
        let dir = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(file(folder)).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
        }
        let json = std::fs::read_to_string(dir.path().join(name)).unwrap();
        assert!(json.contains(from));
        std::fs::write(dir.path().join(name), json.replace(from, to)).unwrap();
        Clip::load(dir.path()).err().unwrap().to_string()
    };
    for (from, to, word) in [
        ("\"intermediate_size\": 64", "\"intermediate_size\": 48", "text_config.intermediate_size is 48"),
        ("\"hidden_act\": \"gelu\"", "\"hidden_act\": \"relu\"", "neither quick_gelu nor gelu"),
        ("\"eos_token_id\": 19", "\"eos_token_id\": 3", "text_config.eos_token_id is 3"),
        ("\"model_type\": \"clip\"", "\"model_type\": \"siglip\"", "model_type"),
    ] {
        let error = change("hugging_face", "config.json", from, to);
        assert!(error.contains(word) && error.contains("config.json"), "{error}");
    }
    let error = change(
        "open_clip",
        "open_clip_config.json",
        "\"width\": 2",
        "\"width\": 2, \"timm_model_name\": \"convnext\"",
    );
    assert!(error.contains("vision_cfg.timm_model_name"), "{error}");
}
