//! Readers: the files of a set, in one layout or another, to [`Example`]s that stream.
//!
//! What is damaged is an example with a refusal in the place of its image or its truth; the rest
//! goes on. A reader holds one example at a time (of Parquet, a batch within a budget), and lists
//! of names.

mod cifar;
mod csv;
mod folder;
mod idx;
mod npy;
mod parquet;
mod raw;
mod voc;
mod webdataset;

use std::fmt::Debug;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use twinlens_dataset::samples;
use twinlens_image::Limits;
use twinlens_pipeline::RunError;

use super::Declaration;
use crate::error::EvalError;
use crate::images::Reject;

pub use csv::CsvFile;

/// The file ends before it should.
pub const TRUNCATED: &str = samples::TRUNCATED;
/// A text of the set cannot be read: a line of a CSV, a label that is no number.
pub const MALFORMED: &str = "malformed_text";
/// Longer than the limit of bytes.
pub const TOO_MANY_BYTES: &str = samples::TOO_MANY_BYTES;

/// How the files of a set lie as their authors give them out; paths are relative to the set's
/// folder, and `{split}` in them is the split.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Reader {
    /// A folder of images a class.
    Folder {
        /// Where the folders of the classes lie.
        path: String,
    },
    /// Two files of the MNIST format, `.gz` or not.
    Idx {
        /// The pixels: three dimensions for grey images, four for colours.
        images: String,
        /// The labels.
        labels: String,
    },
    /// Records of label bytes and three planes of pixels, as CIFAR and STL-10 give them.
    Planes {
        /// The files with the pixels.
        files: Vec<String>,
        /// Bytes before the pixels of each record.
        #[serde(default)]
        label_bytes: usize,
        /// Which of them is the label, from 0.
        #[serde(default)]
        label: usize,
        /// A file of label bytes, where they do not stand with the pixels.
        #[serde(default)]
        labels: Option<String>,
        /// The label of the first class.
        #[serde(default)]
        first_label: u8,
        /// Side in pixels.
        side: u32,
        /// Planes are stored column by column.
        #[serde(default)]
        by_column: bool,
    },
    /// A CSV file that names images, or holds their pixels.
    Csv(CsvFile),
    /// PASCAL VOC: lists of images a class, and a folder of images.
    Voc {
        /// The folder with `ImageSets` and `JPEGImages`.
        path: String,
    },
    /// Parquet: one file or several.
    Parquet {
        /// The column of the images.
        #[serde(default)]
        image: Option<String>,
        /// The column of the labels.
        #[serde(default)]
        label: Option<String>,
        /// The column of the captions.
        #[serde(default)]
        caption: Option<String>,
    },
}

/// What is known of an example beside its image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Truth {
    /// A label id.
    Id(i64),
    /// What the data call its class.
    Name(String),
    /// Ids of the classes that are there, and of those that nobody decided on.
    Ids {
        /// There.
        present: Vec<i64>,
        /// Neither there nor not there: such an example does not count for that class.
        ignored: Vec<i64>,
    },
    /// Texts that belong to it.
    Captions(Vec<String>),
}

/// One example, as its files hold it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    /// Where it is, for people: `test/0.tar/000123`.
    pub place: String,
    /// The name of the image.
    pub path: String,
    /// Encoded bytes.
    pub image: Result<Vec<u8>, Reject>,
    /// What is known of it.
    pub truth: Result<Truth, Reject>,
}

/// Takes the examples one by one.
pub type Take<'a> = &'a mut dyn FnMut(Example) -> Result<(), EvalError>;

/// The files of a set, opened.
pub trait SetFiles: Debug + Send + Sync {
    /// What is read, and committed, as one; by names for people.
    fn parts(&self) -> Vec<String>;

    /// What the data call their classes, by label id.
    fn names(&self) -> Option<Vec<String>> {
        None
    }

    /// The data's own templates.
    fn templates(&self) -> Option<Vec<String>> {
        None
    }

