//! Prepares and embeds images and captions with a model, for `parity.py`, which compares the result
//! with other programs: `parity MODEL INPUT.jsonl OUTPUT.safetensors`.
//!
//! A line of the input is `{ "image": PATH }` or `{ "caption": TEXT }`. The output has for image N
//! `pixels/N` and `image/N` (its embedding), unless it was rejected, and for all captions `ids` and
//! `text`.

#![allow(clippy::print_stderr, reason = "a program")]

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{Device, Tensor};
use serde_json::Value;
use twinlens_image::Limits;
use twinlens_model::weights::{to_bytes, write_atomically};
use twinlens_model::{Clip, TOKENIZER_FILE, Tokenizer};

type Failure = Box<dyn std::error::Error>;

/// Captions per forward pass.
const BATCH: usize = 256;

fn main() -> Result<(), Failure> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, input, output] = &args[..] else { return Err("usage: parity MODEL INPUT OUTPUT".into()) };
    let clip = Clip::load(Path::new(model))?;
    let tokenizer = Tokenizer::load(&Path::new(model).join(TOKENIZER_FILE))?;
    let (mut images, mut captions) = (Vec::new(), Vec::new());
    for line in std::fs::read_to_string(input)?.lines() {
        let value: Value = serde_json::from_str(line)?;
        let text = |key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
        images.extend(text("image"));
        captions.extend(text("caption"));
    }
    let mut tensors = BTreeMap::new();
    let limits = Limits { max_aspect: f64::INFINITY, ..Limits::default() };
    let size = clip.config().vision.image_size();
    for (number, path) in images.iter().enumerate() {
        let pixels = match clip.preprocess().tensor(&std::fs::read(path)?, &limits) {
            Ok(pixels) => Tensor::from_vec(pixels, (1, 3, size, size), &Device::Cpu)?,
            Err(error) => {
                eprintln!("{path}: {error}");
                continue;
            }
        };
        tensors.insert(format!("image/{number}"), clip.encode_image(&pixels)?.squeeze(0)?);
        tensors.insert(format!("pixels/{number}"), pixels.squeeze(0)?);
    }
    let context = clip.config().text.context;
    let (mut ids, mut text) = (Vec::new(), Vec::new());
    for captions in captions.chunks(BATCH) {
        let encoded: Vec<u32> =
            captions.iter().flat_map(|caption| tokenizer.encode(caption, context)).collect();
        let encoded = Tensor::from_vec(encoded, (captions.len(), context), &Device::Cpu)?;
        text.push(clip.encode_text(&encoded)?);
        ids.push(encoded);
    }
    if !ids.is_empty() {
        tensors.insert("ids".into(), Tensor::cat(&ids, 0)?);
        tensors.insert("text".into(), Tensor::cat(&text, 0)?);
    }
    write_atomically(Path::new(output), &to_bytes(&tensors, None)?)?;
    Ok(())
}
