//! open_clip's folders: `open_clip_config.json` and `open_clip_model.safetensors`. This program
//! uses its tensor names.

use super::image_processor::decimals;
use super::table::{Table, read_json};
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
use twinlens_image::{Filter, ImageModes, Preprocess, ResizeRule};

/// File name of the configuration.
pub(super) const CONFIG_FILE: &str = "open_clip_config.json";
/// File names of the weights: the first is written, and the first that exists is read.
pub(super) const WEIGHTS_FILES: [&str; 4] = [
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
];

/// The value of `hf_tokenizer_name` in a directory with its own `tokenizer.json`, which open_clip
/// reads whatever name is given.
pub(super) const OWN_TOKENIZER: &str = ".";

/// Settings that only concern training, or how results are passed on.
const HARMLESS: [&str; 7] = [
    "cast_dtype",
    "custom_text",
    "force_custom_text",
    "init_logit_bias",
    "init_logit_scale",
    "nonscalar_logit_scale",
    "output_dict",
];
/// Settings of both towers that must be off.
const FLAGS: [&str; 8] = [
    "final_ln_after_pool",
    "output_tokens",
    "qk_norm",
    "scaled_cosine_attn",
    "scale_heads",
    "scale_attn_inner",
    "scale_attn",
    "scale_fc",
];
/// Settings of vision transformers that a ResNet does not read.
const VIT_ONLY: [&str; 6] =
    ["mlp_ratio", "no_ln_pre", "patch_size", "pool_type", "pos_embed_type", "ls_init_value"];
const FILTERS: [(&str, Filter); 3] = [
    ("bicubic", Filter::Bicubic),
    // Only training draws at random.
    ("random", Filter::Bicubic),
    ("bilinear", Filter::Bilinear),
];

/// The shape that an open_clip configuration describes, and how images are prepared.
pub(super) fn config(path: &Path) -> Result<(ClipConfig, Preprocess)> {
    let mut file = Table::new(path, read_json(path)?);
    let (mut table, preprocess) = match file.optional_table("model_cfg")? {
        Some(table) => {
            let preprocess = file.optional_table("preprocess_cfg")?;
            file.end()?;
            (table, preprocess)
        }
        // The file of a shape, as open_clip's own package holds them.
        None => (file, None),
    };
    let embed = table.number("embed_dim", None)?;
    let quick = table.flag("quick_gelu", false)?;
    let objective = objective(&table);
    let mut text = table.table("text_cfg")?;
    let mut vision = table.table("vision_cfg")?;
    table.ignore(&HARMLESS);
    table.end()?;
    let text = self::text(&mut text).and_then(|config| text.end().map(|()| config))?;
    let vision = self::vision(&mut vision).and_then(|tower| vision.end().map(|()| tower))?;
    let activation = if quick { Activation::QuickGelu } else { Activation::Gelu };
    let preprocess = preprocess_rule(preprocess, vision.image_size() as u32)?;
    Ok((ClipConfig { embed, vision, text, activation, objective }, preprocess))
}

/// How images are prepared. open_clip replaces `size` by the size of the tower, too.
fn preprocess_rule(table: Option<Table<'_>>, size: u32) -> Result<Preprocess> {
    let mut preprocess = Preprocess { modes: ImageModes::OpenClip, ..Preprocess::clip(size) };
    let Some(mut table) = table else { return Ok(preprocess) };
    table.only("mode", &json!("RGB"))?;
    table.ignore(&["size", "fill_color"]);
    let rules = [("shortest", ResizeRule::Shortest(size)), ("squash", ResizeRule::Squash(size))];
    preprocess.resize = table.word("resize_mode", preprocess.resize, &rules)?;
    preprocess.filter = table.word("interpolation", preprocess.filter, &FILTERS)?;
    for (key, to) in [("mean", &mut preprocess.mean), ("std", &mut preprocess.std)] {
        if let Some(values) = table.channels(key)? {
            *to = values.map(|value| value as f32);
        }
    }
    if preprocess.std.contains(&0.0) {
        return Err(table.wrong("std", "must not be 0"));
    }
    table.end()?;
    Ok(preprocess)
}

