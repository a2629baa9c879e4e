//! Reading and writing models of transformers, open_clip and PyTorch. `formats/make_fixtures.py`
//! made the files; `formats/check_exports.py` checks that the other programs read our exports.

use crate::common::{batch, largest_difference, model, values};
use candle_core::{DType, Device, Tensor};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use twinlens_image::{CropOrigin, Filter, ImageModes, Preprocess, ResizeRule};
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

/// A copy of a folder of the fixtures, with `change` made to one of its JSON files.
fn changed(folder: &str, name: &str, change: impl FnOnce(&mut Value)) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(file(folder)).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
    }
    let path = dir.path().join(name);
    let mut json = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    change(&mut json);
    std::fs::write(path, format!("\u{feff}{json}")).unwrap();
    dir
}

/// What loading says after `value` was put at `at` (a JSON pointer without its first slash).
fn load_with(folder: &str, at: &str, value: &Value) -> Result<Clip, String> {
    let name = if folder == "open_clip" { "open_clip_config.json" } else { "config.json" };
    let dir = changed(folder, name, |json| {
        let (table, key) = at.rsplit_once('/').unwrap_or(("", at));
        let table = if table.is_empty() { json } else { json.pointer_mut(&format!("/{table}")).unwrap() };
        table[key] = value.clone();
    });
    Clip::load(dir.path()).map_err(|error| error.to_string())
}

/// Every key of another program's configuration is used, known to be harmless, or refused by name.
#[test]
fn harmless_keys_are_accepted_and_others_refused_by_name() {
    let (hf, oc) = ("hugging_face", "open_clip");
    for (folder, at, value) in [
        (hf, "text_config/bos_token_id", json!(0)),
        (hf, "text_config/output_attentions", json!(true)),
        (hf, "text_config/pruned_heads", json!({})),
        (hf, "text_config/is_decoder", json!(false)),
        (hf, "vision_config/image_size", json!([8, 8])),
        (hf, "vision_config/projection_dim", json!(512)),
        (hf, "vision_config_dict", Value::Null),
        (hf, "torch_dtype", json!("float16")),
        (hf, "unheard_of", Value::Null),
        (oc, "model_cfg/init_logit_bias", Value::Null),
        (oc, "model_cfg/init_logit_scale", json!(2.0)),
        (oc, "model_cfg/vision_cfg/image_size", json!([32, 32])),
        (oc, "model_cfg/vision_cfg/output_tokens", json!(false)),
        (oc, "model_cfg/vision_cfg/pool_type", json!("avg")),
        (oc, "model_cfg/vision_cfg/patch_dropout", json!(0.5)),
        (oc, "model_cfg/text_cfg/output_tokens", json!(false)),
        (oc, "model_cfg/text_cfg/norm_kwargs", Value::Null),
        (oc, "model_cfg/text_cfg/hf_tokenizer_name", json!("")),
        (oc, "model_cfg/text_cfg/tokenizer_kwargs", json!({ "clean": "lower" })),
        (oc, "model_cfg/text_cfg/pad_id", json!(1)),
        (oc, "preprocess_cfg", json!({ "size": [32, 32], "mode": "RGB", "interpolation": "random" })),
    ] {
        let clip = load_with(folder, at, &value).unwrap_or_else(|error| panic!("{at}: {error}"));
        check(&clip, folder);
    }
    for (folder, at, value, expected) in [
        (hf, "text_config/intermediate_size", json!(48), "text_config.intermediate_size is 48"),
        (hf, "text_config/hidden_act", json!("relu"), "neither quick_gelu nor gelu"),
        (hf, "text_config/eos_token_id", json!(3), "text_config.eos_token_id is 3"),
        (hf, "text_config/is_decoder", json!(true), "text_config.is_decoder is true"),
        (hf, "text_config/pruned_heads", json!({ "0": [1] }), "text_config.pruned_heads is"),
        (hf, "text_config/unheard_of", json!(1), "text_config.unheard_of is 1, but this key is unknown"),
        (hf, "vision_config/image_size", json!([8, 16]), "vision_config.image_size is [8, 16], not a square"),
        (hf, "vision_config/num_channels", json!(1), "vision_config.num_channels is 1"),
        (hf, "model_type", json!("siglip"), "model_type is \"siglip\""),
        (hf, "quantization_config", json!({ "bits": 4 }), "quantization_config is"),
        (hf, "text_config_dict", json!({ "hidden_size": 64 }), "text_config_dict.intermediate_size is 2048"),
        (oc, "model_cfg/vision_cfg/timm_model_name", json!("convnext"), "vision_cfg.timm_model_name is"),
        (oc, "model_cfg/vision_cfg/qk_norm", json!(true), "vision_cfg.qk_norm is true; only false"),
        (oc, "model_cfg/text_cfg/no_causal_mask", json!(true), "text_cfg.no_causal_mask is true"),
        (oc, "model_cfg/text_cfg/pool_type", json!("last"), "text_cfg.pool_type is \"last\""),
        (oc, "model_cfg/text_cfg/hf_tokenizer_name", json!("t5"), "text_cfg.hf_tokenizer_name is \"t5\""),
        (
            oc,
            "model_cfg/text_cfg/tokenizer_kwargs",
            json!({ "clean": "canonicalize" }),
            "text_cfg.tokenizer_kwargs.clean is \"canonicalize\"; only \"lower\"",
        ),
        (oc, "model_cfg/multimodal_cfg", json!({}), "multimodal_cfg is {}"),
        (
            oc,
            "preprocess_cfg",
            json!({ "resize_mode": "longest" }),
            "preprocess_cfg.resize_mode is \"longest\"",
        ),
        (oc, "preprocess_cfg", json!({ "mean": [0.5] }), "preprocess_cfg.mean is [0.5], not three numbers"),
        (oc, "preprocess_cfg", json!({ "crop_pct": 0.9 }), "preprocess_cfg.crop_pct is 0.9"),
        (oc, "revision", json!(2), "revision is 2"),
    ] {
        let error = load_with(folder, at, &value).err().unwrap_or_else(|| panic!("{at} {value}"));
        assert!(error.contains(expected) && error.contains("config.json"), "{at}: {error}");
    }
}

