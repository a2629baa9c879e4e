//! Hugging Face's CLIPModel: a vision transformer and a text transformer, queries, keys and values
//! in matrices of their own, projections the other way round.

use super::{MEAN, Named, STD, Table};
use crate::config::{ClipConfig, TextConfig, VisionConfig, VitConfig};
use crate::error::{ModelError, Result};
use crate::objective::Objective;
use crate::ops::activation::Activation;
use crate::weights::shapes;
use candle_core::Tensor;
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::path::Path;

/// The weights' file: the first is written, the others are read where it is not there.
pub const WEIGHTS_FILES: [&str; 2] = ["model.safetensors", "pytorch_model.bin"];

/// How one of our tensors lies there.
enum Place {
    Same(String),
    Transposed(String),
    /// In thirds, one below the other.
    Thirds([String; 3]),
}

/// Where our tensor `name` is there; `None` for what CLIPModel has not.
fn place(name: &str) -> Option<Place> {
    let blocks = [
        ("visual.transformer.resblocks.", "vision_model.encoder.layers."),
        ("transformer.resblocks.", "text_model.encoder.layers."),
    ];
    for (ours, theirs) in blocks {
        let Some((layer, part)) = name.strip_prefix(ours).and_then(|rest| rest.split_once('.')) else {
            continue;
        };
        if let Some(end) = part.strip_prefix("attn.in_proj_") {
            let third = |p: &str| format!("{theirs}{layer}.self_attn.{p}_proj.{end}");
            return Some(Place::Thirds(["q", "k", "v"].map(third)));
        }
        let renamed = [
            ("attn.", "self_attn."),
            ("ln_1.", "layer_norm1."),
            ("ln_2.", "layer_norm2."),
            ("mlp.c_fc.", "mlp.fc1."),
            ("mlp.c_proj.", "mlp.fc2."),
        ];
        let (from, to) = renamed.iter().find(|(from, _)| part.starts_with(from))?;
        return Some(Place::Same(format!("{theirs}{layer}.{to}{}", &part[from.len()..])));
    }
    let same = [
        ("visual.conv1.", "vision_model.embeddings.patch_embedding."),
        ("visual.class_embedding", "vision_model.embeddings.class_embedding"),
        ("visual.positional_embedding", "vision_model.embeddings.position_embedding.weight"),
        ("visual.ln_pre.", "vision_model.pre_layrnorm."),
        ("visual.ln_post.", "vision_model.post_layernorm."),
        ("token_embedding.", "text_model.embeddings.token_embedding."),
        ("positional_embedding", "text_model.embeddings.position_embedding.weight"),
        ("ln_final.", "text_model.final_layer_norm."),
        ("logit_scale", "logit_scale"),
    ];
    match name {
        "visual.proj" => Some(Place::Transposed("visual_projection.weight".into())),
        "text_projection" => Some(Place::Transposed("text_projection.weight".into())),
        _ => {
            let (from, to) = same.iter().find(|(from, _)| name.starts_with(from))?;
            Some(Place::Same(format!("{to}{}", &name[from.len()..])))
        }
    }
}

/// Their tensors under our names; what has no place keeps its name, and is then refused by it.
pub fn from_tensors(
    mut found: HashMap<String, Tensor>,
    config: &ClipConfig,
) -> Result<HashMap<String, Tensor>> {
    let mut tensors = HashMap::new();
    for name in shapes(config).into_keys() {
        let tensor = match place(&name) {
            None => None,
            Some(Place::Same(theirs)) => found.remove(&theirs),
            Some(Place::Transposed(theirs)) => match found.remove(&theirs) {
                Some(tensor) if tensor.rank() == 2 => Some(tensor.t()?.contiguous()?),
                other => other,
            },
            Some(Place::Thirds(theirs)) => {
                let thirds: Vec<Tensor> = theirs.iter().filter_map(|name| found.remove(name)).collect();
                if thirds.len() == 3 { Tensor::cat(&thirds, 0).ok() } else { None }
            }
        };
        tensors.extend(tensor.map(|tensor| (name, tensor)));
    }
    tensors.extend(found);
    Ok(tensors)
}

/// Our tensors under their names.
pub fn to_tensors(state: Named) -> Result<Named> {
    let mut tensors = Named::new();
    for (name, tensor) in state {
        match place(&name) {
            None => {}
            Some(Place::Same(theirs)) => _ = tensors.insert(theirs, tensor),
            Some(Place::Transposed(theirs)) => _ = tensors.insert(theirs, tensor.t()?.contiguous()?),
            Some(Place::Thirds(theirs)) => {
                for (third, name) in tensor.chunk(3, 0)?.into_iter().zip(theirs) {
                    tensors.insert(name, third.contiguous()?);
                }
            }
        }
    }
    Ok(tensors)
}

