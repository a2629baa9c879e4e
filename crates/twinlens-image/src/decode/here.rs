//! Decodes in this process.

use image::metadata::Orientation;
use image::{DynamicImage, RgbImage};

use super::{avif, formats, tiff};
use crate::colour::to_srgb;
use crate::error::ImageError;
use crate::guard::catch_decoder_panic;
use crate::header::Header;
use crate::modes::ImageModes;
use crate::raw::RawImage;
use crate::rgb::Rgb;
use crate::sniff::Format;
use crate::watch::watched;
use crate::{exif, jpeg};

/// A decoded image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DecodedImage {
    /// The pixels, upright unless decoded by [`ImageModes::OpenClip`].
    pub rgb: Rgb,
    /// Width as encoded, in pixels, after orientation; `rgb` may be smaller
    /// ([`crate::decode_reduced`]).
    pub original_width: u32,
    /// Height as encoded, in pixels, after orientation.
    pub original_height: u32,
    /// The format of the encoded bytes.
    pub format: Format,
    /// Whether `rgb` was rotated or flipped as EXIF asks.
    pub reoriented: bool,
    /// EXIF tags as a JSON object of strings, if there are any.
    pub exif: Option<String>,
}

/// Decodes an image that [`crate::probe`] accepted.
pub(crate) fn decode_here(
    bytes: &[u8],
    header: &Header,
    modes: ImageModes,
    by: u32,
) -> Result<DecodedImage, ImageError> {
    let decode = || {
        let raw = match header.format {
            Format::Jpeg => jpeg::decode(bytes, header, by)?,
            Format::Tiff => tiff::decode(bytes, header, modes)?,
            Format::Avif => avif::decode(bytes, header, modes)?,
            _ => formats::decode(bytes, header, modes)?,
        };
        finish(raw, header, modes)
    };
    watched(bytes, || catch_decoder_panic(header.format, decode))
}

/// Converts colours to sRGB and turns the image upright, if the rule says so.
fn finish(raw: RawImage, header: &Header, modes: ImageModes) -> Result<DecodedImage, ImageError> {
    let (white, exif) = (modes == ImageModes::White, raw.exif.as_deref().and_then(exif::to_json));
    let pixels = match &raw.icc {
        Some(profile) if white => to_srgb(raw.pixels, profile, raw.colour_model),
        _ => raw.pixels,
    };
    // Pillow turns TIFF as it loads it.
    let upright = white || header.format == Format::Tiff;
    let reoriented = upright && raw.orientation != Orientation::NoTransforms;
    let (mut width, mut height, mut pixels) = (raw.width, raw.height, pixels);
    let (mut original_width, mut original_height) = (header.width, header.height);
    if reoriented {
        let reason = "the decoder's buffer does not match the size".to_owned();
        let image = RgbImage::from_raw(width, height, pixels)
            .ok_or(ImageError::DecodeFailed { format: header.format, reason })?;
        let mut image = DynamicImage::ImageRgb8(image);
        image.apply_orientation(raw.orientation);
        let image = image.into_rgb8();
        if (image.width(), image.height()) != (width, height) {
            (original_width, original_height) = (header.height, header.width);
        }
        (width, height, pixels) = (image.width(), image.height(), image.into_raw());
    }
    let rgb = Rgb::new(width, height, pixels)?;
    Ok(DecodedImage { rgb, original_width, original_height, format: header.format, reoriented, exif })
}
