//! Decodes encoded bytes to upright 8-bit sRGB, by the rules in the crate's documentation.

use std::io::Cursor;

use image::codecs::{png::PngDecoder, webp::WebPDecoder};
use image::metadata::Orientation;
use image::{DynamicImage, ExtendedColorType, ImageDecoder, RgbImage};

use crate::colour::to_srgb;
use crate::error::ImageError;
use crate::guard::catch_decoder_panic;
use crate::header::{Header, probe};
use crate::limits::Limits;
use crate::raw::{ColourModel, RawImage};
use crate::rgb::Rgb;
use crate::sniff::Format;
use crate::{exif, jpeg};

/// A decoded image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DecodedImage {
    /// The pixels, upright.
    pub rgb: Rgb,
    /// Upright width as encoded, in pixels; `rgb` may be smaller ([`decode_reduced`]).
    pub original_width: u32,
    /// Upright height as encoded, in pixels.
    pub original_height: u32,
    /// The format of the encoded bytes.
    pub format: Format,
    /// Whether `rgb` was rotated or flipped as EXIF asks.
    pub reoriented: bool,
    /// EXIF tags as a JSON object of strings, if there are any.
    pub exif: Option<String>,
}

/// Decodes an image after checking its header against the limits ([`probe`]).
///
/// # Errors
/// Those of [`probe`]; then `unsupported_format` (a feature that the decoder does not support),
/// `decode_failed`, `decoder_panicked` (see [`crate::silence_decoder_panics`]).
pub fn decode(bytes: &[u8], limits: &Limits) -> Result<DecodedImage, ImageError> {
    decode_reduced(bytes, limits, 1)
}

/// Like [`decode`], but at 1/`by` of the size if the decoder supports it: JPEG in builds with the
/// feature `turbojpeg`. `by` is 1, 2, 4 or 8; sides are rounded up.
///
/// # Errors
/// Those of [`decode`].
pub fn decode_reduced(bytes: &[u8], limits: &Limits, by: u32) -> Result<DecodedImage, ImageError> {
    decode_probed(bytes, &probe(bytes, limits)?, by)
}

/// Decodes an image that [`probe`] accepted.
pub(crate) fn decode_probed(bytes: &[u8], header: &Header, by: u32) -> Result<DecodedImage, ImageError> {
    catch_decoder_panic(header.format, || {
        let raw = match header.format {
            Format::Png => png(bytes, header)?,
            Format::WebP => webp(bytes, header)?,
            _ => jpeg::decode(bytes, header, by)?,
        };
        finish(raw, header)
    })
}

/// Converts colours to sRGB and turns the image upright.
fn finish(raw: RawImage, header: &Header) -> Result<DecodedImage, ImageError> {
    let pixels = match &raw.icc {
        Some(profile) => to_srgb(raw.pixels, profile, raw.colour_model),
        None => raw.pixels,
    };
    // Damaged metadata must not reject good pixels.
    let orientation = raw.exif.as_deref().and_then(Orientation::from_exif_chunk);
    let orientation = orientation.unwrap_or(Orientation::NoTransforms);
    let reoriented = orientation != Orientation::NoTransforms;
    let (mut width, mut height, mut pixels) = (raw.width, raw.height, pixels);
    let (mut original_width, mut original_height) = (header.width, header.height);
    if reoriented {
        let reason = "the decoder's buffer does not match the size".to_owned();
        let image = RgbImage::from_raw(width, height, pixels)
            .ok_or(ImageError::DecodeFailed { format: header.format, reason })?;
        let mut image = DynamicImage::ImageRgb8(image);
        image.apply_orientation(orientation);
        let image = image.into_rgb8();
        if (image.width(), image.height()) != (width, height) {
            (original_width, original_height) = (header.height, header.width);
        }
        (width, height, pixels) = (image.width(), image.height(), image.into_raw());
    }
    Ok(DecodedImage {
        rgb: Rgb::new(width, height, pixels)?,
        original_width,
        original_height,
        format: header.format,
        reoriented,
        exif: raw.exif.as_deref().and_then(exif::to_json),
    })
}

fn png(bytes: &[u8], header: &Header) -> Result<RawImage, ImageError> {
    let bounds = decoder_limits(header);
    let decoder = PngDecoder::with_limits(Cursor::new(bytes), bounds.clone());
    run(decoder.map_err(|error| decoder_error(header.format, error))?, header, bounds)
}

fn webp(bytes: &[u8], header: &Header) -> Result<RawImage, ImageError> {
    let decoder = WebPDecoder::new(Cursor::new(bytes));
    run(decoder.map_err(|error| decoder_error(header.format, error))?, header, decoder_limits(header))
}

/// Limits for the decoder itself, in case it reads the header differently than [`probe`].
fn decoder_limits(header: &Header) -> image::Limits {
    let mut limits = image::Limits::default();
    limits.max_image_width = Some(header.width);
    limits.max_image_height = Some(header.height);
    // Text and profile chunks also count against it.
    limits.max_alloc = Some(header.decode_bytes.saturating_add(16 << 20));
    limits
}

fn run(
    mut decoder: impl ImageDecoder,
    header: &Header,
    bounds: image::Limits,
) -> Result<RawImage, ImageError> {
    let failed = |error| decoder_error(header.format, error);
    if decoder.dimensions() != (header.width, header.height) {
        let reason = format!("the decoder sees {:?} pixels, the header says otherwise", decoder.dimensions());
        return Err(ImageError::DecodeFailed { format: header.format, reason });
    }
    decoder.set_limits(bounds).map_err(failed)?;
    // Damaged metadata must not reject good pixels.
    let (icc, exif) = (decoder.icc_profile().ok().flatten(), decoder.exif_metadata().ok().flatten());
    let colour_model = match decoder.original_color_type() {
        ExtendedColorType::L1
        | ExtendedColorType::L2
        | ExtendedColorType::L4
        | ExtendedColorType::L8
        | ExtendedColorType::L16
        | ExtendedColorType::La8
        | ExtendedColorType::La16 => ColourModel::Grey,
        _ => ColourModel::Rgb,
    };
    let pixels = flatten(DynamicImage::from_decoder(decoder).map_err(failed)?);
    Ok(RawImage { width: header.width, height: header.height, pixels, colour_model, icc, exif })
}

/// Converts any colour type to RGB8, compositing alpha onto white.
fn flatten(image: DynamicImage) -> Vec<u8> {
    if !image.color().has_alpha() {
        return image.into_rgb8().into_raw();
    }
    let mut pixels = image.into_rgba8().into_raw();
    // In place: pixel i is read from 4i..4i+4 before it is written to 3i..3i+3.
    for i in 0..pixels.len() / 4 {
        let alpha = u32::from(pixels[4 * i + 3]);
        for channel in 0..3 {
            let value = u32::from(pixels[4 * i + channel]);
            pixels[3 * i + channel] = ((value * alpha + 255 * (255 - alpha) + 127) / 255) as u8;
        }
    }
    pixels.truncate(pixels.len() / 4 * 3);
    pixels
}

fn decoder_error(format: Format, error: image::ImageError) -> ImageError {
    match error {
        image::ImageError::Unsupported(error) => ImageError::UnsupportedFormat(error.to_string()),
        error => ImageError::DecodeFailed { format, reason: error.to_string() },
    }
}
