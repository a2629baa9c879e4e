//! open_clip's folders: `open_clip_config.json` and `open_clip_model.safetensors`. Its names are
//! also this program's.

use super::{MEAN, Named, STD, Table, read_json};
use crate::config::{ClipConfig, ResNetConfig, TextConfig, VisionConfig, VitConfig};
use crate::error::{ModelError, Result};
use crate::objective::Objective;
use crate::ops::activation::Activation;
use candle_core::{Device, Tensor};
use serde_json::{Value, json};
use std::path::Path;

/// The configuration's file.
pub const CONFIG_FILE: &str = "open_clip_config.json";
/// The weights' file: the first is written, the others are read where it is not there.
pub const WEIGHTS_FILES: [&str; 2] = ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"];

/// The shape that an open_clip configuration describes.
pub fn config(path: &Path) -> Result<ClipConfig> {
    let mut map = read_json(path)?;
    if let Some(Value::Object(inner)) = map.remove("model_cfg") {
        map = inner;
    }
    let mut table = Table { path, name: "", map };
    let embed = table.number("embed_dim", None)?;
    let quick = table.flag("quick_gelu")?;
    let objective =
        if table.map.contains_key("init_logit_bias") { Objective::Sigmoid } else { Objective::Contrastive };
    let mut text = table.table("text_cfg")?;
    let mut vision = table.table("vision_cfg")?;
    table.pass_over(&[
        "custom_text",
        "init_logit_bias",
        "init_logit_scale",
        "nonscalar_logit_scale",
        "output_dict",
    ]);
    table.end()?;

    let width = text.number("width", Some(512))?;
    let config = TextConfig {
        context: text.number("context_length", Some(77))?,
        vocab: text.number("vocab_size", Some(49_408))?,
        width,
        layers: text.number("layers", Some(12))?,
        heads: text.number("heads", Some(8))?,
    };
    text.only("mlp_ratio", &json!(4.0))?;
    text.pass_over(&["hf_tokenizer_name", "tokenizer_kwargs"]);
    text.end()?;

    let vision = self::vision(&mut vision).and_then(|tower| vision.end().map(|()| tower))?;
    let activation = if quick { Activation::QuickGelu } else { Activation::Gelu };
    Ok(ClipConfig { embed, vision, text: config, activation, objective })
}

fn vision(table: &mut Table<'_>) -> Result<VisionConfig> {
    let image_size = table.number("image_size", Some(224))?;
    let head = table.number("head_width", Some(64))?.max(1);
    table.only("mlp_ratio", &json!(4.0))?;
    table.pass_over(&["patch_dropout"]);
    if let Some(Value::Array(stages)) = table.map.get("layers") {
        let stages: Vec<usize> = stages.iter().filter_map(Value::as_u64).map(|n| n as usize).collect();
        let stages = stages.try_into().map_err(|_| table.wrong("layers", "is not of four stages"))?;
        table.pass_over(&["layers", "patch_size"]);
        let width = table.number("width", Some(64))?;
        return Ok(VisionConfig::ResNet(ResNetConfig {
            image_size,
            width,
            stages,
            heads: 32 * width / head,
        }));
    }
    let width = table.number("width", Some(768))?;
    Ok(VisionConfig::Vit(VitConfig {
        image_size,
        patch: table.number("patch_size", Some(16))?,
        width,
        layers: table.number("layers", Some(12))?,
        heads: width / head,
    }))
}

/// What open_clip builds the same model from.
pub fn to_config(config: &ClipConfig, dir: &Path) -> Result<Value> {
    if !config.objective.embeds_texts() {
        return Err(ModelError::Format {
            path: dir.to_owned(),
            problem: format!("open_clip has no model with the objective {:?}", config.objective),
            instead: "this program's own folder holds it".into(),
        });
    }
    let vision = match &config.vision {
        VisionConfig::Vit(v) => json!({
            "image_size": v.image_size, "layers": v.layers, "width": v.width, "patch_size": v.patch,
            "head_width": v.width / v.heads,
        }),
        VisionConfig::ResNet(r) => json!({
            "image_size": r.image_size, "layers": r.stages, "width": r.width, "patch_size": null,
            "head_width": r.features() / r.heads,
        }),
    };
    let t = &config.text;
    let mut model = json!({
        "embed_dim": config.embed,
        "quick_gelu": config.activation == Activation::QuickGelu,
        "vision_cfg": vision,
        "text_cfg": {
            "context_length": t.context, "vocab_size": t.vocab, "width": t.width, "heads": t.heads, "layers": t.layers,
        },
    });
    if config.objective == Objective::Sigmoid {
        model["init_logit_bias"] = json!(-10);
    }
    let preprocess =
        json!({ "mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "shortest" });
    Ok(json!({ "model_cfg": model, "preprocess_cfg": preprocess }))
}

/// The tensors that open_clip expects: ours, and a counter of batches for each batch norm.
pub fn to_tensors(mut state: Named) -> Result<Named> {
    let norms = state.keys().filter_map(|name| name.strip_suffix(".running_mean"));
    for name in norms.map(|norm| format!("{norm}.num_batches_tracked")).collect::<Vec<_>>() {
        state.insert(name, Tensor::new(0i64, &Device::Cpu)?);
    }
    Ok(state)
}
