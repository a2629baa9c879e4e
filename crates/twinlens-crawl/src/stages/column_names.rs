//! Usual names of columns and of values in JSON, in the lists of others.

/// Usual names of the URL column, the likeliest first: img2dataset, DataComp, COYO, CC2 (`url`),
/// LAION (`URL`), Conceptual Captions on the hub, SBU, RedCaps, WIT (`image_url`), YFCC, Unsplash.
pub(super) const URLS: &[&str] = &[
    "url",
    "URL",
    "Url",
    "image_url",
    "IMAGE_URL",
    "img_url",
    "image_link",
    "image_src",
    "photo_image_url",
    "downloadurl",
    "image",
];
/// Usual names of a column of paths, which counts where there is no URL: Hugging Face's imagefolder
/// (`file_name`), open_clip (`filepath`).
pub(super) const PATHS: &[&str] =
    &["image_path", "img_path", "file_name", "filename", "filepath", "file_path", "path"];
/// Usual names of the caption column, the likeliest first: img2dataset (`caption`), LAION
/// (`TEXT`), DataComp, COYO (`text`), CC2 (`alt`), WIT (`caption_reference_description`).
pub const CAPTIONS: &[&str] = &[
    "caption",
    "CAPTION",
    "Caption",
    "TEXT",
    "text",
    "alt",
    "ALT",
    "alt_text",
    "caption_reference_description",
    "raw_caption",
    "title",
    "description",
];
