//! Hugging Face's CLIPModel: a vision transformer and a text transformer, with separate matrices
//! for queries, keys and values, and transposed projections.

use super::table::Table;
use crate::config::ClipConfig;
use crate::error::{ModelError, Result};
use crate::objectives::Objective;
use crate::ops::activation::Activation;
use crate::ops::reference::Tensors;
use crate::towers::text::TextConfig;
use crate::towers::vit::VitConfig;
use crate::weights::state::shapes;
use candle_core::Tensor;
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::path::Path;
use twinlens_image::{CropOrigin, ImageModes, Preprocess};

/// File names of the weights: the first is written, the second is read if the first is missing.
pub(super) const WEIGHTS_FILES: [&str; 2] = ["model.safetensors", "pytorch_model.bin"];

/// How CLIPModel stores one of our tensors.
enum Stored {
    Same(String),
    Transposed(String),
    /// As three tensors of equal height.
    Thirds([String; 3]),
}

/// Where CLIPModel stores tensor `name`; `None` if it has no such tensor.
fn stored(name: &str) -> Option<Stored> {
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
            return Some(Stored::Thirds(["q", "k", "v"].map(third)));
        }
        let renamed = [
            ("attn.", "self_attn."),
            ("ln_1.", "layer_norm1."),
            ("ln_2.", "layer_norm2."),
            ("mlp.c_fc.", "mlp.fc1."),
            ("mlp.c_proj.", "mlp.fc2."),
        ];
        let (from, to) = renamed.iter().find(|(from, _)| part.starts_with(from))?;
        return Some(Stored::Same(format!("{theirs}{layer}.{to}{}", &part[from.len()..])));
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
        "visual.proj" => Some(Stored::Transposed("visual_projection.weight".into())),
        "text_projection" => Some(Stored::Transposed("text_projection.weight".into())),
        _ => {
            let (from, to) = same.iter().find(|(from, _)| name.starts_with(from))?;
            Some(Stored::Same(format!("{to}{}", &name[from.len()..])))
        }
    }
}

/// Converts CLIPModel's tensors to ours. Unknown ones keep their names, by which they are refused
/// later.
pub(super) fn from_tensors(
    mut theirs: HashMap<String, Tensor>,
    config: &ClipConfig,
) -> Result<HashMap<String, Tensor>> {
    let mut tensors = HashMap::new();
    for name in shapes(config).into_keys() {
        let tensor = match stored(&name) {
            None => None,
            Some(Stored::Same(name)) => theirs.remove(&name),
            Some(Stored::Transposed(name)) => match theirs.remove(&name) {
                Some(tensor) if tensor.rank() == 2 => Some(tensor.t()?.contiguous()?),
                other => other,
            },
            Some(Stored::Thirds(names)) => {
                let thirds: Vec<Tensor> = names.iter().filter_map(|name| theirs.remove(name)).collect();
                if thirds.len() == 3 { Tensor::cat(&thirds, 0).ok() } else { None }
            }
        };
        tensors.extend(tensor.map(|tensor| (name, tensor)));
    }
    tensors.extend(theirs);
    Ok(tensors)
}

/// Converts our tensors to CLIPModel's.
pub(super) fn to_tensors(state: Tensors) -> Result<Tensors> {
    let mut tensors = Tensors::new();
    for (name, tensor) in state {
        match stored(&name) {
            None => {}
            Some(Stored::Same(theirs)) => _ = tensors.insert(theirs, tensor),
            Some(Stored::Transposed(theirs)) => _ = tensors.insert(theirs, tensor.t()?.contiguous()?),
            Some(Stored::Thirds(theirs)) => {
                for (third, name) in tensor.chunk(3, 0)?.into_iter().zip(theirs) {
                    tensors.insert(name, third.contiguous()?);
                }
            }
        }
    }
    Ok(tensors)
}

/// Settings without effect on features, most of which every configuration of transformers has.
const HARMLESS: [&str; 63] = [
    "_attn_implementation_autoset",
    "_commit_hash",
    "_name_or_path",
    "architectures",
    "attention_dropout",
    "attn_implementation",
    "bad_words_ids",
    "begin_suppress_tokens",
    "bos_token_id",
    "chunk_size_feed_forward",
    "decoder_start_token_id",
    "diversity_penalty",
    "do_sample",
    "dropout",
    "dtype",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "exponential_decay_length_penalty",
    "finetuning_task",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "gradient_checkpointing",
    "id2label",
    "initializer_factor",
    "initializer_range",
    "is_composition",
    "label2id",
    "length_penalty",
    "logit_scale_init_value",
    "max_length",
    "min_length",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_labels",
    "num_return_sequences",
    "output_attentions",
    "output_hidden_states",
    "output_scores",
    "pad_token_id",
    "prefix",
    "problem_type",
    "remove_invalid_values",
    "repetition_penalty",
    "return_dict",
    "return_dict_in_generate",
    "sep_token_id",
    "suppress_tokens",
    "task_specific_params",
    "temperature",
    "tf_legacy_loss",
    "tie_encoder_decoder",
    "tie_word_embeddings",
    "tokenizer_class",
    "top_k",
    "top_p",
    "torch_dtype",
    "torchscript",
    "transformers_version",
    "typical_p",
    "use_bfloat16",
    "use_cache",
    "use_return_dict",
];

