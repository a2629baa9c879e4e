//! What the fetch stage does with a body: one function from bytes to what is stored.

use crate::{Encode, Encoding, Format, ImageError, Limits, Resize, decode, encode, phash, sha256_hex};

/// An image ready to be stored, and what is recorded about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Processed {
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
    /// SHA-256 of the **original** body, as in img2dataset: it verifies what a URL serves, not what we stored.
    pub sha256: String,
    /// [Perceptual hash](phash) of the image as fetched, upright: independent of the resize option.
    pub phash: i64,
}

/// Decodes, resizes, encodes and hashes one image.
///
/// # Errors
/// Any [`ImageError`]; those of the bytes come in the order of [`crate::CODES`].
pub fn process(
    bytes: &[u8],
    limits: &Limits,
    resize: &Resize,
    format: &Encode,
) -> Result<Processed, ImageError> {
    let decoded = decode(bytes, limits)?;
    let original = &decoded.rgb;
    let phash = phash(original)?;
    let resized = resize.apply(original, limits.max_pixels)?;
    let keep = format.format == Encoding::Keep && resized.is_none() && !decoded.turned;
    let stored = resized.as_ref().unwrap_or(original);
    let target = format.target(decoded.format);
    Ok(Processed {
        bytes: if keep { bytes.to_vec() } else { encode(stored, target, format.quality)? },
        format: target,
        width: stored.width(),
        height: stored.height(),
        original_width: original.width(),
        original_height: original.height(),
        sha256: sha256_hex(bytes),
        phash,
        exif: decoded.exif,
    })
}
