//! What a training starts from, and what it holds fast.

use super::model_error;
use std::path::Path;
use twinlens_model::weights::shapes;
use twinlens_model::{Clip, ClipConfig, TOKENIZER_FILE, Tokenizer, Tower, any_covers, covers};
use twinlens_pipeline::suggest::did_you_mean;
use twinlens_pipeline::{Fault, Located, RunError};

/// The towers by name, as options name them.
const TOWERS: [&str; 2] = ["visual", "text"];

/// What is wrong with a list of parts of a model.
pub fn faults(parts: &Located<Vec<Located<String>>>, config: &ClipConfig) -> Vec<Fault> {
    let names = shapes(config);
    let unknown = parts.iter().filter(|part| !names.keys().any(|name| covers(part, name)));
    unknown
        .map(|part| {
            let fault = Fault::at(part.span(), format!("the model has no part `{}`", part.value()));
            let fault = fault.label("expected `visual`, `text`, or a variable's name up to a dot");
            let known = TOWERS.into_iter().chain(names.keys().map(String::as_str));
            did_you_mean(part, known).into_iter().fold(fault, Fault::hint)
        })
        .collect()
}

/// The parts as plain names.
pub fn names(parts: &Located<Vec<Located<String>>>) -> Vec<String> {
    parts.iter().map(|part| part.value().clone()).collect()
}

/// Sets `clip` to the weights of the model in `folder`, where `parts` cover them.
pub fn from_folder(
    clip: &Clip,
    tokenizer: &Tokenizer,
    folder: &Path,
    parts: Option<&[String]>,
) -> Result<(), RunError> {
    let source = Clip::load(folder).map_err(model_error)?;
    clip.copy_from(&source, parts, folder).map_err(model_error)?;
    let of_texts = |name: &String| {
        Tower::of(name) == Some(Tower::Text) && parts.is_none_or(|parts| any_covers(parts, name))
    };
    let theirs = folder.join(TOKENIZER_FILE);
    if clip.variables().keys().any(of_texts) && theirs.exists() {
        let theirs = Tokenizer::load(&theirs).map_err(model_error)?;
        if theirs.hash().map_err(model_error)? != tokenizer.hash().map_err(model_error)? {
            let message = format!(
                "{}: its text tower was trained with another tokenizer, whose ids mean other words",
                folder.display()
            );
            let hint = "give `tokenizer` the same folder or stage, or take the image tower alone: `from_parts = [\"visual\"]`";
            return Err(RunError::user_with_hint(message, hint));
        }
    }
    Ok(())
}