/// As transformers, which takes `text_config_dict` and its defaults in place of `text_config`.
#[test]
fn text_config_dict_replaces_text_config() {
    let dir = changed("hugging_face", "config.json", |json| {
        json["text_config_dict"] = json["text_config"].clone();
        json["text_config"] = json!({ "hidden_size": 4096, "hidden_act": "relu" });
    });
    check(&Clip::load(dir.path()).unwrap(), "hugging_face");
}

#[test]
fn a_folder_has_the_first_layout_whose_files_it_holds() {
    let dir = changed("open_clip", "open_clip_config.json", |_| {});
    std::fs::write(dir.path().join("config.json"), r#"{ "architecture": "resnet18", "num_classes": 10 }"#)
        .unwrap();
    check(&Clip::load(dir.path()).unwrap(), "open_clip");
    // The weights of the other program are not there.
    let dir = changed("hugging_face", "config.json", |_| {});
    std::fs::copy(file("open_clip/open_clip_config.json"), dir.path().join("open_clip_config.json")).unwrap();
    check(&Clip::load(dir.path()).unwrap(), "hugging_face");
}

/// Each program's way with images, which a model keeps however it is saved.
#[test]
fn preprocessing_is_read_kept_and_exported() {
    let own = Preprocess::clip(8);
    let foreign = Preprocess { modes: ImageModes::OpenClip, ..own.clone() };
    let floor = Preprocess { crop_origin: CropOrigin::Floor, ..foreign.clone() };
    let clip = Clip::load(&file("hugging_face")).unwrap();
    assert_eq!(*clip.preprocess(), floor);
    assert_eq!(
        *Clip::load(&file("open_clip")).unwrap().preprocess(),
        Preprocess { modes: ImageModes::OpenClip, ..Preprocess::clip(32) }
    );
    let mut clip = model(small(Activation::Gelu));
    assert_eq!(*clip.preprocess(), own);
    clip.set_preprocess(Preprocess {
        resize: ResizeRule::Squash(8),
        filter: Filter::Bilinear,
        mean: [0.5; 3],
        std: [0.25, 0.5, 0.1],
        ..own
    });
    type Write = fn(&Clip, &Path) -> twinlens_model::Result<()>;
    let writes: [(Write, bool); 3] =
        [(Clip::save, true), (Clip::export_hugging_face, true), (Clip::export_open_clip, false)];
    for (write, keeps_modes) in writes {
        let dir = tempfile::tempdir().unwrap();
        write(&clip, dir.path()).unwrap();
        let modes = if keeps_modes { ImageModes::White } else { ImageModes::OpenClip };
        let expected = Preprocess { modes, ..clip.preprocess().clone() };
        assert_eq!(*Clip::load(dir.path()).unwrap().preprocess(), expected);
    }
}

#[test]
fn weights_of_wrapped_models_are_unwrapped_and_bad_ones_named() {
    let original =
        candle_core::safetensors::load(file("open_clip/open_clip_model.safetensors"), &Device::Cpu);
    let original = original.unwrap();
    let load = |rename: &dyn Fn(&str) -> String, change: Option<&str>| {
        let mut tensors: HashMap<String, Tensor> =
            original.iter().map(|(name, tensor)| (rename(name), tensor.clone())).collect();
        if let Some(name) = change {
            let tensor = tensors[name].affine(0.0, f64::NAN).unwrap();
            tensors.insert(name.into(), tensor);
        }
        let dir = changed("open_clip", "open_clip_config.json", |_| {});
        let path = dir.path().join("open_clip_model.safetensors");
        candle_core::safetensors::save(&tensors, path).unwrap();
        Clip::load(dir.path()).map_err(|error| error.to_string())
    };
    for prefix in ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model."] {
        check(&load(&|name| format!("{prefix}{name}"), None).unwrap(), "open_clip");
    }
    check(&load(&|name| name.replace("visual.", "visual._orig_mod."), None).unwrap(), "open_clip");
    let error = load(&|name| format!("student.{name}"), None).err().unwrap();
    assert!(error.contains("all its names begin with `student.`"), "{error}");
    let error = load(&str::to_owned, Some("text_projection")).err().unwrap();
    assert!(error.contains("`text_projection` holds NaN or infinite values"), "{error}");
}