/// What both towers have in common, transformers' defaults for what is left out: width, layers,
/// heads and activation.
fn tower(table: &mut Table<'_>, defaults: [usize; 3]) -> Result<([usize; 3], Activation)> {
    let [width, layers, heads] = defaults;
    let width = table.number("hidden_size", Some(width))?;
    let layers = table.number("num_hidden_layers", Some(layers))?;
    let heads = table.number("num_attention_heads", Some(heads))?;
    let default = 4 * defaults[0];
    let hidden = table.number("intermediate_size", Some(default))?;
    if hidden != 4 * width {
        return Err(table.wrong("intermediate_size", &format!("is {hidden}, not 4 times {width}")));
    }
    table.only("layer_norm_eps", &json!(1e-5))?;
    let activation = match table.map.remove("hidden_act") {
        None => Activation::QuickGelu,
        Some(Value::String(name)) if name == "quick_gelu" => Activation::QuickGelu,
        Some(Value::String(name)) if name == "gelu" => Activation::Gelu,
        Some(other) => {
            return Err(table.wrong("hidden_act", &format!("is {other}, neither quick_gelu nor gelu")));
        }
    };
    Ok(([width, layers, heads], activation))
}

/// The shape that a `config.json` describes. Keys beyond those of the shape are many there, and of
/// no effect on weights.
pub fn config(json: &Map<String, Value>, path: &Path) -> Result<ClipConfig> {
    let mut table = Table { path, name: "", map: json.clone() };
    if table.map.get("model_type").is_some_and(|kind| kind != "clip") {
        return Err(table.wrong("model_type", "is not \"clip\""));
    }
    let embed = table.number("projection_dim", Some(512))?;
    let (mut text, mut vision) = (table.table("text_config")?, table.table("vision_config")?);
    let ([width, layers, heads], activation) = tower(&mut text, [512, 12, 8])?;
    let context = text.number("max_position_embeddings", Some(77))?;
    let vocab = text.number("vocab_size", Some(49_408))?;
    // 2 is the end token of the first files published, which transformers reads as "the highest id"
    // too.
    let end = text.number("eos_token_id", Some(vocab.max(1) - 1))?;
    if end != 2 && end + 1 != vocab {
        return Err(text
            .wrong("eos_token_id", &format!("is {end}; texts are read at their highest id, {}", vocab - 1)));
    }
    let text = TextConfig { context, vocab, width, layers, heads };
    let ([width, layers, heads], other) = tower(&mut vision, [768, 12, 12])?;
    if other != activation {
        return Err(vision.wrong("hidden_act", "is not that of text_config"));
    }
    vision.only("num_channels", &json!(3))?;
    let image_size = vision.number("image_size", Some(224))?;
    let patch = vision.number("patch_size", Some(32))?;
    let vision = VisionConfig::Vit(VitConfig { image_size, patch, width, layers, heads });
    Ok(ClipConfig { embed, vision, text, activation, objective: Objective::Contrastive })
}

/// The `config.json` of the same model.
pub fn to_config(config: &ClipConfig, dir: &Path) -> Result<Value> {
    let refused = |problem: &str| ModelError::Format {
        path: dir.to_owned(),
        problem: format!("transformers' CLIPModel {problem}"),
        instead: "open_clip's format and this program's own hold it".into(),
    };
    let VisionConfig::Vit(v) = &config.vision else { return Err(refused("has no ResNet")) };
    if config.objective != Objective::Contrastive {
        return Err(refused(&format!("has not the objective {:?}", config.objective)));
    }
    let t = &config.text;
    let activation = match config.activation {
        Activation::QuickGelu => "quick_gelu",
        Activation::Gelu => "gelu",
    };
    let tower = |kind: &str, width: usize, layers: usize, heads: usize| {
        json!({
            "model_type": kind, "hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers,
            "num_attention_heads": heads, "hidden_act": activation, "layer_norm_eps": 1e-5,
            "projection_dim": config.embed,
        })
    };
    let mut text = tower("clip_text_model", t.width, t.layers, t.heads);
    text["max_position_embeddings"] = json!(t.context);
    text["vocab_size"] = json!(t.vocab);
    text["bos_token_id"] = json!(t.vocab - 2);
    text["eos_token_id"] = json!(t.vocab - 1);
    text["pad_token_id"] = json!(0);
    let mut vision = tower("clip_vision_model", v.width, v.layers, v.heads);
    vision["image_size"] = json!(v.image_size);
    vision["patch_size"] = json!(v.patch);
    Ok(json!({
        "architectures": ["CLIPModel"], "model_type": "clip", "projection_dim": config.embed,
        "logit_scale_init_value": 2.6592, "text_config": text, "vision_config": vision,
    }))
}

/// The `preprocessor_config.json` of the same model.
pub fn preprocessor(config: &ClipConfig) -> Value {
    let size = config.vision.image_size();
    json!({
        "image_processor_type": "CLIPImageProcessor", "do_convert_rgb": true,
        "do_resize": true, "size": { "shortest_edge": size }, "resample": 3,
        "do_center_crop": true, "crop_size": { "height": size, "width": size },
        "do_rescale": true, "rescale_factor": 1.0 / 255.0,
        "do_normalize": true, "image_mean": MEAN, "image_std": STD,
    })
}
