//! Writes small models, or named ones, in the formats of other programs, with the features that
//! they should give there, into a folder: what `tests/formats/check_exports.py` loads.
//!
//!     cargo run -p twinlens-model --example exports -- FOLDER [PRESET]...

use candle_core::{Device, Tensor};
use std::collections::BTreeMap;
use std::path::PathBuf;
use twinlens_model::{Activation, Clip, ClipConfig, Objective, Result, VitConfig, weights};

fn small(preset: &str, activation: Activation, objective: Objective) -> Result<ClipConfig> {
    let mut config = ClipConfig { activation, objective, ..ClipConfig::preset(preset)? };
    config.text.vocab = 600;
    Ok(config)
}

fn models(presets: &[String]) -> Result<Vec<(String, ClipConfig)>> {
    if !presets.is_empty() {
        return presets.iter().map(|name| Ok((name.clone(), ClipConfig::preset(name)?))).collect();
    }
    let (contrastive, sigmoid) = (Objective::CONTRASTIVE, Objective::SIGMOID);
    Ok(vec![
        ("vit-quick-gelu".into(), small("vit-tiny-48", Activation::QuickGelu, contrastive)?),
        ("vit-gelu".into(), small("vit-tiny-64", Activation::Gelu, contrastive)?),
        ("vit-sigmoid".into(), small("vit-tiny-48", Activation::Gelu, sigmoid)?),
        ("resnet".into(), small("rn-tiny-64", Activation::QuickGelu, contrastive)?),
    ])
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [folder, presets @ ..] = &args[..] else {
        eprintln!("usage: exports FOLDER [PRESET]...");
        std::process::exit(2);
    };
    for (name, config) in models(presets)? {
        let clip = Clip::new(config, 11)?;
        let (size, context, vocab) =
            (clip.config().vision.image_size(), clip.config().text.context, clip.config().text.vocab as u32);
        let pixels = Tensor::randn(0f32, 1.0, (4, 3, size, size), &Device::Cpu)?;
        let id = |text: u32, position: u32| match position {
            0 => vocab - 2,
            p if p < 3 * text + 2 => (97 * text + 31 * p) % (vocab - 2),
            p if p == 3 * text + 2 => vocab - 1,
            _ => 0,
        };
        let ids = (0..4).flat_map(|text| (0..context as u32).map(move |position| id(text, position)));
        let ids = Tensor::from_iter(ids, &Device::Cpu)?.reshape((4, context))?;
        // A step of training's forward pass, so that running statistics are not those of the start.
        drop(clip.loss(&pixels, &ids)?);
        let dir = PathBuf::from(folder).join(name);
        let create =
            |dir: &PathBuf| std::fs::create_dir_all(dir).map_err(twinlens_model::ModelError::io(dir));
        let (theirs, others) = (dir.join("open_clip"), dir.join("hugging_face"));
        create(&theirs)?;
        clip.export_open_clip(&theirs)?;
        let is_vit = clip.config().vision.downcast_ref::<VitConfig>().is_some();
        if is_vit && clip.config().objective == Objective::CONTRASTIVE {
            create(&others)?;
            clip.export_hugging_face(&others)?;
        }
        let features = BTreeMap::from([
            ("image".to_owned(), clip.encode_image(&pixels)?),
            ("text".to_owned(), clip.encode_text(&ids)?),
            ("pixels".to_owned(), pixels),
            ("ids".to_owned(), ids.to_dtype(candle_core::DType::I64)?),
        ]);
        weights::write_atomically(&dir.join("features.safetensors"), &weights::to_bytes(&features, None)?)?;
    }
    Ok(())
}
