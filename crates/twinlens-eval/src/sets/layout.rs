//! The layout of a set's files, as its authors published them.

use serde::Deserialize;

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

/// A CSV file with a header.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CsvFile {
    /// The file, optionally `.gz`.
    pub file: String,
    /// The column with the path of the image; if `side` is given, with its grey values as numbers
    /// separated by spaces.
    pub image: String,
    /// The column with the label: an integer, or the name of the class in the data.
    pub label: String,
    /// The directory that the paths are relative to.
    #[serde(default)]
    pub folder: String,
    /// Width and height in pixels of images stored in the file.
    #[serde(default)]
    pub side: Option<u32>,
    /// The column with the split of each line.
    #[serde(default)]
    pub part: Option<String>,
    /// The value of `part` in the lines to read.
    #[serde(default)]
    pub part_is: Option<String>,
    /// The separator of the columns. [default: `,`]
    #[serde(default = "comma")]
    pub delimiter: char,
    /// The label of the first class, if labels are integers.
    #[serde(default)]
    pub first_label: i64,
}

fn comma() -> char {
    ','
}
