//! A page of images with texts, without a run.

use datafusion::arrow::array::{Array, AsArray, RecordBatch};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::DataType;
use twinlens_dataset::ImageColumn;

use super::html;
use super::model::{Block, Picture, Report, Section};
use super::thumbnail::thumbnail;
use crate::errors::Failure;
use crate::text::truncated;

/// Texts are cut to this many characters.
const TEXT_CHARS: usize = 120;

/// The images in the first column, each with the first text in the others.
pub(crate) fn pictures_of(batch: &RecordBatch) -> Vec<GalleryPicture> {
    let texts: Vec<_> =
        batch.columns().iter().skip(1).filter_map(|column| cast(column, &DataType::Utf8).ok()).collect();
    let Ok(images) = ImageColumn::new(batch.column(0)) else { return Vec::new() };
    let picture = |row: usize| {
        let text = texts.iter().map(|column| column.as_string::<i32>()).find(|column| column.is_valid(row));
        let text = text.map(|column| column.value(row).to_string()).unwrap_or_default();
        Some(GalleryPicture(Picture {
            jpeg: thumbnail(images.get(row)?)?,
            alt: if text.is_empty() { "An image without a text".into() } else { text.clone() },
            is_correct: None,
            text: truncated(&text, TEXT_CHARS),
        }))
    };
    (0..batch.num_rows()).filter_map(picture).collect()
}

/// An image of a page.
pub(crate) struct GalleryPicture(Picture);

/// A page of images.
pub(crate) fn pictures_page(
    title: &str,
    what: String,
    pictures: Vec<GalleryPicture>,
) -> Result<String, Failure> {
    let pictures = pictures.into_iter().map(|picture| picture.0).collect();
    let section =
        Section { id: "images", title: "Images", blocks: vec![Block::Text(what), Block::Pictures(pictures)] };
    html::page(&Report { title: title.into(), summary: Vec::new(), sections: vec![section] })
}
