//! The arguments of the commands that take data without a pipeline.

use std::path::PathBuf;

use clap::Args;

use super::values::RowFormat;

/// Writes a pipeline for your data, which runs as it is
///
/// Looks at what there is: a table (CSV, TSV, JSONL, Parquet) of URLs or paths and captions;
/// Parquet files with images (Hugging Face, img2dataset); tar files (webdataset); images with
/// captions in files of the same name or in metadata.csv; images in a directory per class. Reads a
/// few rows, and writes a pipeline that trains and evaluates a small model on a CPU in minutes. It
/// asks nothing, and overwrites nothing.
#[derive(Debug, Args)]
pub(crate) struct InitArgs {
    /// A file, a directory, or a dataset of the Hugging Face Hub (hf://datasets/ORG/NAME)
    pub data: String,
    /// The column of captions, or their name in JSON files [default: the usual names]
    #[arg(long, value_name = "COLUMN")]
    pub caption: Option<String>,
    /// The column of images in Parquet files [default: the usual names]
    #[arg(long, value_name = "COLUMN")]
    pub image: Option<String>,
    /// The pipeline file to write, or `-` for stdout [default: NAME.toml, after the data]
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// Shows the first rows of a dataset, or its images as an HTML page
#[derive(Debug, Args)]
pub(crate) struct ShowArgs {
    /// A dataset (runs/NAME/STAGE, a Parquet file, a pattern of Parquet files), or a run directory,
    /// whose last dataset with images is shown
    pub dataset: String,
    /// Write a page with the images to this file
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Number of rows
    #[arg(short = 'n', long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=5000))]
    pub rows: u16,
    /// Which rows, as a SQL predicate: "caption like '%red%'" [default: all]
    #[arg(long = "where", value_name = "SQL")]
    pub predicate: Option<String>,
    /// The column of images [default: image, or the first one]
    #[arg(long, value_name = "COLUMN")]
    pub image: Option<String>,
    /// Output format of rows
    #[arg(long, value_name = "FORMAT", default_value = "table", conflicts_with = "output")]
    pub format: RowFormat,
}