/// Refuses settings that are neither read nor harmless.
fn end(mut table: Table<'_>) -> Result<()> {
    for flag in ["add_cross_attention", "is_decoder", "is_encoder_decoder"] {
        table.only(flag, &json!(false))?;
    }
    table.empty("pruned_heads")?;
    table.ignore(&HARMLESS);
    table.end()
}

/// Reads the settings that both towers share, with transformers' defaults: width, layers, heads and
/// activation.
fn tower(table: &mut Table<'_>, kind: &str, defaults: [usize; 3]) -> Result<([usize; 3], Activation)> {
    table.only("model_type", &json!(kind))?;
    // The width of features is that of the whole model.
    table.ignore(&["projection_dim"]);
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
    let activation = match table.take("hidden_act") {
        None => Activation::QuickGelu,
        Some(Value::String(name)) if name == "quick_gelu" => Activation::QuickGelu,
        Some(Value::String(name)) if name == "gelu" => Activation::Gelu,
        Some(other) => {
            return Err(table.wrong("hidden_act", &format!("is {other}, neither quick_gelu nor gelu")));
        }
    };
    Ok(([width, layers, heads], activation))
}

/// The settings of a tower. transformers replaces `text_config` by `text_config_dict`, where that
/// is given: what it leaves out has its default, whatever `text_config` says.
fn tower_table<'a>(table: &mut Table<'a>, key: &str) -> Result<Table<'a>> {
    let given = table.optional_table(key)?;
    let replacing = table.optional_table(&format!("{key}_dict"))?;
    replacing.or(given).ok_or_else(|| table.wrong(key, "is missing, or not an object"))
}

/// The shape that a `config.json` describes.
pub(super) fn config(json: Map<String, Value>, path: &Path) -> Result<ClipConfig> {
    let mut table = Table::new(path, json);
    table.only("model_type", &json!("clip"))?;
    let embed = table.number("projection_dim", Some(512))?;
    let (mut text, mut vision) =
        (tower_table(&mut table, "text_config")?, tower_table(&mut table, "vision_config")?);
    end(table)?;
    let ([width, layers, heads], activation) = tower(&mut text, "clip_text_model", [512, 12, 8])?;
    let context = text.number("max_position_embeddings", Some(77))?;
    let vocab = text.number("vocab_size", Some(49_408))?;
    // The first published files say 2, which transformers also takes to mean the highest id.
    let eos = text.number("eos_token_id", Some(49_407))?;
    if eos != 2 && eos + 1 != vocab {
        let problem = format!("is {eos}; only the highest id, {}, is supported", vocab.max(1) - 1);
        return Err(text.wrong("eos_token_id", &problem));
    }
    let config = TextConfig { context, vocab, width, layers, heads };
    end(text)?;
    let ([width, layers, heads], other) = tower(&mut vision, "clip_vision_model", [768, 12, 12])?;
    if other != activation {
        return Err(vision.wrong("hidden_act", "differs from text_config.hidden_act"));
    }
    vision.only("num_channels", &json!(3))?;
    let image_size = vision.side("image_size", 224)?;
    let patch = vision.side("patch_size", 32)?;
    end(vision)?;
    let vision = VitConfig { image_size, patch, width, layers, heads }.into();
    Ok(ClipConfig { embed, vision, text: config, activation, objective: Objective::CONTRASTIVE })
}

/// How images are prepared if the directory does not say it: as CLIPImageProcessor does by default.
pub(super) fn default_preprocess(size: u32) -> Preprocess {
    let (crop_origin, modes) = (CropOrigin::Floor, ImageModes::OpenClip);
    Preprocess { crop_origin, modes, ..Preprocess::clip(size) }
}

/// The `config.json` of the same model.
pub(super) fn to_config(config: &ClipConfig, dir: &Path) -> Result<Value> {
    let unsupported = |what: &str| ModelError::Format {
        path: dir.to_owned(),
        problem: format!("transformers' CLIPModel does not support {what}"),
        instead: "use open_clip's format or this program's own".into(),
    };
    let Some(v) = config.vision.downcast_ref::<VitConfig>() else {
        return Err(unsupported("image towers other than the vision transformer"));
    };
    if config.objective != Objective::CONTRASTIVE {
        return Err(unsupported(&format!("the objective {}", config.objective.name())));
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
