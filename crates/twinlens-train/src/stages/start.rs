//! The initial weights of a training, and which parts of the model are frozen.

use super::errors::model_error;
use std::path::Path;
use twinlens_image::{Preprocess, ResizeRule};
use twinlens_model::weights::{directory_of, shapes};
use twinlens_model::{Clip, ClipConfig, TOKENIZER_FILE, Tokenizer, Tower, any_covers, covers};
use twinlens_pipeline::suggest::did_you_mean;
use twinlens_pipeline::{Fault, Located, Ports, RunError};

/// The names of the towers in options.
const TOWERS: [&str; 2] = ["visual", "text"];

/// Checks a list of parts of a model.
pub(crate) fn check(ports: &mut Ports<'_>, parts: &Located<Vec<Located<String>>>, config: &ClipConfig) {
    let names = shapes(config);
    for part in parts.iter().filter(|part| !names.keys().any(|name| covers(part, name))) {
        let fault = Fault::at(part.span(), format!("the model has no part `{}`", part.value()));
        let fault = fault.label("expected `visual`, `text`, or the start of a variable's name up to a dot");
        let known = TOWERS.into_iter().chain(names.keys().map(String::as_str));
        ports.fault(did_you_mean(part, known).into_iter().fold(fault, Fault::hint));
    }
}

pub(crate) fn names(parts: &Located<Vec<Located<String>>>) -> Vec<String> {
    parts.iter().map(|part| part.value().clone()).collect()
}

/// The same preprocessing for images of another size.
fn with_size(preprocess: &Preprocess, size: u32) -> Preprocess {
    let scaled =
        |side: u32| (u64::from(side) * u64::from(size)).div_ceil(u64::from(preprocess.size.max(1))) as u32;
    let resize = match preprocess.resize {
        ResizeRule::Shortest(side) => ResizeRule::Shortest(scaled(side)),
        ResizeRule::Squash(side) => ResizeRule::Squash(scaled(side)),
    };
    Preprocess { size, resize, ..preprocess.clone() }
}

/// Copies the weights of the model in `folder` to `clip`; with `parts`, only those. Whoever takes
/// weights of its image tower prepares images as it does.
pub(crate) fn from_folder(
    clip: &mut Clip,
    tokenizer: &Tokenizer,
    folder: &Path,
    parts: Option<&[String]>,
) -> Result<(), RunError> {
    let source = Clip::load(folder).map_err(model_error)?;
    clip.copy_from(&source, parts, folder).map_err(model_error)?;
    let takes = |tower: Tower| {
        let is_taken = |name: &String| {
            Tower::of(name) == Some(tower) && parts.is_none_or(|parts| any_covers(parts, name))
        };
        clip.variables().keys().any(is_taken)
    };
    let (takes_image, takes_text) = (takes(Tower::Image), takes(Tower::Text));
    if takes_image {
        let size = clip.config().vision.image_size() as u32;
        clip.set_preprocess(with_size(source.preprocess(), size));
    }
    let path = directory_of(folder).join(TOKENIZER_FILE);
    if takes_text && path.exists() { check_tokenizer(tokenizer, &path) } else { Ok(()) }
}

/// Checks that a model that was trained with the tokenizer in `path` is used with the same.
pub(crate) fn check_tokenizer(tokenizer: &Tokenizer, path: &Path) -> Result<(), RunError> {
    let theirs = Tokenizer::load(path).map_err(model_error)?;
    if theirs.hash().map_err(model_error)? == tokenizer.hash().map_err(model_error)? {
        return Ok(());
    }
    let message = format!(
        "{}: its text tower was trained with another tokenizer, so token ids have other meanings",
        path.parent().unwrap_or(path).display()
    );
    let hint = "set `tokenizer` to the same directory or stage, or use only the image tower: `from_parts = [\"visual\"]`";
    Err(RunError::user_with_hint(message, hint))
}
