//! Directories of images with captions in files beside them, tar files, and images alone.

use std::collections::{BTreeSet, HashSet};
use std::path::{Path, PathBuf};

use twinlens_dataset::samples::{Role, TarSamples};
use twinlens_image::Limits;

use super::found::{Count, Found, Material, Pairs, Source, quoted};
use super::listing::{Listing, extension, is_metadata};
use crate::errors::Failure;

/// Extensions of captions beside images.
const CAPTIONS: [&str; 4] = ["txt", "text", "caption", "json"];
/// Most samples of tar files that are read.
const MOST: u64 = 20_000;

/// Whether at least half of the images have a file of captions of the same name.
pub(super) fn has_captions(listing: &Listing) -> bool {
    let captioned = captioned(listing);
    captioned > 0 && captioned * 2 >= listing.images.len()
}

fn captioned(listing: &Listing) -> usize {
    let stem = |path: &Path| path.with_extension("");
    let texts: HashSet<PathBuf> =
        listing.with_extension(&CAPTIONS).map(|name| stem(&listing.root.join(name))).collect();
    listing.images.iter().filter(|image| texts.contains(&stem(image))).count()
}

/// A source stage without the option `captions`, or if it fails, with a row for each caption.
fn with_each(source: &Source<'_>, stage: String, last: &str) -> Result<String, Failure> {
    match source.try_stages(&stage, last) {
        Ok(_) => Ok(stage),
        Err(failure) => {
            let each = format!(
                "{stage}captions = \"each\"                    # a row for each caption of an image\n"
            );
            let hint = "`--caption NAME` names the caption in JSON files or metadata";
            source.try_stages(&each, last).map(|_| each).map_err(|_| {
                if source.caption.is_none() && failure.hint.is_none() { failure.hint(hint) } else { failure }
            })
        }
    }
}

pub(super) fn with_captions(source: &Source<'_>, listing: &Listing) -> Result<Found, Failure> {
    let is_read = |name: &String| is_metadata(name) || CAPTIONS.contains(&extension(name).as_str());
    let unread: BTreeSet<String> =
        listing.others.iter().filter(|name| !is_read(name)).map(|name| extension(name)).collect();
    let unread: Vec<String> =
        unread.iter().filter(|name| !name.is_empty()).map(|name| quoted(name)).collect();
    let mut stage = format!(
        "[stages.pairs]                       # images and their captions; what is not a pair is in `pairs.rejects`\n\
         kind = \"folder\"\nfolders = [{}]\n{}",
        quoted(&source.written(&listing.root)),
        source.resize()
    );
    if let Some(caption) = source.caption {
        stage += &format!("caption = {}\n", quoted(caption));
    }
    if !unread.is_empty() {
        stage += &format!("ignore = [{}]\n", unread.join(", "));
    }
    let stages = with_each(source, stage, "pairs")?;
    let where_captions = if listing.has_metadata() { "in a metadata file" } else { "in files beside them" };
    let rows = if listing.has_metadata() { listing.images.len() } else { captioned(listing) };
    let count = Count { rows: rows as u64, is_exact: !listing.has_metadata() };
    let what = format!("a directory of {} with captions {where_captions}", count.of("image"));
    let mut notes = Vec::new();
    if !unread.is_empty() {
        notes.push(format!("not read: files with the extensions {}", unread.join(", ")));
    }
    if rows < listing.images.len() {
        notes.push(format!("{} images have no caption", listing.images.len() - rows));
    }
    let pairs = Pairs { stages, test: None, has_lists: false, share: None };
    Ok(Found { what, count, material: Material::Pairs(pairs), notes })
}

/// Images without captions.
pub(super) fn images(source: &Source<'_>, listing: &Listing) -> Result<Found, Failure> {
    let stages = format!(
        "[stages.images]\nkind = \"folder\"\nfolders = [{}]\ncaptions = \"none\"\n{}",
        quoted(&source.written(&listing.root)),
        source.resize()
    );
    source.try_stages(&stages, "images")?;
    let count = Count::exactly(listing.images.len() as u64);
    let what = format!("a directory of {} without captions", count.of("image"));
    let notes = vec![
        "there is nothing to train with: captions are expected in `a.txt` beside `a.jpg`, or in metadata.csv; \
         classes in directories (cat/1.jpg)"
            .into(),
    ];
    Ok(Found { what, count, material: Material::Images(stages), notes })
}

/// Tar files of webdataset and img2dataset. `files` is how the pipeline names them.
pub(super) fn tars(source: &Source<'_>, files: &str, paths: &[PathBuf]) -> Result<Found, Failure> {
    let mut paths = paths.to_vec();
    paths.sort();
    let max_image = Limits::default().max_bytes;
    let (mut samples, mut counted) = (0, 0);
    // Their headers are read, of a few files.
    for path in paths.iter().take(4) {
        let index = TarSamples::open(path, Some(&source.files.scratch))?.index(max_image, Role::PAIR)?;
        samples += index.entries.iter().filter(|entry| entry.image.is_some()).count() as u64;
        counted += 1;
    }
    let total = samples * paths.len() as u64 / counted.max(1);
    let count = Count { rows: total, is_exact: counted as usize == paths.len() };
    let mut notes = vec![format!("{} tar file{}", paths.len(), if paths.len() == 1 { "" } else { "s" })];
    let per_file = (total / paths.len().max(1) as u64).max(1);
    let used = usize::try_from(MOST.div_ceil(per_file)).unwrap_or(paths.len());
    let named: Vec<String> = if !source.is_whole && total > MOST + MOST / 4 && used < paths.len() {
        notes.push(format!("the first {used} are read: name more in `files`"));
        paths.iter().take(used).map(|path| quoted(&source.written(path))).collect()
    } else {
        vec![quoted(files)]
    };
    let mut stage = format!(
        "[stages.pairs]                       # images and their captions; what is not a pair is in `pairs.rejects`\n\
         kind = \"webdataset\"\nfiles = [{}]\n{}",
        named.join(", "),
        source.resize()
    );
    if let Some(caption) = source.caption {
        stage += &format!("caption = {}\n", quoted(caption));
    }
    let stages = with_each(source, stage, "pairs")?;
    let what = format!("tar files of {} (webdataset)", count.of("sample"));
    let pairs = Pairs { stages, test: None, has_lists: false, share: None };
    Ok(Found { what, count, material: Material::Pairs(pairs), notes })
}
