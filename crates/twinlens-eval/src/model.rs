//! The model under evaluation: loading, preprocessing, and the hashes that identify it.

use std::path::{Path, PathBuf};

use datafusion::arrow::array::AsArray;
use datafusion::arrow::datatypes::Int64Type;
use datafusion::functions_aggregate::expr_fn::max;
use datafusion::logical_expr::{cast, col};
use serde_json::Value;
use sha2::{Digest, Sha256};
use twinlens_dataset::MAIN;
use twinlens_image::{JPEG_DECODER, Preprocess};
use twinlens_model::weights::FOLDER_FILES;
use twinlens_model::{CONFIG_FILE, Clip, DeviceOption, Precision, TOKENIZER_FILE, Tokenizer, WEIGHTS_FILE};
use twinlens_pipeline::{ArtifactInput, Fault, InputData, Inputs, Located, RunContext, RunError};

use crate::error::EvalError;

/// CLIP's published vocabulary, compressed or not, for directories without tokenizer.json.
const VOCABULARY_FILES: [&str; 2] = ["bpe_simple_vocab_16e6.txt.gz", "bpe_simple_vocab_16e6.txt"];

pub struct Model {
    /// The stage that trained it, or the path as written in the pipeline file.
    pub name: String,
    /// The training step, such as `step 1200`; `None` for a directory.
    pub checkpoint: Option<String>,
    pub clip: Clip,
    pub tokenizer: Tokenizer,
    /// SHA-256 of the weights.
    pub weights_hash: String,
    pub preprocess: Preprocess,
    /// SHA-256 of the preprocessing and the name of the JPEG decoder.
    pub preprocess_hash: String,
}

pub type Compute = (DeviceOption, Precision);

impl Model {
    /// Loads the model that an option names: a `train` stage among the inputs, a directory, or a
    /// model on the Hugging Face Hub.
    pub async fn open(
        model: &ArtifactInput,
        compute: Compute,
        cx: &RunContext,
        inputs: &Inputs,
    ) -> Result<Self, RunError> {
        let (name, checkpoint) = match model {
            ArtifactInput::Folder(written) => (written.value().clone(), None),
            ArtifactInput::Dataset(training) => {
                let training = inputs.get(training);
                // The variant, if the training is swept.
                (training.dataset.state().begin.stage.clone(), last_step(cx, training).await?)
            }
        };
        let (model, cx, inputs) = (model.clone(), cx.clone(), inputs.clone());
        let load = move || {
            let files = [CONFIG_FILE, WEIGHTS_FILE, TOKENIZER_FILE];
            let folder = model.folder(&cx, &inputs, &files, &FOLDER_FILES)?;
            Ok::<_, RunError>(Self { checkpoint, ..Self::load(name, &folder, compute)? })
        };
        twinlens_pipeline::blocking(load).await?
    }

    /// Loads weights and tokenizer from a directory written by this program, Hugging Face
    /// (`CLIPModel`) or open_clip.
    pub fn load(name: String, folder: &Path, (device, precision): Compute) -> Result<Self, EvalError> {
        let clip = Clip::load(folder)?.to_device(&device.open(precision)?, precision)?;
        let tokenizer = Tokenizer::load(&vocabulary(folder)?)?;
        let (tokens, vocab) = (tokenizer.vocab_size(), clip.config().text.vocab);
        if tokens > vocab {
            let message = format!(
                "{}: the tokenizer has {tokens} tokens, but the model was built for {vocab}",
                folder.display()
            );
            let hint = "config.json, model.safetensors and tokenizer.json must come from the same training";
            return Err(RunError::user_with_hint(message, hint).into());
        }
        let preprocess = preprocess(folder, clip.config().vision.image_size() as u32)?;
        let preprocess_hash = preprocess_hash(&preprocess.to_string());
        let weights_hash = clip.weights_hash();
        Ok(Self { name, checkpoint: None, weights_hash, clip, tokenizer, preprocess, preprocess_hash })
    }

    /// Marks the embeddings of this model: embeddings of different identities are not comparable.
    pub fn identity(&self) -> String {
        format!("{}, {}", self.weights_hash, self.preprocess)
    }
}

/// SHA-256 of the preprocessing and the name of the JPEG decoder.
pub fn preprocess_hash(preprocessing: &str) -> String {
    hex::encode(Sha256::digest(format!("{preprocessing}, {JPEG_DECODER}")))
}

pub fn check_compute(device: &Located<DeviceOption>, precision: &Located<Precision>) -> Option<Fault> {
    let error = device.check(**precision).err()?;
    let at = if device.is_default() { precision.span() } else { device.span() };
    Some(Fault::at(at, error.to_string()))
}

