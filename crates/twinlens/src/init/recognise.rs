//! What data are, by their files.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use twinlens_dataset::samples::is_run_directory;
use twinlens_dataset::sniff::{FileKind, SNIFF_BYTES};
use twinlens_dataset::{manifest, unpack};

use super::found::{Found, Images, Material, Pairs, Source};
use super::listing::{Listing, extension};
use super::{classes, folders, parquet, tables};
use crate::errors::Failure;

/// Extensions of tables, without that of a compression.
const TABLES: [&str; 6] = ["csv", "tsv", "jsonl", "ndjson", "json", "arrow"];

/// The stages that read all images of data.
///
/// # Errors
/// The data are not recognised, or cannot be read.
pub(crate) fn images(source: &Source<'_>) -> Result<Images, Failure> {
    match recognise(source)?.material {
        Material::Pairs(Pairs { stages, has_lists, .. }) => {
            Ok(Images { stages, last: "pairs", has_captions: !has_lists })
        }
        Material::Images(stages) => Ok(Images { stages, last: "images", has_captions: false }),
        Material::Classes(_) => Err(Failure::internal("classes are not asked for")),
    }
}

pub(super) fn recognise(source: &Source<'_>) -> Result<Found, Failure> {
    if source.is_of_hub() {
        return parquet::of_hub(source);
    }
    let path = Path::new(source.data);
    if path.is_dir() {
        return directory(source, path);
    }
    if path.is_file() {
        return file(source, path);
    }
    let failure = Failure::user(format!("{} does not exist", source.data));
    Err(failure.hint("give a file, a directory, or a dataset of the Hub: hf://datasets/ORG/NAME"))
}

fn file(source: &Source<'_>, path: &Path) -> Result<Found, Failure> {
    let mut start = Vec::new();
    let unpacked = unpack::open(path)?;
    unpacked.take(SNIFF_BYTES as u64).read_to_end(&mut start).map_err(|error| Failure::io(path, error))?;
    let plain = first_bytes(path)?;
    match FileKind::of(&start) {
        FileKind::Tar => folders::tars(source, &source.written(path), &[path.into()]),
        _ if FileKind::of(&plain) == FileKind::Parquet => parquet::file(source, path),
        FileKind::Image => {
            Err(Failure::user(format!("{} is one image", source.data))
                .hint("give the directory that it is in"))
        }
        _ if extension(source.data) == "toml" => {
            Err(Failure::user(format!("{} is a pipeline or a set already", source.data))
                .hint(format!("run it: twinlens run {}", source.data)))
        }
        FileKind::ArrowFile | FileKind::ArrowStream => {
            tables::table(source, &source.written(path), &[path.into()])
        }
        FileKind::Text | FileKind::Utf8Bom | FileKind::Utf16Le | FileKind::Utf16Be
            if is_table(&extension(source.data)) =>
        {
            tables::table(source, &source.written(path), &[path.into()])
        }
        kind => Err(Failure::user(format!("{} is {kind}", source.data)).hint(EXPECTED)),
    }
}

/// Whether files with an extension are tables. Text files are lists of URLs.
fn is_table(extension: &str) -> bool {
    TABLES.contains(&extension) || extension == "txt"
}

/// What can be recognised.
const EXPECTED: &str = "expected a table (CSV, TSV, JSONL, Parquet) of URLs or paths and captions; Parquet with images; \
     tar files; images with text files or metadata.csv; or a directory of images per class";

fn first_bytes(path: &Path) -> Result<Vec<u8>, Failure> {
    let mut start = Vec::new();
    let read = File::open(path).and_then(|file| file.take(SNIFF_BYTES as u64).read_to_end(&mut start));
    read.map_err(|error| Failure::io(path, error))?;
    Ok(start)
}

fn directory(source: &Source<'_>, root: &Path) -> Result<Found, Failure> {
    if manifest::exists(&root.into())? {
        return parquet::dataset(source, root);
    }
    if is_run_directory(root) {
        return Err(Failure::user(format!("{} is a run directory", source.data))
            .hint("give one of its datasets, or other data"));
    }
    let listing = Listing::open(root)?;
    let mut found = listed(source, root, &listing);
    if let (Ok(found), Some(note)) = (&mut found, listing.note_on_runs()) {
        found.notes.push(note);
    }
    found
}

fn listed(source: &Source<'_>, root: &Path, listing: &Listing) -> Result<Found, Failure> {
    let tars: Vec<PathBuf> = listing.with_extension(&["tar"]).map(|name| root.join(name)).collect();
    if listing.images.is_empty() {
        if !tars.is_empty() {
            let folder = common_folder(root, &tars);
            return folders::tars(source, &format!("{}/*.tar", source.written(&folder)), &tars);
        }
        return without_images(source, listing);
    }
    if listing.has_metadata() || folders::has_captions(listing) {
        return folders::with_captions(source, listing);
    }
    let tables: Vec<&String> =
        listing.with_extension(&TABLES).chain(listing.with_extension(&["parquet"])).collect();
    match tables[..] {
        [one] => {
            let path = root.join(one);
            return tables::table(source, &source.written(&path), &[path]);
        }
        [] => {}
        [ref first, ref second, ..] => {
            let message = format!("{} has images and several tables: {first}, {second}", source.data);
            return Err(
                Failure::user(message).hint("give the table of the captions instead of the directory")
            );
        }
    }
    let classes = if source.is_whole { None } else { classes::directories(source, listing)? };
    classes.map_or_else(|| folders::images(source, listing), Ok)
}

/// The directory that directly contains all of these files, or `root`.
fn common_folder(root: &Path, files: &[PathBuf]) -> PathBuf {
    let first = files.first().and_then(|file| file.parent());
    let same = first.filter(|folder| files.iter().all(|file| file.parent() == Some(folder)));
    same.unwrap_or(root).into()
}

/// A directory of Parquet files or tables.
fn without_images(source: &Source<'_>, listing: &Listing) -> Result<Found, Failure> {
    if listing.with_extension(&["parquet"]).next().is_some() {
        return parquet::directory(source, listing);
    }
    let root = &listing.root;
    let mut kinds = TABLES.iter().filter_map(|kind| {
        let files: Vec<PathBuf> =
            listing.with_extension(std::slice::from_ref(kind)).map(|name| root.join(name)).collect();
        (!files.is_empty()).then_some((*kind, files))
    });
    match (kinds.next(), kinds.next()) {
        (Some((_, files)), None) => {
            let written = match &files[..] {
                [one] => source.written(one),
                _ => {
                    let name = files[0].file_name().unwrap_or_default().to_string_lossy().into_owned();
                    let end = name.split_once('.').map_or("", |(_, end)| end).to_string();
                    format!("{}/*.{end}", source.written(&common_folder(root, &files)))
                }
            };
            tables::table(source, &written, &files)
        }
        (Some((one, _)), Some((other, _))) => {
            let message = format!("{} has tables of several kinds: .{one} and .{other}", source.data);
            Err(Failure::user(message).hint("give one of the files"))
        }
        (None, _) => {
            let runs = listing.note_on_runs().map_or(String::new(), |note| format!(" ({note})"));
            let has = listing.in_words();
            Err(Failure::user(format!("{} is not recognised: it has {has}{runs}", source.data))
                .hint(EXPECTED))
        }
    }
}
