//! open_clip's folders: `open_clip_config.json` and `open_clip_model.safetensors`. This program
//! uses its tensor names.

use super::table::{MEAN, STD, Table, read_json};
use crate::config::ClipConfig;
use crate::error::{ModelError, Result};
use crate::objectives::Objective;
use crate::ops::activation::Activation;
use crate::ops::reference::Tensors;
use crate::towers::resnet::ResNetConfig;
use crate::towers::text::TextConfig;
use crate::towers::vision::VisionConfig;
use crate::towers::vit::VitConfig;
use candle_core::{Device, Tensor};
use serde_json::{Value, json};
use std::path::Path;

/// File name of the configuration.
pub(super) const CONFIG_FILE: &str = "open_clip_config.json";
/// File names of the weights: the first is written, the second is read if the first is missing.
pub(super) const WEIGHTS_FILES: [&str; 2] = ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"];

/// The shape that an open_clip configuration describes.
pub(super) fn config(path: &Path) -> Result<ClipConfig> {
    let mut map = read_json(path)?;
    if let Some(Value::Object(inner)) = map.remove("model_cfg") {
        map = inner;
    }
    let mut table = Table::new(path, map);
    let embed = table.number("embed_dim", None)?;
    let quick = table.flag("quick_gelu")?;
    let objective = objective(&table);
    let mut text = table.table("text_cfg")?;
    let mut vision = table.table("vision_cfg")?;
    table.ignore(&[
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
    text.ignore(&["hf_tokenizer_name", "tokenizer_kwargs"]);
    text.end()?;

    let vision = self::vision(&mut vision).and_then(|tower| vision.end().map(|()| tower))?;
    let activation = if quick { Activation::QuickGelu } else { Activation::Gelu };
    Ok(ClipConfig { embed, vision, text: config, activation, objective })
}

fn vision(table: &mut Table<'_>) -> Result<VisionConfig> {
    let image_size = table.number("image_size", Some(224))?;
    let head = table.number("head_width", Some(64))?.max(1);
    table.only("mlp_ratio", &json!(4.0))?;
    table.ignore(&["patch_dropout"]);
    let layers = table.take("layers");
    if let Some(Value::Array(stages)) = layers {
        let stages: Vec<usize> = stages.iter().filter_map(Value::as_u64).map(|n| n as usize).collect();
        let stages = stages.try_into().map_err(|_| table.wrong("layers", "must have four stages"))?;
        table.ignore(&["patch_size"]);
        let width = table.number("width", Some(64))?;
        return Ok(ResNetConfig { image_size, width, stages, heads: 32 * width / head }.into());
    }
    let width = table.number("width", Some(768))?;
    let patch = table.number("patch_size", Some(16))?;
    let layers = match layers {
        None | Some(Value::Null) => 12,
        Some(layers) => {
            layers.as_u64().ok_or_else(|| table.wrong("layers", "is neither a whole number nor a list"))?
                as usize
        }
    };
    Ok(VitConfig { image_size, patch, width, layers, heads: width / head }.into())
}

/// The objective all of whose settings are present; of several, the one with the most.
fn objective(table: &Table<'_>) -> Objective {
    let settings = |objective: &Objective| {
        let settings = objective.kind().open_clip_settings()?;
        settings.iter().all(|(key, _)| table.contains(key)).then_some(settings.len())
    };
    Objective::ALL.iter().copied().max_by_key(settings).unwrap_or_default()
}

/// The configuration from which open_clip builds the same model.
pub(super) fn to_config(config: &ClipConfig, dir: &Path) -> Result<Value> {
    let unsupported = |what: String| ModelError::Format {
        path: dir.to_owned(),
        problem: format!("open_clip does not support {what}"),
        instead: "use this program's own format".into(),
    };
    let (objective, tower) = (config.objective.kind(), config.vision.tower());
    let settings = objective.open_clip_settings();
    let settings = settings.ok_or_else(|| unsupported(format!("the objective {}", objective.name())))?;
    let vision = tower.to_open_clip();
    let vision = vision.ok_or_else(|| unsupported(format!("the image tower {}", tower.kind().name)))?;
    let t = &config.text;
    let mut model = json!({
        "embed_dim": config.embed,
        "quick_gelu": config.activation == Activation::QuickGelu,
        "vision_cfg": vision,
        "text_cfg": {
            "context_length": t.context, "vocab_size": t.vocab, "width": t.width, "heads": t.heads, "layers": t.layers,
        },
    });
    for (key, value) in settings {
        model[key] = value;
    }
    let preprocess =
        json!({ "mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "shortest" });
    Ok(json!({ "model_cfg": model, "preprocess_cfg": preprocess }))
}

/// Adds the tensors that open_clip expects besides ours: a batch counter for each batch norm.
pub(super) fn to_tensors(mut state: Tensors) -> Result<Tensors> {
    let norms = state.keys().filter_map(|name| name.strip_suffix(".running_mean"));
    for name in norms.map(|norm| format!("{norm}.num_batches_tracked")).collect::<Vec<_>>() {
        state.insert(name, Tensor::new(0i64, &Device::Cpu)?);
    }
    Ok(state)
}
