//! The model under evaluation: loading, preprocessing, and the hashes that identify it.

use std::path::{Path, PathBuf};

use datafusion::arrow::array::AsArray;
use datafusion::arrow::datatypes::Int64Type;
use datafusion::functions_aggregate::expr_fn::max;
use datafusion::logical_expr::{cast, col};
use sha2::{Digest, Sha256};
use twinlens_dataset::MAIN;
use twinlens_image::{JPEG_DECODER, Preprocess};
use twinlens_model::weights::{FOLDER_FILES, directory_of};
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
            ArtifactInput::Step(training, file) => {
                let step = file.chars().filter(char::is_ascii_digit).collect::<String>();
                let step = step.trim_start_matches('0');
                (inputs.get(training).dataset.state().begin.stage.clone(), Some(format!("step {step}")))
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
        let preprocess_hash = preprocess_hash(&clip.preprocess().to_string());
        let preprocess = clip.preprocess().clone();
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
fn vocabulary(model: &Path) -> Result<PathBuf, RunError> {
    let folder = directory_of(model);
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
