//! Models by name: presets, and directories of a run, of other programs, and of the Hugging Face
//! Hub.

use std::path::PathBuf;

use twinlens_dataset::{Dataset, manifest};
use twinlens_model::weights::{FOLDER_FILES, PREPROCESSING_FILE};
use twinlens_model::{CONFIG_FILE, ClipConfig, TOKENIZER_FILE, WEIGHTS_FILE};
use twinlens_pipeline::hub::is_hub_name;
use twinlens_pipeline::suggest::did_you_mean;

use crate::errors::Failure;
use crate::hub;

/// The configuration of a preset.
pub(crate) fn preset(name: &str) -> Result<ClipConfig, Failure> {
    ClipConfig::preset(name).map_err(|error| {
        let hint = did_you_mean(name, ClipConfig::presets());
        Failure::user(error.to_string())
            .hint(hint.unwrap_or_else(|| "`twinlens model list` lists them".into()))
    })
}

/// The directory of a model: that of a finished training, any other, or a downloaded one.
pub(crate) fn folder(name: &str) -> Result<PathBuf, Failure> {
    if is_hub_name(name) {
        return Ok(hub::open().model(name, &FOLDER_FILES)?);
    }
    let location = crate::location::parse_location(name)?;
    if manifest::exists(&location)? {
        let training = Dataset::open(location)?;
        if !training.state().complete {
            return Err(Failure::user(format!("{name}: the training is not finished"))
                .hint("resume its run, or name the directory of another model"));
        }
        return of_training(&training);
    }
    let path = PathBuf::from(name);
    if path.is_dir() {
        return Ok(path);
    }
    let what = if path.exists() { "is not a directory" } else { "does not exist" };
    Err(Failure::user(format!("{name} {what}"))
        .hint("name the directory of a model: runs/NAME/STAGE of a `train` stage, or one with config.json"))
}

/// The directory of a training's model; its files are verified.
pub(crate) fn of_training(training: &Dataset) -> Result<PathBuf, Failure> {
    for file in [CONFIG_FILE, WEIGHTS_FILE, TOKENIZER_FILE] {
        training.artifact(file)?;
    }
    if training.state().files().any(|file| file.table.is_none() && file.path == PREPROCESSING_FILE) {
        training.artifact(PREPROCESSING_FILE)?;
    }
    Ok(training.dir())
}

/// The file of a tokenizer: of a model, of a `tokenizer` stage, or itself.
pub(crate) fn tokenizer_file(name: &str) -> Result<PathBuf, Failure> {
    const FILES: [&str; 1] = [TOKENIZER_FILE];
    if is_hub_name(name) {
        return Ok(hub::open().model(name, &[(&[&FILES], &[])])?.join(TOKENIZER_FILE));
    }
    let path = PathBuf::from(name);
    if path.is_file() {
        return Ok(path);
    }
    let location = crate::location::parse_location(name)?;
    if manifest::exists(&location)? {
        return Ok(Dataset::open(location)?.artifact(TOKENIZER_FILE)?);
    }
    let file = path.join(TOKENIZER_FILE);
    if file.is_file() {
        return Ok(file);
    }
    Err(Failure::user(format!("{name}: there is no {TOKENIZER_FILE}"))
        .hint("name a `tokenizer.json`, or the directory of a model or of a `tokenizer` stage"))
}
