//! Images with classes: a directory of images per class, or Parquet files with a label.

use std::path::Path;

use twinlens_eval::sets::{self, LocatedSet, Task};
use twinlens_pipeline::RunError;

use super::found::{Classes, Count, Found, Material, Source};
use super::listing::Listing;
use crate::errors::Failure;

/// Names of the split to train on.
const TRAIN: [&str; 4] = ["train", "training", "Train", "Training"];

/// A directory of images per class; `None` if the directories are not classes.
pub(super) fn directories(source: &Source<'_>, listing: &Listing) -> Result<Option<Found>, Failure> {
    let written = format!("{}/", source.written(&listing.root).trim_end_matches('/'));
    let located = match sets::locate(&source.files, &written, None, None) {
        Ok(located) => located,
        // Of directories that are named as splits, what is wrong with them matters.
        Err(error) if TRAIN.iter().any(|name| listing.root.join(name).is_dir()) => return Err(error.into()),
        Err(_) => return Ok(None),
    };
    let names = class_names(&located)?;
    // Directories of years or numbers are not classes.
    if names.len() < 2 || names.iter().all(|name| !name.chars().any(char::is_alphabetic)) {
        return Ok(None);
    }
    let count = Count::exactly(listing.images.len() as u64);
    Ok(Some(found(source, &written, &located, (names, count))))
}

/// Parquet files with images and labels.
pub(super) fn parquet(source: &Source<'_>, path: &Path, rows: u64) -> Result<Found, Failure> {
    let mut written = source.written(path);
    if path.is_dir() {
        written = format!("{}/", written.trim_end_matches('/'));
    }
    let located = sets::locate(&source.files, &written, None, None)?;
    let names = class_names(&located)?;
    Ok(found(source, &written, &located, (names, Count::exactly(rows))))
}

/// The names in prompts.
fn class_names(located: &LocatedSet) -> Result<Vec<String>, Failure> {
    let LocatedSet { set, root } = located;
    if set.task != Task::Classification {
        return Err(Failure::user("images with several labels each are not supported by `init`")
            .hint("see `twinlens help evaluation`"));
    }
    let root = root.as_deref().unwrap_or(Path::new(""));
    let opened = sets::open(set, &set.split, root).map_err(RunError::from)?;
    Ok(opened.written().bound.classes.into_iter().map(|class| class.name).collect())
}

fn found(
    source: &Source<'_>,
    written: &str,
    located: &LocatedSet,
    (names, count): (Vec<String>, Count),
) -> Found {
    let has_split = |split: &&&str| sets::locate(&source.files, written, None, Some(split)).is_ok();
    let train = TRAIN.iter().find(has_split).map(ToString::to_string);
    let has_test = train.as_ref().is_some_and(|train| *train != located.set.split);
    let mut shown = names.iter().take(4).cloned().collect::<Vec<_>>().join(", ");
    if names.len() > 4 {
        shown += ", ...";
    }
    let splits = match (&train, has_test) {
        (Some(train), true) => format!("; trained on `{train}`, evaluated on `{}`", located.set.split),
        _ => "; a fifth is held out for the evaluation".into(),
    };
    let what = format!("{} of {} classes ({shown}){splits}", count.of("image"), names.len());
    let classes = Classes { path: written.into(), train, has_test, classes: names.len() };
    let notes = vec!["each image gets the caption `a photo of a CLASS`".into()];
    Found { what, count, material: Material::Classes(classes), notes }
}
