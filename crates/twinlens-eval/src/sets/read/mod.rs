//! Readers: stream the files of a set, in any supported layout, as [`Example`]s.
//!
//! A damaged example has a reject instead of its image or ground truth, and reading continues. A
//! reader holds one example at a time (for Parquet, a batch within a budget) and lists of names.

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
use std::io::Read;
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
/// A text cannot be parsed: a line of a CSV file, or a label that is not a number.
pub const MALFORMED: &str = "malformed_text";
/// Longer than the byte limit.
pub const TOO_MANY_BYTES: &str = samples::TOO_MANY_BYTES;

/// The layout of a set's files as published by the authors. Paths are relative to the set's
/// directory; `{split}` stands for the split.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, schemars::JsonSchema)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Reader {
    /// One directory of images per class.
    Folder {
        /// The directory that contains the directories of the classes.
        path: String,
    },
    /// Two files in the MNIST format, optionally `.gz`.
    Idx {
        /// The pixels: three dimensions for grey images, four for colour.
        images: String,
        labels: String,
    },
    /// Records of label bytes and three planes of pixels, as in CIFAR and STL-10.
    Planes {
        /// The files with the pixels.
        files: Vec<String>,
        /// Label bytes before the pixels of each record.
        #[serde(default)]
        label_bytes: usize,
        /// The index of the label among them.
        #[serde(default)]
        label: usize,
        /// A file of label bytes, if the records have none.
        #[serde(default)]
        labels: Option<String>,
        /// The label of the first class.
        #[serde(default)]
        first_label: u8,
        /// Width and height in pixels.
        side: u32,
        /// Whether planes are stored column by column.
        #[serde(default)]
        by_column: bool,
    },
    /// A CSV file with the paths of images, or with their pixels.
    Csv(CsvFile),
    /// PASCAL VOC: a list of images per class, and a directory of images.
    Voc {
        /// The directory with `ImageSets` and `JPEGImages`.
        path: String,
    },
    /// One or more Parquet files.
    Parquet {
        /// The image column.
        #[serde(default)]
        image: Option<String>,
        /// The label column.
        #[serde(default)]
        label: Option<String>,
        /// The caption column.
        #[serde(default)]
        caption: Option<String>,
    },
}

/// The ground truth of an example.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Truth {
    /// A label id.
    Id(i64),
    /// The name of the class in the data.
    Name(String),
    /// Label ids of a multi-label set.
    Ids {
        present: Vec<i64>,
        /// Not annotated: the example does not count for these classes.
        ignored: Vec<i64>,
        /// The number of classes, if the data say it: the length of a vector of labels.
        of: Option<usize>,
    },
    Captions(Vec<String>),
}

/// One example, as stored in the files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    /// Its location, for messages: `test/0.tar/000123`.
    pub place: String,
    /// The path of the image.
    pub path: String,
    /// Encoded bytes.
    pub image: Result<Vec<u8>, Reject>,
    pub truth: Result<Truth, Reject>,
}

/// Receives the examples one by one.
pub type Take<'a> = &'a mut dyn FnMut(Example) -> Result<(), EvalError>;

/// The opened files of a set.
pub trait SetFiles: Debug + Send + Sync {
    /// The labels of the parts; each part is read and committed as one.
    fn parts(&self) -> Vec<String>;

    /// The names of the classes in the data, by label id.
    fn names(&self) -> Option<Vec<String>> {
        None
    }

    /// The prompt templates in the data.
    fn templates(&self) -> Option<Vec<String>> {
        None
    }

    /// Reads the examples of one part.
    ///
    /// # Errors
    /// I/O, and the errors of `take`. A damaged example is passed on as a reject.
    fn read(&self, part: usize, limits: &Limits, take: Take<'_>) -> Result<(), EvalError>;
}

/// Opens the data of a set at `root`: in the declared layout if its files exist, otherwise in the
/// detected one (a dataset of a run, tar files of CLIP_benchmark, Parquet files of the Hugging Face
/// Hub, one directory per class).
///
/// # Errors
/// The layout is unknown (the hint says what was expected), or the files cannot be opened.
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
    // CLIP_benchmark calls the evaluated split `test`, whatever the authors call it.
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
    let why = format!("no readable files of the split `{split}` in {}", root.display());
    let hint = format!(
        "expected Parquet files, {split}/nshards.txt with tar files, or one directory of images per class. {}",
        set.how_to_get
    );
    Err(EvalError::set(&set.name, why, Some(hint)))
}

/// Reads a whole file; a file beyond the byte limit is a reject.
fn bytes_of(path: &Path, limits: &Limits) -> Result<Result<Vec<u8>, Reject>, EvalError> {
    Ok(match samples::read_part(path, limits.max_bytes)? {
        Some(bytes) => bytes.map_err(|(code, detail)| Reject { code, detail }),
        None => Err(Reject { code: crate::images::NO_IMAGE, detail: "the file is not there".into() }),
    })
}

/// An I/O error with the path.
fn io(path: &Path) -> impl Fn(std::io::Error) -> EvalError {
    let path: PathBuf = path.to_path_buf();
    move |error| RunError::io(&path, error).into()
}

/// Opens a file and reads it through its compression.
fn unpacked(path: &Path) -> Result<Box<dyn Read>, EvalError> {
    Ok(Box::new(twinlens_dataset::unpack::open(path)?))
}

/// Fills the buffer; returns the number of bytes read, fewer at the end of the file or where a
/// compressed file is damaged.
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

/// The lines of a text file that is optional, trimmed and without blank lines at the end; `None` if
/// it does not exist or is blank. Positions in it count, so a blank line between others is an
/// error.
fn lines_of(path: &Path) -> Result<Option<Vec<String>>, EvalError> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io(path)(error)),
    };
    let text = std::str::from_utf8(&bytes).map_err(|error| {
        let line = bytes[..error.valid_up_to()].iter().filter(|byte| **byte == b'\n').count();
        line_error(path, line, "is not UTF-8", "save the file as UTF-8")
    })?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let lines: Vec<String> = text.trim_end().lines().map(|line| line.trim().to_string()).collect();
    match lines.iter().position(String::is_empty) {
        Some(line) => Err(line_error(path, line, "is blank", "remove the line, or fill it")),
        None => Ok(Some(lines).filter(|lines| !lines.is_empty())),
    }
}

/// An error about a line of a file of the set, counted from 0.
fn line_error(path: &Path, line: usize, problem: &str, hint: &str) -> EvalError {
    let message = format!("{}:{}: this line {problem}", path.display(), line + 1);
    RunError::user_with_hint(message, hint).into()
}

/// The file name.
fn short(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}