/// The tokenizer file of a model directory.
fn vocabulary(folder: &Path) -> Result<PathBuf, RunError> {
    let names = [TOKENIZER_FILE].into_iter().chain(VOCABULARY_FILES);
    let found = names.map(|name| folder.join(name)).find(|path| path.exists());
    found.ok_or_else(|| {
        RunError::user_with_hint(
            format!("{}: neither {TOKENIZER_FILE} nor CLIP's vocabulary exists here", folder.display()),
            format!(
                "copy the tokenizer.json published with the model into it, or {} from the Python package open_clip",
                VOCABULARY_FILES[0]
            ),
        )
    })
}

/// The preprocessing that the model directory declares; CLIP's if it declares none. Other means and
/// standard deviations are honoured; another interpolation or crop is an error, since accuracies
/// would silently be lower.
fn preprocess(folder: &Path, size: u32) -> Result<Preprocess, RunError> {
    let mut found = Preprocess::clip(size);
    // File, object in it, keys of mean and standard deviation, and values that must be CLIP's.
    type Place =
        (&'static str, Option<&'static str>, [&'static str; 2], &'static [(&'static str, &'static str)]);
    const PLACES: [Place; 2] = [
        (
            "open_clip_config.json",
            Some("preprocess_cfg"),
            ["mean", "std"],
            &[("interpolation", "\"bicubic\""), ("resize_mode", "\"shortest\"")],
        ),
        ("preprocessor_config.json", None, ["image_mean", "image_std"], &[("resample", "3")]),
    ];
    for (file, within, [mean, std], fixed) in PLACES {
        let path = folder.join(file);
        let Ok(text) = std::fs::read_to_string(&path) else { continue };
        let wrong = |why: String| RunError::user(format!("{}: {why}", path.display()));
        let json: Value = serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))?;
        let Some(table) = within.map_or(Some(&json), |within| json.get(within)) else { continue };
        for (key, value) in fixed {
            if let Some(other) = table.get(key).map(Value::to_string).filter(|other| other != value) {
                return Err(wrong(format!("`{key}` is {other}, but only {value} is supported")));
            }
        }
        for (key, to) in [(mean, &mut found.mean), (std, &mut found.std)] {
            if let Some(values) = table.get(key) {
                let values: [f32; 3] = serde_json::from_value(values.clone())
                    .map_err(|error| wrong(format!("`{key}`: {error}")))?;
                *to = values;
            }
        }
        break;
    }
    Ok(found)
}

/// `step 1200`: the last step in the training log.
async fn last_step(cx: &RunContext, training: &InputData) -> Result<Option<String>, RunError> {
    const STEP: &str = "step";
    if training.dataset.schema(MAIN)?.field_with_name(STEP).is_err() {
        return Ok(None);
    }
    let log = training.dataset.frame(&cx.session, MAIN).await?;
    let step = cast(col(STEP), datafusion::arrow::datatypes::DataType::Int64);
    let last = log.aggregate(vec![], vec![max(step).alias(STEP)])?.collect().await?;
    let last =
        last.iter().find_map(|batch| batch.column(0).as_primitive::<Int64Type>().iter().flatten().next());
    Ok(last.map(|step| format!("step {step}")))
}

#[cfg(test)]
mod tests {
    use twinlens_image::CLIP_MEAN;

    use super::*;

    #[test]
    fn preprocessing_follows_the_directory_or_is_refused() {
        let cases = [
            ("preprocessor_config.json", "{}", Ok(CLIP_MEAN)),
            (
                "preprocessor_config.json",
                r#"{ "image_mean": [0.5, 0.25, 0.125], "resample": 3 }"#,
                Ok([0.5, 0.25, 0.125]),
            ),
            ("preprocessor_config.json", r#"{ "resample": 2 }"#, Err("`resample` is 2")),
            ("preprocessor_config.json", r#"{ "image_mean": [0.5] }"#, Err("`image_mean`")),
            ("open_clip_config.json", r#"{ "preprocess_cfg": { "mean": [0.5, 0.5, 0.5] } }"#, Ok([0.5; 3])),
            ("open_clip_config.json", r#"{ "preprocess_cfg": { "resize_mode": "squash" } }"#, Err("squash")),
            ("open_clip_config.json", "{", Err("open_clip_config.json")),
        ];
        for (file, text, expected) in cases {
            let folder = tempfile::tempdir().unwrap();
            std::fs::write(folder.path().join(file), text).unwrap();
            match (preprocess(folder.path(), 16), expected) {
                (Ok(found), Ok(mean)) => assert_eq!((found.mean, found.size), (mean, 16), "{text}"),
                (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{error}"),
                (found, _) => panic!("{text}: {found:?}"),
            }
        }
    }
}
