//! The image processing of the fetch stage: one function from a body to the stored image.

use crate::decode::decode_probed;
use crate::encode::{Encode, Encoding, encode};
use crate::error::ImageError;
use crate::hash::{phash, sha256_hex};
use crate::header::probe;
use crate::limits::Limits;
use crate::modes::ImageModes;
use crate::resize::Resize;
use crate::sniff::Format;

/// An image ready to be stored, and its metadata.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessedImage {
    /// The bytes to store.
    pub bytes: Vec<u8>,
    /// The format of `bytes`.
    pub format: Format,
    /// Width of the stored image, in pixels.
    pub width: u32,
    /// Height of the stored image, in pixels.
    pub height: u32,
    /// Width of the image as fetched, upright, in pixels.
    pub original_width: u32,
    /// Height of the image as fetched, upright, in pixels.
    pub original_height: u32,
    /// EXIF tags as a JSON object of strings, if there were any.
    pub exif: Option<String>,
    /// SHA-256 of the **original** body, as in img2dataset: it verifies what a URL serves, not the
    /// stored bytes.
    pub sha256: String,
    /// [Perceptual hash](phash) of the upright image as fetched. If decoding is
    /// [reduced](Resize::reduction), of the reduced image, which changes few or no bits.
    pub phash: i64,
}

/// Decodes, resizes, encodes and hashes one image.
///
/// # Errors
/// Any [`ImageError`]; checks are made in the order of [`crate::CODES`].
pub fn process(
    bytes: &[u8],
    limits: &Limits,
    resize: &Resize,
    format: &Encode,
) -> Result<ProcessedImage, ImageError> {
    let header = probe(bytes, limits)?;
    let decoded =
        decode_probed(bytes, &header, ImageModes::White, resize.reduction(header.width, header.height))?;
    let (original_width, original_height) = (decoded.original_width, decoded.original_height);
    let phash = phash(&decoded.rgb)?;
    let resized = resize.apply(&decoded.rgb, (original_width, original_height), limits.max_pixels)?;
    let keep = format.format == Encoding::Keep && resized.is_none() && !decoded.reoriented;
    let stored = resized.as_ref().unwrap_or(&decoded.rgb);
    let target = format.target(decoded.format);
    Ok(ProcessedImage {
        bytes: if keep { bytes.to_vec() } else { encode(stored, target, format.quality)? },
        format: target,
        width: stored.width(),
        height: stored.height(),
        original_width,
        original_height,
        sha256: sha256_hex(bytes),
        phash,
        exif: decoded.exif,
    })
}