/// Checks the settings that both towers have: only open_clip's defaults are supported.
fn defaults(table: &mut Table<'_>) -> Result<()> {
    table.only("mlp_ratio", &json!(4.0))?;
    table.only("ls_init_value", &Value::Null)?;
    table.only("block_type", &json!("default"))?;
    table.empty("act_kwargs")?;
    table.empty("norm_kwargs")?;
    FLAGS.iter().try_for_each(|flag| table.only(flag, &json!(false)))
}

fn text(table: &mut Table<'_>) -> Result<TextConfig> {
    let config = TextConfig {
        context: table.number("context_length", Some(77))?,
        vocab: table.number("vocab_size", Some(49_408))?,
        width: table.number("width", Some(512))?,
        layers: table.number("layers", Some(12))?,
        heads: table.number("heads", Some(8))?,
    };
    defaults(table)?;
    for flag in ["embed_cls", "no_causal_mask", "proj_bias"] {
        table.only(flag, &json!(false))?;
    }
    table.only("pool_type", &json!("argmax"))?;
    table.only("proj_type", &json!("linear"))?;
    // Another tokenizer than that of the directory, or other cleaning of captions.
    if let Some(name) = table.take("hf_tokenizer_name").filter(|name| name != OWN_TOKENIZER && name != "") {
        let problem = format!("is {name}, which is not supported: the tokenizer must be in the directory");
        return Err(table.wrong("hf_tokenizer_name", &problem));
    }
    if let Some(mut tokenizer) = table.optional_table("tokenizer_kwargs")? {
        tokenizer.only("clean", &json!("lower"))?;
        tokenizer.empty("reduction_mask")?;
        tokenizer.empty("additional_special_tokens")?;
        tokenizer.end()?;
    }
    // Without a tower of transformers, only `pool_type` "eos" reads `eos_id`; padding comes after
    // the token at which the text is read.
    table.empty("hf_model_name")?;
    table.ignore(&[
        "eos_id",
        "hf_model_pretrained",
        "hf_pooler_type",
        "hf_proj_type",
        "pad_id",
        "tokenizer_mode",
    ]);
    Ok(config)
}

fn vision(table: &mut Table<'_>) -> Result<VisionConfig> {
    let image_size = table.side("image_size", 224)?;
    let head = table.number("head_width", Some(64))?.max(1);
    table.empty("timm_model_name")?;
    table.ignore(&[
        "timm_drop",
        "timm_drop_path",
        "timm_model_pretrained",
        "timm_pool",
        "timm_proj",
        "timm_proj_bias",
    ]);
    table.only("attentional_pool", &json!(false))?;
    table.ignore(&["attn_pooler_heads", "attn_pooler_queries", "patch_dropout"]);
    let layers = table.take("layers");
    if let Some(Value::Array(stages)) = layers {
        let stages = stages.iter().map(|layers| usize::try_from(layers.as_u64()?).ok());
        let stages = stages.collect::<Option<Vec<usize>>>().and_then(|stages| stages.try_into().ok());
        let stages = stages.ok_or_else(|| table.wrong("layers", "must be the numbers of four stages"))?;
        table.ignore(&VIT_ONLY);
        defaults(table)?;
        let width = table.number("width", Some(64))?;
        return Ok(ResNetConfig { image_size, width, stages, heads: 32 * width / head }.into());
    }
    defaults(table)?;
    table.only("no_ln_pre", &json!(false))?;
    table.only("pool_type", &json!("tok"))?;
    table.only("pos_embed_type", &json!("learnable"))?;
    let width = table.number("width", Some(768))?;
    let patch = table.side("patch_size", 16)?;
    let layers = match layers {
        None => 12,
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

/// The configuration from which open_clip builds the same model and prepares images the same way,
/// but for transparency.
pub(super) fn to_config(config: &ClipConfig, preprocess: &Preprocess, dir: &Path) -> Result<Value> {
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
    let resize_mode = match preprocess.resize {
        ResizeRule::Shortest(side) if side == preprocess.size => "shortest",
        ResizeRule::Squash(side) if side == preprocess.size => "squash",
        _ => return Err(unsupported("images that are resized to more than the tower's size".into())),
    };
    let filter = FILTERS.iter().find(|(_, filter)| *filter == preprocess.filter);
    let preprocess = json!({
        "mean": decimals(&preprocess.mean), "std": decimals(&preprocess.std),
        "interpolation": filter.map(|(name, _)| name), "resize_mode": resize_mode,
    });
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