    /// Reads the examples of one part.
    ///
    /// # Errors
    /// The system's, and those of `take`; what is damaged is an example.
    fn read(&self, part: usize, limits: &Limits, take: Take<'_>) -> Result<(), EvalError>;
}

/// Opens the data of a set at `root`: in the layout that its declaration names where its files are
/// there, in one that tells itself otherwise (a dataset of a run, tar files of CLIP_benchmark,
/// Parquet of the hub, a folder a class).
///
/// # Errors
/// Why it cannot be read, and what was expected.
pub fn open(set: &Declaration, split: &str, root: &Path) -> Result<Box<dyn SetFiles>, EvalError> {
    if root.is_file() {
        let columns = parquet::Columns::of(set);
        return Ok(Box::new(parquet::Tables::open(&[root.to_path_buf()], &columns, &set.name)?));
    }
    if root.join(twinlens_dataset::manifest::FILE).is_file() {
        return Ok(Box::new(parquet::Tables::of_dataset(root, &parquet::Columns::of(set), &set.name)?));
    }
    let at = |path: &str| root.join(path.replace("{split}", split));
    let there = |path: &str| at(path).exists();
    match &set.reader {
        Some(Reader::Folder { path }) if there(path) => {
            return Ok(Box::new(folder::Folder::open(&at(path))?));
        }
        Some(Reader::Idx { images, labels }) if there(images) => {
            return Ok(Box::new(idx::Idx { images: at(images), labels: at(labels) }));
        }
        Some(Reader::Planes { files, label_bytes, label, labels, first_label, side, by_column })
            if files.iter().all(|file| there(file)) =>
        {
            return Ok(Box::new(cifar::Planes {
                files: files.iter().map(|file| at(file)).collect(),
                label_bytes: *label_bytes,
                label: *label,
                labels: labels.as_ref().map(|file| at(file)),
                first_label: *first_label,
                side: *side,
                by_column: *by_column,
            }));
        }
        Some(Reader::Csv(options)) if there(&options.file) => {
            return Ok(Box::new(csv::Csv::new(options, split, root)));
        }
        Some(Reader::Voc { path }) if there(path) => {
            return Ok(Box::new(voc::Voc::open(&at(path), split, set)?));
        }
        _ => {}
    }
    // In CLIP_benchmark's tar files the part that is evaluated is called `test`, whatever its
    // authors call it.
    let evaluated = (split == set.split).then_some("test");
    let tar_files = |split: &&str| root.join(split).join(webdataset::SHARDS).is_file();
    if let Some(split) = std::iter::once(split).chain(evaluated).find(tar_files) {
        return Ok(Box::new(webdataset::WebDataset::open(root, split)?));
    }
    let files = parquet::files(root, split)?;
    if !files.is_empty() {
        return Ok(Box::new(parquet::Tables::open(&files, &parquet::Columns::of(set), &set.name)?));
    }
    for path in [root.join(split), root.to_path_buf()] {
        if folder::has_classes(&path) {
            return Ok(Box::new(folder::Folder::open(&path)?));
        }
    }
    let why = format!("{} holds nothing of its split `{split}` that can be read", root.display());
    let hint = format!(
        "expected are Parquet files, {split}/nshards.txt with tar files, or a folder of images a class. {}",
        set.how_to_get
    );
    Err(EvalError::set(&set.name, why, Some(hint)))
}

/// Reads a whole file that must not be longer than the limit.
fn bytes_of(path: &Path, limits: &Limits) -> Result<Result<Vec<u8>, Reject>, EvalError> {
    Ok(match samples::read_part(path, limits.max_bytes)? {
        Some(bytes) => bytes.map_err(|(code, detail)| Reject { code, detail }),
        None => Err(Reject { code: crate::images::NO_IMAGE, detail: "the file is not there".into() }),
    })
}

/// An error of the system with the path.
fn io(path: &Path) -> impl Fn(std::io::Error) -> EvalError {
    let path: PathBuf = path.to_path_buf();
    move |error| RunError::io(&path, error).into()
}

/// A file, decompressed where its name ends in `.gz`.
fn unpacked(path: &Path) -> Result<Box<dyn Read>, EvalError> {
    let file = BufReader::new(File::open(path).map_err(io(path))?);
    Ok(match path.extension().is_some_and(|ending| ending == "gz") {
        true => Box::new(BufReader::new(flate2::bufread::MultiGzDecoder::new(file))),
        false => Box::new(file),
    })
}

/// Fills the buffer; how many bytes there were before the end, or before the damage of a compressed
/// file.
fn fill(input: &mut dyn Read, buffer: &mut [u8]) -> usize {
    let mut filled = 0;
    while filled < buffer.len() {
        match input.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(more) => filled += more,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    filled
}

/// The file's name without its folders.
fn short(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}
