//! The model under evaluation, and what the results say of it.

use std::path::PathBuf;

use datafusion::arrow::array::AsArray;
use datafusion::arrow::datatypes::Int64Type;
use datafusion::functions_aggregate::expr_fn::max;
use datafusion::logical_expr::{cast, col};
use sha2::{Digest, Sha256};
use twinlens_dataset::MAIN;
use twinlens_image::{JPEG_DECODER, Preprocess};
use twinlens_model::weights::FOLDER_FILES;
use twinlens_model::{CONFIG_FILE, Clip, DeviceOption, Precision, TOKENIZER_FILE, Tokenizer, WEIGHTS_FILE};
use twinlens_pipeline::{InputData, RunContext, RunError};

use super::{ZeroShot, input};
use crate::error::EvalError;
use crate::prompts::hex;

/// A model in memory.
pub struct Model {
    /// The stage that trained it, or the folder as the pipeline file has it.
    pub name: String,
    /// Which state of the training it is; `None` for a folder.
    pub checkpoint: Option<String>,
    /// The towers.
    pub clip: Clip,
    /// Of the model's own folder.
    pub tokenizer: Tokenizer,
    /// SHA-256 of the weights.
    pub weights_hash: String,
    /// Images to pixels, as the image tower takes them.
    pub preprocess: Preprocess,
    /// SHA-256 of the preprocessing and of what decodes JPEG.
    pub preprocess_hash: String,
}

impl Model {
    /// Loads the model that the option names.
    pub async fn open(options: &ZeroShot, cx: &RunContext, inputs: &[InputData]) -> Result<Self, RunError> {
        let (name, folder, checkpoint) = if options.model.is_path() {
            let name = options.model.name().to_string();
            let (files, written) = (cx.files.clone(), name.clone());
            let open = move || files.model(&written, &FOLDER_FILES);
            let opened = tokio::task::spawn_blocking(open).await;
            (name, opened.map_err(|error| RunError::Internal(error.to_string()))??, None)
        } else {
            let training = input(inputs, &options.model)?;
            for file in [CONFIG_FILE, WEIGHTS_FILE, TOKENIZER_FILE] {
                training.artifact(file)?;
            }
            // Of a swept training: the variant.
            let name = training.dataset.state().begin.stage.clone();
            (name, training.dataset.dir(), last_step(cx, training).await?)
        };
        let compute = (*options.device, *options.precision);
        let load = move || Self::load(name, checkpoint, folder, compute).map_err(RunError::from);
        tokio::task::spawn_blocking(load).await.map_err(|error| RunError::Internal(error.to_string()))?
    }

    fn load(
        name: String,
        checkpoint: Option<String>,
        folder: PathBuf,
        (device, precision): (DeviceOption, Precision),
    ) -> Result<Self, EvalError> {
        let clip = Clip::load(&folder)?.on(&device.open(precision)?, precision)?;
        let tokenizer = Tokenizer::load(&folder.join(TOKENIZER_FILE))?;
        let (has, takes) = (tokenizer.vocab_size(), clip.config().text.vocab);
        if has > takes {
            let message = format!(
                "{}: its tokenizer has {has} tokens, but the model was built for {takes}",
                folder.display()
            );
            let hint = "config.json, model.safetensors and tokenizer.json must come from the same training";
            return Err(RunError::user_with_hint(message, hint).into());
        }
        let preprocess = Preprocess::clip(clip.config().vision.image_size() as u32);
        let preprocess_hash = hex(&Sha256::digest(format!("{preprocess:?} {JPEG_DECODER}")));
        let weights_hash = clip.weights_hash();
        Ok(Self { name, checkpoint, weights_hash, clip, tokenizer, preprocess, preprocess_hash })
    }
}

/// `step 1200`: the last step in the log of the training.
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
